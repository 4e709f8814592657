"""Are SFT, RFT and RIFT colinear by construction? Registered in docs/results/colinear.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from statistics import fmean

import numpy as np
from contrast import (
    HELD,
    NOT,
    OPEN,
    Row,
    across,
    across_others,
    cleared,
    corrected,
    over_problems,
    over_runs,
    reliability,
)
from measured import Data

from limbeck.stats.factors import jackknife, mean_of_runs

SHARES = (25, 50, 75, 95)
PAIRS = (("sft", "rft"), ("sft", "rift"), ("rft", "rift"))
WRONG_REWARD = -0.2


def mixed_cosine(one: tuple[float, float], other: tuple[float, float], cosine: float, ratio: float) -> float:
    """Cosine of two mixtures of a right and a wrong direction.

    Args:
        one: its weights of right and wrong.
        other: the other's.
        cosine: of the two directions.
        ratio: length of the wrong direction over that of the right one.

    >>> round(mixed_cosine((1.0, 0.0), (1.0, 1.0), 0.0, 1.0), 3)
    0.707
    """
    gram = np.array([[1.0, cosine * ratio], [cosine * ratio, ratio**2]])
    a, b = np.array(one), np.array(other)
    return float(a @ gram @ b / math.sqrt((a @ gram @ a) * (b @ gram @ b)))


def weights_of(arm: str, share: float) -> tuple[float, float]:
    """How much of the right and of the wrong direction the gradient of an arm holds at that share of right rollouts."""
    return {"sft": (share, 1 - share), "rft": (1.0, 0.0), "rift": (share, WRONG_REWARD * (1 - share))}[arm]


def predicted(data: Data, pair: tuple[str, str], share: int, seeds: Sequence[int], ratio: float | None = None) -> float:
    """By the algebra, from the arms that learn from right and from wrong rollouts alone; ``ratio`` in place of theirs."""

    def cosine(a: str, b: str) -> float:
        return data.number("cosine", a, b).value

    between = cleared(cosine, "right", "wrong", seeds)
    over = fmean(steeper(data, s) for s in seeds) if ratio is None else ratio
    one, other = (weights_of(arm, share / 100) for arm in pair)
    return mixed_cosine(one, other, max(-1.0, min(1.0, between)), over)


def steeper(data: Data, seed: int) -> float:
    """By what factor the gradient of wrong rollouts is longer than that of right ones."""
    return data.steepness[f"wrong-s{seed}"] / data.steepness[f"right-s{seed}"]


def colinear(data: Data) -> tuple[list[Row], str]:
    """Cosines and accuracies against the share of right rollouts, beside what the algebra says."""

    def cosine(a: str, b: str) -> float:
        return data.number("cosine", a, b).value

    def at(pair: tuple[str, str], share: int, seeds: Sequence[int]) -> float:
        return cleared(cosine, f"{pair[0]}-{share}", f"{pair[1]}-{share}", seeds)

    rows = []
    for pair in PAIRS:
        rise = jackknife(lambda s, pair=pair: at(pair, 95, s) - at(pair, 25, s), data.seeds)
        rows.append(over_runs(f"{' and '.join(pair)}: cosine at 95 % less that at 25 %", rise, "share"))
    for pair in PAIRS:
        for share in SHARES:
            found = jackknife(lambda s, p=pair, x=share: at(p, x, s) - predicted(data, p, x, s), data.seeds)
            rows.append(over_runs(f"{' and '.join(pair)} at {share} %: cosine less the algebra's", found))
    for arm in ("rft", "rift"):
        rows += [
            over_problems(
                f"{arm} less sft at {x} %: accuracy", data.grid(f"{arm}-{x}"), data.grid(f"sft-{x}"), "accuracy"
            )
            for x in SHARES
        ]
    rows.append(over_runs("c, cleared", jackknife(lambda s: cleared(cosine, "right", "wrong", s), data.seeds)))
    rows.append(over_runs("q", mean_of_runs([steeper(data, s) for s in data.seeds])))
    for pair, share in product(PAIRS, SHARES):
        a, b = (f"{arm}-{share}" for arm in pair)
        found = jackknife(lambda s, a=a, b=b: across(cosine, a, b, s), data.seeds)
        rows.append(over_runs(f"{' and '.join(pair)} at {share} %: cosine at one seed", found))
        told = jackknife(lambda s, p=pair, x=share: predicted(data, p, x, s, 1.0), data.seeds)
        rows.append(over_runs(f"{' and '.join(pair)} at {share} %: the algebra's with q = 1", told))
    rows = corrected(rows)
    share, fits = rows[:3], sum(row.inside(0.15) for row in rows[3:15])
    if all(row.above for row in share) and fits >= 9:
        return rows, HELD
    return rows, NOT if all(row.inside(0.05) for row in share) else OPEN


def colinear_apart(data: Data) -> tuple[list[Row], str]:
    """The same between different seeds: arms of one seed share their order of data, which is no noise between them."""
    rows = []
    for pair in PAIRS:
        for share in SHARES:
            a, b = (f"{arm}-{share}" for arm in pair)
            found = jackknife(lambda s, a=a, b=b: at_other_seeds(data, a, b, s), data.seeds)
            away = jackknife(
                lambda s, a=a, b=b, p=pair, x=share: at_other_seeds(data, a, b, s) - predicted(data, p, x, s),
                data.seeds,
            )
            rows.append(over_runs(f"{' and '.join(pair)} at {share} %: cosine between other seeds", found))
            rows.append(over_runs(f"{' and '.join(pair)} at {share} %: the same less the algebra's", away))
    return rows, "has its verdict from the registered measure; this one is not registered"


def at_other_seeds(data: Data, a: str, b: str, seeds: Sequence[int]) -> float:
    """The cosine of two arms' mean updates, from different seeds alone."""

    def cosine(one: str, other: str) -> float:
        return data.number("cosine", one, other).value

    noise = reliability(cosine, a, b, seeds)
    return across_others(cosine, a, b, seeds) / noise if noise > 0 else math.nan
