"""A folder that is running, finished or killed, read to a plain state. Nothing is written, no lock is touched.

What is done lies in the folder; what is still to come, and how long it takes, only the plan says.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from limbeck.bounds import content_of
from limbeck.digests import MANIFEST
from limbeck.errors import FolderError
from limbeck.rollouts.journal import JOURNAL
from limbeck.stopped import STOPPED
from limbeck.studies.step import Step
from limbeck.watch.files import lock_holders, sealed, table, writer
from limbeck.watch.run import CONFIG, LOG, RunState, Status, diverged, read_run, section

REPORT = "report.html"
SECONDS = "seconds.json"  # limbeck.studies.runner.TIMES, whose module needs torch


class Planned(NamedTuple):
    """Steps with the number that run side by side; none where the plan is not known, and why."""

    steps: tuple[Step, ...] = ()
    workers: int = 1
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """One step of a study. One that runs ``unseen`` leaves no trace before its end: it is the next one by the plan."""

    name: str
    status: Status
    unseen: bool = False
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a view shows.

    Attributes:
        kind: of the folder.
        status: ``stopped`` where it is not complete and no process of this machine holds it.
        counted: by what steps, share and time left are known.
        share: of the work, by the plan's costs; None where no plan is known.
        seconds_left: until the last step ends; None where it is not known.
        seconds_silent: since anything was written.
        report: the page's path; empty until it is there.
        go_on: the command that continues what has stopped.
    """

    kind: Literal["study", "run"]
    folder: str
    name: str
    question: str
    status: Literal["running", "complete", "stopped"]
    writer: int | None
    counted: str
    share: float | None
    seconds_left: float | None
    seconds_silent: float
    steps: tuple[StepState, ...]
    runs: tuple[RunState, ...]
    report: str
    go_on: str
    notes: tuple[str, ...]

    @property
    def counts(self) -> Counter[Status]:
        """Steps by status."""
        return Counter(step.status for step in self.steps)


def read_state(folder: Path, planned: Planned, *, now: float) -> State:
    """The state of a study, or of a run of ``limbeck train``.

    Args:
        folder: of the study or run.
        planned: the study's plan; not read for a run.
        now: seconds since the epoch.

    Raises:
        FolderError: it is neither.
        DataError: a file of it says what no study writes.
    """
    with content_of(folder):
        config = table(folder / CONFIG) or {}
        if "arms" in config:
            return _study(folder, config, planned, now)
        if section(config, "train") and "base" in config:
            return _single(folder, config, now)
    raise FolderError(
        f"watch needs the folder of a study or of a run, with its {CONFIG}, received {folder}. Check the path; where it has "
        "only just been started, try again in a moment."
    )


# ------------------------------------------------------------------------------------------------------------- studies


def _study(folder: Path, config: Mapping[str, Any], planned: Planned, now: float) -> State:
    root, holders = folder / "steps", lock_holders()
    pid, complete = writer(folder, holders), sealed(folder / MANIFEST) is True
    took = {key: x for key, x in (table(root / SECONDS) or {}).items() if isinstance(x, (int, float))}
    steps, workers, why_not = _steps(root, planned)
    status: dict[str, Status] = {
        step.name: _status(root / step.folder, holders, alive=pid is not None) for step in steps
    }
    unseen = [] if pid is None or why_not else _unseen(steps, status, workers)
    runs = [
        read_run(root / step.folder, step.name, status[step.name])
        for step in steps
        if step.kind == "train" and (root / step.folder).is_dir()
    ]
    status.update((name, "running") for name in unseen)
    share, left = (None, None) if why_not else _time(steps, status, took, runs, workers)
    known = "steps, share and time by the plan, made again from config.json"
    return State(
        kind="study",
        folder=str(folder),
        name=str(config.get("name", folder.name)),
        question=str(config.get("question", "")),
        status="complete" if complete else "stopped" if pid is None else "running",
        writer=pid,
        counted=f"only steps that lie here are counted: {why_not}" if why_not else known,
        share=1.0 if complete else share,
        seconds_left=None if complete else left,
        seconds_silent=_silent([folder, root, root / SECONDS, *_told(root, steps)], now),
        steps=tuple(
            StepState(name=s.name, status=status[s.name], unseen=s.name in unseen, seconds=took.get(s.folder))
            for s in steps
        ),
        runs=tuple(runs),
        report=_report(folder, complete=complete),
        go_on=shlex.join(["limbeck", "study", "run", str(folder / CONFIG), "--out", str(folder)]),
        notes=_notes(pid, complete, status) + _sentence(folder, pid, complete),
    )


def _steps(root: Path, planned: Planned) -> tuple[Sequence[Step], int, str]:
    """The plan's steps, or those that have left a folder, and why these."""
    names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    found = [match for name in names if (match := re.fullmatch(r"([^-]+)(?:-(.+))?-([0-9a-f]{12})", name))]
    own = {step.folder for step in planned.steps}
    if planned.steps and (not found or own.intersection(names)):
        return planned.steps, planned.workers, ""
    why_not = planned.why_not or (
        "the plan made from config.json has none of them; the version of limbeck or a model is another one"
    )
    lying = [
        Step(name=f"{kind}/{rest}" if rest else kind, kind=kind, params={}, digest=digest, cost=1.0)
        for kind, rest, digest in (match.groups() for match in found)
    ]
    return lying, 1, why_not


def _status(path: Path, holders: set[int] | None, *, alive: bool) -> Status:
    """Of one step, from its folder; what a running study has not come back to is waiting, not stopped."""
    if (path / MANIFEST).is_file():
        return "done"
    if not path.is_dir():
        return "waiting"
    if diverged(path):
        return "failed"
    if writer(path, holders) is not None:
        return "running"
    return "waiting" if alive else "stopped"


def _unseen(steps: Sequence[Step], status: Mapping[str, Status], workers: int) -> list[str]:
    """The runner's own choice for the places that no visible step takes: the first in order whose inputs are there."""
    free = workers - sum(value == "running" for value in status.values())
    ready = [
        step.name
        for step in steps
        if status[step.name] == "waiting" and all(status[name] == "done" for name in step.inputs.values())
    ]
    return ready[: max(free, 0)]


def _time(
    steps: Sequence[Step],
    status: Mapping[str, Status],
    took: Mapping[str, float],
    runs: Sequence[RunState],
    workers: int,
) -> tuple[float, float | None]:
    """The share that is done, by the plan's costs, and the seconds left, once a step has ended.

    A step takes what others of its kind took for their cost, or else what all took; a run's own last steps say more. What
    is left is shared by the workers, and no shorter than the longest chain of steps that read each other.
    """
    rates = _rates(steps, status, took)
    going = {run.name: run for run in runs}
    done: dict[str, float] = {}
    left: dict[str, float] = {}
    ends: dict[str, float] = {}
    for step in steps:
        run = going.get(step.name)
        ended = status[step.name] == "done"
        done[step.name] = 1.0 if ended else run.step / max(run.steps, 1) if run else 0.0
        left[step.name] = step.cost * rates.get(step.kind, rates.get("", 0.0)) * (1 - done[step.name])
        if run and run.seconds_left is not None and not ended:
            left[step.name] = run.seconds_left
        ends[step.name] = left[step.name] + max((ends[name] for name in step.inputs.values()), default=0.0)
    share = sum(step.cost * done[step.name] for step in steps) / sum(step.cost for step in steps)
    known = rates and not all(value == "done" for value in status.values())
    return share, max(sum(left.values()) / workers, *ends.values()) if known else None


def _rates(steps: Sequence[Step], status: Mapping[str, Status], took: Mapping[str, float]) -> dict[str, float]:
    """Seconds that a unit of the plan's cost took, by kind of step and, under no name, over all that have ended."""
    ended = [step for step in steps if status[step.name] == "done" and step.folder in took]
    spent: dict[str, float] = defaultdict(float)
    costs: dict[str, float] = defaultdict(float)
    for step in ended:
        for key in (step.kind, ""):
            spent[key] += took[step.folder]
            costs[key] += step.cost
    return {key: spent[key] / costs[key] for key in spent if costs[key]}


def _told(root: Path, steps: Iterable[Step]) -> list[Path]:
    """What steps write as they go: a training its log, one that asks a server its journal."""
    return [root / step.folder / name for step in steps for name in (LOG, JOURNAL)]


def _notes(pid: int | None, complete: bool, status: Mapping[str, Status]) -> tuple[str, ...]:
    if complete:
        return ()
    ended = all(value == "done" for value in status.values())
    if pid is not None:
        return ("every step has ended: results are collected and the report is written",) if ended and status else ()
    return (
        "no process of this machine is at work on it",
        *(["every step has ended; the report is not written"] * ended),
    )


def _sentence(folder: Path, pid: int | None, complete: bool) -> tuple[str, ...]:
    """In which the last attempt failed."""
    said = str((table(folder / STOPPED) or {}).get("error", "")).rstrip(".")
    return (f"it ended with: {said}",) if said and pid is None and not complete else ()


def _report(folder: Path, *, complete: bool) -> str:
    """The report's path, unless it is that of an earlier study in this folder, whose settings were then replaced."""
    path = folder / REPORT
    try:
        mine = complete or path.stat().st_mtime_ns >= (folder / CONFIG).stat().st_mtime_ns
    except OSError:
        return ""
    return str(path) if mine and path.is_file() else ""


# ---------------------------------------------------------------------------------------------------------------- runs


def _single(folder: Path, config: Mapping[str, Any], now: float) -> State:
    pid, complete = writer(folder, lock_holders()), sealed(folder / MANIFEST) is True
    status: Status = "done" if complete else "running" if pid is not None else "stopped"
    if status == "stopped" and diverged(folder):
        status = "failed"
    run, said = read_run(folder, folder.name, status), _sentence(folder, pid, complete)
    study = folder.parent.parent
    again = ["limbeck", "train", "--config", str(folder / CONFIG), "--out", str(folder)]
    if folder.parent.name == "steps" and "arms" in (table(study / CONFIG) or {}):
        again = ["limbeck", "study", "run", str(study / CONFIG), "--out", str(study)]
    return State(
        kind="run",
        folder=str(folder),
        name=folder.name,
        question=f"{run.objective} on {config['base']}",
        status="complete" if complete else "stopped" if pid is None else "running",
        writer=pid,
        counted="steps by config.json, time left by the run's last steps",
        share=1.0 if complete else run.step / run.steps if run.steps else None,
        seconds_left=run.seconds_left,
        seconds_silent=_silent([folder, folder / LOG], now),
        steps=(),
        runs=(run,),
        report="",
        go_on=shlex.join(again),
        notes=() if complete or pid is not None else ("no process of this machine is at work on it", *said),
    )


def _silent(paths: Iterable[Path], now: float) -> float:
    """Seconds since the newest of some files and folders was written."""
    times = []
    for path in paths:
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(now - max(times, default=now), 0.0)
