"""Arms that train every weight: how much storage shows, where the update lies, what it did to the base's directions.

Every number stands beside what chance scores on the same matrices, and the figure shows observed over chance. What differs
between paradigms is read twice: at matched steps and at a matched update norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from limbeck.report.figures import named_axis, style
from limbeck.report.parts import Cell, Figure, Panel, Sheet, Table, label_text
from limbeck.report.tables import column, name_cell
from limbeck.report.view import Run
from limbeck.report.whole import NORM, PARADIGMS, QUANTITIES, RELATIVE, Level, Quantity, Whole
from limbeck.report.words import NONE, fixed, listed, short, span

_NULLS = (
    "Chance: for sparsity an isotropic update of equal norm, rounded on the base's real magnitudes (N-ROUND); for the two "
    "overlaps one of equal visible density; for the rest an isotropic update of equal norm or its closed form (N-ISO)."
)


def overview(whole: Whole) -> Table | None:
    """Every measured arm: length, and each quantity with how many times chance it is."""
    if not whole.leads:
        return None
    rows, raw = [], []
    for run in whole.leads:
        norm, relative = whole.level(NORM, run.arm), whole.level(RELATIVE, run.arm)
        levels = [whole.level(quantity, run.arm) for quantity in QUANTITIES]
        cells = [_cell(q, level) for q, level in zip(QUANTITIES, levels, strict=True)]
        length = Cell(short(norm.mean), norm.mean, note=f"{RELATIVE.text(relative.mean)} of the base")
        rows.append([name_cell(whole.view, run.id), Cell(str(len(norm.values))), length, *cells])
        raw += _raw(run.arm, [(NORM, norm), (RELATIVE, relative), *zip(QUANTITIES, levels, strict=True)])
    k = whole.largest_k("base_angle_largest")
    return Table(
        title="Every weight, beside chance",
        caption=(
            f"Means over seeds; under each number how many times what chance scores. {_NULLS} Sparsity and the overlaps are "
            "read where bf16 storage shows the update (base rounded once), everything else on the fp32 update. Rotation: "
            f"largest of {k} principal angles between leading input directions of base and tuned, median over matrices; "
            f"leading block: share of the update's energy in the base's leading {k} x {k} directions. The CSV has every seed."
        ),
        head=["arm", "seeds", NORM.title, *(q.title for q in QUANTITIES)],
        rows=rows,
        sheet=Sheet("weights", ["arm", "quantity", "value", "null", "over_chance"], raw),
    )


def _cell(quantity: Quantity, level: Level) -> Cell:
    note = f"{fixed(level.ratio)} x chance" if level.ratios else ""
    return Cell(quantity.text(level.mean), level.mean, note=note)


def _raw(arm: str, levels: Sequence[tuple[Quantity, Level]]) -> list[list[object]]:
    return [
        [arm, quantity.name, value, null, value / null if math.isfinite(null) and null else math.nan]
        for quantity, level in levels
        for value, null in zip(level.values, level.nulls, strict=True)
    ]


def over_chance(whole: Whole) -> Figure | None:
    """Observed over chance, one panel a quantity, every seed a point; methods and their matched twins alone."""
    shown = list(reversed(whole.shown))
    panels, rows = [], []
    for quantity in QUANTITIES:
        levels = {run.arm: whole.level(quantity, run.arm) for run in shown}
        if not any(level.ratios for level in levels.values()):
            continue
        panels.append(_ratio_panel(whole, quantity, shown, levels))
        rows += [[quantity.name, arm, ratio] for arm, level in levels.items() for ratio in level.ratios]
    if not panels:
        return None
    return Figure(
        title="Observed over chance",
        caption=(
            "Each point is a seed; the line at 1 is what an update without structure scores at the same norm or density, on "
            "these weights. A quantity at 1 says nothing of the paradigm, whatever its own size is. Logarithmic axes."
        ),
        panels=panels,
        sheet=Sheet("over_chance", ["quantity", "arm", "over_chance"], rows),
        size="small",
    )


def _ratio_panel(whole: Whole, quantity: Quantity, shown: Sequence[Run], levels: dict[str, Level]) -> Panel:
    data = []
    for place, run in enumerate(shown):
        ratios = [r for r in levels[run.arm].ratios if r > 0]
        text = [label_text(f"{run.label}: {fixed(r)} x chance", 80) for r in ratios]
        data.append({
            "type": "scatter", "mode": "markers", "x": ratios, "y": [place] * len(ratios), "text": text, "hoverinfo": "text",
            **style(whole.view, run.id),
        })  # fmt: skip
    layout = {
        "xaxis": {"type": "log", "zeroline": False, "nticks": 4},
        "yaxis": named_axis([run.label for run in shown], 18, range=[-0.6, len(shown) - 0.4], automargin=True),
        "shapes": [{"type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "yref": "paper",
                    "line": {"color": "@muted", "width": 1, "dash": "dash"}}],
        "showlegend": False,
    }  # fmt: skip
    return Panel(quantity.title, data, layout)


def matched(whole: Whole) -> Table | None:
    """The paradigms at matched steps, and again at a matched norm."""
    if len(whole.main) < 2:
        return None
    groups = [("steps", whole.main)] + ([("norm", whole.matched)] if whole.matched else [])
    columns = [(at, key, run) for at, runs in groups for key, run in runs.items()]
    rows, raw = [], []
    for quantity in (NORM, *QUANTITIES):
        cells = []
        for at, key, run in columns:
            level = whole.level(quantity, run.arm)
            spread = quantity.spread(level.values) if len(level.values) > 1 else ""
            chance = f"{fixed(level.ratio)} x chance" if level.ratios else ""
            cells.append(Cell(quantity.text(level.mean), level.mean, note="; ".join(t for t in (spread, chance) if t)))
            raw.append([quantity.name, at, key, run.arm, level.mean, level.null, level.ratio, len(level.values)])
        rows.append([Cell(quantity.title, quantity.title), *cells])
    target = listed([whole.view.label(run) for run in _targets(whole)])
    return Table(
        title="At matched steps, and at a matched norm",
        caption=(
            "Means over seeds with their range and how many times chance. All arms start at one student and share learning "
            "rate, rows a step and steps in the first columns; "
            + (f"in the last ones each stops at the first step at which its update is as long as that of {target} at the "
               "same seed. An order that holds in the first columns alone is one of length."
               if whole.matched else "no arm was run at a matched norm, so that length and paradigm cannot be told apart.")
        ),
        head=["quantity", *(f"{PARADIGMS[key]}, same {at}" for at, key, _ in columns)],
        rows=rows,
        sheet=Sheet("matched", ["quantity", "matched", "paradigm", "arm", "value", "null", "over_chance", "seeds"], raw),
    )  # fmt: skip


def _targets(whole: Whole) -> list[str]:
    names = {str(whole.setting(run, "match_norm")) for run in whole.matched.values()} - {"None", ""}
    return [run.id for run in whole.leads if run.arm in names]


def localisation(whole: Whole) -> Figure | None:
    """Share of the energy over share of the entries, by kind of matrix and by block."""
    kinds, layers = whole.kinds(), whole.layers()
    runs = whole.shown
    if not runs or not (kinds or layers):
        return None
    panels, rows = [], []
    for title, places in (
        ("by kind of matrix", [(kind, {"aggregation": "stacked", "kind": kind}) for kind in kinds]),
        ("by block", [(f"block {n}" if n >= 0 else "none", {"aggregation": "layer", "layer": n}) for n in layers]),
    ):
        grid = [[_share(whole, run, where) for _, where in places] for run in runs]
        rows += [
            [run.arm, name, *numbers]
            for run, line in zip(runs, grid, strict=True)
            for (name, _), numbers in zip(places, line, strict=True)
        ]
        if places:
            panels.append(_heat(title, [run.label for run in runs], [name for name, _ in places], grid))
    return Figure(
        title="Where the update is",
        caption=(
            "Share of the update's energy over share of the entries, mean over seeds, as a power of two: 0 is an update "
            "spread evenly, 1 twice its share. Vectors (norms) are among the kinds. The CSV has the visible density too."
        ),
        panels=panels,
        sheet=Sheet("localisation", ["arm", "place", "energy_over_entries", "visible_density", "density_null"], rows),
    )


def _share(whole: Whole, run: Run, where: dict[str, Any]) -> tuple[float, float, float]:
    energy = whole.level(Quantity("", "", "energy_share", where["aggregation"]), run.arm, **_place(where))
    kept = whole.level(Quantity("", "", "sparsity_visible", "parameter-weighted"), run.arm, **_place(where))
    return energy.ratio, 1 - kept.mean, 1 - kept.null


def _place(where: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in where.items() if key != "aggregation"}


def _heat(
    title: str, labels: Sequence[str], places: Sequence[str], grid: Sequence[Sequence[tuple[float, ...]]]
) -> Panel:
    logs = [[math.log2(cell[0]) if cell[0] > 0 else math.nan for cell in line] for line in grid]
    texts = [
        [label_text(f"{label}, {place}: {fixed(cell[0])} times its share", 100) for place, cell in zip(places, line, strict=True)]
        for label, line in zip(labels, grid, strict=True)
    ]  # fmt: skip
    trace = {
        "type": "heatmap", "x": list(range(len(places))), "y": list(range(len(labels))), "z": [column(line) for line in logs],
        "zmin": -3, "zmax": 3, "colorscale": "@diverging", "hovertext": texts, "hoverinfo": "text", "xgap": 1, "ygap": 1,
        "text": [[fixed(v, 1) for v in line] for line in logs], "texttemplate": "%{text}", "showscale": False,
    }  # fmt: skip
    layout = {
        "xaxis": named_axis(places, 18, tickangle=-40, automargin=True),
        "yaxis": named_axis(labels, 20, autorange="reversed", automargin=True),
        "showlegend": False,
    }
    return Panel(title, [trace], layout)


PAIRS = (
    ("cosine", {"aggregation": "stacked"}, "cosine"),
    ("mean_cos2", {"aggregation": "module-mean", "side": "left"}, "shared output directions"),
    ("mean_cos2", {"aggregation": "module-mean", "side": "right"}, "shared input directions"),
    ("mask_jaccard", {"aggregation": "parameter-weighted"}, "mask overlap (Jaccard)"),
)  # fmt: skip


def pairs(whole: Whole) -> Table | None:
    """What two arms share, beside what two seeds of one arm share and beside chance."""
    runs = list(whole.main.values())
    k = whole.largest_k("mean_cos2")
    rows, raw = [], []
    groups = [(f"{a.label}, two seeds", whole.two_seeds(a.arm), (a.arm,)) for a in runs]
    groups += [
        (f"{a.label} · {b.label}", whole.same_seed(a.arm, b.arm), (a.arm, b.arm))
        for i, a in enumerate(runs)
        for b in runs[i + 1 :]
    ]
    for title, chosen, arms in groups:
        levels = [
            whole.between(metric, chosen, **where, k=k if metric == "mean_cos2" else 0) for metric, where, _ in PAIRS
        ]
        if not any(level.values for level in levels):
            continue
        cells = [_pair_cell(level) for level in levels]
        tone = "null" if len(arms) == 1 else ""
        rows.append([Cell(title, title, note=f"{len(chosen)} pairs", tone=tone, arms=arms), *cells])
        raw.append([title, len(chosen), *(x for level in levels for x in (level.mean, level.null))])
    if not rows:
        return None
    columns = ["pair", "pairs", *(t for _, _, title in PAIRS for t in (title, f"{title}, chance"))]
    return Table(
        title="What two updates share",
        caption=(
            "Means over pairs of runs, their range, and chance: 0 for the cosine of randomly turned updates (N-ROT), unrelated "
            f"{k}-dimensional subspaces (N-ISO), independent masks of the same densities. Grey rows are two seeds of one arm: "
            "arms that share less than that are told apart by their paradigm, not by their data order."
        ),
        head=["pair", *(title for _, _, title in PAIRS)],
        rows=rows,
        sheet=Sheet("weight_pairs", columns, raw),
    )


def _pair_cell(level: Level) -> Cell:
    if not level.values:
        return Cell(NONE)
    chance = f"chance {fixed(level.null)}" if math.isfinite(level.null) else ""
    spread = span(list(level.values)) if len(level.values) > 1 else ""
    return Cell(fixed(level.mean), level.mean, note="; ".join(text for text in (spread, chance) if text))
