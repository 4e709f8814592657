"""Storage against a server that speaks S3: published, killed in the middle, damaged, out of reach."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limbeck import folders, storage
from limbeck.errors import DataError, FolderError, ServerError

pytest.importorskip("s3fs", reason="the extra s3 is not installed")
pytest.importorskip("moto", reason="moto, the S3 server of the tests, is not installed")

URL = "s3://bucket/runs/a"
FILES = {f"deep/part-{number:03d}.txt": f"content of {number}\n" for number in range(60)}
PUBLISH = (
    "import sys; from pathlib import Path; from limbeck import storage; storage.publish(Path(sys.argv[1]), sys.argv[2])"
)


@pytest.fixture(scope="module")
def server() -> str:
    """The address of a server of its own, with a bucket."""
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            fs = s3fs.S3FileSystem(key="x", secret="y", endpoint_url=endpoint, skip_instance_cache=True)
            for _ in range(300):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None
                time.sleep(0.1)
            fs.mkdir("bucket")
            yield endpoint
        finally:
            process.kill()


@pytest.fixture
def s3(server, tmp_path, monkeypatch):
    """The bucket, emptied, through a client of its own; limbeck's finds the server by the environment alone."""
    import s3fs

    values = {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "hunter2planted", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server, "LIMBECK_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    for name in fs.find("bucket"):
        fs.rm_file(name)
    return fs


def made(folder: Path, files: dict[str, str] = FILES) -> Path:
    with folders.publish(folder, kind="run") as temporary:
        for name, text in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(text)
    return folder


def contents(copy: Path) -> dict[str, str]:
    return {name: (copy / name).read_text() for name in folders.read_manifest(copy)["files"]}


def test_killed_while_publishing_and_run_again(s3, tmp_path):
    folder = made(tmp_path / "a")
    with subprocess.Popen([sys.executable, "-c", PUBLISH, str(folder), URL], env=os.environ) as process:
        while process.poll() is None and len(s3.find("bucket/runs/a")) < 5:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    there = [name.removeprefix("bucket/runs/a/") for name in s3.find("bucket/runs/a")]
    assert folders.MARKER in there
    assert 1 < len(there) <= len(FILES)  # some files, not all of them
    assert folders.MANIFEST not in there
    with pytest.raises(FolderError, match="where there is none"):
        storage.fetch(URL)
    storage.publish(folder, URL)
    assert contents(storage.fetch(URL)) == FILES
    for name in s3.find("bucket"):
        assert b"hunter2planted" not in s3.cat_file(name)


def test_replaced_damaged_and_published_anew(s3, tmp_path):
    storage.publish(made(tmp_path / "a"), URL)
    with pytest.raises(FolderError, match="which is complete"):
        storage.publish(tmp_path / "a", URL)
    few = made(tmp_path / "b", {"deep/part-000.txt": "another\n", "new.txt": "x"})
    storage.publish(few, URL, overwrite=True)
    assert {name.removeprefix("bucket/runs/a/") for name in s3.find("bucket/runs/a")} == {
        folders.MARKER, folders.MANIFEST, "deep/part-000.txt", "new.txt",
    }  # fmt: skip
    s3.pipe_file("bucket/runs/a/new.txt", b"y")
    with pytest.raises(DataError, match=rf"^{URL}/new\.txt must have the digest"):
        storage.fetch(URL)
    storage.publish(few, URL, overwrite=True)
    assert contents(storage.fetch(URL)) == {"deep/part-000.txt": "another\n", "new.txt": "x"}


def test_a_bucket_that_is_not_there_is_not_made(s3, tmp_path):
    with pytest.raises(
        ServerError, match=r"the storage behind s3://mistyped/runs/a must answer, received FileNotFoundError"
    ):
        storage.publish(made(tmp_path / "a"), "s3://mistyped/runs/a")
    assert not s3.exists("mistyped")


def test_files_of_others_are_left_alone(s3, tmp_path):
    s3.pipe_file("bucket/runs/a/thesis.tex", b"years of work")
    with pytest.raises(FolderError, match="did not write"):
        storage.publish(made(tmp_path / "a"), URL, overwrite=True)
    assert s3.find("bucket") == ["bucket/runs/a/thesis.tex"]
