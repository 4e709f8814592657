"""What the system does to a command: signals, a full disk, a read-only place, files that go, a clock that jumps, a rival."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from limbeck import folders
from limbeck.config import LoraConfig, RunConfig, TrainConfig
from limbeck.digests import file_digest, is_complete
from limbeck.rollouts.store import write_rollouts
from limbeck.train.record import read_metrics
from limbeck.train.run import train

from ..cliserver import Call, Server
from ..faultpoints import SMALLEST
from ..unit.train.toy import tiny_model, tiny_rollouts

STOPPED = "limbeck: stopped. What was finished is kept: the same command goes on from there.\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("said"))
    yield server
    server.close()


@pytest.fixture
def toy(tmp_path) -> RunConfig:
    """A run of the toy student, its config.json in ``tmp_path``."""
    tiny_model().save_pretrained(tmp_path / "base")
    write_rollouts(tiny_rollouts(), tmp_path / "rollouts")
    settings = TrainConfig(batch_size=8, num_steps=150, checkpoint_every=7, lora=LoraConfig(rank=4, dropout=0.1))
    config = RunConfig(base=str(tmp_path / "base"), rollouts=str(tmp_path / "rollouts"), train=settings)
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    return config


def wait_until(true: Callable[[], object], call: Call | None = None) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, call.said if call else "waited too long"
        time.sleep(0.01)


def steps_taken(out: Path) -> int:
    return len(read_metrics(out / "metrics.jsonl"))


def ends(call: Call, code: int, words: str = "") -> None:
    found = call.wait()
    assert (found, "Traceback" in call.said) == (code, False), call.said
    assert words in call.said


@contextmanager
def disk(place: Path, options: str) -> Iterator[Path]:
    """A file system of its own."""
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs the right to mount a file system: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_study_on_a_full_disk_goes_on_once_there_is_room(server, tmp_path):
    (tmp_path / "study.toml").write_text(SMALLEST)
    with disk(tmp_path / "disk", "size=300k") as place:
        command = ("study", "run", tmp_path / "study.toml", "--out", place / "out")
        ends(server.start(*command), 1, "limbeck: there must be room on the disk for what is written, received: ")
        finished = [path for path in (place / "out" / "steps").iterdir() if is_complete(path)]
        assert finished
        made = {path: (path / "manifest.json").stat().st_mtime_ns for path in finished}
        subprocess.run(["mount", "-o", "remount,size=100m", str(place)], check=True)
        ends(server.start(*command), 0)
        assert is_complete(place / "out")
        assert {path: (path / "manifest.json").stat().st_mtime_ns for path in finished} == made
        assert not [path for path in place.rglob(".*") if path.name not in (folders.MARKER, ".locks")]


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_read_only_place_is_refused_before_work(server, tmp_path):
    with disk(tmp_path / "disk", "ro") as place:
        sample = ("sample", "--model", "abacus:teacher", "--problems", "abacus:train", "--out", place / "out")
        call = server.start(*sample)
        ends(call, 2, "is read-only to this user. Give another --out.")
        assert "sample:" not in call.said


def test_a_base_that_goes_while_it_is_trained_may_come_back(server, toy, tmp_path):
    command = ("train", "--config", tmp_path / "config.json", "--out", tmp_path / "run")
    call = server.start(*command)
    wait_until(lambda: steps_taken(tmp_path / "run") >= 10, call)
    os.replace(tmp_path / "base", tmp_path / "moved")
    ends(call, 1, "limbeck: a model must be a local Hugging Face folder")
    os.replace(tmp_path / "moved", tmp_path / "base")
    ends(server.start(*command), 0)
    ends(server.start(*command[:-1], tmp_path / "whole"), 0)
    file = "adapter/adapter_model.safetensors"
    assert file_digest(tmp_path / "run" / file) == file_digest(tmp_path / "whole" / file)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_that_is_stopped_says_so_and_goes_on(server, toy, tmp_path, number, code):
    command = ("train", "--config", tmp_path / "config.json", "--out", tmp_path / "run")
    call = server.start(*command)
    wait_until(lambda: steps_taken(tmp_path / "run") >= 10, call)
    os.killpg(call.pid, number)
    ends(call, code, STOPPED)
    assert not is_complete(tmp_path / "run")
    again = server.start(*command)
    ends(again, 0)
    assert steps_taken(tmp_path / "run") == 150


def test_a_study_that_is_stopped_goes_on(server, tmp_path):
    (tmp_path / "study.toml").write_text(SMALLEST)
    command = ("study", "run", tmp_path / "study.toml", "--out", tmp_path / "out")
    call = server.start(*command)
    wait_until(lambda: list(tmp_path.glob("out/steps/train-*/metrics.jsonl")), call)
    os.killpg(call.pid, signal.SIGINT)
    ends(call, 130, STOPPED)
    ends(server.start(*command), 0)
    assert is_complete(tmp_path / "out")


def test_a_sampling_that_is_stopped_leaves_nothing(server, tmp_path):
    sample = ("sample", "--model", "abacus:teacher", "--problems", "abacus:train", "--out", tmp_path / "out")
    call = server.start(*sample, "--num", 2000)
    wait_until(lambda: "sample: 0 %" in call.said, call)
    os.killpg(call.pid, signal.SIGTERM)
    ends(call, 143, STOPPED)
    assert list(tmp_path.iterdir()) == []


def living(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()]
    return [int(pid) for pid, of, state in rows if int(of) == group and not state.startswith("Z")]


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(server, tmp_path, number):
    call = server.start(tmp_path, key="sleep")
    # the process, its resource tracker, the server of forks, two workers
    wait_until(lambda: len(living(call.pid)) == 5, call)
    os.kill(call.pid, number)
    call.wait()
    wait_until(lambda: not living(call.pid), call)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_clock_that_is_set_back_changes_nothing(toy, tmp_path, monkeypatch):
    toy = toy.model_copy(update={"train": toy.train.model_copy(update={"num_steps": 20})})
    whole = train(toy, tmp_path / "whole")

    class Yesterday(folders.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz).replace(year=2001)

    def interrupt(num: int) -> None:
        if steps_taken(tmp_path / "run") == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(toy, tmp_path / "run", advance=interrupt)
    monkeypatch.setattr(folders, "datetime", Yesterday)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    for path in (tmp_path / "run" / "checkpoints").rglob("*"):
        os.utime(path, (real() + 7200, real() + 7200))  # what was written before the jump lies in the future
    train(toy, tmp_path / "run")
    adapters = [file_digest(out / "adapter/adapter_model.safetensors") for out in (whole, tmp_path / "run")]
    assert adapters[0] == adapters[1]
    assert all(line["seconds"] >= 0 for line in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    manifest = folders.read_manifest(tmp_path / "run")
    assert manifest["created"].startswith("2001")
    assert manifest["seconds"] >= 0
    assert 0 <= manifest["wall_seconds"] < 300


def test_a_second_process_is_told_who_holds_the_folder(server, toy, tmp_path):
    command = (
        "train",
        "--config",
        tmp_path / "config.json",
        "--out",
        tmp_path / "run",
        "--set",
        "train.num_steps=5000",
    )
    first = server.start(*command)
    wait_until(lambda: steps_taken(tmp_path / "run") >= 2, first)
    ends(server.start(*command), 2, f"another process (pid {first.pid}) is writing {tmp_path / 'run'}")
    os.killpg(first.pid, signal.SIGTERM)
    ends(first, 143, STOPPED)
