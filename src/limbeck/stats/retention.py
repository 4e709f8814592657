"""What became of the problems that a base solved, and of those that it did not: forgetting and learning, told apart.

A gain in accuracy is what was newly solved less what was lost; two arms of equal gain may have lost very different amounts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from limbeck.errors import DataError
from limbeck.stats.intervals import undefined
from limbeck.stats.seeds import Grid, mean_over_seeds
from limbeck.types import Estimate


class Retention(NamedTuple):
    """Shares of answers that are right: where the base was right (``kept``), and where it was not (``gained``)."""

    kept: Estimate
    gained: Estimate


def solved(base: Float[np.ndarray, " problems"]) -> Bool[np.ndarray, " problems"]:
    """Problems of which the base answered more than half of its samples right; of one sample, those that it answered right."""
    return base > 0.5


def retention(
    base: Float[np.ndarray, " problems"], arm: Float[np.ndarray, "rows seeds"], *, level: float = 0.95
) -> Retention:
    """How much of what the base solved an arm still solves, and how much of the rest it newly does.

    Which problems the base solved is taken as given. Where it was sampled, chance has chosen them too: an arm equal to the
    base keeps less than all of them, so that two arms are held against each other and no arm against 1.

    Args:
        base: its share of right samples by problem.
        arm: shares by problem, in the same order, and seed.
        level: coverage; intervals speak of new problems and, of several seeds, new training runs.

    Returns:
        NaN with a reason where fewer than two problems are left on a side.

    Raises:
        DataError: not the same problems.

    >>> found = retention(np.array([1.0, 1.0, 0.0, 0.0]), np.array([[1.0], [0.0], [1.0], [1.0]]))
    >>> found.kept.value, found.gained.value
    (0.5, 1.0)
    """
    if len(base) != len(arm):
        raise DataError(
            f"an arm must answer the problems of its base, received {len(arm)} and {len(base)}. Evaluate both on one problem set."
        )
    held = solved(base)
    return Retention(_mean(arm[held], level), _mean(arm[~held], level))


def _mean(grid: Grid, level: float) -> Estimate:
    few = "fewer than 2 problems"
    return mean_over_seeds(grid, level=level) if len(grid) > 1 else undefined("retention", len(grid), level, few)
