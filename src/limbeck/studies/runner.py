"""Steps in order, several at a time where they do not need each other; finished ones are found again, never redone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import LimbeckError
from limbeck.folders import is_complete, read_json, write_json
from limbeck.studies.plan import Step
from limbeck.studies.steps import KINDS

Show = Callable[[str, float, float], None]  # title, done, total
OVERALL = "study"
TIMES = "seconds.json"
SMALL = 100 << 20  # bytes of weights; smaller students run side by side on a CPU
_reports: Any = None  # the queue by which a worker tells its progress


def run_plan(steps: Sequence[Step], root: Path, *, workers: int, show: Show) -> dict[str, Path]:
    """Execute every step that has no finished folder yet.

    Args:
        steps: each after what it reads.
        root: gets one folder per step.
        workers: steps at a time; 1 runs in this process with all cores.
        show: told the progress, in units of the steps' cost.

    Returns:
        Step name to its folder.

    Raises:
        The first error of a step, after the running ones have ended; their folders stay.
        LimbeckError: a step's process was killed from outside.
    """
    folders = {step.name: root / step.folder for step in steps}
    meter = _Meter(steps, folders, show)
    waiting = [step for step in steps if not is_complete(folders[step.name])]
    if workers == 1:
        for step in waiting:
            seconds = _execute(step, folders, lambda share, name=step.name: meter.update(name, share))
            _note_seconds(root, step, seconds)
            meter.update(step.name, 1.0)
        return folders
    _run_side_by_side(waiting, folders, root, workers, meter)
    return folders


def _run_side_by_side(
    waiting: list[Step], folders: Mapping[str, Path], root: Path, workers: int, meter: _Meter
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["limbeck.studies.runner"])
    reports = context.Queue()
    started: dict[Future, Step] = {}
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(reports,)) as pool:
            running: set[Future] = set()
            error: BaseException | None = None
            while waiting or running:
                for step in [s for s in waiting if error is None and _ready(s, folders)][: workers - len(running)]:
                    waiting.remove(step)
                    future = pool.submit(_work, step, folders)
                    running.add(future)
                    started[future] = step
                done, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                meter.drain(reports)
                for future in done:
                    error = error or future.exception()
                    if future.exception() is None:
                        _note_seconds(root, started[future], future.result())
                    meter.update(started[future].name, 1.0)
                if error and not running:
                    raise error
    except BrokenProcessPool as error:  # the pool does not say whose process it was: all that ran are named
        names = sorted(
            step.name for future, step in started.items() if isinstance(future.exception(), BrokenProcessPool)
        )
        raise LimbeckError(
            f"every step must end by itself, received none from {', '.join(names) or 'a new process'}: its process was "
            "killed, probably for memory. Set workers = 1 or smaller batches, and run the same command to continue."
        ) from error


class _Meter:
    """How much of the study is done, in cost."""

    def __init__(self, steps: Sequence[Step], folders: Mapping[str, Path], show: Show) -> None:
        self._cost = {step.name: step.cost for step in steps}
        self._share = {step.name: float(is_complete(folders[step.name])) for step in steps}
        self._show = show
        self._found = sum(self._cost[name] * share for name, share in self._share.items())
        self.update(steps[0].name, self._share[steps[0].name])

    def update(self, name: str, share: float) -> None:
        self._share[name] = share
        done = sum(self._cost[n] * s for n, s in self._share.items())
        self._show(OVERALL, done - self._found, sum(self._cost.values()) - self._found)
        if self._share[name] > 0:
            self._show(name, share, 1.0)

    def drain(self, reports: Any) -> None:
        latest: dict[str, float] = {}
        with contextlib.suppress(queue.Empty):
            while True:
                name, share = reports.get_nowait()
                latest[name] = share
        for name, share in latest.items():
            if self._share[name] < 1.0:
                self.update(name, share)


def _ready(step: Step, folders: Mapping[str, Path]) -> bool:
    return all(is_complete(folders[name]) for name in step.inputs.values())


def _start(reports: Any) -> None:
    global _reports
    _reports = reports
    torch.set_num_threads(1)


def _work(step: Step, folders: Mapping[str, Path]) -> float:
    return _execute(step, folders, lambda share: _reports.put((step.name, share)))


def _execute(step: Step, folders: Mapping[str, Path], tell: Callable[[float], None]) -> float:
    """Run one step; the seconds it took."""
    begin = time.monotonic()
    inputs = {role: folders[name] for role, name in step.inputs.items()}
    KINDS[step.kind](step.params, inputs, folders[step.name], tell)
    return time.monotonic() - begin


def _note_seconds(root: Path, step: Step, seconds: float) -> None:
    """Kept apart from the steps' own folders, whose content must not depend on the clock."""
    known = read_seconds(root)
    write_json(root / TIMES, {**known, step.folder: round(seconds, 2)})


def read_seconds(root: Path) -> dict[str, float]:
    """Step folder to the seconds that made it."""
    return read_json(root / TIMES) if (root / TIMES).is_file() else {}


def default_workers(model_bytes: int) -> int:
    """Small students gain from steps side by side with one thread each; large ones need the machine for themselves."""
    return max(1, min(os.cpu_count() or 1, 8)) if model_bytes < SMALL and not torch.cuda.is_available() else 1
