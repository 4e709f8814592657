"""Registered numbers: each with its interval, its p-value and the family that it is corrected in.

An interval over training runs is the jackknife's over seeds (`limbeck.stats.factors.jackknife`); one of accuracies or losses by
problem has problems and seeds crossed (`limbeck.stats.seeds`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from statistics import fmean
from typing import NamedTuple

from limbeck.stats.factors import p_of
from limbeck.stats.multiplicity import holm
from limbeck.stats.seeds import Grid, crossed, p_over_seeds, smallest_over_seeds
from limbeck.types import Estimate

ALPHA = 0.05
HELD, NOT, OPEN = "held", "did not hold", "cannot be decided"


class Row(NamedTuple):
    """One registered number; those of a family are corrected together, those without one are not tested."""

    what: str
    estimate: Estimate
    p: float
    family: str = ""
    p_holm: float = math.nan

    @property
    def called(self) -> bool:
        """Whether it differs from 0 after Holm's correction."""
        return self.p_holm < ALPHA

    @property
    def above(self) -> bool:
        return self.called and self.estimate.value > 0

    @property
    def below(self) -> bool:
        return self.called and self.estimate.value < 0

    def inside(self, margin: float) -> bool:
        """Whether its interval lies within plus or minus a margin: a difference that is shown to be small."""
        return not math.isnan(self.p) and -margin < self.estimate.low and self.estimate.high < margin


def over_runs(what: str, estimate: Estimate, family: str = "") -> Row:
    """A number over training runs, with the p-value of its own interval."""
    return Row(what, estimate, p_of(estimate), family)


def over_problems(what: str, a: Grid, b: Grid | None = None, family: str = "") -> Row:
    """A mean over problems and seeds, or the difference of two arms."""
    found = crossed(a, b)
    half = smallest_over_seeds(found, alpha=ALPHA)
    value = Estimate(
        value=found.value,
        low=found.value - half,
        high=found.value + half,
        level=1 - ALPHA,
        method="crossed_t",
        n=len(a),
    )
    return Row(what, value, p_over_seeds(found) if found.variance else float(found.value == 0), family)


def corrected(rows: Sequence[Row]) -> list[Row]:
    """Holm's correction within each family."""
    out = list(rows)
    for family in dict.fromkeys(row.family for row in rows if row.family):
        places = [i for i, row in enumerate(rows) if row.family == family]
        known = [1.0 if math.isnan(rows[i].p) else rows[i].p for i in places]  # what is undefined still counts
        for place, p in zip(places, holm(known), strict=True):
            out[place] = rows[place]._replace(p_holm=p)
    return out


Value = Callable[[str, str], float]  # of two runs


def across(value: Value, a: str, b: str, seeds: Sequence[int]) -> float:
    """Mean between two arms at the same seed."""
    return fmean(value(f"{a}-s{seed}", f"{b}-s{seed}") for seed in seeds)


def among(value: Value, arm: str, seeds: Sequence[int]) -> float:
    """Mean between two seeds of one arm."""
    return fmean(value(f"{arm}-s{one}", f"{arm}-s{other}") for one, other in combinations(seeds, 2))


def across_others(value: Value, a: str, b: str, seeds: Sequence[int]) -> float:
    """Mean between two arms at different seeds, which share no order of data."""
    return fmean(value(f"{a}-s{one}", f"{b}-s{other}") for one, other in permutations(seeds, 2))


def cleared(value: Value, a: str, b: str, seeds: Sequence[int]) -> float:
    """The cosine of two arms' mean updates: that across, over the :func:`reliability`; NaN where two seeds share nothing."""
    noise = reliability(value, a, b, seeds)
    return across(value, a, b, seeds) / noise if noise > 0 else math.nan


def reliability(value: Value, a: str, b: str, seeds: Sequence[int]) -> float:
    """What two arms with one mean update and their own seeds' noise would score: the geometric mean of their seed cosines."""
    return math.sqrt(max(among(value, a, seeds), 0.0) * max(among(value, b, seeds), 0.0))
