"""Figures of single matrices and of angles: where two updates agree, by layer and kind, and how their leading subspaces lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from limbeck.report.figures import axis, legend, named_axis, style
from limbeck.report.parts import Figure, Panel, Sheet, label_text
from limbeck.report.tables import column
from limbeck.report.view import Run, View, band
from limbeck.report.words import bounds, fixed
from limbeck.types import Measurement

SIDES = {"left": "output side", "right": "input side"}
ANGLES = ("smallest", "median", "largest")


def cosines(view: View) -> Figure | None:
    """Cosine with the reference in every matrix: a panel an arm, kinds over layers."""
    reference = view.reference
    if reference is None:
        return None
    found = _by_pair(view.results.modules)
    arms = [(run, found.get(frozenset((reference.id, run.id)), [])) for run in view.leads if run is not reference]
    arms = [(run, rows) for run, rows in arms if any(row.layer >= 0 for row in rows)]
    if not arms:
        return None
    sheet = [
        [reference.id, run.id, row.module, row.layer, row.kind, row.value, row.null.id, *band(row.null)]
        for run, rows in arms
        for row in rows
    ]
    columns = ["a", "b", "module", "layer", "kind", "cosine", "null_id", "null_q05", "null_q95"]
    return Figure(
        title=f"Cosine with {reference.label}, matrix by matrix",
        caption=(
            "One cell a matrix, layers across, kinds down; point at one for its name, its number and the band of its null. One "
            "matrix is a small sample: its null is wider than that of the whole update, and rows or columns that agree say more."
        ),
        panels=[Panel(run.label, *_heat(run.label, rows), arms=[run.arm]) for run, rows in arms],
        sheet=Sheet("cosine_modules", columns, sheet),
        size="small",
    )


def _by_pair(rows: Sequence[Measurement]) -> dict[frozenset[str], list[Measurement]]:
    """Those at the end of training, by the two runs that they are between."""
    out: dict[frozenset[str], list[Measurement]] = {}
    for row in rows:
        if row.step < 0 and row.delta_kind != "bf16_visible":
            out.setdefault(frozenset((row.arm, row.other)), []).append(row)
    return out


def _heat(label: str, rows: Sequence[Measurement]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    placed = {(row.kind, row.layer): row for row in rows if row.layer >= 0}
    kinds = list(dict.fromkeys(row.kind for row in rows if row.layer >= 0))
    layers = sorted({row.layer for row in rows if row.layer >= 0})
    cells = [[placed.get((kind, layer)) for layer in layers] for kind in kinds]
    texts = [[_told(label, row) if row else "" for row in line] for line in cells]
    trace = {
        "type": "heatmap", "x": layers, "y": list(range(len(kinds))),
        "z": [column([row.value if row else math.nan for row in line]) for line in cells], "zmin": -1, "zmax": 1,
        "colorscale": "@diverging", "hovertext": texts, "hoverinfo": "text", "xgap": 1, "ygap": 1, "showscale": False,
    }  # fmt: skip
    layout = {
        "xaxis": axis("layer", showgrid=False, automargin=True, dtick=1 if len(layers) <= 12 else None),
        "yaxis": named_axis(kinds, 18, autorange="reversed", automargin=True),
        "showlegend": False,
    }
    return [trace], layout


def _told(label: str, row: Measurement) -> str:
    low, high = band(row.null)
    null = f"<br>{row.null.id} {bounds(low, high, 2)}" if math.isfinite(low) else ""
    return f"{label_text(f'{label}, {row.module}: {fixed(row.value)}', 120)}{null}"


def angles(view: View) -> Figure | None:
    """The smallest, the median and the largest principal angle with the reference's leading subspace, beside chance."""
    reference, k = view.reference, view.angle_k
    others = [run for run in view.leads if run is not reference]
    if reference is None:
        return None
    panels, rows = [], []
    for side, title in SIDES.items():
        data = []
        for place, run in enumerate(others):
            found = [_angle(view, which, reference, run, side, k) for which in ANGLES]
            if math.isfinite(found[0].value):
                data += _ladder(view, run, place, found)
                rows += [
                    [reference.id, run.id, side, which, r.value, r.null.id, r.null.mean]
                    for which, r in zip(ANGLES, found, strict=True)
                ]
        if data:
            layout = {
                "xaxis": {"range": [-0.6, len(others) - 0.4], "showticklabels": False, "zeroline": False, "showgrid": False},
                "yaxis": axis("degrees", range=[0, 93], tickvals=[0, 30, 60, 90]),
                "showlegend": False,
            }  # fmt: skip
            panels.append(Panel(title, data, layout))
    if not panels:
        return None
    return Figure(
        title=f"Principal angles with {reference.label}, {k} leading directions",
        caption=(
            "Smallest, median and largest angle, medians over matrices, bottom to top; grey bars are what chance gives each. "
            "Angles near chance say that two leading subspaces are unrelated; the largest is near 90 degrees for any pair."
        ),
        panels=panels,
        sheet=Sheet("angle_spectra", ["a", "b", "side", "angle", "degrees", "null_id", "null_mean"], rows),
        legend=legend(view, [run.id for run in others]),
    )


def _angle(view: View, which: str, a: Run, b: Run, side: str, k: int) -> Measurement:
    return view.get(f"principal_angle_{which}", a.id, b.id, aggregation="module-median", side=side, k=k)


def _ladder(view: View, run: Run, place: int, found: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Three marks on a line, and a short grey bar at the null of each."""
    whose = zip(ANGLES, found, strict=True)
    text = [
        label_text(f"{run.label}, {w}: {fixed(r.value, 1)} degrees, chance {fixed(r.null.mean, 1)}", 120)
        for w, r in whose
    ]
    chance = {"color": "@muted", "symbol": "line-ew-open", "size": 18}
    fixed_place = [place] * len(found)
    return [
        {"type": "scatter", "mode": "markers", "x": fixed_place, "y": column([r.null.mean for r in found]), "marker": chance,
         "hoverinfo": "skip", "meta": run.arm},
        {"type": "scatter", "mode": "lines+markers", "x": fixed_place, "y": column([r.value for r in found]), "text": text,
         "hoverinfo": "text", **style(view, run.id)},
    ]  # fmt: skip
