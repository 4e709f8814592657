"""The variance of a balanced factorial, split among its factors: of one number a run, or of directions by their cosines.

A sum of squares needs nothing of the responses but their inner products, so numbers and whole weight updates are split by
the same lines: sum of squares of a term = trace(projector of the term x matrix of inner products). Every cell of the
factorial is run once at every seed; seeds are blocks, and what is left of cell and seed together is the error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from limbeck.errors import DataError

SEED, REST = "seed", "cell x seed"
DRAWS = 2000
ROUNDING = 1e-12  # of the responses' own squares: what varies less does not vary

Square = Float[np.ndarray, "runs runs"]


class Share(NamedTuple):
    """How much of the variance one term has.

    Attributes:
        term: a factor, an interaction ("a x b"), the seed, or what cell and seed leave.
        df: degrees of freedom.
        share: of the sum of squares in these runs (eta squared), in [0, 1]; all terms add up to 1.
        chance: mean of that share when the cells' names are permuted within each seed; NaN for seed and error.
        unbiased: the same of other seeds: what the error alone would put there is taken out (omega squared), so that it may be
            below 0; of seeds and error their own components. All terms add up to 1.
        low: of ``unbiased``, by leaving out one seed at a time; NaN with fewer than 3 seeds.
        high: likewise.
        p: of no effect, by the same permutations; NaN for seed and error.
    """

    term: str
    df: int
    share: float
    chance: float
    unbiased: float
    low: float
    high: float
    p: float


def split(
    inner: Square,
    levels: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Share]:
    """Every factor's and interaction's share of the variance, that of the seeds, and that of the error.

    share = SS / total,   unbiased = part / sum of parts,   MS = SS(error) / df(error)
    part  = SS - df MS of a factor or interaction,  (1 + 1 / df) (SS - df MS) of the seeds,  runs MS of the error

    The interval is Student's at seeds - 1 degrees of freedom over the pseudo-values of a delete-one-seed jackknife: it
    speaks of other seeds of these very cells. p counts permutations of the cells' names within each seed whose
    pseudo-F = (SS / df) / MS is at least the one seen; they hold exactly where no factor has an effect, and for one
    term beside others nearly (Anderson and ter Braak 2003).

    Args:
        inner: inner products of the responses of all runs: ``outer(y, y)`` of one number a run, cosines of directions.
        levels: factor to its level in each run.
        seeds: of each run; every cell once at each of them.
        level: coverage, in (0, 1).
        draws: permutations.
        seed: of the permutations.

    Returns:
        Terms in order of their number of factors, then seed and error; all shares are NaN where nothing varies or a
        response is not finite.

    Raises:
        DataError: a factor of one level, fewer than two seeds, or a cell that is not there once at every seed.

    Source: sums of squares from inner products: McArdle and Anderson 2001, Ecology 82, 290-297; omega squared: Olejnik
    and Algina 2003, Psychological Methods 8, 434-447. Differs from source: seeds are random, so that their component counts in
    full where n seeds show (n - 1) / n of it.

    >>> y = np.array([0.0, 0.1, 1.0, 1.1])    # the factor decides, the seed adds a tenth
    >>> [(s.term, round(s.share, 2)) for s in split(np.outer(y, y), {"a": ["x", "x", "y", "y"]}, [0, 1, 0, 1])]
    [('a', 0.99), ('seed', 0.01), ('cell x seed', 0.0)]
    """
    blocks = np.asarray(seeds)
    _check(inner, levels, blocks)
    projectors = _projectors(levels, blocks)
    degrees = np.array([round(float(np.trace(p))) for p in projectors.values()])
    squares = _squares(projectors, inner)
    if not squares.sum() > ROUNDING * np.trace(inner):
        nan = math.nan
        return [Share(t, int(df), *(nan,) * 6) for t, df in zip(projectors, degrees, strict=True)]
    unbiased = _unbiased(squares, degrees)
    half = _half_widths(inner, levels, blocks, level)
    chance, p = _permuted(inner, projectors, degrees, squares, blocks, draws, np.random.default_rng(seed))
    chance, p = [*chance, math.nan, math.nan], [*p, math.nan, math.nan]
    columns = zip(projectors, degrees, squares / squares.sum(), chance, unbiased, half, p, strict=True)
    return [
        Share(term, int(df), float(share), c, float(u), float(u - h), min(float(u + h), 1.0), q)
        for term, df, share, c, u, h, q in columns
    ]


def _check(inner: np.ndarray, levels: Mapping[str, Sequence[str]], seeds: np.ndarray) -> None:
    cells = list(zip(*levels.values(), strict=True))
    several = all(len(set(given)) > 1 for given in levels.values()) and len(set(seeds.tolist())) > 1
    whole = math.prod(len(set(given)) for given in levels.values()) * len(set(seeds.tolist()))
    runs = set(zip(cells, seeds.tolist(), strict=True))
    if not several or not len(runs) == len(cells) == whole == len(inner):
        raise DataError(
            f"a factorial needs two or more levels of each factor, two or more seeds and every cell once at every seed, "
            f"received {len(cells)} runs of {whole} cells and seeds. Give all arms the same seeds, and leave none out."
        )


def _projectors(levels: Mapping[str, Sequence[str]], seeds: np.ndarray) -> dict[str, Square]:
    """Term to the projector onto what it alone explains; orthogonal, because the design is balanced."""
    n = len(seeds)
    factors = {name: np.unique(given, return_inverse=True)[1] for name, given in levels.items()}
    means: dict[tuple[str, ...], Square] = {(): np.full((n, n), 1 / n)}
    out: dict[str, Square] = {}
    for size in range(1, len(factors) + 1):
        for term in combinations(factors, size):
            means[term] = _average(np.stack([factors[name] for name in term], 1))
            parts = [part for few in range(size + 1) for part in combinations(term, few)]
            out[" x ".join(term)] = sum((-1) ** (size - len(part)) * means[part] for part in parts)  # type: ignore[assignment]
    out[SEED] = _average(seeds[:, None]) - means[()]
    out[REST] = np.eye(n) - means[()] - sum(out.values())
    return out


def _average(groups: np.ndarray) -> Square:
    """Takes every run to the mean of those that have the same row."""
    same = (groups[:, None] == groups[None]).all(2).astype(np.float64)
    return same / same.sum(1)


def _squares(projectors: Mapping[str, Square], inner: Square) -> np.ndarray:
    return np.maximum(np.array([float((p * inner).sum()) for p in projectors.values()]), 0.0)


def _unbiased(squares: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Components of the variance, as shares of their sum: of fixed factors, random seeds, and the error."""
    error = squares[-1] / degrees[-1]
    own = squares - degrees * error
    own[-2] *= 1 + 1 / degrees[-2]
    own[-1] = (degrees.sum() + 1) * error
    return own / own.sum() if own.sum() > 0 else np.full_like(squares, np.nan)


def _half_widths(inner: Square, levels: Mapping[str, Sequence[str]], seeds: np.ndarray, level: float) -> np.ndarray:
    """Of the interval of every unbiased share."""
    blocks = np.unique(seeds)
    found = []
    for block in blocks if len(blocks) > 2 else ():
        kept = np.flatnonzero(seeds != block).tolist()
        fewer = {name: [given[i] for i in kept] for name, given in levels.items()}
        projectors = _projectors(fewer, seeds[kept])
        degrees = np.array([round(float(np.trace(p))) for p in projectors.values()])
        found.append(_unbiased(_squares(projectors, inner[np.ix_(kept, kept)]), degrees))
    if not found:
        return np.full(2 ** len(levels) + 1, np.nan)
    num = len(blocks)
    error = np.std(found, axis=0, ddof=1) * (num - 1) / math.sqrt(num)  # pseudo-values vary num - 1 times as much
    return float(student.ppf((1 + level) / 2, num - 1)) * error


def _permuted(
    inner: Square,
    projectors: Mapping[str, Square],
    degrees: np.ndarray,
    squares: np.ndarray,
    seeds: np.ndarray,
    draws: int,
    rng: np.random.Generator,
) -> tuple[list[float], list[float]]:
    """Mean share and p of every term but seed and error, under permuted names of the cells."""
    stacked = np.stack(list(projectors.values())).reshape(len(projectors), -1)
    places = [np.flatnonzero(seeds == block) for block in np.unique(seeds)]
    drawn = np.empty((draws, len(projectors)))
    order = np.arange(len(seeds))
    for row in drawn:
        for place in places:
            order[place] = rng.permutation(place)
        row[:] = stacked @ inner[np.ix_(order, order)].ravel()

    def pseudo_f(found: np.ndarray) -> np.ndarray:
        error = np.maximum(found[..., -1:], ROUNDING * squares.sum()) / degrees[-1]
        return found[..., :-2] / degrees[:-2] / error

    beyond = (pseudo_f(drawn) >= pseudo_f(squares) * (1 - 1e-9)).sum(0)
    return (drawn[:, :-2].mean(0) / squares.sum()).tolist(), ((1 + beyond) / (1 + draws)).tolist()
