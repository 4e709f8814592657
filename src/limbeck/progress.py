"""Progress on stderr with time left, in a terminal a live bar, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET_SECONDS = 10.0  # between two plain lines


@contextmanager
def bar(title: str, total: float) -> Iterator[Callable[[float], None]]:
    """One bar; call what it yields with the amount just done."""
    with bars() as show:
        done = 0.0

        def advance(amount: float) -> None:
            nonlocal done
            done += amount
            show(title, done, total)

        show(title, 0, total)
        yield advance


@contextmanager
def bars() -> Iterator[Callable[[str, float, float], None]]:
    """Several bars by title; call what it yields with title, done and total. The first title stays on top."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, object] = {}

        def show(title: str, done: float, total: float) -> None:
            if title not in tasks:
                tasks[title] = progress.add_task(title, total=total)
            progress.update(tasks[title], completed=done, total=total)  # type: ignore[arg-type]
            if done >= total and len(tasks) > 1 and title != next(iter(tasks)):
                progress.remove_task(tasks.pop(title))  # type: ignore[arg-type]

        yield show


def counted(tell: Callable[[float], None], total: float = 1.0) -> Callable[[float], None]:
    """Turns "so much more is done", of a total, into the share that is done so far.

    >>> advance = counted(print, 4)
    >>> advance(1), advance(2)
    0.25
    0.75
    (None, None)
    """
    done = 0.0

    def advance(amount: float) -> None:
        nonlocal done
        done += amount
        tell(min(done / max(total, 1e-12), 1.0))

    return advance


def say(text: str) -> None:
    """A sentence on stderr, above the bars where this process shows some."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _plain() -> Callable[[str, float, float], None]:
    start = time.monotonic()
    last = -QUIET_SECONDS
    finished: set[str] = set()

    def show(title: str, done: float, total: float) -> None:
        nonlocal last
        now = time.monotonic() - start
        ended = done >= total and title not in finished
        if title in finished or (now - last < QUIET_SECONDS and not ended):
            return
        last = now
        finished.update([title] if ended else [])
        left = f", about {now / done * (total - done):.0f} s left" if 0 < done < total else ""
        share = 100 * done / total if total > 0 else 100
        print(f"[{now:5.0f} s] {title}: {share:.0f} %{left}", file=sys.stderr, flush=True)  # noqa: T201

    return show
