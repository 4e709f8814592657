"""How a step of SFT grows with sequence length, with rows and with the vocabulary, one at a time: time and memory.

    python benchmarks/scaling.py            # measure, print the fits, write the JSON and the plot in docs/images
    python benchmarks/scaling.py --plot     # the plot and the table again from the JSON

Hidden 256, 4 layers, LoRA of rank 32, fp32; the whole step is one micro-batch (``token_budget`` is out of the way, which
otherwise bounds the memory). A power law ``seconds ~ x**exponent`` is fitted to each series: 1 is linear. Attention grows
with the square of the length and the rest in proportion to it; only where it leads does the exponent leave 1. Memory
is the peak above libraries and model, as a straight line ``a + b * x`` with the share of variance it explains.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from common import Results, Row, Timing, run_job, table_in_docs, timed, timing

from limbeck.progress import bar

SIDES = Path(__file__).parent / "sides.py"
PLOT = Path(__file__).parents[1] / "docs" / "images" / "scaling.svg"
SHAPE = {"hidden": 256, "intermediate": 768, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 64, "prompt": 16}
START = {"length": 256, "rows": 4, "vocab": 75_968}
SERIES = {
    "length": (128, 256, 512, 1024, 2048),
    "rows": (2, 4, 8, 16),
    "vocab": (18_992, 37_984, 75_968, 151_936),
}
WORDS = {"length": "tokens a row", "rows": "rows a step", "vocab": "words"}
SPEED, SPACE, TIME = "tokens a second", "peak memory above libraries and model", "seconds a step"
TABLE = ("| fit | value |", "| --- | --- |")
ALL = 1 << 30  # a token budget that no step reaches


class Point(NamedTuple):
    """One measured step."""

    tokens_per_second: float
    seconds: float
    megabytes: float


def measure(shape: dict[str, Any], *, steps: int, clock: Timing) -> Point:
    """Median step of a fresh process at one shape."""
    with tempfile.TemporaryDirectory() as root:
        run_job(
            SIDES,
            {"job": "prepare", "root": root, "shape": shape | {"pairs": shape["rows"] // 2}},
            threads=clock.threads,
        )
        loaded = run_job(SIDES, {"job": "loaded", "root": root}, threads=clock.threads)["now_mb"]
        job = {"job": "ours", "root": root, "objective": "sft", "steps": steps, "train": {"token_budget": ALL}}
        found = run_job(SIDES, job, threads=clock.threads)
    seconds = clock.median(found)
    return Point(found["tokens"] / seconds, seconds, found["peak_mb"] - loaded)


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of log y over log x by least squares.

    >>> round(exponent([1.0, 2.0, 4.0], [3.0, 12.0, 48.0]), 6)
    2.0
    """
    return line([math.log(v) for v in x], [math.log(v) for v in y])[1]


def line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Intercept, slope and share of variance explained of a straight line.

    >>> line([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])
    (1.0, 2.0, 1.0)
    """
    slope, intercept = statistics.linear_regression(x, y)
    return intercept, slope, statistics.correlation(x, y) ** 2


def measured(rows: list[Row]) -> dict[str, dict[str, dict[float, float]]]:
    """Axis to quantity to its points, from result rows."""
    out: dict[str, dict[str, dict[float, float]]] = {axis: {} for axis in SERIES}
    for row in rows:
        place, _, quantity = row["what"].partition(": ")
        value, _, axis = place.partition(" ")
        name = next((name for name, words in WORDS.items() if words == axis), None)
        if name and quantity in (SPEED, SPACE, TIME):
            out[name].setdefault(quantity, {})[float(value)] = row["ours"]
    return out


def fits(rows: list[Row]) -> list[tuple[Any, ...]]:
    """Result rows of the fitted laws."""
    out: list[tuple[Any, ...]] = []
    for axis, found in measured(rows).items():
        x = sorted(found.get(TIME, {}))
        if len(x) < 3:
            continue
        seconds, space = ([found[quantity][v] for v in x] for quantity in (TIME, SPACE))
        laws = (
            (f"exponent of {TIME}", exponent(x, seconds), "exponent"),
            (f"share of variance a line explains, {TIME}", line(x, seconds)[2], "share"),
            (f"share of variance a line explains, {SPACE}", line(x, space)[2], "share"),
            (f"slope of {SPACE}", 1e3 * line(x, space)[1], f"kB per {axis}"),
        )
        out += [(f"over {WORDS[axis]}: {law}", value, None, None, None, None, unit) for law, value, unit in laws]
    return out


# ------------------------------------------------------------------------------------------------------------- the plot

WIDTH, HEIGHT, LEFT, TOP, GAP = 230, 150, 64, 34, 92
INK, CURVE = "#30363d", "#0b6e8a"


def svg(rows: list[Row]) -> str:
    """Two rows of three panels: tokens a second and memory over length, rows and vocabulary."""
    found = measured(rows)
    panels = [
        panel(found[axis].get(quantity, {}), (column, line_number), WORDS[axis], name)
        for line_number, (quantity, name) in enumerate(((SPEED, "tokens/s"), (SPACE, "MB above model")))
        for column, axis in enumerate(SERIES)
    ]
    width, height = LEFT + 3 * (WIDTH + GAP) - 40, TOP + 2 * (HEIGHT + GAP) - 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11" fill="{INK}">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
    )


def panel(points: dict[float, float], place: tuple[int, int], below: str, beside: str) -> str:
    """One panel, both axes from zero: what grows in proportion is a straight line."""
    left, top = LEFT + place[0] * (WIDTH + GAP), TOP + place[1] * (HEIGHT + GAP)
    bottom, x = top + HEIGHT, sorted(points)
    if not x:
        return ""
    ceiling = nice(max(points.values()))

    def across(value: float) -> float:
        return left + WIDTH * value / x[-1]

    def up(value: float) -> float:
        return bottom - HEIGHT * value / ceiling

    parts = [f'<text x="{left}" y="{top - 12}" font-weight="bold">{beside}</text>']
    for tick in (0, ceiling / 2, ceiling):
        parts.append(f'<path d="M{left} {up(tick):.1f}H{left + WIDTH}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{left - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:,.0f}</text>')
    parts += [
        f'<text x="{across(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:,.0f}</text>'
        for tick in (0, x[-1] / 2, x[-1])
    ]
    parts += [f'<circle cx="{across(value):.1f}" cy="{up(points[value]):.1f}" r="3.5" fill="{CURVE}"/>' for value in x]
    path = " ".join(f"{across(v):.1f},{up(points[v]):.1f}" for v in x)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{CURVE}" stroke-width="2"/>')
    parts.append(f'<text x="{left + WIDTH / 2}" y="{bottom + 34}" text-anchor="middle">{below}</text>')
    return "".join(parts)


def nice(value: float) -> float:
    """The next number of one digit or a half one above a value.

    >>> nice(2310.0), nice(87.0)
    (2500.0, 90.0)
    """
    unit = 10 ** math.floor(math.log10(value))
    return float(math.ceil(2 * value / unit) / 2 * unit)


def docs_table(rows: list[Row]) -> str:
    """The plot and the fitted laws as Markdown."""
    lines = ["![Tokens/s and memory over length, rows and vocabulary](images/scaling.svg)", "", *TABLE]
    for law, value, *_, unit in fits(rows):
        lines.append(f"| {law} | {value:.3g}{f' {unit}' if ' per ' in unit else ''} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every series, fit, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    timing(parser, threads=2)
    parser.add_argument("--axes", nargs="+", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--plot", action="store_true", help="measure nothing: plot and table from the JSON")
    arguments = parser.parse_args()
    results = Results("scaling", command="python benchmarks/scaling.py", machine=timed(arguments).machine)
    points = [(axis, value) for axis in arguments.axes for value in SERIES[axis]]
    with bar("scaling", len(points)) as advance:
        for axis, value in () if arguments.plot else points:
            point = measure(SHAPE | START | {axis: value}, steps=arguments.steps, clock=timed(arguments))
            for quantity, number, unit in zip((SPEED, TIME, SPACE), point, ("tokens/s", "s", "MB"), strict=True):
                results.add((f"{value} {WORDS[axis]}: {quantity}", number, None, None, None, None, unit))
            advance(1)
    if not arguments.plot:
        results.add(*fits(results.stored()))
    results.show()
    PLOT.parent.mkdir(exist_ok=True)
    PLOT.write_text(svg(results.stored()), encoding="utf-8")
    table_in_docs("scaling", docs_table(results.stored()))


if __name__ == "__main__":
    main()
