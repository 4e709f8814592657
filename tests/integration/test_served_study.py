"""A study whose rollouts a server writes: the server is killed, or the study, and it ends as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from limbeck.errors import ServerError
from limbeck.problems.prompts import prompt_ids, response_ids
from limbeck.records import read_json
from limbeck.report import build
from limbeck.rollouts.sample import Decoding
from limbeck.rollouts.server import retries
from limbeck.rollouts.server.wire import request_seed
from limbeck.rollouts.store import read_rollouts
from limbeck.studies.config import StudyConfig, load_study
from limbeck.studies.study import run_study
from limbeck.train.models import load_tokenizer
from limbeck.worlds.abacus.generator import generate

from ..faultpoints import ended, forked
from ..written import Running, writing
from .test_study import run_digests

STUDY = """
name = "served"
question = "Is what was killed the same in the end?"
student = "abacus:base"
workers = 1
train = { num_steps = 2, batch_size = 4, checkpoint_every = 1, learning_rate = 1e-3, lora = { rank = 2 } }
eval = { max_new_tokens = 24, problems = { world = "abacus", num = 4 } }
geometry = { cka_problems = 0, draws = 20 }
arms = [{ name = "sft" }]

[rollouts]
samples = 4
problems = { world = "abacus", split = "train", num = 8 }
server = { urls = ["http://127.0.0.1:9"], model = "m", concurrency = 2, patience_seconds = 0.5 }
"""
PROBLEMS = generate("train", 8, seed=0)
ASKED = {request_seed(Decoding(), key): key for key in (f"{p.id}/{sample}" for p, _ in PROBLEMS for sample in range(4))}


@contextmanager
def server(folder: Path, seconds: float = 0.0) -> Iterator[Running]:
    """Right and wrong solutions of the study's problems, by the request's seed."""
    tokenizer = load_tokenizer("abacus:base")
    answers = {
        prompt_ids(tokenizer, problem.prompt): [
            response_ids(tokenizer, response) for response in (text, text.rsplit(" ", 1)[0] + " 1000")
        ]
        for problem, text in PROBLEMS
    }
    with writing(folder, answers, seconds) as running:
        yield running


def asked(running: Running) -> Counter[str]:
    """What was asked for, and how often."""
    return Counter(ASKED[seed] for seed in running.seeds)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short waits, no key and no proxy from the outside."""
    monkeypatch.setattr(retries, "BASE_SECONDS", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("LIMBECK_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("given") / "study.toml"
    path.write_text(STUDY)
    return path


def study(file: Path, url: str) -> StudyConfig:
    return load_study(str(file), (f'rollouts.server.urls=["{url}"]',))


@pytest.fixture(scope="module")
def undisturbed(file, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch, server(root / "server") as running:
        patch.setenv("NO_PROXY", "127.0.0.1")
        build(run_study(study(file, running.url), root / "out"), root / "out")
        assert asked(running) == Counter(ASKED.values())
    return root / "out"


def on_record(out: Path) -> set[str]:
    """Whose answers an unfinished step has."""
    lines = [
        line for path in out.glob("steps/rollouts-*/journal.jsonl") for line in path.read_bytes().split(b"\n")[1:-1]
    ]
    return {key for line in lines if (key := json.loads(line)["key"])}


def kill_at(num: int, out: Path, pid: int) -> None:
    """Kill a process as soon as so many answers are on record."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(on_record(out)) < num:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)


def goes_on(file: Path, out: Path, undisturbed: Path) -> None:
    """Started again with a server elsewhere, the study asks for what is not on record, and ends with the same files."""
    before = on_record(out)
    assert 5 <= len(before) < len(ASKED)
    with server(out.parent / "elsewhere") as running:
        run_study(study(file, running.url), out)
        assert asked(running) == Counter(set(ASKED.values()) - before)
    assert run_digests(out) == run_digests(undisturbed)
    assert not [path for path in out.rglob("*") if "partial" in path.name or path.name == "journal.jsonl"]


def test_the_server_is_killed_and_comes_back_elsewhere(file, undisturbed, tmp_path):
    out = tmp_path / "out"
    with server(tmp_path / "server", seconds=0.05) as running:
        killer = threading.Thread(target=kill_at, args=(5, out, running.pid))
        killer.start()
        with pytest.raises(ServerError, match=r"of 32 answers are saved in .*: the same command continues"):
            run_study(study(file, running.url), out)
        killer.join()
    goes_on(file, out, undisturbed)


def test_the_study_is_killed_while_the_server_answers(file, undisturbed, tmp_path):
    out = tmp_path / "out"
    with server(tmp_path / "server", seconds=0.05) as running:
        pid = forked(lambda: run_study(study(file, running.url), out), tmp_path / "said")
        kill_at(5, out, pid)
        assert ended(pid) == -signal.SIGKILL, (tmp_path / "said").read_text()
    goes_on(file, out, undisturbed)


def test_the_record_and_the_page_say_who_wrote_the_rollouts(undisturbed):
    rollouts = read_json(undisturbed / "results" / "rollouts.json")
    assert (rollouts["source"], rollouts["sampling"]["model"], rollouts["sampling"]["model_digest"]) == (
        "m, a server", "m", ""
    )  # fmt: skip
    assert 0 < rollouts["right_share"] < 1
    assert sum(rollouts["sampling"]["server"]["endpoints"].values()) == len(ASKED)
    page = (undisturbed / "report.html").read_text()
    assert "m, a server" in page
    assert "sampling, server, served model" in page
    [folder] = undisturbed.glob("steps/rollouts-*")
    assert len(read_rollouts(folder)) == len(ASKED)
