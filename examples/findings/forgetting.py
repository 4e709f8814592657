"""Forgetting or learning? Registered in docs/results/forgetting.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from contrast import HELD, NOT, OPEN, Row, corrected, over_problems, over_runs
from measured import Data

from limbeck.folders import read_json
from limbeck.stats.factors import mean_of_runs
from limbeck.stats.retention import solved

GAIN, LOST = 0.04, 0.02
OTHERS = ("rft", "dft", "rift", "grpo", "dpo")


class Place(NamedTuple):
    """Where a run first gains so much: between which of its points, and how far towards the second."""

    before: str
    after: str
    share: float


def reached(accuracies: Sequence[float], target: float) -> tuple[int, float] | None:
    """The first step from below a target to it or above, by linear interpolation; None where it is never reached.

    >>> reached([0.5, 0.52, 0.56], 0.54)
    (1, 0.5)
    """
    for place, (one, other) in enumerate(pairwise(accuracies)):
        if one < target <= other:
            return place, round((target - one) / (other - one), 12)
    return None


def forgetting(data: Data) -> tuple[list[Row], str]:
    """What is still solved, and how far an arm has moved, where it has first gained so much."""
    base = data.scores["base"]
    held = solved(base)
    points = read_json(data.folder / "frontier.json")["points"]
    places = {arm: _places(data, points, arm) for arm in ("sft", *OTHERS)}
    able = [arm for arm in OTHERS if len(places[arm]) >= 4 and len(places["sft"]) >= 4]
    mixed = {
        arm: np.stack([_between(data.scores, p) for p in found.values()], 1) for arm, found in places.items() if found
    }
    rows = [over_problems(f"{a} less sft: still right", mixed[a][held], mixed["sft"][held], "kept") for a in able]
    distances = {"KL to the base, log ratio": _kl(points), "CKA to the base": _cka(data)}
    for what, of in distances.items():
        for arm in able:
            seeds = [s for s in data.seeds if s in places[arm] and s in places["sft"]]
            apart = [_between(of, places[arm][s]) - _between(of, places["sft"][s]) for s in seeds]
            rows.append(over_runs(f"{arm} less sft: {what}", mean_of_runs(apart)))
    one = [data.grid("sft", [s]) for s in data.seeds]
    churn = fmean(float(b[solved(a[:, 0])].mean()) for a in one for b in one if a is not b)
    rows.append(Row("two seeds of sft: right again where the other is", mean_of_runs([churn]), math.nan))
    rows = corrected(rows)
    dpo = next((row for row in rows if row.what == "dpo less sft: still right"), None)
    if dpo is None:
        return rows, OPEN
    return rows, HELD if dpo.above else NOT if dpo.below or dpo.estimate.high < LOST else OPEN


def _places(data: Data, points: Sequence[dict[str, Any]], arm: str) -> dict[int, Place]:
    out = {}
    for seed in data.seeds:
        own = sorted((p for p in points if p["arm"] == arm and p["seed"] == seed), key=lambda p: p["steps"])
        names = ["base", *(p["name"] for p in own)]
        found = reached([float(data.scores[name].mean()) for name in names], float(data.scores["base"].mean()) + GAIN)
        if found:
            out[seed] = Place(names[found[0]], names[found[0] + 1], found[1])
    return out


def _between(values: Any, place: Place) -> Any:
    return (1 - place.share) * values[place.before] + place.share * values[place.after]


def _kl(points: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Logarithm of the exact KL(student||base), nats a token, by point; the base's is that of a millionth."""
    exact = ("student_reference", "exact", "nats/token")
    found = {
        p["name"]: next(r["value"] for r in p["records"] if (r["direction"], r["estimator"], r["unit"]) == exact)
        for p in points
    }
    return {name: math.log(max(value or 0.0, 1e-6)) for name, value in found.items()}


def _cka(data: Data) -> dict[str, float]:
    """Debiased CKA to the base in the last layer, by point."""
    last = max(key[4] for key in data.rows if key[0] == "cka_debiased")
    own = [row for row in data.rows.values() if (row.metric, row.layer, row.other) == ("cka_debiased", last, "base")]
    return {"base": 1.0, **{row.arm if row.step < 0 else f"{row.arm}@{row.step}": row.value for row in own}}
