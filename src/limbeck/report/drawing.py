"""One panel of the report onto matplotlib axes: the part of plotly that the report uses, and nothing else in silence.

A trace, an axis or a shape with a key that is not known here raises, so that a figure in print never lacks what the page has.
Sizes of the page, in pixels, become points by one factor. Colors are those of the page's light theme, read from its style sheet.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator, NullLocator

from limbeck.errors import DataError, printable
from limbeck.report.parts import Panel
from limbeck.report.words import compact

POINTS = 0.55  # a pixel of the page in points: what is 2 px wide there is 1.1 pt in print
DASHES = {"solid": "-", "dot": (0, (1, 1.4)), "dash": (0, (4, 2))}
MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "cross": "P", "x": "X",
    "star": "*", "diamond-tall": "d", "line-ew": "_",
}  # fmt: skip
LARGER = {"P": 1.25, "X": 1.25, "*": 1.6}  # marks whose area is small beside a circle of one width
DIVERGING = ("#b4540f", "#f3f2ee", "#3b8fc0")  # page.js has the same
MARKS = 5  # on a line whose arm has a mark: colors come round again, and print may be grey
RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
LOG_STEPS = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
)
APART = {"hoverinfo", "hovertext", "name", "meta"}  # what no sheet of paper shows


def draw(axes: Axes, panel: Panel) -> None:
    """All traces, shapes and axes of a panel.

    Raises:
        DataError: the panel has what this translator does not know.
    """
    before: Mapping[str, Any] = {}
    for place, trace in enumerate(panel.data):
        if trace["type"] not in TRACES:
            raise _unknown(f"trace type {trace['type']!r}", TRACES)
        TRACES[trace["type"]](axes, trace, before, place)
        before = trace
    _known(panel.layout, {"xaxis", "yaxis", "shapes", "showlegend"}, "layout")
    for shape in panel.layout.get("shapes", ()):
        _shape(axes, shape)
    for name in ("x", "y"):
        _axis(axes, name, panel.layout.get(f"{name}axis", {}))


def _unknown(what: str, known: Collection[str]) -> DataError:
    return DataError(
        f"a figure for print can draw {', '.join(sorted(known))}; received {what}. Teach it limbeck.report.drawing, or leave "
        "it out of the panel."
    )


def _known(given: Mapping[str, Any], known: Collection[str], what: str) -> None:
    for key in given:
        if key not in known:
            raise _unknown(f"{key!r} in {what}", known)


# ------------------------------------------------------------------------------------------------------------ colors


@cache
def theme() -> dict[str, tuple[float, float, float, float]]:
    """The light theme's colors by name, from the first block of the page's style sheet."""
    css = resources.files("limbeck.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    block = css[css.index(":root {") : css.index("}")]
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6}|rgba\([^)]*\));", block))
    return {name: _rgba(value) for name, value in found.items()}


def _rgba(css: str) -> tuple[float, float, float, float]:
    if css.startswith("#"):
        return to_rgba(css)
    red, green, blue, alpha = (float(x) for x in css.removeprefix("rgba(").rstrip(")").split(","))
    return red / 255, green / 255, blue / 255, alpha


def color(name: str) -> tuple[float, float, float, float]:
    """A theme's name such as "@arm0" as the light theme has it."""
    return theme()[name.removeprefix("@")]


def plain(text: str, limit: int = 140) -> str:
    """A label as characters: the page's entities undone, on one line that fits, with nothing that a file cannot hold."""
    line = printable(html.unescape(text)).replace("\n", " ").replace("\t", " ")
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


# ------------------------------------------------------------------------------------------------------------ traces


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """Plotly's numbers, a null as NaN, which matplotlib leaves out."""
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _scatter(axes: Axes, trace: Mapping[str, Any], before: Mapping[str, Any], place: int) -> None:
    _known(
        trace,
        {
            "type",
            "mode",
            "x",
            "y",
            "line",
            "marker",
            "fill",
            "fillcolor",
            "opacity",
            "error_x",
            "error_y",
            "text",
            *APART,
        },
        "a scatter trace",
    )
    x, y, modes, line = numbers(trace["x"]), numbers(trace["y"]), trace["mode"].split("+"), trace.get("line", {})
    _known(line, {"color", "width", "dash"}, "a line")
    if trace.get("fill"):
        if trace["fill"] != "tonexty" or list(before["x"]) != list(trace["x"]):
            raise _unknown(f"fill {trace['fill']!r}", ["tonexty over the x of the trace before"])
        axes.fill_between(
            x,
            numbers(before["y"]),
            y,
            color=color(trace["fillcolor"]),
            alpha=trace.get("opacity"),
            linewidth=0,
            zorder=0.8,
        )
    for side in ("x", "y"):
        if f"error_{side}" in trace:
            _bars(axes, x, y, side, trace[f"error_{side}"])
    marker = trace.get("marker", {})
    if "lines" in modes and line.get("width", 2) > 0:
        width, dash = POINTS * line.get("width", 2), DASHES[line.get("dash", "solid")]
        axes.plot(x, y, color=color(line["color"]), linewidth=width, linestyle=dash, solid_capstyle="round")
    if "markers" in modes:
        _marks(axes, x, y, marker)
    elif marker and not marker["symbol"].endswith("-open"):
        step = max(1, len(x) // MARKS)
        _marks(axes, x[place % step :: step], y[place % step :: step], {**marker, "size": 6})


def _bars(axes: Axes, x: np.ndarray, y: np.ndarray, side: str, bars: Mapping[str, Any]) -> None:
    _known(bars, {"type", "symmetric", "array", "arrayminus", "color", "thickness", "width"}, "an error bar")
    ends = np.maximum(np.stack([numbers(bars["arrayminus"]), numbers(bars["array"])]), 0)
    look = {"ecolor": color(bars["color"]), "elinewidth": POINTS * bars["thickness"]}
    axes.errorbar(x, y, fmt="none", capsize=POINTS * bars["width"] / 2, **{f"{side}err": ends}, **look)


def _marks(axes: Axes, x: np.ndarray, y: np.ndarray, marker: Mapping[str, Any]) -> None:
    _known(marker, {"color", "symbol", "size"}, "a marker")
    symbol, ink = marker.get("symbol", "circle"), color(marker["color"])
    sizes = POINTS * np.broadcast_to(np.asarray(marker["size"], dtype=float), x.shape)
    is_open, form = symbol.endswith("-open"), MARKERS[symbol.removesuffix("-open")]
    fill: dict[str, Any] = {"color": [ink]} if form == "_" else {
        "facecolors": "white" if is_open else [ink], "edgecolors": [ink] if is_open else "white",
    }  # fmt: skip
    areas = (LARGER.get(form, 1) * sizes) ** 2
    axes.scatter(x, y, s=areas, marker=form, linewidths=0.7 if is_open else 0.3, zorder=2.5, **fill)


def _heatmap(axes: Axes, trace: Mapping[str, Any], before: Mapping[str, Any], place: int) -> None:
    _known(
        trace,
        {"type", "x", "y", "z", "zmin", "zmax", "colorscale", "xgap", "ygap", "colorbar", "showscale", "text", "texttemplate",
         *APART},
        "a heatmap",
    )  # fmt: skip
    values = np.ma.masked_invalid([numbers(row) for row in trace["z"]])
    if trace["colorscale"] != "@diverging":
        raise _unknown(f"color scale {trace['colorscale']!r}", ["@diverging"])
    colors = LinearSegmentedColormap.from_list("diverging", DIVERGING)
    edges = [_edges(numbers(trace[side])) for side in ("x", "y")]
    mesh = axes.pcolormesh(
        *edges, values, cmap=colors, vmin=trace["zmin"], vmax=trace["zmax"], edgecolors="white",
        linewidth=POINTS * trace["xgap"],
    )  # fmt: skip
    if "texttemplate" in trace:
        for y, texts in zip(trace["y"], trace["text"], strict=True):
            for x, text in zip(trace["x"], texts, strict=True):
                axes.text(x, y, plain(text), ha="center", va="center", fontsize=5.5, parse_math=False)
    if (
        trace.get("showscale", True) or "texttemplate" not in trace
    ):  # cells without numbers: nobody can point at them on paper
        bar = trace.get("colorbar", {"len": 0.6, "tickvals": [trace["zmin"], 0, trace["zmax"]]})
        scale = axes.figure.colorbar(mesh, ax=axes, shrink=bar["len"], aspect=25, ticks=bar["tickvals"], pad=0.02)
        scale.outline.set_visible(False)  # type: ignore[operator]
        scale.solids.set(rasterized=False, edgecolor="face")  # type: ignore[union-attr]


TRACES = {"scatter": _scatter, "heatmap": _heatmap}


# ---------------------------------------------------------------------------------------------------- shapes and axes


def _edges(centers: np.ndarray) -> np.ndarray:
    """Where cells with these centers begin and end: half-way between them, and as far beyond the outer ones."""
    between = (centers[1:] + centers[:-1]) / 2
    first, last = (between[0], between[-1]) if len(between) else (centers[0] - 0.5, centers[0] + 0.5)
    return np.array([2 * centers[0] - first, *between, 2 * centers[-1] - last])


def _shape(axes: Axes, shape: Mapping[str, Any]) -> None:
    _known(shape, {"type", "x0", "x1", "y0", "y1", "xref", "yref", "line", "fillcolor", "layer"}, "a shape")
    across = (shape.get("xref", "x"), shape.get("yref", "y"))
    places = {
        ("x", "y"): axes.transData, ("x", "paper"): axes.get_xaxis_transform(), ("paper", "y"): axes.get_yaxis_transform(),
    }  # fmt: skip
    x0, x1, y0, y1 = (shape[key] for key in ("x0", "x1", "y0", "y1"))
    line = shape["line"]
    look = {"transform": places[across], "linewidth": POINTS * line["width"]}
    if shape["type"] == "line":
        axes.plot([x0, x1], [y0, y1], color=color(line["color"]), linestyle=DASHES[line["dash"]], zorder=0.9, **look)
    elif shape["type"] == "rect":
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor=color(shape["fillcolor"]), zorder=0.8, **look))
        axes.update_datalim([(x0, y0), (x1, y1)])
    else:
        raise _unknown(f"shape {shape['type']!r}", ["line", "rect"])


def _axis(axes: Axes, name: str, spec: Mapping[str, Any]) -> None:
    _known(
        spec,
        {"title", "range", "type", "nticks", "dtick", "tickmode", "tickvals", "ticktext", "tickangle", "showgrid", "zeroline",
         "autorange", "automargin", "exponentformat", "names", "showticklabels"},
        f"the {name} axis",
    )  # fmt: skip
    axis, log = getattr(axes, f"{name}axis"), spec.get("type") == "log"
    if spec.get("type") not in (None, "log"):
        raise _unknown(f"an axis of type {spec['type']!r}", ["linear", "log"])
    getattr(axes, f"set_{name}scale")("log" if log else "linear")
    if "title" in spec:
        getattr(axes, f"set_{name}label")(plain(spec["title"]["text"]), parse_math=False)
    if "range" in spec:
        ends = [10**end for end in spec["range"]] if log else spec["range"]
        getattr(axes, f"set_{name}lim")(*ends)
    axes.autoscale_view()
    if "tickvals" in spec:
        _fixed_ticks(axes, name, spec)
    elif log:
        _log_ticks(axis, spec)
    elif spec.get("dtick"):
        axis.set_major_locator(MultipleLocator(spec["dtick"]))
    else:
        axis.set_major_locator(MaxNLocator(nbins=spec.get("nticks", 6), steps=[1, 2, 5, 10]))
    if not spec.get("showticklabels", True):
        axis.set_tick_params(length=0, labelleft=False, labelbottom=False)
    if spec.get("showgrid", True):
        axis.grid(color=theme()["rule"], linewidth=0.4)
    if spec.get("autorange") == "reversed":
        axis.set_inverted(True)


def _fixed_ticks(axes: Axes, name: str, spec: Mapping[str, Any]) -> None:
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(FixedLocator(spec["tickvals"]))
    texts = [plain(text, 90) for text in spec.get("names") or [f"{value:g}" for value in spec["tickvals"]]]
    axis.set_major_formatter(FixedFormatter(texts))
    turned = -spec.get("tickangle", 0)
    for label in axis.get_ticklabels():
        label.set(
            parse_math=False, rotation=turned, rotation_mode="anchor", ha="right" if turned or name == "y" else "center"
        )
    if "names" in spec:
        axis.set_tick_params(length=0)


def _log_ticks(axis: Any, spec: Mapping[str, Any]) -> None:
    low, high = sorted(axis.get_view_interval())
    found = [_between(low, high, steps) for steps in LOG_STEPS]
    even = [tick for tick in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    ticks = next((ticks for ticks in found if len(ticks) >= 3), even)
    powers = spec.get("exponentformat") == "power" and ticks == found[0]
    told = _power if powers else "{:g}".format if ticks is even else compact
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: told(value)))
    axis.set_minor_locator(NullLocator())


def _between(low: float, high: float, steps: Sequence[float]) -> list[float]:
    """These steps of every decade, as far as they are in view.

    >>> _between(0.5, 30.0, (1, 2, 5))
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for n in decades for step in steps if low <= (value := step * 10.0**n) <= high]


def _power(value: float) -> str:
    """A power of ten.

    >>> _power(0.01)
    '10⁻²'
    """
    return f"10{str(round(math.log10(value))).translate(RAISED)}"
