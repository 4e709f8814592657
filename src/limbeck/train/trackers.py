"""An optional tracker (TensorBoard, Weights & Biases, ...) that follows ``metrics.jsonl``, through accelerate's classes.

It runs in a thread of its own and reads what the run has written, so a tracker that raises, hangs or loses its network
costs a sentence and nothing else: the file is the truth, and training never waits for anybody.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from limbeck.errors import ConfigError, nearest
from limbeck.train.record import read_metrics

POLL_SECONDS = 1.0
LAST_SECONDS = 15.0  # for what is still to be sent once the run has ended


def check_tracker(name: str | None) -> None:
    """Refuse, before the run begins, a tracker that cannot be had.

    Raises:
        ConfigError: an unknown name, or a package that is not installed.
    """
    if name is None:
        return
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ConfigError(
            f'train.tracker must be one of accelerate\'s, received "{name}". {nearest(name, LOGGER_TYPE_TO_CLASS)}'
        )
    if name not in [str(available) for available in get_available_trackers()]:
        raise ConfigError(
            f"train.tracker = {name!r} needs its package, which is not installed. Install it, or leave it out."
        )


@contextmanager
def followed(name: str | None, out: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """While the context is open, and a little after, what the run in ``out`` logs goes to the tracker, too.

    Args:
        name: accelerate's name of a tracker; None is none.
        out: the run folder; trackers that write files do so in a folder of their name beside it.
        settings: told to the tracker once.
    """
    if name is None:
        yield
        return
    follower = _Follower(LOGGER_TYPE_TO_CLASS[name], name, out, settings)
    follower.start()
    try:
        yield
    finally:
        follower.ended.set()
        follower.join(LAST_SECONDS)
        if follower.is_alive():
            warnings.warn(
                f"the tracker {name} did not answer within {LAST_SECONDS:g} s of the end; it was told "
                f"{follower.told} steps. The whole record is {out / 'metrics.jsonl'}.",
                RuntimeWarning,
                stacklevel=3,
            )
        elif follower.error:
            warnings.warn(
                f"the tracker {name} failed after {follower.told} steps and was left alone: {follower.error}. The whole record "
                f"is {out / 'metrics.jsonl'}.",
                RuntimeWarning,
                stacklevel=3,
            )


class _Follower(threading.Thread):
    """Sends complete lines as they appear; a daemon, so that one that hangs does not hold the process."""

    def __init__(self, kind: Any, name: str, out: Path, settings: Mapping[str, Any]) -> None:
        super().__init__(daemon=True, name=f"tracker {name}")
        self.ended = threading.Event()
        self.told = 0
        self.error = ""
        self._kind, self._name, self._out, self._settings = kind, name, out, settings

    def run(self) -> None:
        try:
            tracker = self._open()
            while True:
                last = self.ended.wait(POLL_SECONDS)
                lines = read_metrics(self._out / "metrics.jsonl")
                for line in lines[self.told :]:
                    numbers = {key: value for key, value in line.items() if isinstance(value, (int, float))}
                    tracker.log(numbers, step=line["step"])
                    self.told += 1
                if last:
                    break
            tracker.finish()
        except Exception as error:  # whatever a tracker throws
            self.error = f"{type(error).__name__}: {error}"

    def _open(self) -> GeneralTracker:
        files = {"logging_dir": self._out.parent / self._name} if self._kind.requires_logging_directory else {}
        tracker: Any = self._kind(self._out.name, **files)
        if hasattr(tracker, "start"):
            tracker.start()
        tracker.store_init_configuration(_flat(self._settings))
        return tracker


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as trackers take them: one level, numbers, text and truth values."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return out
