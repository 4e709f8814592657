"""Places of a study (an arm at its end or at a step that it keeps) held against each other: accuracy and KL to the base.

A difference of accuracies is over problems and seeds, as in :mod:`limbeck.stats.compare`; a factor of KLs is that of
:func:`limbeck.stats.factors.factor_over_seeds`. Which places are compared is chosen on their mean accuracy, and intervals do
not know of that choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any, NamedTuple

from limbeck.stats.compare import Arm, compare
from limbeck.stats.factors import factor_over_seeds
from limbeck.stats.multiplicity import holm
from limbeck.studies.config import StudyConfig
from limbeck.types import Estimate, ScoreTable

EXACT = ("student_reference", "exact", "nats/token")
Points = Sequence[Mapping[str, Any]]
Reader = Callable[[str], ScoreTable]


class Place(NamedTuple):
    """An arm after one step (None: at its end), with its points by seed; the base is a place of one point."""

    arm: str
    step: int | None
    points: dict[int | None, Mapping[str, Any]]

    @property
    def name(self) -> str:
        return self.arm if self.step is None else f"{self.arm}@{self.step}"

    @property
    def accuracy(self) -> float:
        return fmean(point["accuracy"]["value"] for point in self.points.values())

    @property
    def kl(self) -> float:
        """Mean over seeds; infinite where the base gives probability 0 to what a seed does."""
        mean = fmean(exact(point).value for point in self.points.values())
        return math.inf if math.isnan(mean) else mean


def contrasts(config: StudyConfig, points: Points, table: Reader) -> dict[str, Any]:
    """What the frontier's questions need beside its points: ``rise``, ``equal`` and ``beside``, each a list of rows.

    Args:
        config: the study, with a ``kl`` section.
        points: of the frontier.
        table: name of a point to its answers.
    """
    places = places_of(points)
    return {
        "rise": _rise(places, table),
        "equal": _equal(config, places, table),
        "beside": _beside(config, places, table),
    }


def places_of(points: Points) -> list[Place]:
    """Points by arm and step, in the order of the study."""
    found: dict[tuple[str, int | None], Place] = {}
    for point in points:
        place = found.setdefault((point["arm"], point["step"]), Place(point["arm"], point["step"], {}))
        place.points[point["seed"]] = point
    return list(found.values())


def exact(point: Mapping[str, Any]) -> Estimate:
    """KL(student||base) of a point, exact over the vocabulary, nats a token."""
    record = next(r for r in point["records"] if (r["direction"], r["estimator"], r["unit"]) == EXACT)
    numbers = {name: math.nan if record[name] is None else record[name] for name in ("value", "low", "high")}
    return Estimate(**numbers, **{name: record[name] for name in ("level", "method", "n", "reason")})


def _rise(places: Sequence[Place], table: Reader) -> list[dict[str, Any]]:
    """Arms that keep steps: every step against the base, and the end against every step; Holm over all of a kind."""
    base = next(place for place in places if place.arm == "base")
    rows, over_base, to_end = [], [], []
    for arm in dict.fromkeys(place.arm for place in places if place.step is not None):
        own = [place for place in places if place.arm == arm]
        end = next(place for place in own if place.step is None)
        for place in own:
            gain = _difference(place, base, table)
            later = _difference(end, place, table) if place.step is not None else None
            over_base.append(gain)
            to_end += [later] if later else []
            steps = next(iter(place.points.values()))["steps"]
            rows.append({"arm": arm, "step": place.step, "steps": steps, "over_base": gain, "to_end": later})
    for family in (over_base, to_end):
        for difference, p in zip(family, holm([d["p"] for d in family]), strict=True):
            difference["p_holm"] = p
    return rows


def _equal(config: StudyConfig, places: Sequence[Place], table: Reader) -> list[dict[str, Any]]:
    """Arms with a signal at their end against every other arm, where that is at least as accurate at the least KL."""
    students = [arm.name for arm in config.arms if arm.signal]
    rivals = [arm.name for arm in config.arms if not arm.signal and arm.role != "null"]
    rows = []
    for student in (place for place in places if place.arm in students and place.step is None):
        for rival in rivals:
            own = [place for place in places if place.arm == rival]
            able = [place for place in own if place.accuracy >= student.accuracy]
            other = min(able, key=lambda p: p.kl) if able else max(own, key=lambda p: p.accuracy)
            rows.append({**_held(other, student, table), "reached": bool(able)})
    return rows


def _beside(config: StudyConfig, places: Sequence[Place], table: Reader) -> list[dict[str, Any]]:
    """The most accurate places of two arms; and the first's against the second's most accurate one at no more KL."""
    rows = []
    for first, second in config.kl.pairs if config.kl else ():
        best = max((p for p in places if p.arm == first), key=lambda p: p.accuracy)
        others = [p for p in places if p.arm == second]
        rows.append({**_held(best, max(others, key=lambda p: p.accuracy), table), "which": "best of both"})
        near = [p for p in others if p.kl <= best.kl]
        if near:
            rows.append({**_held(best, max(near, key=lambda p: p.accuracy), table), "which": "at no more KL"})
    return rows


def _held(a: Place, b: Place, table: Reader) -> dict[str, Any]:
    """Accuracy of a minus that of b, and KL of a over that of b."""
    seeds = [seed for seed in a.points if seed in b.points]
    factor = factor_over_seeds([exact(a.points[s]) for s in seeds], [exact(b.points[s]) for s in seeds])
    return {"a": a.name, "b": b.name, "difference": _difference(a, b, table), "factor": asdict(factor)}


def _difference(a: Place, b: Place, table: Reader) -> dict[str, Any]:
    arms = [Arm(place.name, tuple(table(p["name"]) for p in place.points.values())) for place in (a, b)]
    (pair,) = compare(arms)["pairs"]
    return {name: pair[name] for name in ("difference", "low", "high", "p", "test")}
