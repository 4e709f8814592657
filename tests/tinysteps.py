"""Kinds of steps that need no model, for what is about running them: as ``kinds="tinysteps:KINDS"``."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from limbeck.folders import publish


def write(params: dict[str, Any], inputs: dict[str, Path], out: Path, tell: Any) -> None:
    """A folder with the texts of the folders it reads."""
    read = [(folder / "text").read_text() for folder in inputs.values()]
    tell(0.5)
    with publish(out, kind="text") as temporary:
        (temporary / "text").write_text(" ".join([*read, params["text"]]))


def fail(params: dict[str, Any], inputs: dict[str, Path], out: Path, tell: Any) -> None:
    raise ValueError(params["text"])


def die(params: dict[str, Any], inputs: dict[str, Path], out: Path, tell: Any) -> None:
    """As when the system kills for memory; each time a file remembers it."""
    with Path(params["log"]).open("a") as log:
        log.write(f"{os.getpid()}\n")
    if len(Path(params["log"]).read_text().split()) <= params["times"]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(params, inputs, out, tell)


def sleep(params: dict[str, Any], inputs: dict[str, Path], out: Path, tell: Any) -> None:
    time.sleep(params["seconds"])
    with publish(out, kind="slept"):
        pass


KINDS = {"write": write, "fail": fail, "die": die, "sleep": sleep}
