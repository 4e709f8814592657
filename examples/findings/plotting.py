"""What the figures of docs/results share: the look of a report's figures in print, intervals, seeds and files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from limbeck.leftovers import whole
from limbeck.report.drawing import color
from limbeck.report.vector import METADATA, STYLE
from limbeck.types import Estimate

MUTED, INK, SHADE = color("@muted"), color("@ink"), (0.45, 0.47, 0.5, 0.18)
COLORS = [color(f"@arm{i}") for i in range(8)]
MARKERS = "osD^vPX*"


def panels(
    columns: int, rows: int = 1, *, width: float = 7.0, height: float = 2.4, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row; inches."""
    matplotlib.style.use(STYLE)  # as a report in print
    figure = Figure(figsize=(width, height * rows))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    return figure, list(axes.flat)


def save(figure: Figure, path: Path) -> None:
    """The same numbers give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        figure.savefig(temporary, format="svg", metadata=METADATA["svg"])


def names_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """The names of what one of the axes shows, below all of them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)


def line(
    axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], place: int, label: str, style: str = "-"
) -> None:
    """Numbers with their intervals, joined."""
    y = [e.value for e in estimates]
    away = [[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]]
    known = all(math.isfinite(end) for side in away for end in side)
    axes.errorbar(
        x, y, yerr=away if known else None, color=COLORS[place % 8], marker=MARKERS[place % 8], markersize=3.5, linewidth=1.1,
        elinewidth=0.8, linestyle=style, label=label,
    )  # fmt: skip


def rows_of(
    axes: Axes, labels: Sequence[str], estimates: Sequence[Estimate], places: Sequence[int], *, zero: bool = True
) -> None:
    """A name a row, the first on top, each number with its interval."""
    for row, (e, place) in enumerate(zip(estimates, places, strict=True)):
        y = len(labels) - 1 - row
        if math.isfinite(e.low):
            axes.plot([e.low, e.high], [y, y], color=COLORS[place % 8], linewidth=1.2)
        axes.plot([e.value], [y], MARKERS[place % 8], color=COLORS[place % 8], markersize=4)
    axes.set_yticks(range(len(labels)), labels[::-1])
    axes.set_ylim(-0.6, len(labels) - 0.4)
    if zero:
        axes.axvline(0, color=MUTED, linewidth=0.7, linestyle=(0, (4, 2)))


def dots(axes: Axes, x: float, values: Sequence[float], estimate: Estimate, place: int) -> None:
    """Every seed as a small open dot beside the mean with its interval."""
    axes.plot(
        [x + 0.12] * len(values),
        values,
        "o",
        color=COLORS[place % 8],
        markersize=2.5,
        fillstyle="none",
        markeredgewidth=0.7,
    )
    axes.errorbar(
        [x - 0.08], [estimate.value], yerr=[[estimate.value - estimate.low], [estimate.high - estimate.value]],
        color=COLORS[place % 8], marker=MARKERS[place % 8], markersize=4, elinewidth=1.1,
    )  # fmt: skip
