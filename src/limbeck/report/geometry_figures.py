"""Figures of the weight space: cosines stacked and by layer, and CKA by layer, each beside its null."""

from __future__ import annotations

import math
from typing import Any

from limbeck.report.figures import axis, legend, named_axis, style
from limbeck.report.parts import Figure, Panel, Sheet, label_text
from limbeck.report.tables import column
from limbeck.report.view import Run, View, band
from limbeck.report.words import bounds, fixed, span

MAX_PRINTED = 12  # arms up to which the numbers fit into the cells of the heatmap


def heatmap(view: View) -> Figure | None:
    """Stacked cosine of every pair of lead runs and of their further seeds."""
    runs = view.runs if len(view.runs) <= 2 * MAX_PRINTED else view.leads
    values = [[1.0 if a is b else view.get("cosine", a.id, b.id).value for b in runs] for a in runs]
    if not any(math.isfinite(v) for i, row in enumerate(values) for j, v in enumerate(row) if i != j):
        return None
    texts = [
        [_cell_text(view, a, b, v) for b, v in zip(runs, row, strict=True)] for a, row in zip(runs, values, strict=True)
    ]
    printed = len(runs) <= MAX_PRINTED
    labels, positions = [run.label for run in runs], list(range(len(runs)))
    trace: dict[str, Any] = {
        "type": "heatmap", "x": positions, "y": positions, "z": [column(row) for row in values], "zmin": -1, "zmax": 1,
        "colorscale": "@diverging", "hovertext": texts, "hoverinfo": "text", "xgap": 2, "ygap": 2,
        "colorbar": {"thickness": 8, "len": 0.6, "outlinewidth": 0, "tickvals": [-1, 0, 1]},
    }  # fmt: skip
    if printed:
        trace |= {"text": [[fixed(v) for v in row] for row in values], "texttemplate": "%{text}"}
    layout = {
        "xaxis": named_axis(labels, 26, tickangle=-40, automargin=True),
        "yaxis": named_axis(labels, 26, autorange="reversed", automargin=True),
        "showlegend": False,
    }
    seeds = view.seed_values("cosine")
    null = f"Two seeds of one recipe give {span(seeds)} here" if seeds else "No two seeds of one recipe were measured"
    rows = [[a.id, b.id, v] for a, row in zip(runs, values, strict=True) for b, v in zip(runs, row, strict=True)]
    return Figure(
        title="Cosine of whole updates",
        caption=(
            f"{null}; random rotation stays within the band printed in the table. A cosine of 0 says that two updates "
            "share no direction, not that the models answer differently; a learning rate alone can move it by half."
        ),
        panels=[Panel("", [trace], layout)],
        sheet=Sheet("cosine_heatmap", ["a", "b", "cosine"], rows),
        size="square",
    )


def _cell_text(view: View, a: Run, b: Run, value: float) -> str:
    row = view.get("cosine", a.id, b.id)
    text = label_text(f"{a.label} · {b.label}: {fixed(value, 3)}", 120)
    low, high = band(row.null)
    if a is not b and math.isfinite(low):
        text += f"<br>N-ROT {bounds(low, high, 3)}"
    return text + (f"<br>{label_text(row.reason.replace('_', ' '))}" if row.reason and a is not b else "")


def cosine_layers(view: View) -> Figure | None:
    """Cosine with the reference by layer, with the N-ROT band and the seed pairs."""
    reference, layers = view.reference, view.layers("cosine")
    if reference is None or not layers:
        return None
    others = [run for run in view.leads if run is not reference]
    pairs = [(reference, run) for run in others] + [
        p for p in view.seed_pairs if not (reference in p and p[1] in others)
    ]
    data: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    widest = [0.0] * len(layers)
    for a, b in pairs:
        found = [view.get("cosine", a.id, b.id, aggregation="layer", layer=layer) for layer in layers]
        widest = [max(w, r.null.q95 if math.isfinite(r.null.q95) else 0) for w, r in zip(widest, found, strict=True)]
        text = [
            label_text(f"{a.label} · {b.label}, layer {n}: {fixed(r.value, 3)}", 120)
            for n, r in zip(layers, found, strict=True)
        ]
        data.append(
            {"type": "scatter", "mode": "lines+markers", "x": layers, "y": column([r.value for r in found]),
             "text": text, "hoverinfo": "text", **style(view, b.id)}
        )  # fmt: skip
        rows += [[a.id, b.id, n, r.value, r.null.id, *band(r.null)] for n, r in zip(layers, found, strict=True)]
    data = [*_band(layers, [-w for w in widest], widest), *data]
    layout = {
        "xaxis": axis("layer", dtick=1 if len(layers) <= 12 else None),
        "yaxis": axis("cosine"),
        "showlegend": False,
    }
    return Figure(
        title=f"Cosine with {reference.label}, by layer",
        caption=(
            "Each block's updates as one vector. The grey band is where randomly turned updates fall (N-ROT, 5–95 %, the "
            "widest pair); dotted lines are two seeds of one recipe. Layers of one run are not independent, so the "
            "spread over layers is a description and not an interval."
        ),
        panels=[Panel("", data, layout)],
        sheet=Sheet("cosine_layers", ["a", "b", "layer", "cosine", "null_id", "null_q05", "null_q95"], rows),
        legend=legend(view, [b.id for _, b in pairs]),
    )


def _band(x: list[int], low: list[float], high: list[float]) -> list[dict[str, Any]]:
    edge = {"type": "scatter", "mode": "lines", "x": x, "line": {"width": 0}, "hoverinfo": "skip"}
    return [{**edge, "y": low}, {**edge, "y": high, "fill": "tonexty", "fillcolor": "@shade"}]


def cka(view: View) -> list[Figure]:
    """Similarity of hidden states by layer: every run against the base, and against the reference."""
    metric = "cka_debiased" if view.layers("cka_debiased") else "cka"
    layers = view.layers(metric)
    if not layers:
        return []
    base = [(run.id, "base") for run in view.runs]
    figures = [_cka(view, metric, "base", base, layers)]
    reference = view.reference
    if reference is not None:
        others = [(run.id, reference.id) for run in view.leads if run is not reference]
        seeds = [(b.id, a.id) for a, b in view.seed_pairs]
        known = list(dict.fromkeys([*others, *seeds]))
        figures.append(_cka(view, metric, reference.label, known, layers))
    return [figure for figure in figures if figure.panels[0].data]


def _cka(view: View, metric: str, other: str, pairs: list[tuple[str, str]], layers: list[int]) -> Figure:
    data, rows, shown = [], [], []
    for arm, against in pairs:
        found = [view.get(metric, arm, against, aggregation="layer", layer=layer) for layer in layers]
        rows += [
            [arm, against, n, r.value, view.get("cka", arm, against, aggregation="layer", layer=n).value, *band(r.null)]
            for n, r in zip(layers, found, strict=True)
        ]
        if not any(math.isfinite(r.value) for r in found):
            continue
        shown.append(arm)
        who = f"{view.label(arm)} · {view.label(against)}"
        text = [label_text(f"{who}, layer {n}: {fixed(r.value, 3)}", 120) for n, r in zip(layers, found, strict=True)]
        data.append(
            {"type": "scatter", "mode": "lines+markers", "x": layers, "y": column([r.value for r in found]),
             "text": text, "hoverinfo": "text", **style(view, arm)}
        )  # fmt: skip
    chance = [row[6] for row in rows if len(row) > 6 and math.isfinite(row[6])]
    null = f" Shuffled rows stay below {fixed(max(chance), 2)}." if chance else ""
    kind = (
        "Debiased CKA" if metric == "cka_debiased" else "Biased CKA (it is high at few items even for unrelated states)"
    )
    layout = {"xaxis": axis("layer", dtick=1 if len(layers) <= 12 else None), "yaxis": axis("CKA"), "showlegend": False}
    words = (
        "A value near 1 says that hidden states kept their shape up to rotation; an arm that hardly moved does so trivially."
        if other == "base"
        else "A low value usually means that the others left the base and this one did not: read it beside the figure "
        "against the base. Dotted lines are two seeds of one recipe."
    )
    slug = "base" if other == "base" else "reference"
    return Figure(
        title=f"Hidden states against {'the base' if other == 'base' else other}, by layer",
        caption=f"{kind} on the same fixed text.{null}{' Layer −1 is the embedding.' if -1 in layers else ''} {words}",
        panels=[Panel("", data, layout)],
        sheet=Sheet(f"cka_{slug}", ["arm", "other", "layer", metric, "cka_biased", "null_q05", "null_q95"], rows),
        legend=legend(view, shown),
    )
