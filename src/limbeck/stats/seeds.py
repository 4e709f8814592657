"""Problems and training seeds as two crossed levels: how sure a mean is over new problems and new training runs.

Every seed of an arm answers the same problems, so scores form a grid of problems by seeds. A mean over the grid varies
with the problems drawn, with the seeds drawn, and with what is left in each cell (which seed solves which problem, and
chance in decoding). Arms share problems, so problems are taken by the difference of the arms; seeds belong to one arm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from limbeck.errors import DataError
from limbeck.stats.intervals import mean_of_items, undefined, wilson_of_mean
from limbeck.types import Estimate

Grid = Float[np.ndarray, "problems seeds"]
Answers = Float[np.ndarray, "problems samples seeds"]
ROUNDING = 1e-20  # variances of shares are 0 or far above it: the least is one answer in n, squared


class Crossed(NamedTuple):
    """A mean over problems and seeds with the variance of both, and how many degrees of freedom that variance has."""

    value: float
    variance: float
    df: float


class Spread(NamedTuple):
    """Variance of an arm's mean over its seeds: as seen, and the part that problems alone would cause."""

    seen: float
    from_cells: float

    @property
    def of_seeds(self) -> float:
        return max(self.seen - self.from_cells, 0.0)


def crossed(a: Grid, b: Float[np.ndarray, "rows b_seeds"] | None = None) -> Crossed:
    """Mean of a grid, or of ``a`` minus that of ``b``, with its variance over problems and over seeds.

    variance = problems + seeds,   df = variance / (problems / (n - 1) + seeds / df(seeds))
    seeds    = sum over arms of s2(seeds) / s,   df(seeds) = seeds**2 / (sum of (s2(seeds) / s)**2 / (s - 1))
    problems = max(0, s2(problems) / n - sum over arms of residual / (n s))

    s2(problems) is the variance over problems of the (difference of) means over seeds, s2(seeds) that over seeds of an
    arm's accuracies, residual the mean square of what problem and seed together do not explain: it is in both, so it is
    taken out once. An arm of one seed adds nothing: its training variance is not covered. Where the accuracies of all
    seeds are equal to the digit, which happens by chance with few problems, the problems alone: s2(problems) / n.

    Seeds that by chance agree more than their problems would have them make the variance smaller, as those that differ
    by chance make it larger: the variance due to seeds is estimated without bias and may be negative. Were it 0 instead,
    intervals would be too wide (Stroup and Littell 2002). Parts count in 1 / df with their weight in the variance;
    with its square, as Satterthwaite has it, the many problems make two or three seeds of one arm look like more, and
    intervals of 95 % cover down to 87 and 92 %.

    Against a bootstrap of problems and seeds: a resample of two seeds shows half of their variance and no degrees of
    freedom; with 2 to 5 seeds such intervals cover far less than they say (``benchmarks/coverage.py``).

    Args:
        a: accuracies in [0, 1], one row a problem, one column a seed.
        b: the other arm's, rows aligned; seeds are not paired.

    Raises:
        DataError: fewer than 2 problems, or rows that differ in number.

    Source: analysis of variance of crossed random effects (Searle, Casella and McCulloch 1992, ch. 4), one term per
    arm, in the pattern of two-way clustering (Cameron, Gelbach and Miller 2011, J. Business and Economic Statistics 29,
    238-249); variance components without bound: Stroup and Littell 2002, Proc. Conf. Applied Statistics in Agriculture
    14, 32-48; seeds of two arms: Welch 1938, Biometrika 29, 350-362; problems and seeds: Cochran and Cox 1950,
    Experimental Designs, who average the critical values of both parts with these weights. Differs from source: what is
    averaged is 1 / df, in which the critical value is linear to first order, so that one df serves every level; less
    conservative with two seeds, whose own critical value is 12.7.

    >>> one = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    >>> found = crossed(one)
    >>> found.value, round(found.variance, 4), found.df   # seeds: 1/36, problems: 1/12 - 1/36
    (0.5, 0.0833, 1.5)
    """
    grids = [a] if b is None else [a, b]
    if any(grid.shape[0] != a.shape[0] for grid in grids) or a.shape[0] < 2:
        raise DataError(
            f"crossed levels need the same 2 or more problems in every arm, received {[g.shape[0] for g in grids]}. "
            "Evaluate all runs on one problem set."
        )
    n = a.shape[0]
    items = a.mean(1) if b is None else a.mean(1) - b.mean(1)
    several = [(spread(grid), grid.shape[1]) for grid in grids if grid.shape[1] > 1]
    of_items = float(items.var(ddof=1)) / n
    of_seeds = sum(found.seen for found, _ in several)
    if of_seeds < ROUNDING:
        return Crossed(float(items.mean()), of_items if of_items > ROUNDING else 0.0, float(n - 1))
    of_problems = max(of_items - sum(found.from_cells for found, _ in several), 0.0)
    seeds_df = of_seeds**2 / sum(found.seen**2 / (num - 1) for found, num in several)
    variance = of_problems + of_seeds
    return Crossed(float(items.mean()), variance, variance / (of_problems / (n - 1) + of_seeds / seeds_df))


def spread(grid: Grid) -> Spread:
    """How an arm's mean varies over seeds; needs 2 or more of each, the unit is a squared fraction."""
    n, seeds = grid.shape
    residual = grid - grid.mean(1, keepdims=True) - grid.mean(0) + grid.mean()
    mean_square = float((residual**2).sum()) / ((n - 1) * (seeds - 1))
    return Spread(float(grid.mean(0).var(ddof=1)) / seeds, mean_square / (n * seeds))


def seed_sd(grid: Grid) -> float:
    """Standard deviation of accuracy over training seeds, what problems alone would cause taken out; NaN for one."""
    if grid.shape[1] < 2 or grid.shape[0] < 2:
        return math.nan
    return math.sqrt(spread(grid).of_seeds * grid.shape[1])


def mean_over_seeds(grid: Grid, *, level: float = 0.95) -> Estimate:
    """An arm's accuracy over problems and seeds: Wilson's interval at what the variance of both is worth.

    Where the grid does not vary, the interval of the problems alone.
    """
    if grid.shape[0] < 2:
        return undefined("crossed_wilson", grid.shape[0], level, "fewer than 2 problems")
    found = crossed(grid)
    if found.variance == 0 or not 0 < found.value < 1:
        return mean_of_items(grid.mean(1), level=level)
    estimate = wilson_of_mean(found.value, found.variance, df=found.df, n=grid.shape[0], level=level)
    return replace(estimate, method="crossed_wilson")


def difference_over_seeds(found: Crossed, n: int, *, level: float = 0.95) -> Estimate:
    """Student's interval of a crossed difference, within [-1, 1]."""
    half = smallest_over_seeds(found, alpha=1 - level)
    low, high = max(found.value - half, -1.0), min(found.value + half, 1.0)
    return Estimate(value=found.value, low=low, high=high, level=level, method="crossed_t", n=n)


def p_over_seeds(found: Crossed) -> float:
    """Two-sided p-value that a crossed difference is 0, by Student's t at its degrees of freedom.

    Exchanging whole runs between arms would be exact but cannot call anything below four seeds an arm: of the 20 ways to
    split 3 + 3 runs the most extreme two have p = 0.1.
    """
    return float(2 * student.sf(abs(found.value) / math.sqrt(found.variance), found.df))


def smallest_over_seeds(found: Crossed, *, alpha: float = 0.05) -> float:
    """The smallest difference that the t test calls at this variance, a fraction."""
    return float(student.ppf(1 - alpha / 2, found.df)) * math.sqrt(found.variance)


def next_run(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Where one more training run would fall: mean -+ t sd sqrt(1 + 1 / n), NaN with fewer than 2 runs.

    Unlike the range of n runs at hand, which one more leaves with a chance of 2 / (n + 1), it holds at
    ``level`` for whatever number of runs (normal runs assumed); with three it is five standard deviations to each side.

    >>> [round(end, 2) for end in next_run([1.0, 2.0, 3.0])]
    [-2.97, 6.97]
    """
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = float(student.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1)) * math.sqrt(1 + 1 / n)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def disagreement(grid: Grid, samples: int) -> tuple[float, float]:
    """How often two answers to one problem differ in being right: two samples of a run, and one each of two seeds.

    Both are unbiased shares of problems in [0, 1], NaN with fewer than 2 samples or seeds. They are what
    ``limbeck power`` asks for: samples can only average out what samples disagree on, seeds only what seeds do.

    Args:
        grid: shares of right samples.
        samples: how many each share is of.

    >>> disagreement(np.array([[0.5, 0.5], [1.0, 1.0]]), 2)    # one of two right: two samples always differ
    (0.5, 0.25)
    """
    seeds = grid.shape[1]
    within = 2 * grid * (1 - grid) * samples / (samples - 1) if samples > 1 else np.full_like(grid, math.nan)
    between = [grid[:, i] * (1 - grid[:, j]) + grid[:, j] * (1 - grid[:, i]) for i in range(seeds) for j in range(i)]
    return float(within.mean()), _mean(between)


class Draws(NamedTuple):
    """How often two answers differ in being right where both were drawn with the same random numbers, and with others.

    Evaluations draw a problem's n-th sample with one random number for all runs, so that runs that are alike answer alike.
    """

    same: float
    apart: float


def draws(a: Answers, b: Float[np.ndarray, "problems samples b_seeds"] | None = None) -> Draws:
    """Of one answer each of two arms, or of two seeds of one arm: shares of problems in [0, 1].

    Args:
        a: whether each answer was right, 0 or 1.
        b: the other arm's, of as many samples.

    Returns:
        ``apart`` is NaN with one sample; both are with one seed of a single arm.

    >>> seeds = np.array([[[1.0, 1.0], [0.0, 0.0]]])           # two samples of one problem that differ, alike in two seeds
    >>> draws(seeds)
    Draws(same=0.0, apart=1.0)
    """
    samples, num = a.shape[1:]
    if b is None:
        pairs = num * (num - 1)
        if not pairs:
            return Draws(math.nan, math.nan)
        right, own = a.sum(2), (a.sum(1) * (samples - a.sum(1))).sum(1)  # per draw over seeds; of one seed with itself
        same = 2 * float((right * (num - right)).mean()) / pairs
        whole = right.sum(1)
        every = whole * (samples * num - whole) - own  # pairs of answers of different seeds, one right and one wrong
        both = 2 * float(every.mean()) / pairs / samples**2
    else:
        p, q = a.mean(2), b.mean(2)
        same = float((p * (1 - q) + q * (1 - p)).mean())
        p, q = p.mean(1), q.mean(1)
        both = float((p * (1 - q) + q * (1 - p)).mean())
    return Draws(same, (samples * both - same) / (samples - 1) if samples > 1 else math.nan)


def _mean(columns: Sequence[np.ndarray]) -> float:
    return float(np.mean(columns)) if columns else math.nan
