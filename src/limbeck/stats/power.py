"""What a test set could have called at all: the smallest difference with p <= alpha, stated beside every comparison."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from limbeck.errors import DataError
from limbeck.stats.paired import sign_flip_tail
from limbeck.types import Measured

NONE_CALLABLE = "no difference could be called: too few problems on which the arms differ"


def smallest_callable(n: int, discordant_share: float, *, alpha: float = 0.05) -> Measured:
    """Smallest accuracy difference that the exact McNemar test could call on ``n`` problems.

    Args:
        n: problems, one sample each.
        discordant_share: share of problems on which the two arms differ, in [0, 1].
        alpha: level of the test.

    Returns:
        Unit fraction (0.032 is 3.2 points), NaN with a reason where even a one-sided split is not enough.

    >>> smallest_callable(500, 0.1), smallest_callable(30, 0.2)
    (Measured(value=0.032, reason=''), Measured(value=0.2, reason=''))
    """
    if n < 0 or not 0 <= discordant_share <= 1:
        raise DataError(
            f"power needs n >= 0 and a share in [0, 1], received {n} and {discordant_share}. "
            "Give the share as a fraction, 0.1 for 10 %."
        )
    return smallest_callable_given(np.ones(round(n * discordant_share), dtype=np.int64), n, alpha=alpha)


def smallest_callable_given(differences: ArrayLike, denominator: int, *, alpha: float = 0.05) -> Measured:
    """Smallest mean difference the exact sign-flip test could call, had these differences other signs.

    Args:
        differences: one integer a problem, zeros without effect.
        denominator: what the sum is divided by: problems times the differences' common denominator.
        alpha: level of the test.
    """
    tail = sign_flip_tail(differences)
    attained = tail > np.append(tail[1:], 0.0)  # between sums that can occur the tail is flat
    reachable = np.flatnonzero((tail <= alpha) & attained)
    if not reachable.size or denominator == 0:
        return Measured(math.nan, NONE_CALLABLE)
    return Measured(int(reachable[0]) / denominator)
