"""How sure an accuracy is. Problems are the unit: several samples of one problem are one observation of it.

Every interval is a :class:`limbeck.types.Estimate`; too little data gives NaN with the reason, never a width of 0.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.stats import t as student
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


def mean_of_items(values: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Mean of one value in [0, 1] a problem: Wilson's interval where all are 0 or 1, else Wilson's with what they vary.

    Several samples of a problem agree with each other, so n problems of k samples are worth more than n and fewer than
    n k independent outcomes; :func:`wilson_of_mean` takes that number from the variance over problems. Where every
    problem has the same value there is no variance to take it from; Wilson's interval at the number of problems stands
    in (wider than it need be), named ``wilson_items``.

    Args:
        values: one a problem, e.g. the share of its samples that are right.
        level: coverage, in (0, 1).

    Raises:
        DataError: values outside [0, 1].
    """
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != 1 or not bool(np.all((items >= 0) & (items <= 1))):
        raise DataError(
            f"an accuracy needs one value in [0, 1] a problem, received shape {items.shape}. Average the samples of "
            "each problem first."
        )
    n = items.size
    if bool(np.all((items == 0) | (items == 1))):
        return wilson(int(items.sum()), n, level=level)
    if n == 1 or np.ptp(items) == 0:
        return _binomial(float(items.sum()), n, level, "wilson_items")
    return wilson_of_mean(float(items.mean()), float(items.var(ddof=1)) / n, df=n - 1, n=n, level=level)


def wilson_of_mean(value: float, variance: float, *, df: float, n: int, level: float = 0.95) -> Estimate:
    """A mean of values in [0, 1] with Wilson's interval at the sample size that its estimated variance is worth.

    effective = value (1 - value) / variance;  the normal quantile is replaced by Student's at ``df``.

    Against the t interval ``value +- t sqrt(variance)``: stays within [0, 1], and covers where accuracies are near 0 or
    1 (``benchmarks/coverage.py``).

    Args:
        value: the mean, strictly between 0 and 1.
        variance: of the mean, > 0.
        df: degrees of freedom of ``variance``; below 1 counts as 1.
        n: number of problems, for the record.
        level: coverage, in (0, 1).

    Source: Korn and Graubard 1998, Survey Methodology 24, 193-201 (effective sample size and degrees of freedom), with
    Wilson's interval as Dean and Pagano 2015, J. Survey Statistics and Methodology 3, 484-503. Differs from source:
    their ratio of t quantiles is Student's quantile itself.
    """
    if not (0 < value < 1 and variance > 0):
        raise DataError(
            f"an effective sample size needs a value in (0, 1) with a variance > 0, received {value} and {variance}. "
            "Use wilson at the number of problems."
        )
    z2 = float(student.ppf((1 + level) / 2, max(df, 1.0))) ** 2
    weight = z2 * variance / (value * (1 - value))  # z2 / effective
    middle = (value + weight / 2) / (1 + weight)
    half = math.sqrt(weight * value * (1 - value) + weight**2 / 4) / (1 + weight)
    return _ordered(value, middle - half, middle + half, level, "wilson_effective", n)


def item_bootstrap(values: ArrayLike, *, seed: int, level: float = 0.95, draws: int = DRAWS) -> Estimate:
    """Mean over problems with a symmetric studentized interval from resampled problems; 0 or 1 problem gives NaN.

    value +- q s / sqrt(n),  q the ``level`` quantile of |mean* - value| / (s* / sqrt(n)) over the resamples. The plain
    percentiles of the means are too narrow for few problems (30 problems: 90 to 95 % of 95, ``benchmarks/coverage.py``).
    Where all values are equal nothing can be resampled: a width of 0 and the reason.

    Args:
        values: one number a problem (an average over its samples, or a difference of two such averages).
        seed: of the bootstrap.
        level: coverage, in (0, 1).
        draws: resamplings.

    Source: Hall 1988, J. R. Statist. Soc. B 50, 35-45; problems as clusters after Miller 2024, arXiv 2411.00640.
    Differs from source: resamples of one repeated value, whose spread is 0, are left out.
    """
    items = np.asarray(values, dtype=np.float64)
    n = items.size
    if n < 2:
        return undefined("item_bootstrap", n, level, "fewer than 2 problems", seed)
    value = float(items.mean())
    if np.ptp(items) == 0:
        reason = "all problems have the same value"
        return Estimate(
            value=value, low=value, high=value, level=level, method="item_bootstrap", n=n, seed=seed, reason=reason
        )
    means, spreads = bootstrap_moments(items - value, rng=np.random.default_rng(seed), draws=draws)
    # rounding leaves a resample of one repeated value with a spread of 1e-9 of the whole, not of 0
    usable = spreads > 1e-6 * items.std()
    if not usable.any():
        return undefined("item_bootstrap", n, level, "no resample varies", seed)
    scaled = np.abs(means[usable]) / spreads[usable] * math.sqrt(n - 1)
    half = float(np.quantile(scaled, level)) * float(items.std(ddof=1)) / math.sqrt(n)
    return _ordered(value, value - half, value + half, level, "item_bootstrap", n, seed)


def ratio_of_items(
    numerators: ArrayLike, denominators: ArrayLike, *, seed: int, level: float = 0.95, draws: int = DRAWS
) -> Estimate:
    """A ratio of two sums over problems (nats over tokens), with an interval from resampled problems.

    value = sum(numerators) / sum(denominators), linearized: each problem counts as value + (its numerator - value * its
    denominator) / mean denominator, and those are resampled by :func:`item_bootstrap`.

    Args:
        numerators: one a problem.
        denominators: one a problem, > 0: tokens or answers.
        seed: of the bootstrap.
        level: coverage, in (0, 1).
        draws: resamplings.

    Source: the delta method for a ratio estimator, as in Cochran 1977, section 6.3. Differs from source: the
    linearized values are bootstrapped.

    >>> ratio_of_items([2.0, 4.0, 6.0], [1, 2, 3], seed=0).value
    2.0
    """
    top, bottom = (np.asarray(x, dtype=np.float64) for x in (numerators, denominators))
    if top.shape != bottom.shape or top.ndim != 1 or not bool(np.all(bottom > 0)):
        raise DataError(
            f"a ratio needs one numerator and one positive denominator a problem, received shapes {top.shape} and "
            f"{bottom.shape}. Leave out problems without any token."
        )
    if top.size < 2:
        return undefined("ratio_bootstrap", top.size, level, "fewer than 2 problems", seed)
    value = float(top.sum() / bottom.sum())
    around = item_bootstrap(
        (top - value * bottom) / bottom.mean(), seed=seed, level=level, draws=draws
    )  # of mean 0, up to rounding
    if math.isnan(around.value):
        return undefined("ratio_bootstrap", top.size, level, around.reason, seed)
    low, high = value + around.low, value + around.high
    return Estimate(
        value=value, low=min(low, value), high=max(high, value), level=level, method="ratio_bootstrap", n=top.size,
        seed=seed, reason=around.reason,
    )  # fmt: skip


def bootstrap_moments(
    values: ArrayLike, *, rng: np.random.Generator, draws: int
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """Means and standard deviations (divisor n) of ``draws`` resamples with replacement.

    The standard deviation of the means is the standard error itself. Only how often each distinct value is drawn
    matters, so multinomial counts stand for index lists: thousands of problems with few distinct averages cost as
    little as a handful.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    total = int(counts.sum())
    drawn = rng.multinomial(total, counts / total, size=draws)
    means = drawn @ distinct / total
    return means, np.sqrt(np.maximum(drawn @ distinct**2 / total - means**2, 0.0))


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
