"""Folders in, folders out: written beside their place, renamed into it, and complete once ``manifest.json`` is there.

A folder with a manifest is complete and is never rewritten silently; one that carries our marker and no manifest is
a crash and may be replaced; anything else belongs to the user and is left alone. One process at a time writes a
folder in place: it holds a lock on the marker, which ends with it. Knows nothing of what is stored.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import limbeck
from limbeck.digests import MANIFEST, MARKER, file_digest, is_complete, read_sealed, sealed_text, unsealed
from limbeck.errors import FolderError
from limbeck.leftovers import clean, left_over, restore, set_aside, sibling, sweep
from limbeck.locks import lock, refuse_locked, unlock
from limbeck.records import json_bytes, put

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "numpy", "scipy", "math-verify", "pyarrow")


@contextmanager
def publish(
    out: Path | str, *, overwrite: bool = False, kind: str = "", facts: MutableMapping[str, Any] | None = None
) -> Iterator[Path]:
    """A temporary sibling to write into; on a clean exit it gets its manifest and takes the place of ``out``.

    On an exception the sibling is removed and ``out`` stays what it was.

    Args:
        out: the folder to make.
        overwrite: replace a complete folder of ours.
        kind: what the folder holds ("rollouts", "run", ...), for :func:`read_manifest` to check.
        facts: put into the manifest; read on exit, so the body may still add to it.

    Raises:
        FolderError: ``out`` is complete and ``overwrite`` is off, holds files that are not ours, or is being
            written by another process.
    """
    out = Path(out)
    refuse_existing(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    clean(out)
    temporary = sibling(out, "partial")
    temporary.mkdir()
    try:
        (temporary / MARKER).touch()
        yield temporary
        seal(temporary, kind=kind, facts=facts)
        _replace(temporary, out, overwrite=overwrite)
        clean(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def claim(out: Path | str, *, overwrite: bool = False) -> Path:
    """Open a folder that is written in place and survives a crash, to be resumed; close it with :func:`seal`.

    What an unfinished folder of ours already holds is kept. A complete one that is overwritten stands aside until
    the new one is sealed. The folder is this process's alone until then, or until the process ends.

    Raises:
        FolderError: as in :func:`publish`.
    """
    out = Path(out)
    refuse_existing(out, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    lock(out)
    if is_complete(out):
        try:
            refuse_existing(out, overwrite=overwrite)  # somebody may have finished it before the lock was ours
        except FolderError:
            unlock(out)
            raise
        set_aside(out)
        out.mkdir()
        lock(out)
    sweep(out)
    return out


def seal(
    folder: Path | str, *, kind: str = "", facts: Mapping[str, Any] | None = None, apart: Collection[str] = ()
) -> None:
    """Write the manifest: digests of every file and its own, versions, revision, host and the given facts. Last act of a verb.

    Ends the claim on the folder, and what it replaces goes. Under ``files`` the facts may have digests that are known
    already; these files are not read again. Files ``apart`` have none, because others go on writing to them.
    """
    folder, facts = Path(folder), dict(facts or {})
    known = facts.pop("files", {})
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, MARKER))
    names = {name: p for p in files if (name := p.relative_to(folder).as_posix()) not in apart}
    manifest = {
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "revision": revision(),
        "host": host(),
        "files": {name: known.get(name) or file_digest(p) for name, p in names.items()},
        **({"apart": sorted(apart)} if apart else {}),
        **facts,
    }
    put(folder / MANIFEST, manifest_bytes(manifest))
    clean(folder)
    unlock(folder)


def amend(folder: Path | str, *names: str) -> None:
    """Put files into the manifest of a complete folder that a later verb wrote there anew; a folder without one stays so.

    Args:
        folder: the folder.
        names: of files in it, or of folders in it, whose files these are all.

    Raises:
        ProvenanceError: the manifest is damaged.
    """
    folder = Path(folder)
    manifest = read_sealed(folder / MANIFEST)
    if manifest is None:
        return
    written = [file for name in names for file in (folder / name, *(folder / name).rglob("*")) if file.is_file()]
    others = {
        n: d for n, d in manifest["files"].items() if not any(n == name or n.startswith(f"{name}/") for name in names)
    }
    files = {**others, **{file.relative_to(folder).as_posix(): file_digest(file) for file in written}}
    put(folder / MANIFEST, manifest_bytes({**manifest, "files": files}))


def refuse_existing(out: Path | str, *, overwrite: bool = False) -> None:
    """Raise early, before the work, what :func:`publish` would raise; a folder that a crash left aside is back first."""
    _refuse_url(out)
    out = Path(out)
    restore(out)
    _refuse_unwritable(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise FolderError(f"--out must be a folder, received the file {out}. Give another --out.")
    if is_complete(out):
        for former in left_over(out, "old"):  # who finished it may have died before that went
            shutil.rmtree(former, ignore_errors=True)
        if not overwrite:
            raise FolderError(
                f"--out must be new, received {out}, which is complete. "
                "Pass --overwrite to replace it or another --out."
            )
    elif any(out.iterdir()) and not (out / MARKER).exists():
        raise FolderError(
            f"--out must be new or empty, received {out}, which holds files that limbeck did not write. "
            "Give another --out."
        )
    refuse_locked(out)


def read_manifest(path: Path | str, kind: str = "") -> dict[str, Any]:
    """The manifest of a complete folder, of this kind when one is named.

    Raises:
        FolderError: no folder, an unfinished one, or one of another kind.
        ProvenanceError: the manifest is damaged.
    """
    _refuse_url(path)
    path = Path(path)
    if path.is_file():
        way = f"`limbeck import {path} --model MODEL --out DIR` makes one" if kind == "rollouts" else "Give its folder"
        raise FolderError(f"an input must be a folder that a verb wrote, received the file {path}. {way}.")
    if not path.is_dir():
        raise FolderError(f"an input must be an existing folder, received {path}. Check the path.")
    manifest = read_sealed(path / MANIFEST)
    if manifest is None:
        raise FolderError(
            f"an input folder must be complete (have a {MANIFEST}), received {path}. "
            "Run the step that writes it again; it was interrupted, or this is another folder."
        )
    if kind and manifest.get("kind") != kind:
        raise FolderError(
            f"{path} must be a {kind} folder, received one of kind {manifest.get('kind')!r}. "
            "Check the order of the paths."
        )
    return manifest


def _refuse_unwritable(out: Path) -> None:
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise FolderError(
            f"--out must be a place to write to, received {out}, and {there} is read-only to this user. Give another --out."
        )


def _refuse_url(path: Path | str) -> None:
    """A URL is no path, and ``Path`` would make a local folder ``s3:`` of it."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)) and not Path(path).exists():
        raise FolderError(
            f"a folder must be given by its path here, received {path}, which reads as a URL. The command line takes URLs; "
            "from Python, limbeck.storage reads (fetch) and writes (publish) them."
        )


def stated(manifest: Mapping[str, Any], path: Path | str, **kinds: type) -> None:
    """Refuse a manifest without these facts, or with one of another type.

    Raises:
        FolderError: names the fact.
    """
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            raise FolderError(
                f"{Path(path) / MANIFEST} must state {name} ({kind.__name__}), received "
                f"{type(manifest.get(name)).__name__}. Run the step that writes the folder again."
            )


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The text of a manifest, its own digest in it."""
    return sealed_text(json_bytes({**manifest, "self": unsealed()}))


@cache
def versions() -> dict[str, str]:
    """limbeck, Python and the libraries a result may depend on; read from metadata, nothing is imported."""
    out = {"limbeck": limbeck.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def host() -> dict[str, Any]:
    """The machine by an allow-list; never the environment, a user or a host name."""
    return {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count()}


@cache
def revision() -> str:
    """Git commit of a source checkout, with ``-dirty`` when files differ; empty for an installed package."""
    root = Path(limbeck.__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""


def _replace(temporary: Path, out: Path, *, overwrite: bool) -> None:
    refuse_existing(out, overwrite=overwrite)  # somebody may have finished it meanwhile
    if out.exists():
        set_aside(out)
    os.replace(temporary, out)
    unlock(out)  # what this process may have claimed there is gone
