"""One training as it is now, from its configuration and its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limbeck.digests import MANIFEST, MARKER
from limbeck.watch.files import Line, metrics, table, thinned

CONFIG = "config.json"
LOG = "metrics.jsonl"
RECENT = 10  # lines whose mean time says how long the others take
Status = Literal["done", "running", "stopped", "failed", "waiting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """One training: its last line, its curves, how long it still takes.

    ``steps`` is the most that it takes; one that stops at a norm may take fewer. ``curves`` are points (step, value).
    """

    name: str
    objective: str
    status: Status
    step: int
    steps: int
    loss: float | None = None
    reward: float | None = None
    grad_norm: float | None = None
    update_norm: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    curves: dict[str, list[tuple[int, float]]]
    note: str = ""


def read_run(folder: Path, name: str, status: Status) -> RunState:
    """From its configuration and its record."""
    config = table(folder / CONFIG) or {}
    train = section(config, "train")
    steps = train.get("num_steps", 0) if isinstance(train.get("num_steps"), int) else 0
    stages = section(config, "live").get("stages") or [train]
    lines = metrics(folder / LOG) or []
    last: Line = lines[-1] if lines else {}
    step, seconds = int(last.get("step", 0)), last.get("seconds", 0.0)
    recent = [line["seconds"] for line in lines[-RECENT:] if "seconds" in line]
    return RunState(
        name=name,
        objective=" > ".join(str(stage.get("objective", "")) for stage in stages),
        status=status,
        step=step,
        steps=max(steps, step),
        **{key: last.get(key) for key in ("loss", "reward", "grad_norm", "update_norm")},
        tokens_per_second=last["tokens"] / seconds if seconds and "tokens" in last else None,
        seconds_left=sum(recent) / len(recent) * (steps - step) if recent and status == "running" else None,
        curves={key: _curve(lines, key) for key in ("loss", "reward")},
        note=_note(folder, status, step),
    )


def _curve(lines: Sequence[Line], key: str) -> list[tuple[int, float]]:
    """Points for drawing, with as many digits as a drawing has."""
    return thinned([(int(line["step"]), float(f"{line[key]:.5g}")) for line in lines if key in line])


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section of a configuration; empty where it is none."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _note(folder: Path, status: Status, step: int) -> str:
    """What became of a run that does not run."""
    if status == "failed":
        return f"a number was not finite; what the step read is in {diverged(folder)}"
    if status not in ("stopped", "waiting"):
        return ""
    kept = [path.name for path in (folder / "checkpoints").glob("step-*") if (path / MANIFEST).is_file()]
    if kept:
        return f"goes on from its checkpoint of step {int(max(kept).removeprefix('step-'))}"
    return "has no checkpoint yet and begins again" if step else ""


def diverged(folder: Path) -> str:
    """The file that a step which was not finite left to the last process that claimed the folder; empty if there is none."""
    try:
        claimed = (folder / MARKER).stat().st_mtime_ns
        return next((str(p) for p in (folder / "diverged").iterdir() if p.stat().st_mtime_ns >= claimed), "")
    except OSError:
        return ""
