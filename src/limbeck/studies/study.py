"""A study from its file to its results: plan, run what is not there yet, collect."""

from __future__ import annotations

import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from limbeck.folders import claim, is_complete, refuse_existing, seal, write_json
from limbeck.progress import bars
from limbeck.stopped import forget_sentence
from limbeck.studies.config import StudyConfig
from limbeck.studies.facts import shape_of
from limbeck.studies.plan import make_plan
from limbeck.studies.results import collect
from limbeck.studies.runner import default_workers, run_plan


def run_study(config: StudyConfig, out: Path, *, overwrite: bool = False) -> Path:
    """Run every step of a study that is not finished and collect its results in ``out/results``.

    An interrupted study continues: finished steps are found by digest, an interrupted training by its checkpoint.

    Raises:
        FolderError: ``out`` holds a finished study (or something else) and ``overwrite`` is off.
    """
    out = out.resolve()
    begin, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    refuse_existing(out, overwrite=overwrite)
    steps = make_plan(config)
    if is_complete(out):
        (out / "manifest.json").unlink()  # finished steps stay: only what changed is run again
    claim(out)
    forget_sentence(out)
    write_json(out / "config.json", config.model_dump(mode="json"))
    workers = config.workers or default_workers(shape_of(config.student).stored)
    with bars() as show:
        folders = run_plan(steps, out / "steps", workers=workers, show=show)
    seconds = round(time.monotonic() - begin, 1)
    command = shlex.join(["limbeck", *sys.argv[1:]])
    return collect(config, steps, folders, out / "results", started=started, command=command, seconds=seconds)


def finish(out: Path, facts: dict[str, object]) -> None:
    """Declare a study complete, once its report is there."""
    seal(out, kind="study", facts=facts)
