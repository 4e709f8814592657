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


def bootstrap_moments(values: np.ndarray, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    drawn = values[rng.integers(0, len(values), (draws, len(values)))]
    return drawn.mean(1), drawn.std(1)


def symmetric_bootstrap_t(values: np.ndarray, draws: int, rng: np.random.Generator, level: float) -> float:
    """Half the width."""
    n, ratios = len(values), []
    for _ in range(draws):
        drawn = values[rng.integers(0, n, n)]
        error = math.sqrt(((drawn - drawn.mean()) ** 2).sum() / (n - 1) / n)
        ratios.append(abs(drawn.mean() - values.mean()) / error if error > 1e-12 else math.nan)
    error = math.sqrt(((values - values.mean()) ** 2).sum() / (n - 1) / n)
    return float(np.nanquantile(ratios, level)) * error


def crossed(a: list[list[float]], b: list[list[float]] | None) -> tuple[float, float, float]:
    """Value, variance and degrees of freedom, by sums over cells."""
    arms = [a] if b is None else [a, b]
    n = len(a)
    rows = [[sum(row) / len(row) for row in arm] for arm in arms]
    items = [x - (rows[1][i] if b is not None else 0.0) for i, x in enumerate(rows[0])]
    value = sum(items) / n
    of_items = of_problems = sum((x - value) ** 2 for x in items) / (n - 1) / n
    of_seeds = uncertain = 0.0
    for arm, means in zip(arms, rows, strict=True):
        s = len(arm[0])
        if s == 1:
            continue
        columns = [sum(row[j] for row in arm) / n for j in range(s)]
        grand = sum(columns) / s
        seen = sum((c - grand) ** 2 for c in columns) / (s - 1) / s
        cells = [(arm[i][j] - means[i] - columns[j] + grand) ** 2 for i in range(n) for j in range(s)]
        of_problems -= sum(cells) / ((n - 1) * (s - 1)) / (n * s)
        of_seeds += seen
        uncertain += seen**2 / (s - 1)
    if of_seeds == 0:
        return value, of_items, n - 1
    of_problems = max(of_problems, 0.0)
    share = of_seeds / (of_problems + of_seeds)
    inverse = (1 - share) / (n - 1) + share * uncertain / of_seeds**2
    return value, of_problems + of_seeds, 1 / inverse


def factorial_squares(
    values: list[list[float]], levels: dict[str, list[str]], seeds: list[int]
) -> tuple[dict[str, float], float]:
    """Sums of squares of every term over all coordinates, effect by effect, and the total about the mean."""
    y = np.array(values, dtype=float)
    keys = {**levels, "seed": seeds}

    def fitted(names: tuple[str, ...]) -> np.ndarray:
        rows = list(zip(*(keys[name] for name in names), strict=True)) if names else [()] * len(y)
        return np.array([y[[i for i, other in enumerate(rows) if other == row]].mean(0) for row in rows])

    effects: dict[tuple[str, ...], np.ndarray] = {(): fitted(())}
    for size in range(1, len(levels) + 1):
        for names in itertools.combinations(levels, size):
            below = [effects[part] for few in range(size) for part in itertools.combinations(names, few)]
            effects[names] = fitted(names) - sum(below)
    effects[("seed",)] = fitted(("seed",)) - effects[()]
    left = y - sum(effects.values())
    squares = {" x ".join(names): float((effect**2).sum()) for names, effect in effects.items() if names}
    return {**squares, "cell x seed": float((left**2).sum())}, float(((y - y.mean(0)) ** 2).sum())
