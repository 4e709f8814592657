"""Trajectories of whole weights: when an update's leading subspace is that of the end, and how its rank moves on the way.

Overlap with the end rises to 1 by construction, so every curve stands beside a walk that takes increments of the same
norms and spectra in random directions (N-WALK), and beside the same increments in another order, lengths left in place
(N-EXCH-NORM): where the rate falls, early increments are longer, which is no finding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from limbeck.report.figures import axis, legend, stroke
from limbeck.report.parts import Cell, Figure, Panel, Sheet, Table, label_text
from limbeck.report.tables import column, name_cell
from limbeck.report.view import Run
from limbeck.report.whole import EXCH, ORDER, WALK, Whole
from limbeck.report.words import NONE, fixed, span
from limbeck.types import Measurement

SIDES = {"right": "input side", "left": "output side"}
NULLS = {WALK: "a random walk", ORDER: "another order"}
EARLY = (0.2, 0.5)  # shares of a run at which a subspace is asked for
RANKS = (
    ("stable_rank", 0, "stable rank"),
    ("topk_energy", 8, "energy of 8 directions"),
    ("hill", 10, "Hill exponent, k = 10"),
)


class Early(NamedTuple):
    """Overlap with the end at one snapshot of one run, and the upper ends of both nulls."""

    step: int
    value: float
    walk: float
    ordered: float
    exchanged: float

    @property
    def beyond_walk(self) -> bool:
        return self.value > self.walk

    @property
    def beyond_order(self) -> bool:
        return self.ordered > self.exchanged


def lock_k(whole: Whole) -> int:
    """Directions at which locking is read: 8, which is an eighth of the narrowest matrix here, or the most there are."""
    known = whole.curve_ks("sim_k")
    return 8 if 8 in known else max(known, default=0)


def followed(whole: Whole) -> list[Run]:
    """Lead runs with a trajectory: the paradigms, or whatever there is where the study has none."""
    known = [run for run in whole.leads if whole.curve("frobenius_norm", run.id)]
    main = {run.arm for run in whole.main.values()}
    return [run for run in known if run.arm in main] or known


def early(whole: Whole, run: Run, side: str, share: float) -> Early | None:
    """The snapshot nearest to a share of the run."""
    k = lock_k(whole)
    walk, exch = (whole.curve("sim_k", run.id, "end", side=side, k=k, null=null) for null in (WALK, ORDER))
    norms = whole.curve("frobenius_norm", run.id)
    if not walk or not norms:
        return None
    end = norms[-1].step
    row = min(walk, key=lambda r: abs(r.step - share * end))
    other = next((r for r in exch if r.step == row.step), None)
    own = (other.value, other.null.q95) if other is not None else (math.nan, math.nan)
    return Early(row.step, row.value, row.null.q95, *own)


def curves(whole: Whole, side: str) -> Figure | None:
    """sim_K(t, end) of one side, every seed, with the bands of both nulls."""
    k, runs = lock_k(whole), followed(whole)
    panels, rows = [], []
    for run in runs:
        for null in (WALK, ORDER, EXCH):
            seeds = whole.seeds(run.arm)
            found = [(seed, whole.curve("sim_k", seed.id, "end", side=side, k=k, null=null)) for seed in seeds]
            if null in NULLS and any(line for _, line in found):
                panels.append(_panel(whole, run, NULLS[null], found))
            rows += [_row(whole, seed, null, row) for seed, line in found for row in line]
    if not panels:
        return None
    return Figure(
        title=f"Overlap of the leading {k} directions with those of the end, {SIDES[side]}",
        caption=(
            f"sim_K(t, end), K = {k}, mean over matrices of all kinds; dotted lines are further seeds. Grey, left of each pair: "
            "5-95 % of walks whose increments have the same norms and spectra and random directions (N-WALK). Grey, right: "
            "the same increments in random order, lengths in place (N-EXCH-NORM), beside the overlap that the increments alone "
            "give. Locking needs a curve above both bands early on; drift in one direction is above the first only."
        ),
        panels=panels,
        sheet=Sheet(
            f"locking_{side}",
            ["arm", "seed", "null", "step", "norm", "sim_k", "null_mean", "null_q05", "null_q95"],
            rows,
        ),
        size="small",
        legend=legend(whole.view, [run.id for run in runs]),
    )


def _row(whole: Whole, run: Run, null: str, row: Measurement) -> list[object]:
    norms = {r.step: r.value for r in whole.curve("frobenius_norm", run.id)}
    band = (row.null.mean, row.null.q05, row.null.q95)
    return [run.arm, run.seed, null, row.step, norms.get(row.step, math.nan), row.value, *band]


def _panel(whole: Whole, lead: Run, null: str, found: Sequence[tuple[Run, list[Measurement]]]) -> Panel:
    steps = sorted({row.step for _, line in found for row in line})
    low, high = (
        [pick([getattr(r.null, end) for _, line in found for r in line if r.step == step]) for step in steps]
        for pick, end in ((min, "q05"), (max, "q95"))
    )
    edge: dict[str, Any] = {"type": "scatter", "mode": "lines", "x": steps, "line": {"width": 0}, "hoverinfo": "skip"}
    data = [
        {**edge, "y": column(low)},
        {**edge, "y": column(high), "fill": "tonexty", "fillcolor": "@shade"},
    ]
    for run, line in found:
        text = [label_text(f"{run.label}, step {r.step}: {fixed(r.value)}", 90) for r in line]
        data.append({
            "type": "scatter", "mode": "lines", "x": [r.step for r in line], "y": column([r.value for r in line]),
            "text": text, "hoverinfo": "text", **stroke(whole.view, run.id),
        })  # fmt: skip
    layout = {"xaxis": axis("step"), "yaxis": axis("sim_K", range=[0, 1.02], nticks=5), "showlegend": False}
    return Panel(f"{lead.label}, beside {null}", data, layout, [lead.arm])


def locking(whole: Whole) -> Table | None:
    """Whether early subspaces are those of the end, beyond both nulls, in how many seeds."""
    rows, raw = [], []
    for run in followed(whole):
        for side, what in SIDES.items():
            for share in EARLY:
                found = [e for e in (early(whole, seed, side, share) for seed in whole.seeds(run.arm)) if e is not None]
                if not found:
                    continue
                values, n = [e.value for e in found], len(found)
                walk, order = sum(e.beyond_walk for e in found), sum(e.beyond_order for e in found)
                chance = f"{fixed(fmean(e.walk for e in found))} / {fixed(fmean(e.exchanged for e in found))}"
                rows.append([
                    name_cell(whole.view, run.id), Cell(what, what), Cell(f"{100 * share:.0f} %", share),
                    Cell(fixed(fmean(values)), fmean(values), note=span(values) if n > 1 else ""), Cell(chance),
                    Cell(f"{walk} of {n}", walk / n), Cell(f"{order} of {n}", order / n),
                    Cell(verdict(found), verdict(found)),
                ])  # fmt: skip
                raw += [[run.arm, side, share, *e] for e in found]
    if not rows:
        return None
    return Table(
        title="Is the subspace of the end there early?",
        caption=(
            f"sim_K with K = {lock_k(whole)} at the snapshot nearest to that share of the run. Above the walk: beyond 95 % of "
            "random walks, so directions persist. Above reordering: beyond 95 % of the orders of the same increments, so early "
            "increments are special. Locking is called where both hold in every seed."
        ),
        head=[
            "arm",
            "side",
            "at",
            "overlap",
            "95 % of walks / orders",
            "seeds above the walk",
            "above reordering",
            "reading",
        ],
        rows=rows,
        sheet=Sheet(
            "locking", ["arm", "side", "share", "step", "sim_k", "walk_q95", "ordered_sim_k", "exchanged_q95"], raw
        ),
        words=3,
    )


def verdict(found: Sequence[Early]) -> str:
    """What both nulls allow to say; over the seeds of one arm.

    >>> verdict([Early(4, 0.6, 0.4, 0.6, 0.7)]), verdict([Early(4, 0.3, 0.4, 0.6, 0.5)])
    ('drift', 'no more than a walk')
    """
    if all(e.beyond_walk and e.beyond_order for e in found):
        return "locking"
    if all(e.beyond_walk for e in found):
        return "drift"
    return "mixed" if any(e.beyond_walk for e in found) else "no more than a walk"


def ranks(whole: Whole) -> Figure | None:
    """How spectra move, every arm in every seed, beside the mean of its own walk."""
    runs = followed(whole)
    panels, rows = [], []
    for metric, k, title in RANKS:
        data = []
        for lead in runs:
            for run in whole.seeds(lead.arm):
                line = whole.curve(metric, run.id, k=k)
                norms = {r.step: r.value for r in whole.curve("frobenius_norm", run.id)}
                data += _rank_lines(whole, run, line)
                rows += [
                    [run.arm, run.seed, metric, k, r.step, norms.get(r.step, math.nan), r.value, r.null.mean, r.null.q05,
                     r.null.q95] for r in line
                ]  # fmt: skip
        if data:
            panels.append(Panel(title, data, _axes("step")))
    panels += _against_norm(whole, runs)
    if not rows:
        return None
    return Figure(
        title="Ranks and tails on the way",
        caption=(
            "Mean over matrices of all kinds; dotted lines are further seeds. Dashed: the mean of walks with the same "
            "increments, in which rank rises as well, so that a rise alone is no finding. The last panel has the length of the "
            "update in place of the step: at equal length, arms are compared without their speed."
        ),
        panels=panels,
        sheet=Sheet(
            "rank_dynamics",
            ["arm", "seed", "metric", "k", "step", "norm", "value", "walk_mean", "walk_q05", "walk_q95"],
            rows,
        ),
        size="small",
        legend=legend(whole.view, [run.id for run in runs]),
    )


def _rank_lines(whole: Whole, run: Run, line: Sequence[Measurement]) -> list[dict[str, Any]]:
    if not line:
        return []
    steps = [r.step for r in line]
    text = [label_text(f"{run.label}, step {r.step}: {fixed(r.value)}, walk {fixed(r.null.mean)}", 90) for r in line]
    own = {"type": "scatter", "mode": "lines", "x": steps, "y": column([r.value for r in line]),
           "text": text, "hoverinfo": "text", **stroke(whole.view, run.id)}  # fmt: skip
    walk = {"type": "scatter", "mode": "lines", "x": steps, "y": column([r.null.mean for r in line]), "hoverinfo": "skip",
            "line": stroke(whole.view, run.id, dash="dash", width=1)["line"], "meta": run.arm}  # fmt: skip
    return [own, walk] if run.lead else [own]


def _against_norm(whole: Whole, runs: Sequence[Run]) -> list[Panel]:
    data = []
    for lead in runs:
        for run in whole.seeds(lead.arm):
            norms = {r.step: r.value for r in whole.curve("frobenius_norm", run.id)}
            line = [(norms[r.step], r.value) for r in whole.curve("stable_rank", run.id) if r.step in norms]
            if line:
                data.append({
                    "type": "scatter", "mode": "lines", "x": column([n for n, _ in line]), "y": column([v for _, v in line]),
                    "name": label_text(run.label, 26), "hoverinfo": "x+y+name", **stroke(whole.view, run.id),
                })  # fmt: skip
    return [Panel("stable rank against norm", data, _axes("norm of the update"))] if data else []


def _axes(title: str) -> dict[str, Any]:
    return {"xaxis": axis(title), "yaxis": {"zeroline": False, "nticks": 5}, "showlegend": False}


def reading(whole: Whole, run: Run, side: str = "right", share: float = EARLY[0]) -> str:
    """The verdict of one arm, or a dash where it left no trajectory."""
    found = [e for e in (early(whole, seed, side, share) for seed in whole.seeds(run.arm)) if e is not None]
    return verdict(found) if found else NONE
