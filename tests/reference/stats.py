"""Statistics from their definitions, slowly: sums over binomials, all sign patterns, all subsets."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import beta, norm


def mcnemar(b: int, c: int) -> Fraction:
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    return min(Fraction(1), Fraction(2 * tail, 2 ** (b + c)))


def sign_flip(differences: list[int]) -> Fraction:
    observed = abs(sum(differences))
    patterns = list(itertools.product((-1, 1), repeat=len(differences)))
    extreme = sum(abs(sum(s * d for s, d in zip(p, differences, strict=True))) >= observed for p in patterns)
    return Fraction(extreme, len(patterns))


def pass_at_k(outcomes: list[bool], k: int) -> float:
    subsets = list(itertools.combinations(outcomes, k))
    return sum(any(s) for s in subsets) / len(subsets)


def wilson(correct: float, n: int, level: float) -> tuple[float, float]:
    z = norm.ppf((1 + level) / 2)
    p = correct / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def clopper_pearson(correct: int, n: int, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low = beta.ppf(tail, correct, n - correct + 1) if correct else 0.0
    high = beta.ppf(1 - tail, correct + 1, n - correct) if correct < n else 1.0
    return float(low), float(high)


def tango_bound(b: int, c: int, n: int, level: float, side: int) -> float:
    """Bisection on the score statistic, its nuisance share maximized numerically."""
    z = float(norm.ppf((1 + level) / 2))

    def score(delta: float) -> float:
        lowest, highest = max(0.0, -delta), (1 - delta) / 2

        def loss(q: float) -> float:
            cells = [(b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta)]
            return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

        q = minimize_scalar(loss, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-13}).x
        return (b - c - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))

    inner, outer = (b - c) / n, side * (1 - 1e-9)
    for _ in range(60):
        middle = (inner + outer) / 2
        inner, outer = (middle, outer) if abs(score(middle)) < z else (inner, middle)
    return inner


def holm(p: list[float]) -> list[float]:
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        out[i] = worst
    return out


def benjamini_hochberg(p: list[float]) -> list[float]:
    order = sorted(range(len(p)), key=lambda i: -p[i])
    out, best = [0.0] * len(p), 1.0
    for step, i in enumerate(order):
        best = min(best, p[i] * len(p) / (len(p) - step))
        out[i] = best
    return out


def smallest_callable(n: int, discordant: int, alpha: float) -> float:
    gaps = [2 * b - discordant for b in range(discordant + 1) if mcnemar(b, discordant - b) <= alpha]
    positive = [g for g in gaps if g > 0]
    return min(positive) / n if positive else math.nan


def bootstrap_means(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    return values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
