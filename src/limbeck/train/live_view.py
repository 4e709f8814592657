"""A live run on stderr: in a terminal a table with trends, elsewhere a plain line now and then. Always with time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from limbeck.progress import QUIET_SECONDS

BARS = "▁▂▃▄▅▆▇█"
TREND = 40  # steps that a trend shows
SHOWN = {  # name in metrics.jsonl to words and format
    "reward": ("reward", "{:.3f}"),
    "signal_share": ("groups with signal", "{:.0%}"),
    "response_tokens": ("response tokens", "{:.1f}"),
    "truncated_share": ("truncated", "{:.1%}"),
    "entropy": ("entropy, nats", "{:.4f}"),
    "kl_student_teacher_k3": ("KL student to teacher (k3)", "{:.4f}"),
    "kl_student_reference_k3": ("KL student to base (k3)", "{:.4f}"),
    "kl_sampler_student_k3": ("KL sampler to student (k3)", "{:.2e}"),
    "teacher_agreement": ("teacher agreement", "{:.3f}"),
    "clipped_low": ("clipped low", "{:.2%}"),
    "clipped_high": ("clipped high", "{:.2%}"),
    "ratio_max": ("largest ratio", "{:.2f}"),
    "grad_norm": ("gradient norm", "{:.3g}"),
    "update_norm": ("update norm", "{:.3g}"),
}
PLAIN = ("reward", "signal_share", "response_tokens", "kl_student_teacher_k3")
PARTS = ("sample", "score", "measure", "update")


@contextmanager
def live_view(num_steps: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Call what it yields with the line of every step, those of a resumed run's past included."""
    console = Console(stderr=True)
    history: list[Mapping[str, Any]] = []
    if not console.is_terminal:
        yield _plain(history, num_steps)
        return
    with Live(_waiting(num_steps), console=console, refresh_per_second=4, transient=False) as live:

        def show(line: Mapping[str, Any]) -> None:
            history.append(line)
            live.update(dashboard(history, num_steps))

        yield show


def dashboard(history: Sequence[Mapping[str, Any]], num_steps: int) -> Group:
    """What a terminal shows after the last line."""
    last = history[-1]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("now", justify="right")
    table.add_column(f"last {min(TREND, len(history))} steps")
    for name, (words, form) in SHOWN.items():
        series = [line[name] for line in history if line.get(name) is not None]
        if series:
            table.add_row(words, form.format(series[-1]), trend(series[-TREND:]))
    head = Text(f"{last['objective']}  step {last['step']} of {num_steps}, {_left(history, num_steps)}")
    foot = Text(_split(history[-TREND:]), style="dim")
    return Group(head, ProgressBar(total=num_steps, completed=last["step"], width=60), table, foot)


def trend(series: Sequence[float]) -> str:
    """One bar a value, from the lowest to the highest of the series.

    >>> trend([0.0, 0.5, 1.0])
    '▁▅█'
    """
    low, high = min(series), max(series)
    if high == low:
        return BARS[0] * len(series)
    return "".join(BARS[min(int((x - low) / (high - low) * len(BARS)), len(BARS) - 1)] for x in series)


def _plain(history: list[Mapping[str, Any]], num_steps: int) -> Callable[[Mapping[str, Any]], None]:
    start = time.monotonic()
    last = -QUIET_SECONDS

    def show(line: Mapping[str, Any]) -> None:
        nonlocal last
        history.append(line)
        now = time.monotonic() - start
        if now - last < QUIET_SECONDS and line["step"] < num_steps:
            return
        last = now
        known = [(SHOWN[name], line[name]) for name in PLAIN if line.get(name) is not None]
        said = ", ".join(f"{words} {form.format(value)}" for (words, form), value in known)
        text = f"[{now:5.0f} s] {line['objective']} step {line['step']} of {num_steps}: {said}, {_left(history, num_steps)}"
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    return show


def _waiting(num_steps: int) -> Text:
    return Text(f"step 1 of {num_steps}: the student answers its first problems")


def _left(history: Sequence[Mapping[str, Any]], num_steps: int) -> str:
    recent = [line["seconds"] for line in history[-TREND:]]
    left = sum(recent) / len(recent) * (num_steps - history[-1]["step"])
    return f"about {left:.0f} s left" if left else "done"


def _split(lines: Sequence[Mapping[str, Any]]) -> str:
    """Where the time went, and how fast each part was."""
    total = sum(line["seconds"] for line in lines) or 1.0
    parts = []
    for name in PARTS:
        seconds = sum(line.get(f"seconds_{name}", 0.0) for line in lines)
        rates = [line[f"tokens_per_second_{name}"] for line in lines if f"tokens_per_second_{name}" in line]
        rate = f", {sum(rates) / len(rates):,.0f} tokens/s" if rates else ""
        parts += [f"{name} {seconds / total:.0%}{rate}"] if seconds else []
    return f"{total / len(lines):.2f} s a step: " + "; ".join(parts)
