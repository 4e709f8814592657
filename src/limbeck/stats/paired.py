"""Two arms on the same problems: exact tests, and intervals of the difference, from where the arms differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from torch import Tensor

from limbeck.errors import DataError, ShapeError
from limbeck.stats.intervals import DRAWS, item_bootstrap, undefined
from limbeck.types import Estimate


class Cells(NamedTuple):
    """How two arms agree, in problems. With several samples a problem: expected under random pairing of samples."""

    both_right: float
    a_only: float
    b_only: float
    both_wrong: float


def cells(a: Bool[Tensor, "problems a_samples"], b: Bool[Tensor, "rows b_samples"]) -> Cells:
    """The four cells of two aligned outcome tables; whole numbers when there is one sample a problem.

    >>> import torch
    >>> cells(torch.tensor([[True], [True]]), torch.tensor([[True], [False]]))
    Cells(both_right=1.0, a_only=1.0, b_only=0.0, both_wrong=0.0)
    """
    _check_aligned(a, b)
    p, q = a.double().mean(1), b.double().mean(1)
    return Cells(*(float(x.sum()) for x in (p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q))))


def mcnemar_exact(a_only: int, b_only: int) -> float:
    """Two-sided p-value that two arms are equally good, from the problems that exactly one of them solves.

    p = min(1, 2 P(X <= min(a_only, b_only))),  X ~ Binomial(a_only + b_only, 1/2);  1 where they never differ.

    Source: McNemar 1947, exact form. Differs from source: none.

    >>> mcnemar_exact(6, 0), mcnemar_exact(0, 0)
    (0.03125, 1.0)
    """
    if a_only < 0 or b_only < 0:
        raise DataError(f"McNemar's counts must be >= 0, received {a_only} and {b_only}. Count discordant problems.")
    if a_only + b_only == 0:
        return 1.0
    return float(binomtest(min(a_only, b_only), a_only + b_only).pvalue)


def difference_counts(
    a: Bool[Tensor, "problems a_samples"], b: Bool[Tensor, "rows b_samples"]
) -> tuple[NDArray[np.int64], int]:
    """Per problem, a's accuracy minus b's, as integers over a common denominator (1 with one sample each)."""
    _check_aligned(a, b)
    scale = math.lcm(a.shape[1], b.shape[1])
    right_a, right_b = a.long().sum(1), b.long().sum(1)
    counts = right_a * (scale // a.shape[1]) - right_b * (scale // b.shape[1])
    return counts.numpy().astype(np.int64), scale


def sign_flip_tail(differences: ArrayLike) -> NDArray[np.float64]:
    """P(|T| >= t) for t = 0, 1, ...: T is the sum of the differences, each with a random sign.

    The whole null distribution, by convolution over problems: exact, no draws and no seed. With outcomes of one
    sample a problem it is McNemar's (law: ``test_sign_flip_of_single_outcomes_is_mcnemar``).

    Args:
        differences: one integer a problem.
    """
    magnitudes = np.abs(np.asarray(differences))
    if magnitudes.dtype.kind not in "iu":
        raise DataError(
            f"differences must be integers, received {magnitudes.dtype}. Count over a common number of samples."
        )
    magnitudes = np.sort(magnitudes[magnitudes > 0])
    reach = int(magnitudes.sum())
    mass = np.zeros(2 * reach + 1)
    mass[reach] = 1.0
    width = 0
    for step in magnitudes.tolist():
        live = mass[reach - width : reach + width + 1].copy()
        mass[reach - width : reach + width + 1] = 0.0
        mass[reach - width - step : reach + width - step + 1] += 0.5 * live
        mass[reach - width + step : reach + width + step + 1] += 0.5 * live
        width += step
    folded = mass[reach:] + np.concatenate([[0.0], mass[:reach][::-1]])
    return np.minimum(1.0, np.cumsum(folded[::-1])[::-1])


def sign_flip(differences: ArrayLike) -> float:
    """Two-sided exact permutation p-value that paired integer differences are centered at 0.

    >>> sign_flip([1, 1, 1, 1, 1, 1, 0, 0]) == mcnemar_exact(6, 0)
    True
    """
    return float(sign_flip_tail(differences)[abs(int(np.sum(differences)))])


def paired_difference(
    a: Bool[Tensor, "problems a_samples"],
    b: Bool[Tensor, "rows b_samples"],
    *,
    seed: int,
    level: float = 0.95,
    draws: int = DRAWS,
) -> Estimate:
    """Accuracy of ``a`` minus accuracy of ``b`` on the same problems, in [-1, 1], with its interval.

    One sample a problem: Tango's score interval. Several: studentized bootstrap over problems of the differences,
    within [-1, 1]; where every problem has the same difference, Tango's at the expected cells (a bootstrap would claim a
    width of 0).

    Args:
        a: outcomes of one arm, rows in the order of the problem ids.
        b: outcomes of the other, rows aligned with a's.
        seed: of the bootstrap.
        level: coverage, in (0, 1).
        draws: resamplings.

    Raises:
        ShapeError: different numbers of problems.
    """
    counts, scale = difference_counts(a, b)
    differences = counts / scale
    if scale == 1 or (differences.size > 1 and np.ptp(differences) == 0):
        up, down = float(differences.clip(min=0).sum()), float(-differences.clip(max=0).sum())
        return tango(up, down, differences.size, level=level)
    wide = item_bootstrap(differences, seed=seed, level=level, draws=draws)
    return replace(wide, low=max(wide.low, -1.0), high=min(wide.high, 1.0))


def tango(a_only: float | int, b_only: float | int, n: int, *, level: float = 0.95) -> Estimate:
    """Difference of two paired shares, (a_only - b_only) / n, with Tango's score interval.

    Bounds d solve (a_only - b_only - n d)**2 = z**2 n (2 q(d) + d (1 - d)), with q(d) the maximum-likelihood
    share of b-only problems given d. Never of width 0: with no discordant problem +-z**2 / (n + z**2).

    Args:
        a_only: problems that only a solves.
        b_only: problems that only b solves.
        n: all problems; 0 gives NaN with the reason.
        level: coverage, in (0, 1).

    Source: Tango 1998, Statistics in Medicine 17, 891-908. Differs from source: none.
    """
    if min(a_only, b_only) < 0 or a_only + b_only > n:
        raise DataError(
            f"discordant problems must be >= 0 and at most n = {n}, received {a_only} and {b_only}. "
            "Count each problem once."
        )
    if n == 0:
        return undefined("tango", 0, level, "no problems")
    z2 = float(norm.ppf((1 + level) / 2)) ** 2
    value = (a_only - b_only) / n

    def excess(d: float) -> float:
        linear = (2 * n - a_only + b_only) * d - a_only - b_only
        root = math.sqrt(max(linear * linear + 8 * n * b_only * d * (1 - d), 0.0))
        share = (root - linear) / (4 * n)
        return (a_only - b_only - n * d) ** 2 - z2 * n * (2 * share + d * (1 - d))

    # just beside the value, because where all problems sit in one cell it solves the equation itself
    low = -1.0 if value <= -1 else _root(excess, -1.0, value - 1e-12)
    high = 1.0 if value >= 1 else _root(excess, value + 1e-12, 1.0)
    return Estimate(value=value, low=min(low, value), high=max(high, value), level=level, method="tango", n=n)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(np.asarray(brentq(function, low, high, xtol=1e-13)))


def _check_aligned(a: Tensor, b: Tensor) -> None:
    if a.shape[0] != b.shape[0]:
        raise ShapeError(
            f"paired outcomes must have the same problems in the same order, received {a.shape[0]} and {b.shape[0]} "
            "rows. Evaluate both arms on one problem set."
        )
