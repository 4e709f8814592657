"""A real study, as small as one can be, looked at while it runs; copies of it in other phases; processes that claim and die."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from limbeck.report import build
from limbeck.studies.config import load_study
from limbeck.studies.study import finish, run_study
from limbeck.watch.planned import plan_of
from limbeck.watch.run import CONFIG
from limbeck.watch.state import Planned, State, read_state

TINY = """
name = "tiny"
question = "Does a study show what it does?"
student = "abacus:base"
workers = 1
reference_arm = "sft"
rollouts = { by = "student", samples = 2, max_new_tokens = 24, problems = { world = "abacus", split = "train", num = 6 } }
train = { num_steps = 3, batch_size = 4, save_visible = false, lora = { rank = 2 } }
live = { problems = "abacus:train", num_problems = 8, prompts_per_step = 3, samples = 3, max_new_tokens = 64 }
eval = { max_new_tokens = 24, problems = { world = "abacus", split = "test", num = 6 } }
geometry = { draws = 20, cka_problems = 0 }
arms = [{ name = "sft" }, { name = "grpo", train = { objective = "grpo" }, live = {} }]
"""
CLAIMING = """
import sys, time
from limbeck.folders import claim
for folder in sys.argv[1:]:
    claim(folder)
print("claimed", flush=True)
time.sleep(600)
"""


class Watched(NamedTuple):
    """A finished study, its plan, and every state it was seen in on the way."""

    folder: Path
    planned: Planned
    seen: list[State]


@pytest.fixture(scope="session")
def watched(tmp_path_factory) -> Watched:
    root = tmp_path_factory.mktemp("watched")
    out, seen = root / "tiny", []
    (root / "study.toml").write_text(TINY)

    def run() -> None:
        results = run_study(load_study(str(root / "study.toml")), out)
        page = build(results, out)
        finish(out, {"report": page.name})

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        while not (out / CONFIG).is_file() and not running.done():
            time.sleep(0.01)
        planned = plan_of(out)
        while not running.done():
            seen.append(read_state(out, planned, now=time.time()))
            time.sleep(0.05)
        running.result()
    return Watched(out, planned, seen)


@pytest.fixture
def halfway(watched, tmp_path) -> Path:
    """The study as it was in the second step of its last run: no report, nothing answered, the third step half written."""
    folder = tmp_path / "study"
    shutil.copytree(watched.folder, folder, ignore=shutil.ignore_patterns("report.html", "results", "figures"))
    (folder / "manifest.json").unlink()
    for path in (folder / "steps").iterdir():
        if path.name.startswith(("eval", "compare", "measure")):
            shutil.rmtree(path)
    run = grpo(folder)
    (run / "manifest.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    return folder


def grpo(study: Path) -> Path:
    (run,) = (study / "steps").glob("train-grpo-s0-*")
    return run


@pytest.fixture
def claimed() -> Callable:
    """Another process that holds folders as a verb does, until the end of the block, where it is killed."""

    @contextmanager
    def claim(*folders: Path) -> Iterator[int]:
        command = [sys.executable, "-c", CLAIMING, *map(str, folders)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "claimed\n"
            yield process.pid
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    return claim
