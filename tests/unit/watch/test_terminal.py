"""The view in a terminal, and the verb."""

from __future__ import annotations

import io
import threading
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

from limbeck import cli
from limbeck.errors import FolderError
from limbeck.folders import claim, seal
from limbeck.watch.planned import NOT_YET, Watch
from limbeck.watch.state import read_state
from limbeck.watch.terminal import show, view

from .conftest import grpo


def said(state, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(view(state))
    return console.file.getvalue()


def test_a_running_study_shows_where_it_is(watched, halfway, claimed):
    with claimed(halfway, grpo(halfway)) as pid:
        state = read_state(halfway, watched.planned, now=time.time())
    text = said(state)
    assert text.startswith(f"tiny  running, about {state.seconds_left:.0f} s left; process {pid}; last written")
    assert "Does a study show what it does?" in text
    assert f"{100 * state.share:.0f} %  8 steps: 2 done, 1 running, 5 waiting" in text
    assert "train 1/2, eval 0/3" in text
    assert "train/grpo-s0  step 2 of 3, about" in text
    assert "  reward " in text
    assert "tokens/s" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_has_stopped_stands_with_the_way_on(watched, halfway):
    text = said(read_state(halfway, watched.planned, now=time.time()), width=300)
    assert "tiny  not running; last written" in text
    assert "stopped: train/grpo-s0 at step 2 of 3; has no checkpoint yet and begins again" in text
    assert f"Go on with: limbeck study run {halfway / 'config.json'} --out {halfway}" in text


def test_the_next_by_the_plan_is_named(watched, halfway, claimed):
    with claimed(halfway):
        state = read_state(halfway, watched.planned, now=time.time())
    assert "train/grpo-s0: next by the plan, leaves nothing to see before the end" in said(state)


def test_names_cannot_move_the_cursor(watched, halfway):
    (halfway / "steps" / f"train-\x1b[2J\u202eevil-{'0' * 12}").mkdir()
    text = said(read_state(halfway, NOT_YET, now=time.time()))
    assert "train/\ufffd[2J\ufffdevil" in text
    assert "\x1b" not in text


def test_the_live_view_ends_when_the_folder_is_complete(halfway):
    run = grpo(halfway)
    claim(run)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    end = threading.Timer(0.3, seal, [run], {"kind": "run"})
    end.start()
    with Watch(run) as watch:
        state = show(watch, console)
    end.join()
    assert state.status == "complete"
    first, last = console.file.getvalue().index("running, about"), console.file.getvalue().rindex("complete")
    assert first < last


def call(*arguments: str) -> list[str]:
    done = CliRunner().invoke(cli.app, ["watch", *arguments])
    if done.exception:
        raise done.exception
    return done.stdout.splitlines()


def test_the_verb_prints_once_where_stdout_is_no_terminal_and_ends_with_the_reports_path(watched, halfway):
    lines = call(str(watched.folder))
    assert lines[0] == "tiny  complete"
    assert lines[-1] == str(watched.folder / "report.html")
    assert call(str(halfway))[0].startswith("tiny  not running")
    assert call(str(grpo(halfway)), "--once")[0].endswith("ago")


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(FolderError, match="watch needs the folder"):
        call(str(tmp_path), "--serve", "--port", "0")
