"""The plan of a study, made again from the configuration in its folder, beside the views that wait for it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.watch.files import table
from limbeck.watch.run import CONFIG
from limbeck.watch.state import Planned, State, read_state

NOT_YET = Planned(why_not="the plan is being made")
LASTS = 1.0  # seconds for which a reading is given again


def plan_of(folder: Path) -> Planned:
    """What would be run for the stored configuration. Takes seconds, for the libraries that it imports."""
    from limbeck.studies.config import load_study
    from limbeck.studies.plan import make_plan
    from limbeck.studies.runner import default_workers
    from limbeck.train.models import model_folder

    try:
        config = load_study(str(folder / CONFIG))
        weights = sum(file.stat().st_size for file in model_folder(config.student).glob("*.safetensors"))
        return Planned(tuple(make_plan(config)), config.workers or default_workers(weights))
    except (LimbeckError, OSError) as error:
        return Planned(why_not=f"the plan cannot be made again here ({error})")


class Watch:
    """Readings of one folder, for any number of views; leave the context to end the planning thread."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._pool = ThreadPoolExecutor(1)
        self._plan: Future[Planned] | None = None
        self._of: int | None = None  # when the configuration that is planned was written
        self._last: tuple[float, State] | None = None

    def __enter__(self) -> Watch:
        self.state()  # what cannot be watched is refused here
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def state(self, *, planned: bool = False) -> State:
        """The folder as it is, or was a moment ago; ``planned`` waits for a study's plan.

        Raises:
            FolderError: it is neither a study nor a run.
        """
        with self._lock:
            if not planned and self._last and time.monotonic() - self._last[0] < LASTS:
                return self._last[1]
            plan = self._planning()
            known = NOT_YET if plan is None or not (planned or plan.done()) else plan.result()
            state = read_state(self._folder, known, now=time.time())
            self._last = time.monotonic(), state
            return state

    def _planning(self) -> Future[Planned] | None:
        """The plan of what is configured now: a study that is run again with other settings gets another, a run has none."""
        config = self._folder / CONFIG
        if "arms" in (table(config) or {}):
            written = config.stat().st_mtime_ns
            if self._plan is None or written != self._of:
                self._plan, self._of = self._pool.submit(plan_of, self._folder), written
        return self._plan
