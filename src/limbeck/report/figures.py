"""Figures as plotly data: accuracy, norms, paths and training. Colors are names that the page's theme resolves.

A panel holds traces and an axis layout and nothing about fonts, grounds or grids, which belong to the theme. Text is
passed as ``text``, never inside a template, and escaped, because plotly reads tags and ``%{}`` in labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from limbeck.report.parts import Figure, Panel, Sheet, label_text
from limbeck.report.tables import LOSSES, column, swatch
from limbeck.report.view import Run, View
from limbeck.report.words import bounds, fixed, number, percent, short

MAX_POINTS = 80  # of a training curve: more is noise at this size
BAND = 0.2  # opacity of a band of seeds
SEEDS_BELOW = 0.3  # rows that a seed stands below the mean of its arm, which it would hide
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with its title."""
    return {"title": {"text": title}, "zeroline": False, **more}


def named_axis(labels: Sequence[str], limit: int, **more: Any) -> dict[str, Any]:
    """An axis with a name at each place; the page cuts names to ``limit`` characters, print reads them whole from ``names``."""
    ticks = {"tickvals": list(range(len(labels))), "ticktext": [label_text(label, limit) for label in labels]}
    return {"tickmode": "array", **ticks, "names": list(labels), "zeroline": False, "showgrid": False, **more}


def style(view: View, name: str) -> dict[str, Any]:
    """Line and marker of a run: color and symbol by arm, dotted and open for seeds beyond the first."""
    color, run = view.color(name), view.by_id.get(name)
    symbol = SYMBOLS[run.shape] if run else "diamond-tall"
    later = run is not None and not run.lead
    return {
        "line": {"color": color, "width": 2, "dash": "dot" if later else "solid"},
        "marker": {"color": color, "symbol": f"{symbol}-open" if later else symbol, "size": 8},
        "meta": run.arm if run else "",
    }


def stroke(view: View, name: str, **more: Any) -> dict[str, Any]:
    """The line of a run's trace without markers, and whose it is; of the marker print alone draws a few."""
    found = style(view, name)
    return {**found, "line": {**found["line"], **more}}


def legend(view: View, names: Sequence[str]) -> list[tuple[str, str]]:
    """Style class and label of each run, for the legend above a figure."""
    return [(swatch(view, name), view.label(name)) for name in dict.fromkeys(names)]


def _dot(view: View, arm: dict[str, Any], axis_name: str, other: float, text: str) -> dict[str, Any]:
    """One accuracy in percent along ``axis_name`` ("x" or "y") with its interval, at ``other`` on the other axis."""
    value, low, high = (100 * number(arm[key]) for key in ("value", "low", "high"))
    bars = {"type": "data", "symmetric": False, "array": column([high - value]), "arrayminus": column([value - low])}
    across = "y" if axis_name == "x" else "x"
    return {
        "type": "scatter", "mode": "markers", axis_name: column([value]), across: [other],
        f"error_{axis_name}": {**bars, "color": view.color(arm["name"]), "thickness": 2, "width": 0},
        "text": [label_text(text, 120)], "hoverinfo": "text", **style(view, arm["name"]),
    }  # fmt: skip


def _base_line(view: View, axis_name: str) -> list[dict[str, Any]]:
    """The base's accuracy as a dashed line across the plot."""
    base = 100 * view.accuracy("base")
    if not math.isfinite(base):
        return []
    across = "y" if axis_name == "x" else "x"
    ends = {f"{axis_name}0": base, f"{axis_name}1": base, f"{across}0": 0, f"{across}1": 1, f"{across}ref": "paper"}
    return [{"type": "line", **ends, "line": {"color": "@muted", "width": 1, "dash": "dash"}}]


def rows_size(num: int) -> str:
    """The style class of a plot with this many rows of names.

    >>> rows_size(3), rows_size(21), rows_size(38)
    ('rows-4', 'rows-22', 'rows-48')
    """
    even = max(4, 2 * ((num + 1) // 2))
    return f"rows-{next((room for room in (*range(4, 26, 2), 36, 48, 72) if room >= even), 96)}"


def forest(view: View, *, limit: int = 26) -> Figure:
    """Accuracy with intervals, one row an arm, the base as a line; the page cuts names to ``limit`` characters.

    An arm of several seeds is a mean over them, with each beside it.
    """
    arms = _by_arm(view)
    rows = list(reversed(arms))
    data = []
    for position, (name, arm, seeds) in enumerate(rows):
        value, low, high = (number(arm[key]) for key in ("value", "low", "high"))
        text = f"{view.label(name)}: {percent(value)} ({bounds(low, high, scale=100.0)})"
        data.append(_dot(view, arm | {"name": name}, "x", position, text))
        data += [_seeds(view, name, seeds, position - SEEDS_BELOW)] if seeds else []
    layout = {
        "xaxis": axis("right, %"),
        "yaxis": named_axis([view.label(name) for name, *_ in rows], limit, range=[-0.6, len(rows) - 0.4]),
        "shapes": _base_line(view, "x"),
        "showlegend": False,
    }
    drawn = [entry for _, arm, seeds in arms for entry in (arm, *seeds)]
    means = "Filled: means over seeds, their intervals for new problems and new training runs; open: the seeds. "
    means = means if len(drawn) > len(arms) else ""
    return Figure(
        title="Accuracy with intervals",
        caption=(
            f"Share of problems right; the dashed line is the base. {means}Overlapping intervals do not mean that two arms are "
            "equal, because they answered the same problems: the paired tests below decide."
        ),
        panels=[Panel("", data, layout)],
        sheet=Sheet("forest", ["run", "value", "low", "high", "method"], [_values(arm) for arm in drawn]),
        size=rows_size(len(rows)),
    )


def _values(arm: dict[str, Any]) -> list[Any]:
    return [arm["name"], arm["value"], arm["low"], arm["high"], arm.get("method")]


def _by_arm(view: View) -> list[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Rows: the run that stands for it, its accuracy, and where that is a mean over several seeds the entry of each."""
    entries = {arm["name"]: arm for arm in view.scored()}
    means = (view.results.comparison.get("over_seeds") or {}).get("arms")
    if not means:
        return [(name, entry, []) for name, entry in entries.items()]
    runs: dict[str, list[str]] = {}
    for run in view.runs:
        runs.setdefault(run.arm, []).append(run.id)
    names = [(arm, runs.get(arm["name"], [arm["name"]])) for arm in means]
    return [(ids[0], arm, [entries[i] for i in ids if i in entries] if len(ids) > 1 else []) for arm, ids in names]


def _seeds(view: View, arm: str, entries: Sequence[dict[str, Any]], place: float) -> dict[str, Any]:
    """Each seed of an arm, without its interval."""
    look = style(view, arm)
    values = [100 * number(entry["value"]) for entry in entries]
    texts = [
        label_text(f"{view.label(arm)}, seed {view.by_id[entry['name']].seed}: {percent(number(entry['value']))}", 120)
        for entry in entries
    ]
    marker = {**look["marker"], "symbol": f"{look['marker']['symbol'].removesuffix('-open')}-open", "size": 6}
    return {
        "type": "scatter", "mode": "markers", "x": column(values), "y": [place] * len(values), "text": texts,
        "hoverinfo": "text", **look, "marker": marker,
    }  # fmt: skip


def norm_accuracy(view: View) -> Figure | None:
    """Length of the update against accuracy."""
    scored = {arm["name"]: arm for arm in view.scored()}
    data, rows = [], []
    for run in view.runs:
        norm = view.get("frobenius_norm", run.id).value
        norm = norm if math.isfinite(norm) else number(run.facts["update_norm"])
        arm = scored.get(run.id)
        if arm is None or not math.isfinite(norm):
            continue
        text = f"{run.label}: norm {short(norm)}, {percent(number(arm['value']))}"
        data.append(_dot(view, arm, "y", norm, text))
        rows.append([run.id, norm, arm["value"], arm["low"], arm["high"]])
    if not rows:
        return None
    layout = {
        "xaxis": axis("Frobenius norm of the update", range=[0, 1.06 * max(row[1] for row in rows)]),
        "yaxis": axis("right, %"),
        "shapes": _base_line(view, "y"),
        "showlegend": False,
    }
    return Figure(
        title="How far each arm went, and what it is worth",
        caption=(
            "Length of the update against accuracy, the base as a dashed line. An arm that stays close to "
            "the base keeps its accuracy by standing still; only arms of equal length compare objectives here."
        ),
        panels=[Panel("", data, layout)],
        sheet=Sheet("norm_accuracy", ["run", "norm", "accuracy", "low", "high"], rows),
        legend=legend(view, [row[0] for row in rows]),
    )


def paths(view: View) -> list[Figure]:
    """One figure a loss, one panel a path: the loss along the way with its interval, and the chord."""
    losses = list(dict.fromkeys(path["loss"] for path in view.results.paths))
    return [_paths_of(view, loss, loss if loss in LOSSES else f"other_{i}") for i, loss in enumerate(losses)]


def _paths_of(view: View, loss: str, slug: str) -> Figure:
    chosen = [path for path in view.results.paths if path["loss"] == loss]
    accuracy = loss == "accuracy"
    scale = 100.0 if accuracy else 1.0
    ends = [scale * x for p in chosen for key in ("low", "high") for x in column(p[key]) if x is not None]
    pad = 0.06 * (max(ends) - min(ends) or 1) if ends else 0
    span = [min(ends) - pad, max(ends) + pad] if ends else None
    unit = "%" if accuracy else str(chosen[0].get("unit") or "nats")
    panels, rows = [], []
    for path in chosen:
        panels.append(_path_panel(view, path, scale, span, unit))
        points = zip(path["alphas"], path["mean"], path["low"], path["high"], strict=True)
        rows += [[path["a"], path["b"], view.is_null(path), *point] for point in points]
    return Figure(
        title=f"Along the straight path: {LOSSES.get(loss, loss)}, {unit}",
        caption=(
            "Loss at mixtures of two updates, from one end (0) to the other (1), with its interval over problems; the "
            "dashed line is the chord. A curve above its chord is a barrier only if the interval at the mid-point says "
            "so; the bare-answer loss also moves with style and length, not with skill alone."
            if not accuracy
            else "Share right at mixtures of two updates, with its interval over problems; the dashed line is the chord. "
            "Below the chord is worse. A flat curve says that the two ends are joined at this resolution, no more."
        ),
        panels=panels,
        sheet=Sheet(f"path_{slug}", ["a", "b", "seed_pair", "alpha", "mean", "low", "high"], rows),
        size="small",
    )


def _path_panel(view: View, path: dict[str, Any], scale: float, span: list[float] | None, unit: str) -> Panel:
    low, mean, high = ([None if x is None else scale * x for x in column(path[k])] for k in ("low", "mean", "high"))
    color = view.color(path["b"] if path["b"] != "base" else path["a"])
    alphas = column(path["alphas"])
    ends = [mean[0], mean[-1]] if mean else []
    text = [f"{fixed(number(a), 2)}: {short(number(m))}" for a, m in zip(alphas, mean, strict=True)]
    data = [
        {"type": "scatter", "mode": "lines", "x": alphas, "y": low, "line": {"width": 0}, "hoverinfo": "skip"},
        {"type": "scatter", "mode": "lines", "x": alphas, "y": high, "line": {"width": 0}, "fill": "tonexty",
         "fillcolor": "@shade", "hoverinfo": "skip"},
        {"type": "scatter", "mode": "lines", "x": [0, 1], "y": ends, "hoverinfo": "skip",
         "line": {"color": "@muted", "width": 1, "dash": "dash"}},
        {"type": "scatter", "mode": "lines+markers", "x": alphas, "y": mean, "text": text, "hoverinfo": "text",
         "line": {"color": color, "width": 2}, "marker": {"color": color, "size": 6}},
    ]  # fmt: skip
    tail = " (two seeds)" if view.is_null(path) else ""
    layout = {
        "xaxis": {"tickvals": [0, 0.5, 1], "range": [-0.04, 1.04], "zeroline": False},
        "yaxis": axis(label_text(unit), nticks=5, **({"range": span} if span else {})),
        "showlegend": False,
    }
    return Panel(
        f"{view.label(path['a'])} → {view.label(path['b'])}{tail}", data, layout, view.arms(path["a"], path["b"])
    )


_CURVES = (
    ("reward", "mean reward of what the student wrote"),
    ("kl_student_teacher_k3", "KL student to teacher (k3), nats"),
    ("kl_student_reference_k3", "KL student to base (k3), nats"),
    ("nll", "NLL of the scored tokens, nats"),
    ("entropy", "entropy, nats"),
    ("update_norm", "norm of the update"),
    ("grad_norm", "gradient norm"),
    ("loss", "the arm's own loss"),
)


def training(view: View) -> Figure | None:
    """What the optimizer saw, as means over windows of steps."""
    runs = [run for run in view.runs if view.results.training.get(run.id)]
    panels = [panel for key, title in _CURVES if (panel := _curves(view, runs, key, title)) is not None]
    if not panels:
        return None
    keys = [key for key, _ in _CURVES if any(key in r for run in runs for r in view.results.training[run.id])]
    rows = [
        [run.id, r.get("step"), r.get("learning_rate"), *(r.get(k) for k in keys)]
        for run in runs
        for r in view.results.training[run.id]
    ]
    longest = max(len(view.results.training[run.id]) for run in runs)
    dotted = any(trace["line"].get("dash") == "dot" for panel in panels for trace in panel.data)
    note = f" Each point is the mean of up to {-(-longest // MAX_POINTS)} records; the CSV holds them all."
    return Figure(
        title="Curves",
        caption=(
            "Arms minimize different things: their own losses cannot be compared with each other, the NLL can, on the "
            "rows that each was given. Of several seeds the line is the mean and the band goes from the lowest to the highest, "
            f"no interval. Dotted: seeds outside of a band (null arms, other steps).{note if longest > MAX_POINTS else ''}"
        ),
        panels=panels,
        sheet=Sheet("training", ["run", "step", "learning_rate", *keys], rows),
        size="small",
        legend=legend(view, [run.id for run in runs if run.lead or dotted]),
    )


def _curves(view: View, runs: Sequence[Run], key: str, title: str) -> Panel | None:
    found = {run.id: _windows(view, run, key) for run in runs}
    data: list[dict[str, Any]] = []
    for run in runs:
        seeds = [found[other.id] for other in runs if other.arm == run.arm]
        if _in_band(seeds):
            data += _band(view, run, seeds) if run.lead else []
        elif found[run.id][0]:
            steps, values = found[run.id]
            data.append({**_line(view, run), "x": steps, "y": values})
    layout = {"xaxis": axis("step"), "yaxis": {"zeroline": False, "nticks": 5}, "showlegend": False}
    return Panel(title, data, layout) if data else None


def _windows(view: View, run: Run, key: str) -> tuple[list[float], list[float]]:
    records = [(number(r.get("step")), number(r.get(key))) for r in view.results.training[run.id]]
    return windows([record for record in records if all(map(math.isfinite, record))])


def _in_band(seeds: Sequence[tuple[list[float], list[float]]]) -> bool:
    """Whether the seeds of an arm are several that took the same steps."""
    steps = seeds[0][0]
    return len(seeds) > 1 and bool(steps) and all(own == steps for own, _ in seeds)


def _band(view: View, lead: Run, seeds: Sequence[tuple[list[float], list[float]]]) -> list[dict[str, Any]]:
    """The mean over an arm's seeds in the band from the lowest to the highest."""
    steps, rows = seeds[0][0], list(zip(*(values for _, values in seeds), strict=True))
    edge = {"type": "scatter", "mode": "lines", "x": steps, "line": {"width": 0}, "hoverinfo": "skip", "meta": lead.arm}
    return [
        {**edge, "y": [min(row) for row in rows]},
        {**edge, "y": [max(row) for row in rows], "fill": "tonexty", "fillcolor": view.color(lead.id), "opacity": BAND},
        {**_line(view, lead), "x": steps, "y": [fmean(row) for row in rows]},
    ]


def _line(view: View, run: Run) -> dict[str, Any]:
    line = {"type": "scatter", "mode": "lines", "hoverinfo": "x+y+name", "name": label_text(run.label, 26)}
    return {**line, **stroke(view, run.id, width=1.5)}


def windows(curve: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """Means of steps and values over equal windows, at most ``limit`` of them.

    >>> windows([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 5.0)], limit=2)
    ([0.5, 2.5], [2.0, 5.0])
    """
    size = max(1, -(-len(curve) // limit))
    parts = [curve[i : i + size] for i in range(0, len(curve), size)]
    steps, values = ([sum(point[axis] for point in part) / len(part) for part in parts] for axis in (0, 1))
    return steps, values
