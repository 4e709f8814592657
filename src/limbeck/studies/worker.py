"""What runs in the workers of a Ray cluster. Imports nothing heavy: what steps compute with comes with the first of them."""

from __future__ import annotations

import os
import pkgutil
import sys
import time
from typing import Any, NamedTuple

import limbeck
from limbeck.errors import LimbeckError
from limbeck.studies.executors import Task, execute

LOOK = 0.5  # seconds between two words of one task, and between two looks at them


class Here(NamedTuple):
    """The process that started the study, as far as its workers are to be like it.

    Attributes:
        version: of limbeck.
        folder: that relative paths are relative to.
        environment: variables that libraries read as they are imported.
    """

    version: str
    folder: str
    environment: dict[str, str]


class Board:
    """An actor that keeps the newest progress of every task until it is asked."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}

    def put(self, name: str, share: float) -> None:
        self._shares[name] = share

    def take(self) -> dict[str, float]:
        shares, self._shares = self._shares, {}
        return shares


def run_step(task: Task, board: Any, threads: int, here: Here) -> float | None:
    """One step, as :func:`~limbeck.studies.executors.execute`.

    Args:
        task: the step.
        board: the actor that is told its progress.
        threads: of torch; the last bits of a sum depend on it.
        here: where the study was started.

    Raises:
        LimbeckError: this worker has another version.
        Whatever the step raises.
    """
    if limbeck.__version__ != here.version:
        raise LimbeckError(
            f"all that run steps must have one version of limbeck, received {limbeck.__version__} on a worker and {here.version} "
            "where the study was started. Install the same everywhere."
        )
    os.environ.update(here.environment)
    if os.path.isdir(here.folder):
        os.chdir(here.folder)
    pkgutil.resolve_name(task.kinds)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    told = 0.0

    def tell(share: float) -> None:
        nonlocal told
        if time.monotonic() - told > LOOK:
            told = time.monotonic()
            board.put.remote(task.name, share)

    return execute(task, tell)
