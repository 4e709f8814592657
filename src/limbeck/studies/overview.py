"""What a plan says before anything runs: its steps, its arms, and about how long and how much."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from limbeck.digests import is_complete
from limbeck.studies.config import ArmConfig, StudyConfig
from limbeck.studies.estimate import SERVERS, Estimate
from limbeck.studies.step import Step
from limbeck.studies.work import rows_trained


def steps_lines(plan: Sequence[Step], out: Path | None) -> str:
    """One line a step: name, digest, what it reads, and whether a study's folder has it."""
    lines = []
    for step in plan:
        done = "done" if out and is_complete(out / "steps" / step.folder) else ""
        reads = f"reads {', '.join(step.inputs.values()) or '-'}"
        lines.append(f"{step.name:44} {step.digest[:12]}  {done + '  ' if done else ''}{reads}")
    return "\n".join(lines) + "\n"


def arms_table(config: StudyConfig) -> str:
    """One line an arm, its settings in full."""
    heads = ("arm", "role", "seeds", "objective", "selection", "steps", "rows trained on", "rollouts")
    table = Table(*heads, title="Arms, each run")
    for arm in config.arms:
        if arm.merge:
            of = ", ".join(f"{weight:g} {name}" for name, weight in zip(arm.merge.arms, arm.merge.factors, strict=True))
            seeds = ", ".join(map(str, config.seeds_of(arm)))
            table.add_row(escape(arm.name), arm.role, seeds, f"merge: {escape(of)}", "", "", "", "")
            continue
        train, live = config.training(arm, 0), config.living(arm)
        rows = rows_trained(train.model_dump(), live.model_dump() if live else None)
        stages = ", ".join(stage.objective for stage in live.stages) if live else ""
        seeds = ", ".join(map(str, config.seeds_of(arm)))
        objective, selection = stages or train.objective, "" if live else train.selection
        rollouts = _rollouts(config, arm)
        table.add_row(
            escape(arm.name), arm.role, seeds, objective, selection, f"{train.num_steps:,}", f"{rows:,}", rollouts
        )
    return _text(table)


def _rollouts(config: StudyConfig, arm: ArmConfig) -> str:
    """Whose rollouts an arm learns from, and how many of its own it samples."""
    if live := config.living(arm):
        return f"{config.training(arm, 0).num_steps * live.prompts_per_step * live.samples:,} as it goes"
    if arm.rollouts is None:
        return "shared"
    given = config.sampling(arm)
    return f"by {given.server.model}, a server" if given.server else f"by {given.by}"


def time_table(found: Estimate) -> str:
    """Seconds and bytes by kind of step, the sum, and how it was made."""
    table = Table("kind", "steps", "done", "left, one after another", "on disk", "from", title="About")
    for one in found.kinds:
        left = "not known" if one.source == SERVERS and one.done < one.steps else duration(one.seconds)
        table.add_row(one.kind, str(one.steps), str(one.done), left, size(one.disk), one.source)
    low, high = (duration(found.seconds * factor) for factor in found.spread)
    more = f", and as long as servers take for {found.served:,} rollouts" if found.served else ""
    return _text(table) + (
        f"{low} to {high} from here{more}, {found.workers} step(s) at a time; about {size(found.disk)} on disk.\n"
        f"Rough. Rates: {found.how}. The last column says what a kind was taken from: the student's rates; a table of seconds on "
        "two x86-64 cores; or rates corrected by what finished steps of the kind took."
    )


def duration(seconds: float) -> str:
    """A time in the unit that suits it, with two digits.

    >>> duration(7.4), duration(250), duration(2200), duration(90_000)
    ('7 s', '4.2 min', '37 min', '25 h')
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            value = seconds / length
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{seconds:.0f} s"


def size(num: float) -> str:
    """Bytes in the unit that suits them.

    >>> size(700), size(3_200_000), size(5e9)
    ('0.7 kB', '3.2 MB', '5.0 GB')
    """
    for unit, length in (("GB", 1e9), ("MB", 1e6)):
        if num >= length:
            return f"{num / length:,.1f} {unit}"
    return f"{num / 1e3:.1f} kB"


def _text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=150)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
