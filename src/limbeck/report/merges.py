"""Sums of other arms: what they answer beside what their parts' gains add up to, and whether geometry foretold it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import rankdata

from limbeck.report.parts import Cell, Sheet, Table
from limbeck.report.tables import name_cell
from limbeck.report.view import Run, View
from limbeck.report.words import bounds, fixed, gain, number, p_value, percent
from limbeck.stats.factors import mean_of_runs
from limbeck.types import Estimate

LEAST = 4  # merges of one kind, below which an order says nothing
SOLUTION = "ce_solution"


@dataclass(frozen=True, slots=True)
class Merge:
    """One merge, its numbers by seed: fractions of problems, cosines, nats a token."""

    run: Run
    parts: tuple[str, ...]
    kind: str
    best: str
    cosine: dict[object, float]
    excess: dict[object, float]
    expected: dict[object, float]
    found: dict[object, float]
    best_part: dict[object, float]

    @property
    def over(self) -> dict[object, float]:
        """What is found beyond the base plus the parts' gains, each times its weight."""
        return {seed: self.found[seed] - self.expected[seed] for seed in self.found}

    @property
    def gain(self) -> dict[object, float]:
        """What is found beyond the better part, the one that is better on average over the seeds."""
        return {seed: self.found[seed] - self.best_part[seed] for seed in self.found}


def merges(view: View) -> list[Merge]:
    """Every merge of whole runs, with the seeds at which all of it was scored."""
    arms = (view.results.study.get("config") or {}).get("arms") or []
    return [found for arm in arms if arm.get("merge") and (found := _merge(view, arm["name"], arm["merge"]))]


def _merge(view: View, arm: str, merge: dict[str, Any]) -> Merge | None:
    parts, given = tuple(merge["arms"]), merge["weights"]
    weights = given if isinstance(given, list) else [1.0 if given == "sum" else 1 / len(parts)] * len(parts)
    runs = {run.seed: run for run in view.runs if run.arm == arm}
    of_parts = {name: {run.seed: run for run in view.runs if run.arm == name} for name in parts}
    seeds = [seed for seed in runs if all(seed in of_parts[name] for name in parts)]
    base = view.accuracy("base")
    right = {name: {s: view.accuracy(of_parts[name][s].id) for s in seeds} for name in parts}
    found = {seed: view.accuracy(runs[seed].id) for seed in seeds}
    if not found or not np.isfinite([base, *found.values(), *(x for r in right.values() for x in r.values())]).all():
        return None
    gains = {s: sum(w * (right[n][s] - base) for n, w in zip(parts, weights, strict=True)) for s in seeds}
    best = max(parts, key=lambda name: fmean(right[name].values()))
    both = {s: [of_parts[name][s] for name in parts] for s in seeds if len(parts) == 2}
    return Merge(
        run=runs[seeds[0]],
        parts=parts,
        kind=given if isinstance(given, str) else " + ".join(f"{w:g}" for w in weights),
        best=best,
        cosine={s: view.get("cosine", one.id, other.id).value for s, (one, other) in both.items()},
        excess={s: _excess(view, one.id, other.id) for s, (one, other) in both.items()},
        expected={s: base + gains[s] for s in seeds},
        found=found,
        best_part=right[best],
    )


def _excess(view: View, one: str, other: str) -> float:
    """Of a solution's loss at the middle of the straight path over its chord, where that path was walked."""
    paths = (p for p in view.results.paths if p["loss"] == SOLUTION and {p["a"], p["b"]} == {one, other})
    return next((number((path.get("excess_midpoint") or {}).get("value")) for path in paths), math.nan)


def table(view: View) -> Table | None:
    """One row a merge."""
    rows, raw = [], []
    for merge in merges(view):
        over, cosine = mean_of_runs(list(merge.over.values())), _mean(merge.cosine)
        expected, found = _mean(merge.expected), _mean(merge.found)
        best = next(run for run in view.runs if run.arm == merge.best)
        pair = view.over_seeds(merge.run.arm, merge.best) or view.pair(merge.run.id, best.id)
        beyond = f"{gain(pair.difference)} ({bounds(pair.low, pair.high, scale=100.0)})" if pair else ""
        rows.append([
            name_cell(view, merge.run.id), Cell(merge.kind, merge.kind), Cell(fixed(cosine), cosine),
            Cell(percent(expected), expected), Cell(percent(found), found, tone="strong"), _points(over),
            Cell(view.label(best.id), view.label(best.id)),
            Cell(beyond, pair.difference if pair else math.nan, note=p_value(pair.p_holm) if pair else ""),
        ])  # fmt: skip
        beside = [getattr(pair, key) if pair else None for key in ("difference", "low", "high", "p", "p_holm")]
        ends = [over.value, over.low, over.high]
        raw.append(
            [merge.run.arm, "+".join(merge.parts), merge.kind, cosine, expected, found, *ends, merge.best, *beside]
        )
    if not rows:
        return None
    return Table(
        title="Merged updates",
        caption=(
            "Sums of other arms' updates, each times its weight. Added up: the accuracy of the base plus the parts' gains, each "
            "times its weight; over that: what the merge has beyond it, mean over seeds with its interval over seeds "
            "(Student's). The better part is chosen on its mean accuracy, which the interval does not know of; beside it the "
            "paired test of the merge against it, p by Holm over all pairs of the study. Cosines are those of the two parts, "
            "mean over seeds."
        ),
        head=["merge", "weights", "cosine", "added up", "found", "over that, points", "better part", "beyond it, points"],
        rows=rows,
        sheet=Sheet(
            "merges",
            ["arm", "parts", "weights", "cosine", "expected", "found", "over", "over_low", "over_high", "better_part",
             "difference", "low", "high", "p", "p_holm"],
            raw,
        ),
        words=2,
        first=24,
    )  # fmt: skip


FORETOLD: tuple[
    tuple[str, str, Callable[[Merge], dict[object, float]], Callable[[Merge], dict[object, float]]], ...
] = (
    ("cosine of the parts", "over the sum of gains", lambda m: m.cosine, lambda m: m.over),
    ("cosine of the parts", "beyond the better part", lambda m: m.cosine, lambda m: m.gain),
    ("loss at the middle over the chord", "over the sum of gains", lambda m: m.excess, lambda m: m.over),
    ("loss at the middle over the chord", "beyond the better part", lambda m: m.excess, lambda m: m.gain),
    ("accuracy, added up", "accuracy of the merge", lambda m: m.expected, lambda m: m.found),
)


def foretold(view: View) -> Table | None:
    """Rank correlations over merges of one kind, seed by seed: does what is known of the parts order what becomes of them?"""
    known, rows, raw = merges(view), [], []
    for kind in dict.fromkeys(merge.kind for merge in known):
        alike = [merge for merge in known if merge.kind == kind and len(merge.parts) == 2]
        for told, becomes, read, outcome in FORETOLD:
            orders = order_by_seed([read(m) for m in alike], [outcome(m) for m in alike])
            if not orders:
                continue
            mean = mean_of_runs(orders)
            cells = [Cell(text, text) for text in (kind, told, becomes)]
            span = bounds(max(mean.low, -1.0), min(mean.high, 1.0), 2) if len(orders) > 1 else ""
            rows.append([
                *cells, Cell(str(len(alike)), len(alike)), Cell(str(len(orders)), len(orders)),
                Cell(fixed(mean.value), mean.value, note=span),
            ])  # fmt: skip
            raw.append([kind, told, becomes, len(alike), len(orders), mean.value, mean.low, mean.high])
    if not rows:
        return None
    return Table(
        title="Was it foretold?",
        caption=(
            "Spearman's rank correlation over the merges of two parts with the same weights, at each seed; their mean and under "
            "it its 95 % interval over seeds (Student's), of these arms and problems. Merges share their parts, so a "
            "correlation at one seed has no interval of its own. The last line of a kind is what accuracies alone foretell."
        ),
        head=["weights", "known before", "found after", "merges", "seeds", "rank correlation"],
        rows=rows,
        sheet=Sheet("foretold", ["weights", "known", "found", "merges", "seeds", "value", "low", "high"], raw),
        words=3,
    )  # fmt: skip


def order_by_seed(known: Sequence[dict[object, float]], found: Sequence[dict[object, float]]) -> list[float]:
    """The rank correlation at every seed where enough merges have both numbers and neither is the same for all."""
    out = []
    for seed in dict.fromkeys(seed for values in found for seed in values):
        pairs = [(k[seed], f[seed]) for k, f in zip(known, found, strict=True) if seed in k and seed in f]
        x, y = (rankdata([pair[side] for pair in pairs if math.isfinite(sum(pair))]) for side in (0, 1))
        if len(x) >= LEAST and np.ptp(x) > 0 and np.ptp(y) > 0:
            out.append(float(np.corrcoef(x, y)[0, 1]))
    return out


def _mean(by_seed: dict[object, float]) -> float:
    return fmean(by_seed.values()) if by_seed else math.nan


def _points(found: Estimate) -> Cell:
    span = bounds(found.low, found.high, scale=100.0) if found.n > 1 else ""
    return Cell(gain(found.value), found.value, note=span)
