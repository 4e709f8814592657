"""Steps in this process and side by side: order, errors, killed processes, and studies that share a folder of steps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from limbeck.errors import FolderError, LimbeckError
from limbeck.folders import claim
from limbeck.studies.executors import InProcess, Processes, appear
from limbeck.studies.locks import sole
from limbeck.studies.plan import Step
from limbeck.studies.runner import _Meter, read_seconds, run_plan
from limbeck.studies.step import Plan
from limbeck.studies.study import finish
from limbeck.verify import verify


class Killed:
    """Kills the process that unpickles it, as the system does when memory runs out."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGKILL,)


def test_a_killed_process_is_told_in_a_sentence(tmp_path):
    steps = [
        Step(name="train/big", kind="train", params={"x": Killed()}, digest="0" * 64, cost=1.0),
        Step(name="after", kind="train", params={}, inputs={"run": "train/big"}, digest="1" * 64, cost=1.0),
    ]
    words = r"received none from train/big: its process was killed, probably for memory\. Set workers = 1 or smaller"
    with pytest.raises(LimbeckError, match=words):
        run_plan(steps, tmp_path, on=partial(Processes, 2), show=lambda title, done, total: None)


def plan_of(*steps: tuple[str, str, list[str]]) -> list[Step]:
    """Steps from kind, text (their name) and what they read."""
    plan = Plan()
    for kind, text, reads in steps:
        plan.add(text, kind, {"text": text}, {name: name for name in reads}, 1.0)
    return list(plan.steps.values())


def run(steps: list[Step], root: Path, shown: list | None = None) -> dict[str, Path]:
    def show(*told: object) -> None:
        if shown is not None:
            shown.append(told)

    return run_plan(steps, root, on=InProcess, show=show, kinds="tinysteps:KINDS")


def test_steps_come_after_what_they_read_and_their_progress_adds_up(tmp_path):
    shown: list = []
    folders = run(plan_of(("write", "c", []), ("write", "b", ["c"]), ("write", "a", ["b", "c"])), tmp_path, shown)
    assert (folders["a"] / "text").read_text() == "c b c a"
    overall = [done for title, done, total in shown if title == "study" and total == 3]
    assert overall == sorted(overall)
    assert {0.5, 1.0, 1.5, 2.0, 2.5, 3.0} <= set(overall)
    assert set(read_seconds(tmp_path)) == {folder.name for folder in folders.values()}


def test_after_an_error_nothing_new_begins_and_what_is_done_stays(tmp_path):
    steps = plan_of(("write", "a", []), ("fail", "wrong here", ["a"]), ("write", "b", []))
    with pytest.raises(ValueError, match="wrong here"):
        run(steps, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [steps[0].folder]
    begun = (tmp_path / steps[0].folder / "manifest.json").stat().st_mtime_ns
    folders = run([steps[0], steps[2]], tmp_path)
    assert (folders["a"] / "manifest.json").stat().st_mtime_ns == begun


HOLDER = """
import sys, time
from pathlib import Path
from limbeck.studies.locks import sole
from tinysteps import write
out = Path(sys.argv[1])
with sole(out) as mine:
    print(mine, flush=True)
    sys.stdin.readline()
    write({"text": "by another"}, {}, out, lambda share: None)
"""


@pytest.fixture
def holder():
    """Starts a process that holds a step until it is told to make it."""
    started = []

    def start(out: Path) -> subprocess.Popen:
        path = os.pathsep.join(map(str, [Path(__file__).parents[2], *filter(None, [os.environ.get("PYTHONPATH")])]))
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        started.append(process)
        assert process.stdout.readline() == "True\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_step_that_another_study_makes_is_waited_for_and_others_go_ahead(holder, tmp_path):
    steps = plan_of(("write", "a", []), ("write", "b", []), ("write", "c", ["a"]))
    process = holder(tmp_path / steps[0].folder)
    seen: list = []

    def show(title: str, done: float, total: float) -> None:
        seen.append((title, done))
        if title == "a, by another study" and done == 0 and process.poll() is None:
            process.communicate("\n")

    folders = run_plan(steps, tmp_path, on=InProcess, show=show, kinds="tinysteps:KINDS")
    assert (folders["a"] / "text").read_text() == "by another"
    assert (folders["c"] / "text").read_text() == "by another c"
    assert ("a, by another study", 1.0) in seen
    assert steps[0].folder not in read_seconds(tmp_path)


def test_a_step_whose_maker_was_killed_is_made_here(holder, tmp_path):
    [step] = plan_of(("write", "a", []))
    process = holder(tmp_path / step.folder)

    def show(title: str, done: float, total: float) -> None:
        if title == "a, by another study":
            process.kill()

    folders = run_plan([step], tmp_path, on=InProcess, show=show, kinds="tinysteps:KINDS")
    assert (folders["a"] / "text").read_text() == "a"


def test_one_process_makes_a_step_at_a_time(holder, tmp_path):
    process = holder(tmp_path / "step")
    with sole(tmp_path / "step") as mine, sole(tmp_path / "other") as other:
        assert (mine, other) == (False, True)
    process.kill()
    process.wait()
    with sole(tmp_path / "step", wait=True) as mine:
        assert mine


def test_a_folder_that_is_not_seen_here_says_what_is_wrong(tmp_path):
    begin = time.monotonic()
    with pytest.raises(
        FolderError, match=r"must see the steps' folder under one path, received .*/step, which is finished"
    ):
        appear(tmp_path / "step", within=0.1)
    assert time.monotonic() - begin > 0.1


def test_a_finished_study_lends_its_steps_to_another(tmp_path):
    first = claim(tmp_path / "first")
    (first / "steps").mkdir()
    run(plan_of(("write", "a", [])), first / "steps")
    finish(first, {"report": "report.html"})
    assert not verify(first).problems
    run(plan_of(("write", "a", []), ("write", "b", ["a"])), first / "steps")
    assert len(read_seconds(first / "steps")) == 2
    assert not verify(first).problems  # neither the new step nor the times of both were written by the first
    (first / "steps" / "note.txt").write_text("mine")
    assert [problem.kind for problem in verify(first).problems] == ["stray"]


def test_time_left_follows_what_steps_of_a_kind_took():
    kinds = ["train", "train", "measure", "measure"]
    steps = [
        Step(name=str(i), kind=kind, params={}, inputs={}, digest=f"{i:064d}", cost=10.0)
        for i, kind in enumerate(kinds)
    ]
    shown: list = []
    meter = _Meter(steps, {"1"}, lambda *told: shown.append(told))
    meter.end("0", 90.0)
    assert shown[-2] == ("study", 10.0, 30.0)  # nothing is known of measuring yet
    meter.end("2", 10.0)
    done, total = shown[-2][1:]
    assert done / total == pytest.approx((90 + 10) / (90 + 10 + 10))


def test_progress_never_starts_below_nothing(tmp_path):
    steps = [
        Step(name=str(i), kind="write", params={"text": str(i)}, inputs={}, digest=f"{i:064d}", cost=0.1 * (i + 1))
        for i in range(12)
    ]
    run(steps, tmp_path)
    shown: list = []
    run([*steps, *plan_of(("write", "new", []))], tmp_path, shown)
    assert min(done for title, done, _ in shown if title == "study") == 0.0
