"""A study from its file to its results: plan, run what is not there yet, collect."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from limbeck.digests import is_complete
from limbeck.errors import FolderError
from limbeck.folders import claim, refuse_existing, seal
from limbeck.progress import bars
from limbeck.records import write_json
from limbeck.stopped import forget_sentence
from limbeck.studies.cluster import Cluster, check_address
from limbeck.studies.config import StudyConfig
from limbeck.studies.executors import InProcess, Place, Processes
from limbeck.studies.facts import shape_of
from limbeck.studies.plan import Step, make_plan
from limbeck.studies.results import collect
from limbeck.studies.runner import TIMES, default_workers, run_plan

LOCAL = "local"


def run_study(
    config: StudyConfig, out: Path, *, overwrite: bool = False, on: str = LOCAL, shared: Path | None = None
) -> Path:
    """Run every step of a study that is not finished and collect its results in ``out/results``.

    An interrupted study continues: finished steps are found by digest, an interrupted training by its checkpoint.

    Args:
        config: the study.
        out: its folder.
        overwrite: run a finished study again; its steps stay.
        on: ``local``, or the address of a Ray cluster whose nodes all see ``out``.
        shared: a folder that several studies keep their steps in; by default ``out/steps``.

    Raises:
        FolderError: ``out`` holds a finished study (or something else) and ``overwrite`` is off, or has its steps elsewhere
            than in ``shared``.
        ConfigError: no such cluster.
    """
    if on != LOCAL:
        check_address(on)
    out = out.resolve()
    begin, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    refuse_existing(out, overwrite=overwrite)
    _refuse_other_steps(out, shared)
    steps = make_plan(config)
    if is_complete(out):
        (out / "manifest.json").unlink()  # finished steps stay: only what changed is run again
    claim(out)
    forget_sentence(out)
    write_json(out / "config.json", config.model_dump(mode="json"))
    root = _steps_folder(out, shared)
    with bars() as show:
        folders = run_plan(steps, root, on=_place(config, steps, on), show=show)
    seconds = round(time.monotonic() - begin, 1)
    command = shlex.join(["limbeck", *sys.argv[1:]])
    return collect(config, steps, folders, out / "results", started=started, command=command, seconds=seconds)


def _place(config: StudyConfig, steps: Sequence[Step], on: str) -> Place:
    if on != LOCAL:
        return partial(Cluster, on, config.resources, sorted({step.kind for step in steps}))
    workers = config.workers or default_workers(shape_of(config.student).stored)
    return InProcess if workers == 1 else partial(Processes, workers)


def _refuse_other_steps(out: Path, shared: Path | None) -> None:
    here = out / "steps"
    if shared is not None and here.exists() and here.resolve() != shared.resolve():
        raise FolderError(
            f"--steps must be where the study has its steps already, received {shared} and a study with steps in "
            f"{here.resolve()}. Leave --steps out, or move them there and remove {here}."
        )


def _steps_folder(out: Path, shared: Path | None) -> Path:
    """Where the steps lie; ``out/steps`` leads there, for whatever looks for them."""
    here = out / "steps"
    if shared is not None and not here.exists():
        shared.mkdir(parents=True, exist_ok=True)
        here.unlink(missing_ok=True)  # a link to what is gone
        here.symlink_to(shared.resolve(), target_is_directory=True)
    return here.resolve()  # one path for all studies: an interrupted run knows its inputs by theirs


def finish(out: Path, facts: dict[str, object]) -> None:
    """Declare a study complete, once its report is there; other studies may still add steps to its own, and their times."""
    seal(out, kind="study", facts=facts, apart=(f"steps/{TIMES}",))
