"""What a folder is taken for, in every phase that it can be in, and what reading it costs."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limbeck import folders
from limbeck.cli import app
from limbeck.digests import MARKER
from limbeck.errors import FolderError
from limbeck.folders import claim, publish, seal
from limbeck.locks import unlock
from limbeck.stopped import STOPPED, sentence_left
from limbeck.studies import runner
from limbeck.studies.step import Step
from limbeck.watch import files
from limbeck.watch.planned import NOT_YET, Watch, plan_of
from limbeck.watch.run import RunState
from limbeck.watch.state import SECONDS, Planned, _time, read_state

from .conftest import grpo


def state_of(folder: Path, planned: Planned):
    return read_state(folder, planned, now=time.time())


def run_of(state, name: str = "train/grpo-s0") -> RunState:
    return {run.name: run for run in state.runs}[name]


# ------------------------------------------------------------------------------------------------------- a study's phases


def test_a_running_study_is_seen_step_by_step_in_the_order_of_its_plan(watched):
    order = [step.name for step in watched.planned.steps]
    assert all(state.writer == os.getpid() for state in watched.seen if state.status == "running")
    assert [state.counts["done"] for state in watched.seen] == sorted(state.counts["done"] for state in watched.seen)
    assert all(state.counts["running"] <= 1 for state in watched.seen)  # workers = 1
    running = [step.name for state in watched.seen for step in state.steps if step.status == "running"]
    assert list(dict.fromkeys(running)) == [name for name in order if name in running]
    assert {"rollouts", "train/sft-s0", "train/grpo-s0", "eval/base"} <= set(running)
    unseen = {step.name for state in watched.seen for step in state.steps if step.unseen}
    assert {"rollouts", "eval/base"} <= unseen  # they write nothing before they end
    between = [run for state in watched.seen for run in state.runs if run.status == "running" and 0 < run.step < 3]
    assert between
    assert all(run.seconds_left > 0 and run.tokens_per_second > 0 for run in between)
    assert any("the report is written" in note for state in watched.seen for note in state.notes)
    known = [state for state in watched.seen if state.counts["done"] and state.counts["done"] < len(order)]
    assert all(0 < state.share < 1 and state.seconds_left > 0 for state in known)


def test_a_finished_study_is_complete_and_has_its_report(watched):
    state = state_of(watched.folder, watched.planned)
    assert (state.status, state.share, state.seconds_left, state.writer) == ("complete", 1.0, None, None)
    assert state.counts == {"done": len(watched.planned.steps)}
    assert all(step.seconds is not None for step in state.steps)
    assert state.report == str(watched.folder / "report.html")
    run = run_of(state)
    lines = [json.loads(line) for line in (grpo(watched.folder) / "metrics.jsonl").read_text().splitlines()]
    assert (run.status, run.step, run.steps, run.objective) == ("done", 3, 3, "grpo")
    assert run.curves["reward"] == [(line["step"], pytest.approx(line["reward"], rel=1e-4)) for line in lines]
    assert (run.loss, run.grad_norm, run.update_norm) == tuple(
        lines[-1][key] for key in ("loss", "grad_norm", "update_norm")
    )
    assert run.tokens_per_second == pytest.approx(lines[-1]["tokens"] / lines[-1]["seconds"])


def test_what_is_claimed_runs_and_what_is_killed_does_not_and_says_how_to_go_on(watched, halfway, claimed):
    with claimed(halfway, grpo(halfway)) as pid:
        state = state_of(halfway, watched.planned)
        assert (state.status, state.writer) == ("running", pid)
        run = run_of(state)
        assert (run.status, run.step, run.note) == ("running", 2, "")  # the third line is torn
        lines = (grpo(halfway) / "metrics.jsonl").read_text().splitlines()[:2]
        assert run.seconds_left == pytest.approx(sum(json.loads(line)["seconds"] for line in lines) / 2)  # one is left
        assert not any(step.unseen for step in state.steps)  # its one worker is taken
    state = state_of(halfway, watched.planned)
    assert (state.status, state.writer) == ("stopped", None)
    assert run_of(state).status == "stopped"
    assert run_of(state).note == "has no checkpoint yet and begins again"
    assert "no process of this machine is at work on it" in state.notes
    words = shlex.split(state.go_on)
    assert words == ["limbeck", "study", "run", str(halfway / "config.json"), "--out", str(halfway)]
    assert [step.folder for step in plan_of(Path(words[-1])).steps] == [s.folder for s in watched.planned.steps]
    with publish(grpo(halfway) / "checkpoints" / "step-000002", kind="checkpoint"):
        pass
    assert run_of(state_of(halfway, watched.planned)).note == "goes on from its checkpoint of step 2"


def test_what_a_running_study_has_not_come_back_to_is_waiting(watched, halfway, claimed):
    with claimed(halfway):
        state = state_of(halfway, watched.planned)
    assert run_of(state).status == "waiting"
    assert {step.name: step.unseen for step in state.steps}["train/grpo-s0"]  # the next by the plan


def test_a_run_that_was_not_finite_has_failed_until_it_is_claimed_again(watched, halfway):
    run = grpo(halfway)
    claim(run)
    (run / "diverged").mkdir()
    (run / "diverged" / "step-000003.safetensors").touch()
    os.utime(run / ".limbeck", ns=(1, 1))  # claimed before
    state = state_of(halfway, watched.planned)
    assert run_of(state).status == "failed"
    assert str(run / "diverged" / "step-000003.safetensors") in run_of(state).note
    os.utime(run / ".limbeck", ns=(time.time_ns() + 10**9,) * 2)  # and after
    assert run_of(state_of(halfway, watched.planned)).status == "running"
    seal(run)


def test_the_report_of_an_earlier_study_in_the_folder_is_not_this_ones(watched, halfway):
    (halfway / "report.html").write_text("older")
    os.utime(halfway / "report.html", (1, 1))
    assert state_of(halfway, watched.planned).report == ""
    os.utime(halfway / "report.html")
    assert state_of(halfway, watched.planned).report == str(halfway / "report.html")


@pytest.mark.parametrize("other_version", [False, True])
def test_without_a_plan_that_fits_only_what_lies_there_is_counted(watched, halfway, other_version):
    steps = [Step(name="rollouts", kind="rollouts", params={}, digest="0" * 64, cost=1.0)]
    state = state_of(halfway, Planned(tuple(steps)) if other_version else NOT_YET)
    assert [step.name for step in state.steps] == ["rollouts", "train/grpo-s0", "train/sft-s0"]
    assert (state.share, state.seconds_left) == (None, None)
    assert ("the version of limbeck" if other_version else "the plan is being made") in state.counted


def test_a_plan_that_cannot_be_made_says_why(watched, tmp_path):
    config = json.loads((watched.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "student": "nowhere/at-all"}))
    assert "nowhere/at-all" in plan_of(tmp_path).why_not


def test_readings_wait_for_the_plan_where_asked_and_follow_a_new_configuration(watched, halfway):
    with Watch(halfway) as watch:
        assert len(watch.state(planned=True).steps) == len(watched.planned.steps)
        config = json.loads((halfway / "config.json").read_text())
        config["arms"].append({**config["arms"][0], "name": "more"})
        (halfway / "config.json").write_text(json.dumps(config))
        os.utime(halfway / "config.json", ns=(1, 1))
        assert "train/more-s0" in {step.name for step in watch.state(planned=True).steps}


# ------------------------------------------------------------------------------------------------------------ single runs


def test_a_run_alone_says_how_it_goes_on(watched, halfway, tmp_path):
    alone = shutil.copytree(grpo(halfway), tmp_path / "run")
    state = state_of(alone, NOT_YET)
    assert (state.kind, state.status, state.share) == ("run", "stopped", pytest.approx(2 / 3))
    assert state.question == "grpo on abacus:base"
    assert shlex.split(state.go_on) == ["limbeck", "train", "--config", str(alone / "config.json"), "--out", str(alone)]
    assert state_of(grpo(halfway), NOT_YET).go_on == state_of(halfway, NOT_YET).go_on  # a study's run goes on with it
    assert state_of(grpo(watched.folder), NOT_YET).status == "complete"


@pytest.mark.parametrize("text", [None, "", '{"arms": [', "[1, 2]", '{"train": 3, "base": 4}', "{}"])
def test_another_folder_is_refused_with_the_way_out(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(FolderError, match=r"watch needs the folder of a study or of a run, .* try again in a moment\."):
        state_of(tmp_path, NOT_YET)


# ------------------------------------------------------------------------------------------------------------- the pieces


def test_time_left_is_that_of_like_steps_over_the_workers_and_no_less_than_the_longest_chain():
    def step(name: str, cost: float, *reads: str) -> Step:
        kind = name.partition("/")[0]
        return Step(
            name=name, kind=kind, params={}, inputs={r: r for r in reads}, digest=f"{name}{'0' * 12}", cost=cost
        )

    steps = [step("train/a", 10), step("train/b", 20), step("eval/a", 5, "train/a"), step("eval/b", 5, "train/b")]
    status = dict.fromkeys((s.name for s in steps), "waiting")
    assert _time(steps, status, {}, [], 2) == (0.0, None)  # nothing has ended
    status["train/a"] = "done"
    # train: 30 s for cost 10, so 60 s for b; no eval has ended, so it goes by all that has: 15 s each.
    took = {steps[0].folder: 30.0}
    share, left = _time(steps, status, took, [], 2)
    assert share == pytest.approx(10 / 40)
    assert left == pytest.approx(60 + 15)  # b and its answers; all 90 s over 2 workers were 45
    assert _time(steps, status, took, [], 1)[1] == pytest.approx(90)
    run = RunState(
        name="train/b", objective="", status="running", step=1, steps=4, seconds_left=9.0, curves={}
    )  # its own steps say more
    share, left = _time(steps, {**status, "train/b": "running"}, took, [run], 2)
    assert (share, left) == (pytest.approx((10 + 20 / 4) / 40), pytest.approx(9 + 15))
    assert _time(steps, dict.fromkeys(status, "done"), took, [], 2) == (1.0, None)  # the report takes what it takes


def test_times_are_read_where_the_runner_writes_them():
    assert SECONDS == runner.TIMES


def test_of_a_long_record_a_few_lines_are_read_and_the_last_ones_among_them(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, 20_001):
            file.write(json.dumps({"step": step, "loss": 1 / step, "seconds": 0.5, "other": "x" * (step % 90)}) + "\n")
        file.write('{"step": 20001, "lo')
    lines = files.metrics(path)
    steps = [int(line["step"]) for line in lines]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, 20_000)
    assert max(b - a for a, b in itertools.pairwise(steps)) < 2 * 20_000 / files.POINTS
    assert len(lines) < 2000
    assert all(line["loss"] == pytest.approx(1 / line["step"]) for line in lines)
    assert files.metrics(path) is lines  # not read again
    with path.open("a") as file:
        file.write('ss": 3.0}\n')
    assert files.metrics(path)[-1] == {"step": 20_001, "loss": 3.0}


def test_lines_that_are_no_lines_of_a_record_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = (
        "[1]",
        "\xff",
        '{"loss": 1}',
        '{"step": 2, "loss": null, "reward": "much"}',
        '{"step": 1, "loss": NaN, "reward": 1',
    )
    path.write_bytes("\n".join(lines).encode("latin-1") + b"0" * 400 + b"}\n")
    assert files.metrics(path) == [{"step": 1}, {"step": 2}]
    assert files.metrics(tmp_path / "none.jsonl") is None


@pytest.mark.parametrize("text", ["", "-1", "12x", "9" * 30, "\x00\x00"])
def test_a_marker_that_names_no_process_has_no_writer(tmp_path, text):
    (tmp_path / ".limbeck").write_text(text)
    assert files.writer(tmp_path, files.lock_holders()) is None
    assert files.writer(tmp_path, None) is None


def test_a_process_that_lives_and_holds_nothing_is_no_writer(tmp_path):
    """As where the number of a process that was killed has been given to another."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        (tmp_path / ".limbeck").write_text(str(process.pid))
        assert files.writer(tmp_path, files.lock_holders()) is None
        assert files.writer(tmp_path, None) == process.pid  # where locks are not listed, its life is all that is known
        process.communicate(b"\n")
    assert files.writer(tmp_path, None) is None


def test_looking_never_stands_in_the_way_of_who_claims(tmp_path):
    folder = claim(tmp_path / "mine")
    assert files.writer(folder, files.lock_holders()) == os.getpid()
    seal(folder)
    assert files.writer(folder, files.lock_holders()) is None


# ---------------------------------------------------------------------------------------------------- a command that failed


def test_the_sentence_of_a_failure_is_shown_until_the_command_is_given_again(watched, tmp_path):
    (rollouts,) = (watched.folder / "steps").glob("rollouts-*")
    out = tmp_path / "run"
    (out / "metrics.jsonl").mkdir(parents=True)  # so that the record cannot be written
    (out / MARKER).touch()
    command = ["train", "--base", "abacus:base", "--rollouts", str(rollouts), "--out", str(out)]
    for setting in ("num_steps=1", "batch_size=4", "save_visible=false"):
        command += ["--set", f"train.{setting}"]
    failed = CliRunner().invoke(app, command)
    assert isinstance(failed.exception, IsADirectoryError)
    assert not any("ended with" in note for note in state_of(out, NOT_YET).notes)  # this process still holds it
    unlock(out)
    state = state_of(out, NOT_YET)
    assert (state.status, state.notes[1][:34]) == ("stopped", "it ended with: IsADirectoryError: ")
    (out / "metrics.jsonl").rmdir()
    assert CliRunner().invoke(app, command).exit_code == 0
    assert state_of(out, NOT_YET).status == "complete"
    assert STOPPED not in {path.name for path in out.iterdir()} | set(folders.read_manifest(out)["files"])


def test_a_folder_that_another_command_holds_or_completed_gets_no_sentence(watched, claimed, tmp_path):
    out = tmp_path / "run"
    with claimed(out):
        for folder in (out, watched.folder, tmp_path / "none"):
            with pytest.raises(FolderError), sentence_left(folder):
                raise FolderError("--out must be new")
            assert not (folder / STOPPED).exists()
