"""Forgetting or learning? Registered in docs/results/forgetting.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from contrast import HELD, NOT, OPEN, Row, corrected, over_problems, over_runs
from measured import Data

from limbeck.records import read_json
from limbeck.stats.factors import mean_of_runs
from limbeck.stats.retention import solved

GAIN = 0.04  # accuracy over the base's, at which losses that gain are held against each other
DISTANCE = 0.02  # KL(student||base), nats a token, at which all are
SMALL, NEEDED = 0.02, 4  # of a share of problems; runs of an arm
OTHERS = ("rft", "dft", "rift", "grpo", "dpo")


class Place(NamedTuple):
    """Where a run first gets so far: between which of its points, and how far towards the second."""

    before: str
    after: str
    share: float


def reached(values: Sequence[float], target: float) -> tuple[int, float] | None:
    """The first step from below a target to it or above, by linear interpolation; None where it is never reached.

    >>> reached([0.5, 0.52, 0.56], 0.54)
    (1, 0.5)
    """
    for place, (one, other) in enumerate(pairwise(values)):
        if one < target <= other:
            return place, round((target - one) / (other - one), 12)
    return None


def forgetting(data: Data) -> tuple[list[Row], str]:
    """What is still solved where an arm has first gained so much, and where it has first moved so far."""
    points = read_json(data.folder / "frontier.json")["points"]
    accuracy = {name: float(right.mean()) for name, right in data.scores.items()}
    distance, cka = kl_of(points), cka_of(data)
    gained = _places(data, points, accuracy, accuracy["base"] + GAIN)
    moved = _places(data, points, distance, math.log(DISTANCE))
    rows = [*_kept(data, gained, f"gain of {100 * GAIN:g} points"), *_kept(data, moved, f"KL of {DISTANCE:g}")]
    for what, values, places in (
        ("log KL to the base at equal gain", distance, gained),
        ("CKA to the base at equal gain", cka, gained),
        ("accuracy at equal KL", accuracy, moved),
    ):
        for arm in _able(places):
            seeds = [s for s in data.seeds if s in places[arm] and s in places["sft"]]
            apart = [_between(values, places[arm][s]) - _between(values, places["sft"][s]) for s in seeds]
            rows.append(over_runs(f"{arm} less sft: {what}", mean_of_runs(apart)))
    one = [data.grid("sft", [s]) for s in data.seeds]
    churn = fmean(float(b[solved(a[:, 0])].mean()) for a in one for b in one if a is not b)
    held = solved(data.scores["base"])
    same = fmean(float(b[held & solved(a[:, 0])].mean()) for a in one for b in one if a is not b)
    rows.append(Row(f"two seeds of sft: right again where the other is {churn:.3f}", mean_of_runs([]), math.nan))
    rows.append(Row(f"two seeds of sft: the same where the base is right too {same:.3f}", mean_of_runs([]), math.nan))
    rows += _ends(data, gained, moved)
    rows = corrected(rows)
    return rows, f"{_avoids(rows)}; that losses of equal gain forget alike {_alike(rows)}"


def _avoids(rows: Sequence[Row]) -> str:
    """Whether DPO keeps what SFT loses, at one distance."""
    dpo = next((row for row in rows if row.family.startswith("KL") and row.what.startswith("dpo")), None)
    if dpo is None:
        return OPEN
    return HELD if dpo.above else NOT if dpo.below or dpo.estimate.high < SMALL else OPEN


def _alike(rows: Sequence[Row]) -> str:
    asked = [row for row in rows if row.family.startswith("gain")]
    if any(row.called for row in asked):
        return NOT
    return HELD if asked and all(row.inside(SMALL) for row in asked) else OPEN


Places = dict[str, dict[int, Place]]  # arm and seed


def _able(places: Places) -> list[str]:
    """Arms that can be held against SFT: enough of their runs got there, and of its."""
    return [arm for arm in OTHERS if min(len(places[arm]), len(places["sft"])) >= NEEDED]


def _kept(data: Data, places: Places, family: str) -> list[Row]:
    """Share still right of what the base solves, of each arm less that of SFT."""
    held = solved(data.scores["base"])
    able = _able(places)
    if not able:
        return []
    mixed = {arm: np.stack([_between(data.scores, p) for p in places[arm].values()], 1)[held] for arm in ("sft", *able)}
    return [over_problems(f"{arm} less sft: still right", mixed[arm], mixed["sft"], family) for arm in able]


def _ends(data: Data, gained: Places, moved: Places) -> list[Row]:
    """How many runs of an arm get to both places, and where it ends."""
    held, rows = solved(data.scores["base"]), []
    for arm in (arm for arm in gained if f"{arm}-s{data.seeds[0]}" in data.scores):
        there = f"{len(gained[arm])} of {len(data.seeds)} runs gain enough, {len(moved[arm])} go far enough"
        ends = [data.scores[f"{arm}-s{seed}"] for seed in data.seeds]
        gain = mean_of_runs([float(end.mean() - data.scores["base"].mean()) for end in ends])
        kept = mean_of_runs([float(end[held].mean()) for end in ends])
        rows += [
            Row(f"{arm}: {there}; gain at the end", gain, math.nan),
            Row(f"{arm}: kept at the end", kept, math.nan),
        ]
    return rows


def _places(data: Data, points: Sequence[dict[str, Any]], values: Mapping[str, float], target: float) -> Places:
    """Of every run the place at which a number of its points first reaches a target, the base before its first."""
    out: Places = {}
    for arm in ("sft", *OTHERS):
        out[arm] = {}
        for seed in data.seeds:
            own = sorted((p for p in points if p["arm"] == arm and p["seed"] == seed), key=lambda p: p["steps"])
            names = ["base", *(p["name"] for p in own)]
            found = reached([values[name] for name in names], target)
            if found:
                out[arm][seed] = Place(names[found[0]], names[found[0] + 1], found[1])
    return out


def _between(values: Any, place: Place) -> Any:
    return (1 - place.share) * values[place.before] + place.share * values[place.after]


def kl_of(points: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Logarithm of the exact KL(student||base), nats a token, by point; the base's is that of a millionth."""
    exact = ("student_reference", "exact", "nats/token")
    found = {
        p["name"]: next(r["value"] for r in p["records"] if (r["direction"], r["estimator"], r["unit"]) == exact)
        for p in points
    }
    return {name: math.log(max(value or 0.0, 1e-6)) for name, value in found.items()}


def cka_of(data: Data) -> dict[str, float]:
    """Debiased CKA to the base in the last layer, by point."""
    last = max(key[4] for key in data.of("cka_debiased"))
    own = [row for row in data.of("cka_debiased").values() if (row.layer, row.other) == (last, "base")]
    return {"base": 1.0, **{row.arm if row.step < 0 else f"{row.arm}@{row.step}": row.value for row in own}}
