"""Where steps run: in this process, in several beside it, or (:mod:`~limbeck.studies.cluster`) on a Ray cluster.

An executor takes tasks and gives futures; which task comes when is the runner's to say.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pkgutil
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from limbeck.digests import is_complete
from limbeck.errors import FolderError, LimbeckError, storage_errors
from limbeck.studies.locks import sole

KINDS = "limbeck.studies.steps:KINDS"
SEEN_WITHIN = 60.0  # seconds; NFS clients may take as long to see what another has written
Tell = Callable[[str, float], None]  # a step's name and the share of it that is done


class Task(NamedTuple):
    """A step as the process that runs it needs it.

    Attributes:
        name: of the step.
        kind: of the step.
        kinds: where the function of a kind is found, ``module:table``; imported by the process that runs the step.
        params: its settings, and how it is done.
        inputs: role to the finished folder that it reads.
        out: the folder that it makes.
    """

    name: str
    kind: str
    kinds: str
    params: dict[str, Any]
    inputs: dict[str, Path]
    out: Path


@runtime_checkable
class Executor(Protocol):
    """What the runner asks of a place where steps run."""

    def room(self, running: Collection[Task], task: Task) -> bool:
        """Whether a task is to be submitted beside those that run."""
        ...

    def submit(self, task: Task) -> Future[float | None]:
        """The seconds it will have taken, as of :func:`execute`."""
        ...

    def poll(self) -> None:
        """Pass on the progress that tasks have told since the last time."""
        ...

    def explain(self, errors: Mapping[str, BaseException]) -> BaseException:
        """What to raise for the errors of tasks, by step in the order in which they came."""
        ...


Place = Callable[[Tell], AbstractContextManager[Executor]]


def execute(task: Task, tell: Callable[[float], None]) -> float | None:
    """Run one step; the seconds it took, or None where another process is making it or has made it.

    Raises:
        FolderError: what it reads is not seen here.
        Whatever the step raises.
    """
    for folder in task.inputs.values():
        appear(folder)
    with sole(task.out) as mine:
        if not mine or is_complete(task.out):
            return None
        begin = time.monotonic()
        with storage_errors():  # here: errors lose what lies behind them on their way to another process
            pkgutil.resolve_name(task.kinds)[task.kind](task.params, task.inputs, task.out, tell)
        return time.monotonic() - begin


def appear(folder: Path, within: float = SEEN_WITHIN) -> None:
    """Wait until a folder that is finished is seen to be: network file systems show it to others a while later.

    Raises:
        FolderError: it is not.
    """
    deadline = time.monotonic() + within
    while not is_complete(folder):
        if time.monotonic() > deadline:
            raise FolderError(
                f"every process that runs steps must see the steps' folder under one path, received {folder}, which is finished "
                f"and after {within:.0f} s not seen from here. Give an --out, or --steps, on storage that all machines mount."
            )
        time.sleep(0.2)


class InProcess:
    """One step after another in this process, with all cores."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def room(self, running: Collection[Task], task: Task) -> bool:
        return not running

    def submit(self, task: Task) -> Future[float | None]:
        future: Future[float | None] = Future()
        try:
            future.set_result(execute(task, lambda share: self._tell(task.name, share)))
        except Exception as error:
            future.set_exception(error)
        return future

    def poll(self) -> None:
        pass

    def explain(self, errors: Mapping[str, BaseException]) -> BaseException:
        return next(iter(errors.values()))


class Processes:
    """Steps side by side on this machine, one thread each."""

    def __init__(self, workers: int, tell: Tell) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, KINDS.partition(":")[0]])
        self._workers, self._tell, self._reports = workers, tell, context.Queue()
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(self._reports,))

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind and not issubclass(kind, Exception):  # interrupted: nobody waits for the steps to end
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def room(self, running: Collection[Task], task: Task) -> bool:
        return len(running) < self._workers

    def submit(self, task: Task) -> Future[float | None]:
        try:
            return self._pool.submit(_work, task)
        except BrokenProcessPool as error:
            future: Future[float | None] = Future()
            future.set_exception(error)
            return future

    def poll(self) -> None:
        latest: dict[str, float] = {}
        with contextlib.suppress(queue.Empty):
            while True:
                name, share = self._reports.get_nowait()
                latest[name] = share
        for name, share in latest.items():
            self._tell(name, share)

    def explain(self, errors: Mapping[str, BaseException]) -> BaseException:
        first = next(iter(errors.values()))
        if not isinstance(first, BrokenProcessPool):
            return first
        killed = sorted(name for name, error in errors.items() if isinstance(error, BrokenProcessPool))
        return LimbeckError(  # the pool does not say whose process it was: all that ran are named
            f"every step must end by itself, received none from {', '.join(killed)}: its process was "
            "killed, probably for memory. Set workers = 1 or smaller batches, and run the same command to continue."
        )


_reports: Any = None  # the queue by which a process tells its progress


def _start(reports: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is for the parent
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    global _reports
    _reports = reports
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A parent that was killed reads no result; its workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Task) -> float | None:
    return execute(task, lambda share: _reports.put((task.name, share)))
