"""Folders behind URLs: whole or not there, checked on the way back, no secret and no path of this machine in any record."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from limbeck import addresses, digests, folders, records, storage
from limbeck.errors import ConfigError, DataError, FolderError, ProvenanceError, ServerError

URL = "memory://bucket/runs/a"
FILES = {"config.json": "{}", "deep/weights.bin": "w" * 1000, "metrics.jsonl": "1\n2\n"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    return tmp_path / "cache"


def made(folder: Path, files: dict[str, str] = FILES, kind: str = "run", **facts: object) -> Path:
    with folders.publish(folder, overwrite=True, kind=kind, facts=facts) as temporary:
        for name, text in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(text)
    return folder


def stored(url: str = URL) -> list[str]:
    """Names below a URL in the order in which they were written."""
    root = url.removeprefix("memory:/") + "/"
    return [name.removeprefix(root) for name in MemoryFileSystem.store if name.startswith(root)]


def put(name: str, text: str, url: str = URL) -> None:
    MemoryFileSystem().pipe_file(f"{url}/{name}", text.encode())


def test_what_is_published_comes_back(tmp_path, cache):
    folder = made(tmp_path / "a")
    storage.publish(folder, URL)
    assert stored() == [folders.MARKER, *FILES, folders.MANIFEST]  # the marker first, the manifest last
    copy = storage.fetch(f"{URL}/")
    assert copy.name == "a"
    assert copy.is_relative_to(cache)
    assert (copy / folders.MANIFEST).read_bytes() == (folder / folders.MANIFEST).read_bytes()
    assert {name: (copy / name).read_text() for name in FILES} == FILES
    assert storage.local(URL) == copy
    assert storage.local("runs/a") == Path("runs/a")


def test_a_part_of_a_folder_is_in_its_copy(tmp_path):
    storage.publish(made(tmp_path / "a"), URL)
    copy = storage.fetch(URL)
    assert storage.fetch(f"{URL}/deep") == copy / "deep"
    assert addresses.origin(str(copy / "deep")) == f"{URL}/deep"
    with pytest.raises(
        FolderError, match=rf"{URL}/shallow must be in the folder {URL}, received one that holds config.json"
    ):
        storage.fetch(f"{URL}/shallow")


def test_what_was_damaged_in_a_copy_comes_again_and_a_damaged_manifest_is_refused(tmp_path):
    storage.publish(made(tmp_path / "a"), URL)
    copy = storage.fetch(URL)
    for damage in (
        lambda: (copy / "config.json").write_text("{ }"),
        lambda: (copy / "deep/weights.bin").unlink(),
        lambda: (copy / folders.MANIFEST).write_text((copy / folders.MANIFEST).read_text().replace("run", "rum", 1)),
    ):
        damage()
        assert storage.fetch(URL) == copy
        assert {name: (copy / name).read_text() for name in FILES} == FILES
        assert folders.read_manifest(copy, "run")
    put(folders.MANIFEST, (copy / folders.MANIFEST).read_text().replace('"kind": "run"', '"kind": "rum"'))
    with pytest.raises(ProvenanceError, match=rf"{URL}/manifest.json must be as it was written"):
        storage.fetch(URL)


def test_each_file_comes_once(tmp_path):
    storage.publish(made(tmp_path / "a"), URL)
    copy = storage.fetch(URL)
    MemoryFileSystem().rm_file(f"{URL}/metrics.jsonl")
    assert storage.fetch(URL) == copy
    storage.publish(made(tmp_path / "a", {"new": "x"}), URL, overwrite=True)
    assert storage.fetch(URL) != copy  # another manifest, another copy
    assert (copy / "metrics.jsonl").is_file()


def test_a_damaged_file_is_named_and_the_rest_is_kept(tmp_path, cache):
    storage.publish(made(tmp_path / "a"), URL)
    put("metrics.jsonl", "1\n3\n")
    with pytest.raises(DataError, match=rf"^{URL}/metrics\.jsonl must have the digest .* of its manifest, received"):
        storage.fetch(URL)
    assert not list(cache.rglob("metrics.jsonl*"))
    assert not list(cache.rglob("manifest.json"))
    put("metrics.jsonl", FILES["metrics.jsonl"])
    put("config.json", "changed after it had come")
    copy = storage.fetch(URL)
    assert (copy / "config.json").read_text() == FILES["config.json"]
    assert not list(cache.rglob("*.part"))


def test_no_manifest_no_folder(tmp_path):
    for text in ("", "{", '{"name": "of another program"}', '{"kind": "", "versions": 1, "files": [1]}'):
        put("manifest.json", text)
        with pytest.raises(FolderError, match=f"must lead to a folder that limbeck published .* received {URL}"):
            storage.fetch(URL)


def test_a_manifest_cannot_write_outside_its_folder(tmp_path):
    storage.publish(made(tmp_path / "a"), URL)
    manifest = json.loads(MemoryFileSystem().cat_file(f"{URL}/manifest.json"))
    for name in ("../../../../evil", "/tmp/evil"):
        put("manifest.json", folders.manifest_bytes({**manifest, "files": {name: "0"}}).decode())
        with pytest.raises(DataError, match="must lie inside it"):
            storage.fetch(URL)


def test_what_is_there_is_refused_or_replaced(tmp_path):
    storage.publish(made(tmp_path / "a"), URL)
    put("notes.txt", "the user's")
    with pytest.raises(FolderError, match=r"which is complete\. Pass --overwrite"):
        storage.publish(made(tmp_path / "b", {"new": "x"}), URL)
    storage.publish(made(tmp_path / "b", {"new": "x"}), URL, overwrite=True)
    assert stored() == [folders.MARKER, "notes.txt", "new", folders.MANIFEST]
    put("thesis.tex", "years of work", "memory://bucket/mine")
    for overwrite in (False, True):
        with pytest.raises(FolderError, match="did not write"):
            storage.publish(tmp_path / "b", "memory://bucket/mine", overwrite=overwrite)
    assert stored("memory://bucket/mine") == ["thesis.tex"]


def test_an_unfinished_folder_is_not_published(tmp_path):
    folders.claim(tmp_path / "a")
    with pytest.raises(FolderError, match="must be complete"):
        storage.publish(tmp_path / "a", URL)
    assert stored() == []


KILLED = """
import os, signal, sys
from fsspec.implementations.local import LocalFileSystem
from limbeck import storage
at, folder, url = int(sys.argv[1]), sys.argv[2], sys.argv[3]

def counted(method):
    def call(self, *args, **options):
        global at
        if at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        at -= 1
        return method(self, *args, **options)
    return call

for name in ("put_file", "pipe_file", "rm_file"):
    setattr(LocalFileSystem, name, counted(getattr(LocalFileSystem, name)))
storage.publish(storage.Path(folder), url, overwrite=True)
"""


@pytest.mark.parametrize("at", [1, 3, 5])  # of six: manifest away, marker, three files, manifest
def test_killed_while_publishing_and_run_again(tmp_path, at):
    url = f"file://{tmp_path}/remote/a"
    storage.publish(made(tmp_path / "a", {"old": "x", **FILES, "config.json": "old"}), url)
    folder = made(tmp_path / "b")
    command = [sys.executable, "-c", KILLED, str(at), str(folder), url]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "remote/a/manifest.json").exists()
    with pytest.raises(FolderError, match="where there is none"):
        storage.fetch(url)
    storage.publish(folder, url)  # ours and unfinished: no --overwrite is needed
    copy = storage.fetch(url)
    assert {name: (copy / name).read_text() for name in FILES} == FILES


def test_nothing_is_renamed(tmp_path, monkeypatch):
    def refused(*_args, **_options):
        raise PermissionError("this storage cannot rename")

    for name in ("mv", "move", "rename"):
        monkeypatch.setattr(LocalFileSystem, name, refused)
    url = f"file://{tmp_path}/remote/a"
    storage.publish(made(tmp_path / "a"), url)
    storage.publish(made(tmp_path / "a", {"new": "x"}), url, overwrite=True)
    assert (storage.fetch(url) / "new").read_text() == "x"


SECRET = "hunter2planted"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{SECRET}@bucket/run", f"s3://key:a,{SECRET}'@bucket/run", f"s3://key:se/{SECRET}@bucket/run", f"https://{SECRET}@host/run",
        f"https://host/run?X-Amz-Signature={SECRET}", f"https://host/run#{SECRET}", f"sftp://me:{SECRET}@host/run",
    ],
)  # fmt: skip
def test_secrets_are_refused_and_not_repeated(url):
    with pytest.raises(ConfigError, match="without password, token or query") as caught:
        storage.fetch(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://", "s3:///", "memory:///", "s3://bucket/../x", "s3://bucket//x", "s3://b/a b"])
def test_urls_that_name_no_folder(url):
    with pytest.raises(ConfigError, match=r"must name a folder .* Write protocol://place/folder\.$"):
        storage.fetch(url)


def test_users_without_a_password_name_a_place():
    assert addresses.checked("abfs://box@account.dfs.core.windows.net/run")
    assert addresses.checked("sftp://me@host:22/run")
    with pytest.raises(ConfigError, match="read over https, not written"):
        addresses.checked("https://host/run", written=True)


@pytest.mark.parametrize(
    ("url", "said"),
    [("gs://bucket/run", "a package that is not installed"), ("nope://bucket/run", "Protocol not known: nope")],
)
def test_a_storage_that_cannot_be_reached_is_one_sentence(url, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ServerError, match=said):
        storage.fetch(url)


@pytest.mark.parametrize("path", ["s3://bucket/run", Path("s3://bucket/run")])
def test_no_url_is_taken_for_a_path(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (folders.read_manifest, folders.refuse_existing, folders.claim):
        with pytest.raises(FolderError, match=r"which reads as a URL.*limbeck\.storage"):
            use(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["s3://bucket/a/run", "file:///data/run", "memory://x", "s3://b/date=2026/run"])
def test_records_name_the_url_and_not_the_copy(url, tmp_path, cache):
    copy = addresses.place("in", "0" * 16, url)
    facts = {"rollouts": copy, "base": str(copy / "model"), "said": f"{copy}: read"}
    records.write_json(tmp_path / "x.json", facts)
    assert records.read_json(tmp_path / "x.json") == {"rollouts": url, "base": f"{url}/model", "said": f"{url}: read"}
    assert addresses.origin(str(cache / "other")) == str(cache / "other")


def write(folder: Path) -> None:
    made(folder)


def not_called(folder: Path) -> None:
    raise AssertionError("the work was done before")


def test_a_folder_passes_through_the_cache(cache):
    assert storage.through(URL, "train", write) == URL
    assert sorted(stored()) == sorted([folders.MARKER, folders.MANIFEST, *FILES])
    MemoryFileSystem().rm_file(f"{URL}/config.json")
    assert (storage.fetch(URL) / "config.json").is_file()  # what was written is the copy: nothing is loaded
    with pytest.raises(FolderError, match="which is complete"):
        storage.through(URL, "train", not_called)


def test_an_interrupted_publication_is_taken_up_by_the_same_call_alone(monkeypatch):
    def torn(self, *_args, **_options):
        raise ConnectionError("the cable")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", torn)
        with pytest.raises(ServerError, match=r"received ConnectionError: the cable\. .* goes on where it was"):
            storage.through(URL, "train", write)
    assert folders.MANIFEST not in stored()
    with pytest.raises(FolderError, match="another command waits to be published"):
        storage.through(URL, "eval", not_called)
    assert storage.through(URL, "train", not_called) == URL
    assert folders.MANIFEST in stored()


def test_what_cannot_be_written_to_is_known_before_the_work(monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", None)
    with pytest.raises(ServerError, match=f"the storage behind {URL} must answer"):
        storage.through(URL, "train", not_called)


def test_a_dropped_result_is_never_published(monkeypatch, cache):
    def killed(folder: Path) -> None:
        assert not folder.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", None)
        with pytest.raises(ServerError):
            storage.through(URL, "train", write)
    with pytest.raises(KeyboardInterrupt):
        storage.through(URL, "eval", killed, overwrite=True)
    storage.through(URL, "eval", lambda folder: made(folder, {"scores": "1"}), overwrite=True)
    assert "scores" in stored()
    assert "config.json" not in stored()


def test_a_studys_steps_stay(cache):
    kept = []

    def study(folder: Path) -> None:
        kept.extend(path.name for path in folder.glob("steps/*"))
        assert not digests.is_complete(folder)
        folders.claim(folder)
        for name in ("results/study.json", "steps/train-a/metrics.jsonl", "report.html"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
        folders.seal(folder, kind="study", facts={"report": "report.html"})

    assert storage.through(URL, "study", study) == f"{URL}/report.html"
    assert stored() == [folders.MARKER, "report.html", "results/study.json", folders.MANIFEST]
    copy = storage.fetch(URL)
    assert folders.read_manifest(copy, "study")["files"].keys() == {"report.html", "results/study.json"}
    storage.through(URL, "study", study, overwrite=True)
    assert kept == ["train-a"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    storage.publish(made(tmp_path / "a"), URL)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "file"))
    with pytest.raises(FolderError, match=r"LIMBECK_CACHE must be a folder to write to, received .*file"):
        storage.fetch(URL)


def test_one_process_at_a_time(cache):
    folder = storage.working(URL)
    with storage._locked(folder, URL, wait=False) as beside:
        assert re.fullmatch("[0-9a-f]{16}", beside.name)
        with pytest.raises(FolderError, match=f"another process of this machine is writing {URL}"):
            storage.through(URL, "train", not_called)
    with (beside / storage.LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again
