"""Numbers that are no accuracies over training seeds: by what factor one exceeds another, and plain means of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from limbeck.errors import DataError
from limbeck.stats.intervals import undefined
from limbeck.types import Estimate


def factor_over_seeds(a: Sequence[Estimate], b: Sequence[Estimate], *, level: float = 0.95) -> Estimate:
    """Geometric mean over seeds of a / b with Student's interval on the logarithm.

    variance = mean over seeds of (e_a**2 + e_b**2) + var(log(a / b)) / seeds

    e is half the length of an estimate's own interval over its value and normal quantile: what problems leave open, which
    all seeds share. Some of it is in the variance over seeds as well and it is not taken out, nor is what a and b have in
    common: intervals are rather too wide than too narrow. One seed says nothing of others: problems alone.

    Args:
        a: one estimate a seed, each with its interval over problems.
        b: the other's, of the same seeds in the same order.
        level: coverage, in (0, 1).

    Returns:
        The factor; NaN with a reason where an estimate is not positive.

    Raises:
        DataError: no seed, or not the same number of both.

    >>> one, two = (Estimate(value=v, low=v, high=v, level=0.95, method="", n=100) for v in (6.0, 2.0))
    >>> round(factor_over_seeds([one], [two]).value, 9)
    3.0
    """
    if len(a) != len(b) or not a:
        raise DataError(
            f"a factor needs one estimate a seed of both, received {len(a)} and {len(b)}. Use common seeds."
        )
    problems = min(x.n for x in (*a, *b))
    if not all(x.value > 0 and math.isfinite(x.high - x.low) for x in (*a, *b)):
        return undefined("log_t", problems, level, "a factor needs positive numbers with their intervals")
    logs = np.array([math.log(x.value / y.value) for x, y in zip(a, b, strict=True)])
    of_problems = sum(_relative_error(x) ** 2 for x in (*a, *b)) / len(a)
    of_seeds = float(logs.var(ddof=1)) / len(logs) if len(logs) > 1 else 0.0
    variance = of_problems + of_seeds
    inverse = of_problems / max(problems - 1, 1) + (of_seeds / (len(logs) - 1) if len(logs) > 1 else 0.0)
    reach = float(student.ppf((1 + level) / 2, variance / inverse)) * math.sqrt(variance) if variance > 0 else 0.0
    middle = float(logs.mean())
    low, value, high = (math.exp(x) for x in (middle - reach, middle, middle + reach))
    return Estimate(value=value, low=low, high=high, level=level, method="log_t", n=problems)


def mean_of_runs(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Mean of one number a training run with Student's interval over runs; of one run no interval: its width is 0.

    >>> found = mean_of_runs([0.1, 0.2, 0.3])
    >>> round(found.value, 6), round(found.low, 3), round(found.high, 3)
    (0.2, -0.048, 0.448)
    """
    found = np.asarray(values, dtype=np.float64)
    if not found.size or not bool(np.isfinite(found).all()):
        return undefined("t_over_runs", len(found), level, "a mean over runs needs a number of each")
    middle, reach = float(found.mean()), 0.0
    if len(found) > 1:
        reach = float(student.ppf((1 + level) / 2, len(found) - 1) * found.std(ddof=1)) / math.sqrt(len(found))
    return Estimate(
        value=middle, low=middle - reach, high=middle + reach, level=level, method="t_over_runs", n=len(found)
    )


def jackknife(statistic: Callable[[Sequence[int]], float], seeds: Sequence[int], *, level: float = 0.95) -> Estimate:
    """Any number of several training runs, such as a mean over pairs of them, with Student's interval over the runs.

    spread = sqrt((n - 1) / n * sum over runs of (statistic without it - their mean)**2),   df = n - 1

    Pairs of runs share runs, so that n (n - 1) / 2 of them are worth n runs and no more. Of a mean of one number a run it is
    :func:`mean_of_runs`.

    Args:
        statistic: of the runs with these seeds; it must be defined without any one of them.
        seeds: at least two, three where the statistic needs pairs.
        level: coverage, in (0, 1).

    Returns:
        NaN with a reason where the statistic is, or with fewer than two seeds.

    Source: Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans, ch. 3. Differs from source: Student's t.

    >>> data = {0: 0.1, 1: 0.2, 2: 0.3}
    >>> found = jackknife(lambda seeds: sum(data[s] for s in seeds) / len(seeds), [0, 1, 2])
    >>> round(found.value, 6), round(found.low, 3), round(found.high, 3)
    (0.2, -0.048, 0.448)
    """
    n = len(seeds)
    if n < 2:
        return undefined("jackknife_t", n, level, "an interval over runs needs at least 2")
    value, without = statistic(seeds), [statistic([s for s in seeds if s != left]) for left in seeds]
    if not np.isfinite([value, *without]).all():
        return undefined("jackknife_t", n, level, "the statistic is not defined for every run or without one of them")
    reach = float(student.ppf((1 + level) / 2, n - 1)) * math.sqrt((n - 1) * float(np.var(without)))
    return Estimate(value=value, low=value - reach, high=value + reach, level=level, method="jackknife_t", n=n)


def p_of(estimate: Estimate, null: float = 0.0) -> float:
    """Two-sided p-value that a number over ``n`` runs is ``null``, by the Student's t of its interval; NaN of one run.

    >>> round(p_of(mean_of_runs([1.0, 2.0, 3.0])), 4)         # t = 2 / (1 / sqrt(3)), 2 degrees of freedom
    0.0742
    """
    if math.isnan(estimate.value) or estimate.n < 2:
        return math.nan
    quantile = float(student.ppf((1 + estimate.level) / 2, estimate.n - 1))
    error, away = (estimate.high - estimate.low) / (2 * quantile), abs(estimate.value - null)
    return float(2 * student.sf(away / error, estimate.n - 1)) if error > 0 else float(away == 0)


def _relative_error(x: Estimate) -> float:
    return (x.high - x.low) / (2 * float(norm.ppf((1 + x.level) / 2)) * x.value)
