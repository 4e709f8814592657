"""Folders behind URLs, where nothing can be renamed: read by a checked local copy, published file by file, manifest last.

A reader sees either no manifest or a complete folder. Whatever fsspec speaks will do: ``s3://``, ``gs://``, ``sftp://``,
``file://``. All other code works on local folders and knows nothing of this.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.callbacks import Callback

from limbeck.addresses import cache_root, checked, is_url, key_of, place
from limbeck.digests import MANIFEST, MARKER, checked_manifest, file_digest, is_complete, known_digest
from limbeck.errors import DataError, FolderError, LimbeckError, ServerError
from limbeck.folders import manifest_bytes, read_manifest, seal
from limbeck.progress import bar
from limbeck.records import read_json, write_json

# These have no folders, and makedirs would make a bucket.
BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss"}
STEPS = "steps/"  # of a study: they stay where they were made, to be found again by the next one
DEPTH = 4  # run/kept/step-000010/adapter: a published folder and the parts of it that a verb takes
LOCK, STARTED = "lock", "started.json"  # beside a folder below the cache


def local(name: str | os.PathLike[str]) -> Path:
    """A folder as it is named, or the local copy of one behind a URL."""
    return fetch(os.fspath(name)) if is_url(name) else Path(name)


def fetch(url: str) -> Path:
    """The local copy of a complete folder, or of what lies in one: each file came once and has its manifest's digest.

    Copies are kept below the cache by the digest of their manifest. An interrupted copy is continued, and what was damaged
    in one since is fetched again.

    Args:
        url: of the folder, or of a part of it: a run's ``model``, a step that it kept.

    Raises:
        ConfigError: a URL that is refused, see :func:`limbeck.addresses.checked`.
        FolderError: no complete folder is there.
        DataError: a file is not what the manifest says.
        ProvenanceError: the manifest is damaged.
        ServerError: the storage does not answer, or its package is not installed.
    """
    url = checked(url)
    with _talking(url):
        written, folder = next(_manifests(url), (b"", url))
    if not written:
        raise FolderError(
            f"a URL must lead to a folder that limbeck published (with a {MANIFEST}), received {url}, where there is none. "
            "Publish it, or copy other files, a model's or a data set's, to this machine and give their path."
        )
    checked_manifest(written, f"{folder}/{MANIFEST}")
    copy, files = place("in", key_of(written), folder), json.loads(written)["files"]
    part = copy / url.removeprefix(folder).lstrip("/")
    with _locked(copy, folder, wait=True):
        _drop_damaged(copy, part, written, files)
        if not is_complete(copy):
            _fetch_files(folder, files, copy)
            _put_in_place(copy / MANIFEST, lambda path: path.write_bytes(written))
    if not part.exists():
        raise FolderError(
            f"{url} must be in the folder {folder}, received one that holds {', '.join(files):.200}. Name one."
        )
    return part


def publish(folder: Path, url: str, *, overwrite: bool = False) -> None:
    """Write a complete local folder to a URL: a marker that it is ours, its files, and the manifest last.

    Of a study the steps stay here, and the published manifest does not name them. Where another folder is replaced, its
    manifest goes first, then the files that the new one does not have.

    Raises:
        ConfigError: a URL that is refused, see :func:`limbeck.addresses.checked`.
        FolderError: ``folder`` is not complete, or ``url`` is and ``overwrite`` is off, or holds files that are not ours.
        ServerError: the storage does not answer, or its package is not installed.
    """
    url = checked(url, written=True)
    whole = read_manifest(folder)
    files = {
        name: digest
        for name, digest in whole["files"].items()
        if whole["kind"] != "study" or not name.startswith(STEPS)
    }
    manifest = (
        (folder / MANIFEST).read_bytes() if files == whole["files"] else manifest_bytes({**whole, "files": files})
    )
    former = _refuse_existing(url, overwrite=overwrite)
    with _talking(url), bar("publish", len(files)) as advance:
        fs, root = _open(url)
        if former:
            fs.rm_file(f"{root}/{MANIFEST}")
        _mark(fs, root)
        for name in (former or {}).get("files", {}).keys() - files.keys():
            with suppress(FileNotFoundError):
                fs.rm_file(f"{root}/{_inside(name, url)}")
        for name in files:
            with _shares(advance) as callback:
                _make_room(fs, f"{root}/{name}")
                fs.put_file(str(folder / name), f"{root}/{name}", callback=callback)
        fs.pipe_file(f"{root}/{MANIFEST}", manifest)


def through(url: str, call: str, write: Callable[[Path], object], *, overwrite: bool = False) -> str:
    """Have a folder written here and publish it; afterwards it serves as the copy of what is there.

    The folder outlives a crash: the same call goes on where it was, or publishes what it had finished.

    Args:
        url: where the folder goes.
        call: what is asked for, in whatever words; another call does not publish what this one has finished.
        write: makes the folder complete, or fills it with a report; not called where only the publication is left.
        overwrite: replace a complete folder there.

    Returns:
        The URL of what is to be looked at: the folder, or the page in it.

    Raises:
        ConfigError, FolderError, ServerError: as :func:`publish`, before any work.
    """
    url, folder, started = checked(url, written=True), working(url), {"call": key_of(call)}
    with _locked(folder, url, wait=False) as beside:
        _refuse_existing(url, overwrite=overwrite)
        waits = is_complete(folder) and (beside / STARTED).is_file()
        same = waits and read_json(beside / STARTED) == started
        if waits and not same and not overwrite:
            raise FolderError(
                f"the result of another command waits to be published to {url}. Run that command again to publish it, pass "
                "--overwrite to drop it, or give another --out."
            )
        if not same:
            with _talking(url):
                _mark(*_open(url))  # that nothing can be written there is better known before the work than after it
            _reopen(folder)
            write_json(beside / STARTED, started)
            write(folder)
        if not is_complete(folder):
            seal(folder, kind="report", facts={"report": "report.html"})
        publish(folder, url, overwrite=overwrite)
        (beside / STARTED).unlink()
        page = read_manifest(folder).get("report")
        _keep_as_copy(folder, url)
    return f"{url}/{page}" if page else url


def working(url: str) -> Path:
    """Where a verb writes what goes to this URL."""
    return place("out", key_of(checked(url)), checked(url))


def _reopen(folder: Path) -> None:
    """Nothing finished may stand where another call begins; the steps of a study are used again."""
    if not is_complete(folder):
        return
    study = read_manifest(folder)["kind"] == "study"
    (folder / MANIFEST).unlink()
    if not study:
        shutil.rmtree(folder)


def _keep_as_copy(folder: Path, url: str) -> None:
    """Spares the next verb a download; a study stays, so that its steps are found again."""
    if read_manifest(folder)["kind"] != "study":
        copy = place("in", key_of((folder / MANIFEST).read_bytes()), url)
        with _locked(copy, url, wait=True):
            if is_complete(copy):  # the same manifest, the same files
                shutil.rmtree(folder)
                return
            shutil.rmtree(copy, ignore_errors=True)
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, copy)


def _refuse_existing(url: str, *, overwrite: bool) -> dict[str, Any] | None:
    """What is complete there, if it may be replaced; None where nothing is, or what an interrupted publication left."""
    with _talking(url):
        fs, root = _open(url)
        manifest, ours = _parsed(_read(fs, f"{root}/{MANIFEST}")), _read(fs, f"{root}/{MARKER}") is not None
        there = manifest is not None or ours or _anything(fs, root)
    if manifest and not overwrite:
        raise FolderError(
            f"--out must be new, received {url}, which is complete. "
            "Pass --overwrite, where the command has it, to replace it, or give another --out."
        )
    if there and not manifest and not ours:
        raise FolderError(
            f"--out must be new or empty, received {url}, which holds files that limbeck did not write. Give another --out."
        )
    return manifest


def _manifests(url: str) -> Iterator[tuple[bytes, str]]:
    """The manifests of the folder and of those that it lies in, innermost first, each with the URL of its folder."""
    parts = url.partition("://")[2].split("/")
    for depth in range(min(DEPTH, len(parts))):
        folder = url.rsplit("/", depth)[0]
        fs, root = _open(folder)
        written = _read(fs, f"{root}/{MANIFEST}")
        if written and _parsed(written):
            yield written, folder


def _drop_damaged(copy: Path, part: Path, written: bytes, files: dict[str, str]) -> None:
    """Remove from a copy what is no longer what came, so that it comes again; of its files those that are asked for."""
    if not is_complete(copy):
        return
    asked = {name: copy / name for name in files if (copy / name).is_relative_to(part)}
    damaged = [path for name, path in asked.items() if not path.is_file() or known_digest(path) != files[name]]
    if damaged or (copy / MANIFEST).read_bytes() != written:
        (copy / MANIFEST).unlink()
        for path in damaged:
            path.unlink(missing_ok=True)


def _fetch_files(url: str, files: dict[str, str], copy: Path) -> None:
    with _talking(url):
        fs, root = _open(url)
    with bar("fetch", len(files)) as advance:
        for name, digest in files.items():
            path = copy / _inside(name, url)
            if path.exists():  # from an interrupted copy: it got its name once it was whole
                advance(1)
                continue

            def get(part: Path, name: str = name, digest: str = digest) -> None:
                with _talking(url), _shares(advance) as callback:
                    fs.get_file(f"{root}/{name}", str(part), callback=callback)
                _check(part, digest, f"{url}/{name}")

            _put_in_place(path, get)


def _check(part: Path, digest: str, name: str) -> None:
    found = file_digest(part)
    if found != digest:
        raise DataError(
            f"{name} must have the digest {digest[:12]}... of its manifest, received {found[:12]}... It was changed or damaged "
            "after it was published, or is being replaced now: run again, or publish the folder anew with --overwrite."
        )


def _put_in_place(path: Path, write: Callable[[Path], object]) -> None:
    """The file under its name once it is whole, else not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _inside(name: str, url: str) -> str:
    """A name in a manifest, which a stranger may have written, if it stays inside its folder."""
    if name.startswith("/") or ".." in name.split("/"):
        raise DataError(
            f"files of {url} must lie inside it, received {name!r} in its manifest. Do not trust this folder."
        )
    return name


@contextmanager
def _shares(advance: Callable[[float], None]) -> Iterator[Any]:
    """Tells how much of one file has gone through; all of it at the end."""
    done = 0.0

    def tell(size: int | None, value: int) -> None:
        nonlocal done
        share = min(value / size, 1.0) if size else 0.0
        advance(share - done)
        done = share

    yield Callback(hooks={"tell": tell})
    advance(1.0 - done)


def _open(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, root = fsspec.url_to_fs(url)
    fs.invalidate_cache()  # others write there too
    return fs, root.rstrip("/")


def _read(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    try:
        return fs.cat_file(path)  # type: ignore[return-value]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _mark(fs: fsspec.AbstractFileSystem, root: str) -> None:
    _make_room(fs, f"{root}/{MARKER}")
    fs.pipe_file(f"{root}/{MARKER}", b"")


def _make_room(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """The folder of a file, where a storage has folders."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else {*fs.protocol}
    if not protocols & BUCKETS:
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)


def _anything(fs: fsspec.AbstractFileSystem, root: str) -> bool:
    try:
        return bool(fs.ls(root, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _parsed(written: bytes | None) -> dict[str, Any] | None:
    """A manifest of ours; None for anything else, half of one included."""
    with suppress(ValueError):
        manifest = json.loads(written or b"")
        if isinstance(manifest, dict) and {"kind", "files", "versions"} <= manifest.keys():
            return manifest if isinstance(manifest["files"], dict) else None
    return None


@contextmanager
def _talking(url: str) -> Iterator[None]:
    """What a storage's client may raise, which is anything, as one sentence."""
    protocol = url.partition("://")[0]
    try:
        yield
    except LimbeckError:
        raise
    except ImportError as error:
        raise ServerError(
            f"{protocol}:// needs a package that is not installed: {error}. For s3:// it comes with `pip install 'limbeck[s3]'`."
        ) from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise ServerError(
            f"the storage behind {url} must answer, received {said:.300}. Check the URL, the network and the credentials in the "
            "environment; then run the same command, which goes on where it was."
        ) from error


@contextmanager
def _locked(folder: Path, url: str, *, wait: bool) -> Iterator[Path]:
    """One process at a time works on a folder below the cache; yields where to keep things beside it."""
    beside = folder.parents[len(url.partition("://")[2].split("/"))]
    try:
        beside.mkdir(parents=True, exist_ok=True)
        lock = (beside / LOCK).open("w")
    except OSError as error:
        raise FolderError(
            f"LIMBECK_CACHE must be a folder to write to, received {cache_root()}: {error}. Set it."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderError(
                f"--out must be written by one process at a time: another process of this machine is writing {url}. "
                "Wait for it, or give another --out."
            ) from error
        yield beside
