"""A state in a terminal: refreshed until the folder is complete, or printed once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from limbeck.errors import printable
from limbeck.train.live_view import trend
from limbeck.watch.planned import Watch
from limbeck.watch.run import RunState, Status
from limbeck.watch.state import State

EVERY = 1.0  # seconds between two looks
TREND = 16  # values that a trend shows
ROWS = 12  # runs shown; a terminal has no room for more
WIDTH = 60  # of the bar
ORDER: tuple[Status, ...] = ("done", "running", "waiting", "stopped", "failed")


def show(watch: Watch, console: Console) -> State:
    """Refresh the view until the folder is complete; the last state."""
    state = watch.state()
    with Live(view(state), console=console, auto_refresh=False) as live:
        while state.status != "complete":
            time.sleep(EVERY)
            state = watch.state()
            live.update(view(state), refresh=True)
    return state


def view(state: State) -> RenderableType:
    """Everything that a terminal shows of a state."""
    parts: list[RenderableType] = [_head(state), Text(printable(state.question), style="dim")]
    if state.share is not None:
        done = round(WIDTH * state.share)
        parts += [Text(f"\n{'█' * done}{'░' * (WIDTH - done)}")]
    parts += [_counts(state), Text(printable(state.counted), style="dim")]
    shown = state.runs if state.kind == "run" else [run for run in state.runs if run.status == "running"]
    parts += [Text(), *_runs(shown)] if shown else []
    parts += _unseen(state)
    halted = [run for run in state.runs if run.status in ("stopped", "failed")]
    parts += [Text(), *map(_halted, halted)] if halted else []
    parts += _end(state)
    return Group(*parts)


def _head(state: State) -> Text:
    text = Text(printable(state.name), style="bold")
    if state.status == "complete":
        return text.append("  complete", "green")
    if state.status == "stopped":
        return text.append(f"  not running; last written {duration(state.seconds_silent)} ago", "yellow")
    left = f", about {duration(state.seconds_left)} left" if state.seconds_left is not None else ""
    said = f"  running{left}; process {state.writer}; last written {duration(state.seconds_silent)} ago"
    return text.append(said, "not bold")


def _counts(state: State) -> Text:
    share = f"{100 * state.share:.0f} %  " if state.share is not None else ""
    if state.kind == "run":
        run = state.runs[0]
        return Text(f"{share}step {run.step} of {run.steps}")
    counts = state.counts
    said = ", ".join(f"{counts[status]} {status}" for status in ORDER if counts[status])
    kinds = Counter(step.name.partition("/")[0] for step in state.steps)
    done = Counter(step.name.partition("/")[0] for step in state.steps if step.status == "done")
    by_kind = ", ".join(f"{kind} {done[kind]}/{num}" for kind, num in kinds.items())
    return Text(printable(f"{share}{len(state.steps)} steps: {said or 'none'}\n{by_kind}"))


def _runs(runs: Sequence[RunState]) -> list[Text]:
    """Two lines each: where it is with its trend, and the numbers of its last step."""
    room = max((len(run.name) for run in runs), default=0)
    lines = []
    for run in runs[:ROWS]:
        left = f", about {duration(run.seconds_left)} left" if run.seconds_left is not None else ""
        text = Text(f"{printable(run.name):{room}}", "bold").append(
            f"  step {run.step} of {run.steps}{left}  {_trend(run)}\n", "not bold"
        )
        lines.append(text.append(f"  {_numbers(run)}", "not bold dim"))
    return [*lines, *([Text(f"and {len(runs) - ROWS} more", "dim")] if len(runs) > ROWS else [])]


def _numbers(run: RunState) -> str:
    """What the last line of the record says.

    >>> _numbers(RunState(name="a", objective="", status="running", step=0, steps=9, curves={}))
    'no step has ended yet'
    """
    given = {"loss": run.loss, "reward": run.reward, "grad norm": run.grad_norm, "update norm": run.update_norm}
    said = [f"{word} {short(value)}" for word, value in given.items() if value is not None]
    said += [f"{short(run.tokens_per_second)} tokens/s"] if run.tokens_per_second is not None else []
    return ", ".join(said) or "no step has ended yet"


def _trend(run: RunState) -> str:
    """The reward where there is one, else the loss."""
    name = "reward" if run.curves["reward"] else "loss"
    values = [value for _, value in run.curves[name]][-TREND:]
    return f"{name} {trend(values)}" if values else ""


def _unseen(state: State) -> list[Text]:
    names = ", ".join(step.name for step in state.steps if step.unseen)
    said = ": next by the plan, leaves nothing to see before the end"
    return [Text(f"\n{printable(names)}", "bold").append(said, "not bold dim")] if names else []


def _halted(run: RunState) -> Text:
    text = Text(f"{run.status}: ", style="red" if run.status == "failed" else "yellow")
    return text.append(
        printable(f"{run.name} at step {run.step} of {run.steps}{run.note and '; '}{run.note}"), "default"
    )


def _end(state: State) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(printable(f"\n{note[0].upper()}{note[1:]}.")) for note in state.notes]
    if state.status == "stopped":
        parts += [Text(printable(f"Go on with: {state.go_on}"))]
    if state.report:
        parts += [Text(printable(f"\nReport: {state.report}"))]
    return parts


def short(value: float) -> str:
    """Three significant digits.

    >>> short(0.01234), short(1819.4)
    ('0.0123', '1,819')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as a reader wants them.

    >>> duration(42.4), duration(600), duration(7500), duration(200_000)
    ('42 s', '10 min', '2 h 05 min', '2 d 7 h')
    """
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
