"""The variance of a balanced factorial, split among its factors: of one number a run, or of directions by their cosines.

A sum of squares needs nothing of the responses but their inner products, so numbers and whole weight updates are split by
the same lines: sum of squares of a term = trace(projector of the term x matrix of inner products). Every cell of the
factorial is run once at every seed; seeds are blocks, and what varies from seed to seed is the error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from limbeck.errors import DataError

SEED, REST = "seed", "cell x seed"
DRAWS = 2000
ROUNDING = 1e-12  # of the responses' own squares: what varies less does not vary

Square = Float[np.ndarray, "runs runs"]
Error = Literal["own", "pooled"]
ERRORS: tuple[Error, ...] = get_args(Error)


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


class Terms(NamedTuple):
    """What splits a design: projectors onto what each term alone explains, orthogonal because the design is balanced.

    Attributes:
        effects: of each factor and interaction.
        errors: of each with the seed: how much it varies from seed to seed.
        seed: of what a seed does to all cells alike.
        degrees: of the effects.
        num_seeds: at which every cell is.
    """

    effects: dict[str, Square]
    errors: dict[str, Square]
    seed: Square
    degrees: np.ndarray
    num_seeds: int

    @property
    def stacked(self) -> Float[np.ndarray, "terms cells"]:
        """All in one array: effects, errors, seed."""
        return np.stack([*self.effects.values(), *self.errors.values(), self.seed]).reshape(
            2 * len(self.effects) + 1, -1
        )


def split(
    inner: Square,
    levels: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    *,
    error: Error = "own",
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Share]:
    """Every factor's and interaction's share of the variance, that of the seeds, and that of the error.

    share = SS / total,   unbiased = part / sum of parts
    part  = SS - noise of a factor or interaction
    noise = SS(term x seed) / (seeds - 1), its own error;   pooled: df MS, MS = SS(cell x seed) / df(cell x seed)
    part  = seeds / (seeds - 1) SS of seed and of cell x seed;   pooled: seeds MS of the former counts with the latter

    A term's own error is how much that very term varies from seed to seed. Cells of one seed that learn from the same rows err
    alike, so that what they share, say all schedules of one loss, is larger than their differences: pooled over all terms the
    error is too small for the one and too large for the other, whose share it puts below 0.

    The interval is Student's at seeds - 1 degrees of freedom over the pseudo-values of a delete-one-seed jackknife: it
    speaks of other seeds of these very cells. p counts permutations of the cells' names within each seed whose
    pseudo-F = SS / noise is at least the one seen; they hold exactly where no factor has an effect, and for one
    term beside others nearly (Anderson and ter Braak 2003).

    Args:
        inner: inner products of the responses of all runs: ``outer(y, y)`` of one number a run, cosines of directions.
        levels: factor to its level in each run.
        seeds: of each run; every cell once at each of them.
        error: what a term is held against.
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
    terms = _terms(levels, blocks)
    num, errors = len(terms.effects), int(terms.degrees.sum()) * (terms.num_seeds - 1)
    degrees = [*terms.degrees.tolist(), terms.num_seeds - 1, errors]
    squares = _squares(terms, inner)
    total = squares.sum()
    if not total > ROUNDING * np.trace(inner):
        nan = math.nan
        return [Share(t, df, *(nan,) * 6) for t, df in zip((*terms.effects, SEED, REST), degrees, strict=True)]
    seen = [*squares[:num], squares[-1], squares[num:-1].sum()] / total
    unbiased = _unbiased(terms, squares, error)
    half = _half_widths(inner, levels, blocks, error, level)
    chance, p = _permuted(inner, terms, squares, blocks, error, draws, np.random.default_rng(seed))
    chance, p = [*chance, math.nan, math.nan], [*p, math.nan, math.nan]
    columns = zip((*terms.effects, SEED, REST), degrees, seen, chance, unbiased, half, p, strict=True)
    return [
        Share(term, df, float(share), c, float(u), float(u - h), min(float(u + h), 1.0), q)
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


def _terms(levels: Mapping[str, Sequence[str]], seeds: np.ndarray) -> Terms:
    n, names = len(seeds), list(levels)
    factors = [np.unique(given, return_inverse=True)[1] for given in (*levels.values(), seeds)]
    means: dict[tuple[int, ...], Square] = {(): np.full((n, n), 1 / n)}
    alone: dict[tuple[int, ...], Square] = {}
    for size in range(1, len(factors) + 1):
        for term in combinations(range(len(factors)), size):
            means[term] = _average(np.stack([factors[place] for place in term], 1))
            parts = [part for few in range(size + 1) for part in combinations(term, few)]
            alone[term] = sum((-1) ** (size - len(part)) * means[part] for part in parts)  # type: ignore[assignment]
    effects = {term: " x ".join(names[place] for place in term) for term in alone if len(names) not in term}
    of_seed = (len(names),)  # stands last
    return Terms(
        effects={name: alone[term] for term, name in effects.items()},
        errors={name: alone[term + of_seed] for term, name in effects.items()},
        seed=alone[of_seed],
        degrees=np.array([round(float(np.trace(alone[term]))) for term in effects]),
        num_seeds=len(np.unique(seeds)),
    )


def _average(groups: np.ndarray) -> Square:
    """Takes every run to the mean of those that have the same row."""
    same = (groups[:, None] == groups[None]).all(2).astype(np.float64)
    return same / same.sum(1)


def _squares(terms: Terms, inner: Square) -> np.ndarray:
    return np.maximum(terms.stacked @ inner.ravel(), 0.0)


def _noise(terms: Terms, squares: np.ndarray, error: Error) -> np.ndarray:
    """What the error alone would put into the sum of squares of each effect; leading axes are draws."""
    errors = squares[..., len(terms.effects) : -1]
    if error == "pooled":
        errors = terms.degrees * (errors.sum(-1, keepdims=True) / terms.degrees.sum())
    return errors / (terms.num_seeds - 1)


def _unbiased(terms: Terms, squares: np.ndarray, error: Error) -> np.ndarray:
    """Components of the variance, as shares of their sum: of fixed factors, random seeds, and the error."""
    effects = squares[: len(terms.effects)] - _noise(terms, squares, error)
    seen = terms.num_seeds / (terms.num_seeds - 1)  # a population of seeds varies so much more
    of_seed, rest = seen * squares[-1], seen * squares[len(terms.effects) : -1].sum()
    if error == "pooled":  # an error of single runs: their means over the cells of a seed vary by it as well
        shared = rest / terms.degrees.sum()
        of_seed, rest = of_seed - shared, rest + shared
    own = np.array([*effects, of_seed, rest])
    return own / own.sum() if own.sum() > 0 else np.full_like(own, np.nan)


def _half_widths(
    inner: Square, levels: Mapping[str, Sequence[str]], seeds: np.ndarray, error: Error, level: float
) -> np.ndarray:
    """Of the interval of every unbiased share."""
    blocks = np.unique(seeds)
    found = []
    for block in blocks if len(blocks) > 2 else ():
        kept = np.flatnonzero(seeds != block).tolist()
        fewer = {name: [given[i] for i in kept] for name, given in levels.items()}
        terms = _terms(fewer, seeds[kept])
        found.append(_unbiased(terms, _squares(terms, inner[np.ix_(kept, kept)]), error))
    if not found:
        return np.full(2 ** len(levels) + 1, np.nan)
    num = len(blocks)
    spread = np.std(found, axis=0, ddof=1) * (num - 1) / math.sqrt(num)  # pseudo-values vary num - 1 times as much
    return float(student.ppf((1 + level) / 2, num - 1)) * spread


def _permuted(
    inner: Square,
    terms: Terms,
    squares: np.ndarray,
    seeds: np.ndarray,
    error: Error,
    draws: int,
    rng: np.random.Generator,
) -> tuple[list[float], list[float]]:
    """Mean share and p of every term but seed and error, under permuted names of the cells."""
    stacked, num = terms.stacked, len(terms.effects)
    places = [np.flatnonzero(seeds == block) for block in np.unique(seeds)]
    drawn = np.empty((draws, len(stacked)))
    order = np.arange(len(seeds))
    for row in drawn:
        for place in places:
            order[place] = rng.permutation(place)
        row[:] = stacked @ inner[np.ix_(order, order)].ravel()

    def pseudo_f(found: np.ndarray) -> np.ndarray:
        return found[..., :num] / np.maximum(_noise(terms, found, error), ROUNDING * squares.sum())

    beyond = (pseudo_f(drawn) >= pseudo_f(squares) * (1 - 1e-9)).sum(0)
    return (drawn[:, :num].mean(0) / squares.sum()).tolist(), ((1 + beyond) / (1 + draws)).tolist()
