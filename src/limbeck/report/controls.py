"""Controls of one factor against the baseline's own spread over seeds.

"Follows the baseline" means: inside the interval in which one more seed of the baseline would fall.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from limbeck.report.figures import named_axis, style
from limbeck.report.locking import early
from limbeck.report.parts import Cell, Figure, Panel, Sheet, Table, label_text
from limbeck.report.tables import name_cell
from limbeck.report.view import Run
from limbeck.report.whole import NORM, QUANTITIES, Quantity, Whole
from limbeck.report.words import NONE, fixed, number, span
from limbeck.stats.seeds import next_run

ACCURACY = Quantity("accuracy", "right", "", "", style="percent")
TEACHER = Quantity("teacher", "KL to the teacher, last quarter", "", "", style="number")
LOCKED = Quantity("sim_k", "overlap with the end at 20 %", "", "", style="number")
COMPARED = (
    ACCURACY,
    TEACHER,
    NORM,
    *(q for q in QUANTITIES if q.name in ("sparsity", "drift", "stable_rank", "top")),
    LOCKED,
)


class Reading(NamedTuple):
    """One quantity of one control beside its baseline."""

    value: float
    low: float
    high: float

    @property
    def inside(self) -> bool | None:
        """None where the baseline has too few seeds to say."""
        return self.low <= self.value <= self.high if math.isfinite(self.value + self.low + self.high) else None


def values(whole: Whole, quantity: Quantity, arm: str) -> list[float]:
    """A quantity of every measured run of an arm."""
    runs = whole.seeds(arm)
    if quantity is ACCURACY:
        found = [whole.view.accuracy(run.id) for run in runs]
    elif quantity is TEACHER:
        found = [teacher_kl(whole, run) for run in runs]
    elif quantity is LOCKED:
        found = [e.value for e in (early(whole, run, "right", 0.2) for run in runs) if e is not None]
    else:
        found = list(whole.level(quantity, arm).values)
    return [value for value in found if math.isfinite(value)]


def teacher_kl(whole: Whole, run: Run) -> float:
    """KL(student||teacher) of a live run, k3 on what it sampled in the last quarter of its steps, nats a token."""
    records = whole.view.results.training.get(run.id, [])
    known = [kl for kl in (number(record.get("kl_student_teacher_k3")) for record in records) if math.isfinite(kl)]
    last = known[-max(1, len(known) // 4) :]
    return fmean(last) if last else math.nan


def read(whole: Whole, quantity: Quantity, arm: str, baseline: str) -> Reading:
    """A control's mean beside the interval of one more seed of its baseline."""
    own = values(whole, quantity, arm)
    return Reading(fmean(own) if own else math.nan, *next_run(values(whole, quantity, baseline)))


def controls(whole: Whole) -> list[tuple[Run, Run]]:
    """Every control of one factor with the paradigm that it is a control of."""
    out = []
    for run in whole.leads:
        changed = any(whole.setting(run, key) for key in ("subspace", "match_norm", "start"))
        if run.role == "method" or changed or not whole.main:
            continue
        reinforced = str(run.facts["objective"]) == "grpo"
        baseline = whole.main.get("rlvr" if reinforced else "opd")
        if baseline is not None:
            out.append((run, baseline))
    return out


def table(whole: Whole) -> Table | None:
    """Every control, quantity by quantity: inside or outside of the baseline's seeds."""
    rows, raw = [], []
    for run, baseline in controls(whole):
        found = [read(whole, quantity, run.arm, baseline.arm) for quantity in COMPARED]
        alike = whole.between("cosine", whole.same_seed(run.arm, baseline.arm), aggregation="stacked")
        cells = [_cell(q, r) for q, r in zip(COMPARED, found, strict=True)]
        known = [r.inside for r in found if r.inside is not None]
        follows = f"{sum(known)} of {len(known)}" if known else NONE
        rows.append([
            name_cell(whole.view, run.id), Cell(baseline.label, baseline.label), Cell(str(len(whole.seeds(run.arm)))), *cells,
            Cell(fixed(alike.mean), alike.mean), Cell(follows, sum(known)),
        ])  # fmt: skip
        raw += [[run.arm, baseline.arm, q.name, *r, r.inside] for q, r in zip(COMPARED, found, strict=True)]
        raw.append([run.arm, baseline.arm, "cosine", alike.mean, math.nan, math.nan, None])
    if not rows:
        return None
    seeds = {
        b.arm: whole.between("cosine", whole.two_seeds(b.arm), aggregation="stacked").values for _, b in controls(whole)
    }
    told = "; ".join(f"{arm} {span(list(found))}" for arm, found in seeds.items() if found)
    return Table(
        title="Controls, one factor at a time",
        caption=(
            "Under each number the interval in which one more seed of the baseline would fall (95 %, Student's t over its "
            "seeds; with three seeds it is wide, so that being inside is weak evidence of following and being outside strong "
            "evidence of leaving). Cosine: with the baseline's update at the same seed, hence the same problems; "
            f"two seeds of a baseline have {told or 'no second run'}."
        ),
        head=["control", "of", "seeds", *(q.title for q in COMPARED), "cosine", "inside"],
        rows=rows,
        sheet=Sheet("controls", ["arm", "baseline", "quantity", "value", "low", "high", "inside"], raw),
        words=2,
    )


def _cell(quantity: Quantity, found: Reading) -> Cell:
    tone = "" if found.inside is not False else "down" if found.value < found.low else "up"
    band = f"{quantity.text(found.low)} to {quantity.text(found.high)}" if math.isfinite(found.low) else ""
    return Cell(quantity.text(found.value), found.value, note=band, tone=tone)


def figure(whole: Whole) -> Figure | None:
    """The same as dots beside the band of the baseline."""
    pairs = list(reversed(controls(whole)))
    panels, rows = [], []
    for quantity in COMPARED:
        data, shapes = [], []
        for place, (run, baseline) in enumerate(pairs):
            own, found = values(whole, quantity, run.arm), read(whole, quantity, run.arm, baseline.arm)
            text = [label_text(f"{run.label}: {quantity.text(value)}", 80) for value in own]
            data.append({"type": "scatter", "mode": "markers", "x": own, "y": [place] * len(own), "text": text,
                         "hoverinfo": "text", **style(whole.view, run.id)})  # fmt: skip
            if math.isfinite(found.low):
                shapes.append({"type": "rect", "x0": found.low, "x1": found.high, "y0": place - 0.4, "y1": place + 0.4,
                               "fillcolor": "@shade", "line": {"width": 0}, "layer": "below"})  # fmt: skip
            rows += [[quantity.name, run.arm, baseline.arm, value, found.low, found.high] for value in own]
        if any(trace["x"] for trace in data):
            panels.append(Panel(quantity.title, data, _layout([run.label for run, _ in pairs], shapes)))
    if not panels:
        return None
    return Figure(
        title="Controls beside the baseline's seeds",
        caption="Points are runs; grey is where one more seed of the baseline would fall (95 %).",
        panels=panels,
        sheet=Sheet("controls_runs", ["quantity", "arm", "baseline", "value", "low", "high"], rows),
        size="medium",
    )


def _layout(labels: Sequence[str], shapes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "xaxis": {"zeroline": False, "nticks": 4},
        "shapes": shapes,
        "showlegend": False,
        "yaxis": named_axis(labels, 24, range=[-0.6, len(labels) - 0.4], automargin=True),
    }
