"""Steps in order, several at a time where they do not need each other; finished ones are found again, never redone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

import torch

from limbeck.digests import is_complete
from limbeck.records import read_json, write_json
from limbeck.studies.executors import KINDS, Executor, Place, Task, appear
from limbeck.studies.locks import sole
from limbeck.studies.plan import Step

Show = Callable[[str, float, float], None]  # title, done, total
OVERALL = "study"
TIMES = "seconds.json"
SMALL = 100 << 20  # bytes of weights; smaller students run side by side on a CPU
TICK = 0.2  # seconds between two looks at the progress
AGAIN = 1.0  # seconds between two looks at a step that another study is making


def run_plan(steps: Sequence[Step], root: Path, *, on: Place, show: Show, kinds: str = KINDS) -> dict[str, Path]:
    """Execute every step that has no finished folder yet.

    Args:
        steps: each after what it reads.
        root: gets one folder per step; other studies may be at work in it.
        on: where steps run.
        show: told the progress, in units of the steps' cost.
        kinds: where the functions of the steps' kinds are found, ``module:table``.

    Returns:
        Step name to its folder.

    Raises:
        The first error of a step, after the running ones have ended; their folders stay.
        LimbeckError: a step's process was killed from outside.
    """
    folders = {step.name: root / step.folder for step in steps}
    done = {name for name, folder in folders.items() if is_complete(folder)}
    meter = _Meter(steps, done, show)
    plan = _Schedule(steps, folders, done, kinds)
    with on(meter.tell) as executor, _Times(root) as times:
        while plan.goes_on():
            plan.submit(executor)
            ended = plan.pause()
            executor.poll()
            for future in ended:
                _settle(plan, meter, times, future)
    if plan.errors:
        raise executor.explain(plan.errors)
    return folders


def _settle(plan: _Schedule, meter: _Meter, times: _Times, future: Future[float | None]) -> None:
    """Take note of a step that has ended, well or not, or that another study has."""
    task = plan.running.pop(future)
    error = future.exception()
    if error:
        plan.errors[task.name] = error
        meter.end(task.name)
        return
    seconds = future.result()
    if seconds is None and not is_complete(task.out):
        plan.put_off(task.name)
        meter.wait_for(task.name)
        return
    appear(task.out)
    if seconds is not None:
        times.note(task.out.name, seconds)
    plan.done.add(task.name)
    meter.end(task.name, seconds)


class _Schedule:
    """Which steps wait, run and are done."""

    def __init__(self, steps: Sequence[Step], folders: dict[str, Path], done: set[str], kinds: str) -> None:
        self.done, self.errors = set(done), dict[str, BaseException]()
        self.running: dict[Future[float | None], Task] = {}
        self._waiting = {step.name: step for step in steps if step.name not in done}
        self._folders, self._kinds = folders, kinds
        self._steps = dict(self._waiting)
        self._not_before: dict[str, float] = {}

    def goes_on(self) -> bool:
        """Whether anything runs, or is still to be run; after an error nothing new is."""
        return bool(self.running or (self._waiting and not self.errors))

    def submit(self, executor: Executor) -> None:
        """Hand over the first steps whose inputs are there, as many as find room."""
        full: set[str] = set()  # kinds: steps of one kind take the same room
        for step in [] if self.errors else list(self._waiting.values()):
            if step.kind in full or not self._ready(step):
                continue
            task = self._task(step)
            if executor.room(self.running.values(), task):
                del self._waiting[step.name]
                self.running[executor.submit(task)] = task
            else:
                full.add(step.kind)

    def pause(self) -> Iterable[Future[float | None]]:
        """What has ended, after a tick at the longest."""
        if not self.running:
            time.sleep(TICK)
            return ()
        return wait(self.running, timeout=TICK, return_when=FIRST_COMPLETED).done

    def put_off(self, name: str) -> None:
        """A step that another study is making waits again, behind what can be done here meanwhile."""
        self._waiting[name] = self._steps[name]
        self._not_before[name] = time.monotonic() + AGAIN

    def _ready(self, step: Step) -> bool:
        return self.done.issuperset(step.inputs.values()) and time.monotonic() >= self._not_before.get(step.name, 0.0)

    def _task(self, step: Step) -> Task:
        inputs = {role: self._folders[name] for role, name in step.inputs.items()}
        params = {**step.params, **step.manner}
        return Task(step.name, step.kind, self._kinds, params, inputs, self._folders[step.name])


class _Meter:
    """How much of the study is done, in cost: a guess, which what steps of a kind took corrects for those still to come."""

    def __init__(self, steps: Sequence[Step], done: Collection[str], show: Show) -> None:
        self._steps = {step.name: step for step in steps if step.name not in done}
        self._share = dict.fromkeys(self._steps, 0.0)
        self._show = show
        self._took: dict[str, tuple[float, float]] = {}  # by kind: seconds and cost of steps that ended
        self._awaited: set[str] = set()
        self._tell()

    def tell(self, name: str, share: float) -> None:
        """A step's own word; late ones of a step that has ended are dropped."""
        if self._share[name] < 1.0:
            self._update(name, share)

    def end(self, name: str, seconds: float | None = None) -> None:
        """A step has ended, after so long where it was run here."""
        if name in self._awaited:
            self._show(_awaited(name), 1.0, 1.0)
        if seconds is not None:
            step, (before, cost) = self._steps[name], self._took.get(self._steps[name].kind, (0.0, 0.0))
            self._took[step.kind] = (before + seconds, cost + step.cost)
        self._update(name, 1.0)

    def wait_for(self, name: str) -> None:
        """A step is being made by another study."""
        self._awaited.add(name)
        self._show(_awaited(name), 0.0, 1.0)

    def _update(self, name: str, share: float) -> None:
        self._share[name] = share
        self._tell()
        if share > 0:
            self._show(name, share, 1.0)

    def _tell(self) -> None:
        weights = {name: step.cost * self._pace(step.kind) for name, step in self._steps.items()}
        done = sum(weights[name] * share for name, share in self._share.items())
        self._show(OVERALL, done, sum(weights.values()))

    def _pace(self, kind: str) -> float:
        """Seconds a cost of steps of a kind, over those of all; 1 where none has ended."""
        own, cost_of_own = self._took.get(kind, (0.0, 0.0))
        seconds, cost = (sum(took[place] for took in self._took.values()) for place in (0, 1))
        return own / cost_of_own / (seconds / cost) if seconds > 0 and cost_of_own > 0 else 1.0


def _awaited(name: str) -> str:
    return f"{name}, by another study"


class _Times:
    """What steps took, kept apart from their own folders, whose content must not depend on the clock.

    Written about once a second at most: of a thousand short steps the file is long.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._new: dict[str, float] = {}
        self._written = 0.0

    def __enter__(self) -> _Times:
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def note(self, folder: str, seconds: float) -> None:
        """What the step of this folder took."""
        self._new[folder] = round(seconds, 2)
        if time.monotonic() - self._written > 1.0:
            self._write()

    def _write(self) -> None:
        if self._new:
            with sole(self._root / TIMES, wait=True):  # other studies may write there
                write_json(self._root / TIMES, {**read_seconds(self._root), **self._new})
            self._new, self._written = {}, time.monotonic()


def read_seconds(root: Path) -> dict[str, float]:
    """Step folder to the seconds that made it."""
    return read_json(root / TIMES) if (root / TIMES).is_file() else {}


def default_workers(model_bytes: int) -> int:
    """Small students gain from steps side by side with one thread each; large ones need the machine for themselves."""
    return max(1, min(os.cpu_count() or 1, 8)) if model_bytes < SMALL and not torch.cuda.is_available() else 1
