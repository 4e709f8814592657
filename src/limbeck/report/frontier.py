"""Accuracy against KL: every result and every kept step as a point, stage 1 epoch by epoch, what others printed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any, NamedTuple

from limbeck.report.figures import SYMBOLS, axis, legend
from limbeck.report.parts import Cell, Figure, Panel, Sheet, Table, label_text
from limbeck.report.tables import name_cell
from limbeck.report.view import Run, View
from limbeck.report.words import bounds, compact, fixed, number, percent, short

EXACT = ("student_reference", "exact", "nats/token")


class Spread(NamedTuple):
    """A number over seeds: its mean, the lowest lower and the highest upper bound of their intervals."""

    mean: float
    low: float
    high: float


class Place(NamedTuple):
    """One arm after one step (None: its end), over its seeds."""

    arm: str
    step: int | None
    points: Sequence[dict[str, Any]]

    @property
    def accuracy(self) -> Spread:
        return _spread([p["accuracy"] for p in self.points])

    def kl(self, direction: str, estimator: str, unit: str) -> Spread:
        return _spread([record(p, direction, estimator, unit) for p in self.points])

    def mean(self, *keys: str) -> float:
        """Mean over seeds of a number of the points, NaN where one has none."""
        values = []
        for point in self.points:
            value: Any = point
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            values.append(number(value))
        return fmean(values) if values else math.nan


def record(point: dict[str, Any], direction: str, estimator: str, unit: str) -> dict[str, Any]:
    """One KL of a point; empty where it was not measured."""
    wanted = (direction, estimator, unit)
    found = (r for r in point.get("records") or [] if (r["direction"], r["estimator"], r["unit"]) == wanted)
    return next(found, {})


def _spread(found: Sequence[dict[str, Any]]) -> Spread:
    values, lows, highs = ([number(f.get(key)) for f in found] for key in ("value", "low", "high"))
    return Spread(fmean(values), min(lows), max(highs)) if values else Spread(math.nan, math.nan, math.nan)


def places(view: View) -> list[Place]:
    """The points of the study by arm and step, the base first."""
    out: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for point in view.results.frontier.get("points", []):
        out.setdefault((point["arm"], point["step"]), []).append(point)
    return [Place(arm, step, points) for (arm, step), points in out.items()]


def lead_of(view: View, arm: str) -> Run | None:
    """The run that stands for an arm."""
    return next((run for run in view.leads if run.arm == arm), None)


def figure(view: View) -> Figure | None:
    """The frontier: share right against the exact KL to the base, kept steps joined in their order."""
    found = places(view)
    data, rows, names = [], [], []
    for arm in dict.fromkeys(place.arm for place in found):
        lead = lead_of(view, arm)
        shown = [p for p in found if p.arm == arm and p.kl(*EXACT).mean > 0]
        if lead is None or not shown:
            continue
        names.append(lead.id)
        data.append(_trace(view, lead, shown))
    for place in found:
        kl = place.kl(*EXACT)
        rows.append([place.arm, place.step, len(place.points), *place.accuracy, *kl])
    if not data:
        return None
    base = 100 * view.accuracy("base")
    ends = {"x0": 0, "x1": 1, "xref": "paper", "y0": base, "y1": base}
    line = [{"type": "line", **ends, "line": {"color": "@muted", "width": 1, "dash": "dash"}}] if base == base else []
    return Figure(
        title="Accuracy against KL",
        caption=(
            "Share right against KL(student||base), exact over the vocabulary at every token of the student's own samples at "
            "temperature 1, nats a token, on a logarithmic axis; the dashed line is the base. Means over seeds; bars reach "
            "from the lowest lower to the highest upper 95 % bound of any seed, over problems. Small marks joined by a line "
            "are the steps that a run keeps, in their order. Up and left is better."
            + (" ERPD-style: the losses are our reading." if view.results.frontier.get("signals") else "")
        ),
        panels=[Panel("", data, {
            "xaxis": axis("KL to the base, nats a token", type="log", exponentformat="power"),
            "yaxis": axis("right, %"), "shapes": line,
            "showlegend": False,
        })],
        sheet=Sheet(
            "frontier",
            ["arm", "step", "seeds", "accuracy", "accuracy_low", "accuracy_high", "kl", "kl_low", "kl_high"],
            rows,
        ),
        legend=legend(view, names),
    )  # fmt: skip


def _trace(view: View, lead: Run, shown: Sequence[Place]) -> dict[str, Any]:
    color = view.color(lead.id)
    accuracy, kl = [p.accuracy for p in shown], [p.kl(*EXACT) for p in shown]
    text = [
        f"{lead.label}, {'end' if p.step is None else f'step {p.step}'}: {percent(a.mean)} "
        f"({bounds(a.low, a.high, scale=100.0)}), KL {short(k.mean)} ({short(k.low)} to {short(k.high)})"
        for p, a, k in zip(shown, accuracy, kl, strict=True)
    ]
    return {
        "type": "scatter", "mode": "lines+markers" if len(shown) > 1 else "markers", "line": {"color": color, "width": 1},
        "x": [k.mean for k in kl], "y": [100 * a.mean for a in accuracy],
        "error_x": _bars(kl, color, 1.0), "error_y": _bars(accuracy, color, 100.0),
        "marker": {"color": color, "symbol": SYMBOLS[lead.shape],
                   "size": [6 if p.step is not None else 11 for p in shown]},
        "text": [label_text(t, 160) for t in text], "hoverinfo": "text", "meta": lead.arm,
    }  # fmt: skip


def _bars(spreads: Sequence[Spread], color: str, scale: float) -> dict[str, Any]:
    return {
        "type": "data", "symmetric": False, "array": [scale * (s.high - s.mean) for s in spreads],
        "arrayminus": [scale * (s.mean - max(s.low, 0.0)) for s in spreads], "color": color, "thickness": 1, "width": 0,
    }  # fmt: skip


COLUMNS = (
    ("right, %", "accuracy"), ("interval", ""), ("KL to base, nats/token", "exact"), ("interval", ""),
    ("k3", "k3"), ("k1", "k1"), ("nats/sequence", "sequence"), ("KL base to student", "back"),
    ("entropy", "entropy"), ("truncated", "truncated"),
)  # fmt: skip


def _cells(place: Place) -> tuple[list[Cell], list[float]]:
    accuracy, kl = place.accuracy, place.kl(*EXACT)
    k3, k1 = (place.kl("student_reference", name, "nats/token").mean for name in ("k3", "k1"))
    sequence = place.kl("student_reference", "exact", "nats/sequence").mean
    back = place.kl("reference_student", "exact", "nats/token").mean
    entropy = place.mean("entropy", "value")
    cut = fmean([number(record(p, *EXACT).get("truncated_share")) for p in place.points])
    cells = [
        Cell(percent(accuracy.mean), accuracy.mean, tone="strong"),
        Cell(bounds(accuracy.low, accuracy.high, scale=100.0), accuracy.low),
        Cell(short(kl.mean), kl.mean, tone="strong"),
        Cell(f"{short(kl.low)} to {short(kl.high)}", kl.low),
        *(Cell(short(value), value) for value in (k3, k1, sequence, back, entropy)),
        Cell(percent(cut), cut),
    ]
    return cells, [*accuracy, *kl, k3, k1, sequence, back, entropy, cut]


RAW = (
    "accuracy", "accuracy_low", "accuracy_high", "kl_exact", "kl_low", "kl_high", "k3", "k1", "kl_sequence",
    "kl_reference_student", "entropy", "truncated_share",
)  # fmt: skip


def ends(view: View) -> Table | None:
    """Every arm at its end with its KL by every estimator."""
    rows, raw = [], []
    for place in (p for p in places(view) if p.step is None):
        lead = lead_of(view, place.arm)
        cells, numbers = _cells(place)
        rows.append([name_cell(view, lead.id if lead else place.arm), Cell(str(len(place.points))), *cells])
        raw.append([place.arm, len(place.points), *numbers])
    if not rows:
        return None
    first = record(view.results.frontier["points"][0], *EXACT)
    return Table(
        title="KL at the end of every arm",
        caption=(
            f"Means over seeds. KL(student||base) on {first.get('rollouts', '?')} answers a seed to {first.get('problems', '?')} "
            f"problems held out, temperature 1, at most {first.get('max_new_tokens', '?')} tokens, {first.get('dtype', '?')}: "
            "exact sums over the vocabulary at each visited token, k1 and k3 read the sampled tokens alone and have the same "
            "mean. The other direction is taken on the base's own answers. Intervals resample problems (envelope over seeds)."
        ),
        head=["arm", "seeds", *(title for title, _ in COLUMNS)],
        rows=rows,
        sheet=Sheet("kl_ends", ["arm", "seeds", *RAW], raw),
    )


def epochs(view: View) -> Table | None:
    """Runs that keep steps, step by step: what aggressive updates on fixed rollouts do."""
    found = places(view)
    kept = [
        arm for arm in dict.fromkeys(p.arm for p in found) if any(p.arm == arm and p.step is not None for p in found)
    ]
    rows, raw = [], []
    for place in (p for arm in kept for p in found if p.arm == arm):
        lead = lead_of(view, place.arm)
        steps, passes = place.mean("steps"), place.mean("epochs")
        drift, right, wrong = (place.mean("drift", key) for key in ("token_k3", "right", "wrong"))
        cells, numbers = _cells(place)
        rows.append([
            name_cell(view, lead.id if lead else place.arm), Cell(compact(steps), steps), Cell(fixed(passes, 1), passes),
            *cells[:4], cells[8], Cell(short(drift), drift), Cell(fixed(right, 1), right), Cell(fixed(wrong, 1), wrong),
        ])  # fmt: skip
        raw.append([place.arm, steps, passes, drift, right, wrong, *numbers])
    if not rows:
        return None
    return Table(
        title="Stage 1, step by step",
        caption=(
            "Means over seeds. Drift: mean of exp(D) - D - 1 over the tokens that the arm was trained on, D its minus the "
            "base's log-prob (nats a token; no KL, because the student did not write them). Right and wrong: how far the "
            "log-probability of whole right and wrong trajectories of those data moved, nats a sequence."
        ),
        head=[
            "arm", "step", "epochs", "right, %", "interval", "KL to base", "interval", "entropy", "drift", "right moved",
            "wrong moved",
        ],
        rows=rows,
        sheet=Sheet("stage_1", ["arm", "step", "epochs", "drift", "right", "wrong", *RAW], raw),
    )  # fmt: skip


@cache
def printed() -> dict[str, Any]:
    """What the paper and its model card say, each with its status."""
    return json.loads(resources.files("limbeck.report").joinpath("erpd.json").read_text(encoding="utf-8"))


def statements(view: View) -> Table:
    """What is confirmed of the method, and what is our reading."""
    spec = printed()
    rows = [[Cell(text, text, tone="published"), Cell(status, tone="published")] for text, status in spec["statements"]]
    statuses = "; ".join(f"{key}: {text}" for key, text in spec["status"].items())
    return Table(
        title="What is known of ERPD",
        caption=(
            f"Statements of {spec['source']} and of those who read it. {statuses}. Every loss, knob and number above is "
            "ERPD-style: our reading of what the source leaves open. No independent reproduction was found."
        ),
        head=["statement", "status"],
        rows=rows,
        sheet=Sheet("published_statements", ["statement", "status"], spec["statements"]),
        words=2,
    )


def accuracy(view: View) -> Table:
    """Published accuracies beside nothing of ours: other models, data and grader."""
    spec = printed()
    rows = [
        [Cell(row[0], row[0]), *(Cell(value, value, tone="published") for value in row[1:])] for row in spec["accuracy"]
    ]
    return Table(
        title="Accuracy as published",
        caption=(
            "Percent right, from the model card (temperature 1, top-p 0.95, top-k 20, up to 192k tokens, a language model as "
            "judge; no seeds and no intervals are given). No KL is printed there. Nothing of ours may be subtracted from it."
        ),
        head=["benchmark", *spec["columns"]],
        rows=rows,
        sheet=Sheet("published_erpd", ["benchmark", *spec["columns"]], spec["accuracy"]),
    )
