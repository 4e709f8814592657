"""How sure an accuracy is. Problems are the unit: several samples of one problem are one observation of it.

Every interval is a :class:`limbeck.types.Estimate`; too little data gives NaN with the reason, never a width of 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.proportion import proportion_confint

from limbeck.errors import DataError
from limbeck.types import Estimate

DRAWS = 10_000


def wilson(correct: float | int, n: int, *, level: float = 0.95) -> Estimate:
    """A share of ``n`` problems with Wilson's score interval; never of width 0, not even at 0 or n of n.

    Args:
        correct: how many problems were solved, 0 to n (a fraction where a problem counts in part).
        n: number of problems; 0 gives NaN with the reason.
        level: coverage, in (0, 1).

    Source: Wilson 1927, as in statsmodels. Differs from source: none.

    >>> round(wilson(30, 30).low, 3)
    0.886
    """
    return _binomial(correct, n, level, "wilson")


def clopper_pearson(correct: int, n: int, *, level: float = 0.95) -> Estimate:
    """A share of ``n`` problems with the exact interval, which covers at least ``level`` and is wider than Wilson's.

    Args:
        correct: how many problems were solved, 0 to n.
        n: number of problems; 0 gives NaN with the reason.
        level: coverage, in (0, 1).

    Source: Clopper and Pearson 1934, as in statsmodels. Differs from source: none.
    """
    return _binomial(correct, n, level, "clopper_pearson")


def mean_of_items(values: ArrayLike, *, seed: int, level: float = 0.95, draws: int = DRAWS) -> Estimate:
    """Mean of one value in [0, 1] a problem: Wilson where all are 0 or 1, else a bootstrap over problems.

    Where every problem has the same value the bootstrap would claim a width of 0; Wilson's interval at the
    number of problems stands in for it (wider than it need be), named ``wilson_items``.

    Args:
        values: one a problem, e.g. the share of its samples that are right.
        seed: of the bootstrap; the same seed gives the same bytes.
        level: coverage, in (0, 1).
        draws: resamplings.

    Raises:
        DataError: values outside [0, 1].
    """
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != 1 or not bool(np.all((items >= 0) & (items <= 1))):
        raise DataError(
            f"an accuracy needs one value in [0, 1] a problem, received shape {items.shape}. Average the samples of "
            "each problem first."
        )
    if bool(np.all((items == 0) | (items == 1))):
        return wilson(int(items.sum()), items.size, level=level)
    if items.size > 1 and np.ptp(items) == 0:
        return _binomial(float(items.sum()), items.size, level, "wilson_items")
    return item_bootstrap(items, seed=seed, level=level, draws=draws)


def item_bootstrap(values: ArrayLike, *, seed: int, level: float = 0.95, draws: int = DRAWS) -> Estimate:
    """Mean over problems with a percentile interval from resampled problems; 0 or 1 problem gives NaN.

    Args:
        values: one number a problem (an average over its samples, or a difference of two such averages).
        seed: of the bootstrap.
        level: coverage, in (0, 1).
        draws: resamplings.

    Source: Efron 1979; problems as clusters after Miller 2024, arXiv 2411.00640. Differs from source: none.
    """
    items = np.asarray(values, dtype=np.float64)
    if items.size < 2:
        return undefined("item_bootstrap", items.size, level, "fewer than 2 problems", seed)
    means = bootstrap_means(items, rng=np.random.default_rng(seed), draws=draws)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    value = float(items.mean())
    return _ordered(value, float(low), float(high), level, "item_bootstrap", items.size, seed)


def bootstrap_means(values: ArrayLike, *, rng: np.random.Generator, draws: int) -> NDArray[np.float64]:
    """Means of ``draws`` resamples with replacement; their standard deviation is the standard error itself.

    Only how often each distinct value is drawn matters, so multinomial counts stand for index lists: thousands
    of problems with few distinct averages cost as little as a handful.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    total = int(counts.sum())
    return rng.multinomial(total, counts / total, size=draws) @ distinct / total


def undefined(method: str, n: int, level: float, reason: str, seed: int | None = None) -> Estimate:
    """NaN with the reason."""
    nan = math.nan
    return Estimate(value=nan, low=nan, high=nan, level=level, method=method, n=n, seed=seed, reason=reason)


def _binomial(correct: float | int, n: int, level: float, method: str) -> Estimate:
    if not 0 <= correct <= n:
        raise DataError(f"a share needs 0 <= correct <= n, received {correct} of {n}. Count each problem once.")
    if n == 0:
        return undefined(method, 0, level, "no problems")
    name = "beta" if method == "clopper_pearson" else "wilson"
    low, high = np.asarray(proportion_confint(correct, n, alpha=1 - level, method=name), dtype=np.float64).tolist()
    return _ordered(correct / n, low, high, level, method, n)


def _ordered(
    value: float, low: float, high: float, level: float, method: str, n: int, seed: int | None = None
) -> Estimate:
    """Rounding may put a bound on the wrong side of the value by an ulp."""
    return Estimate(value=value, low=min(low, value), high=max(high, value), level=level, method=method, n=n, seed=seed)
