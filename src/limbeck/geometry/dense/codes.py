"""What 16-bit storage shows of an update: which entries changed their stored code, where, and what rounding alone does.

Magnitudes of a 16-bit type are 32,768 codes in order of size, so everything that depends on |W0| (thresholds, gaps to
the neighbors, the rounding null) is computed on a histogram of codes instead of entry by entry, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import ndtr
from torch import Tensor

_CODES = 1 << 15
MAGNITUDE = np.int16(0x7FFF)
_SIGN = np.int16(-0x8000)
CHUNK = 1 << 17  # entries compared at a time: two operands and the result stay in a cache


def codes(weights: Tensor, grid: torch.dtype) -> np.ndarray:
    """The stored 16-bit patterns as int16, flat; other types are rounded to ``grid`` first. No copy where none is needed."""
    stored = weights if weights.dtype == grid else weights.to(grid)
    return stored.contiguous().view(torch.int16).numpy().ravel()


def count_changed(one: np.ndarray, other: np.ndarray) -> int:
    """How many of two equally long rows of codes differ; +0 and -0 are equal.

    >>> count_changed(np.array([5, 0, 7], np.int16), np.array([5, -32768, 8], np.int16))
    1
    """
    return tally(one, other, torch.bfloat16)[0]


def tally(one: np.ndarray, other: np.ndarray, grid: torch.dtype) -> tuple[int, bool]:
    """How many of two equally long rows of codes differ, +0 and -0 being equal, and whether all of them are finite.

    What needs a second look shows in the bits of either: a zero with a sign, or an exponent of ones. So a chunk is read once to
    be compared and once to be looked over, and only one that looks odd is taken apart.
    """
    total, sound, limit = 0, True, _first_infinite(grid)
    differ, either = np.empty(min(CHUNK, len(one)), bool), np.empty(min(CHUNK, len(one)), np.int16)
    for start in range(0, len(one), CHUNK):
        a, b = one[start : start + CHUNK], other[start : start + CHUNK]
        total += int(np.count_nonzero(np.not_equal(a, b, out=differ[: len(a)])))
        bits = np.bitwise_or(a, b, out=either[: len(a)])
        if bits.min(initial=0) == _SIGN:
            total -= int(np.count_nonzero((a != b) & ((bits & MAGNITUDE) == 0)))
        if bits.max(initial=0) >= limit or bits.view(np.uint16).max(initial=0) >= 0x8000 + limit:
            sound = sound and finite(a, grid) and finite(b, grid)
    return total, sound


def _first_infinite(grid: torch.dtype) -> int:
    return 0x7F80 if grid == torch.bfloat16 else 0x7C00


def changed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where two rows of codes differ, as booleans; +0 and -0 are equal."""
    differ = one != other
    if (one ^ other).min(initial=0) == _SIGN:
        differ &= ((one | other) & MAGNITUDE) != 0
    return differ


def finite(values: np.ndarray, grid: torch.dtype) -> bool:
    """Whether no code is NaN or infinite.

    >>> finite(np.array([0x7F7F], np.int16), torch.bfloat16), finite(np.array([-1], np.int16), torch.bfloat16)
    (True, False)
    """
    return int((values & MAGNITUDE).max(initial=0)) < _first_infinite(grid)


def histogram(values: np.ndarray) -> Int[np.ndarray, " 32768"]:
    """How often each magnitude occurs among codes."""
    return np.bincount(values & MAGNITUDE, minlength=_CODES)


@cache
def half_gaps(grid: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Half the distance of every finite magnitude to its neighbor above and below (below zero: its mirror image)."""
    values = torch.arange(_CODES, dtype=torch.int16).view(grid).double().numpy()
    finite = values[np.isfinite(values)]
    above = np.diff(finite, append=2 * finite[-1] - finite[-2]) / 2
    below = np.diff(finite, prepend=-finite[1]) / 2
    return above, below


@cache
def _cells(grid: torch.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The few pairs of half gaps that there are, one or two a power of two, and which of them each finite magnitude has."""
    pairs, index = np.unique(np.stack(half_gaps(grid), 1), axis=0, return_inverse=True)
    return pairs[:, 0], pairs[:, 1], index.ravel()


def by_magnitude(grid: torch.dtype, function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """A function of the half gaps above and below, for every finite magnitude."""
    above, below, index = _cells(grid)
    return function(above, below)[index]


class Rounding(NamedTuple):
    """An isotropic update, each entry moved by N(0, scale**2) and then rounded: the null N-ROUND.

    Attributes:
        scale: standard deviation of a step, unit of the weights.
        visible: chance that an entry changes its code, by magnitude; 0 for magnitudes that do not occur.
    """

    scale: float
    visible: Float[np.ndarray, " 32768"]


def visible_chance(
    scale: float, above: np.ndarray, below: np.ndarray, *, on_grid: bool = True
) -> Float[np.ndarray, " codes"]:
    """Chance that a step N(0, scale**2) changes a code whose half gaps are these.

    From a stored value: Q(h_above/t) + Q(h_below/t), h half the gap to the neighbor. From an fp32 value that lies
    anywhere in its cell of width g (``on_grid`` off): 1 - (2 Phi(a) - 1 - 2 (phi(0) - phi(a)) / a), a = g/t.

    >>> half = np.array([1.0])
    >>> visible_chance(1.0, half, half).round(4).tolist(), visible_chance(1e9, half, half).round(4).tolist()
    ([0.3173], [1.0])
    """
    if on_grid:
        return ndtr(-above / scale) + ndtr(-below / scale)
    a = (above + below) / scale
    stay = 2 * ndtr(a) - 1 + 2 / math.sqrt(2 * math.pi) * np.expm1(-a * a / 2) / a
    return 1 - np.clip(stay, 0, 1)


def visible_energy(scale: float, gap: np.ndarray) -> np.ndarray:
    """Expected square of a rounded step N(0, scale**2): sum_k (2k-1) g**2 P(|step| > (k-1/2) g), g the gap.

    >>> visible_energy(1.0, np.array([1e-3, 1.0, 1e3])).round(3).tolist()      # 1, 1 + 1/12, 0
    [1.0, 1.083, 0.0]
    """
    out = scale**2 + gap**2 / 12
    narrow = scale <= 3 * gap
    k = np.arange(1, 26)[:, None]
    steps = (2 * k - 1) * 2 * ndtr(-(k - 0.5) * gap[narrow] / scale)
    out[narrow] = gap[narrow] ** 2 * steps.sum(0)
    return out


def match_density(counts: Int[np.ndarray, " 32768"], density: float, grid: torch.dtype, *, on_grid: bool) -> Rounding:
    """The isotropic step whose expected visible density is ``density`` on these magnitudes."""
    above, below, weights = _occurring(counts, grid)
    scale = _bisect(lambda t: float(visible_chance(t, above, below, on_grid=on_grid) @ weights) - density)
    return _rounding(scale, counts, grid, on_grid=on_grid)


def match_energy(counts: Int[np.ndarray, " 32768"], energy: float, grid: torch.dtype, *, stored: bool) -> Rounding:
    """The isotropic step that has this squared norm, after rounding where the pair is ``stored`` in 16 bits."""
    above, below, weights = _occurring(counts, grid)
    mean = energy / counts.sum()
    scale = math.sqrt(mean)
    if stored:
        scale = _bisect(lambda t: float(visible_energy(t, above + below) @ weights) - mean)
    return _rounding(scale, counts, grid, on_grid=stored)


def _occurring(counts: np.ndarray, grid: torch.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of half gaps that occur, and the share of the entries that has each."""
    above, below, index = _cells(grid)
    found = np.bincount(index, counts[: len(index)], minlength=len(above))
    there = found > 0
    return above[there], below[there], found[there] / counts.sum()


def _rounding(scale: float, counts: np.ndarray, grid: torch.dtype, *, on_grid: bool) -> Rounding:
    visible = np.zeros(_CODES)
    chance = by_magnitude(grid, lambda above, below: visible_chance(scale, above, below, on_grid=on_grid))
    visible[: len(chance)] = np.where(counts[: len(chance)] > 0, chance, 0)
    return Rounding(scale, visible)


def _bisect(excess: Callable[[float], float], low: float = 1e-30, high: float = 1e6) -> float:
    """Where a function of a scale, rising, meets zero; to 1e-9 relative."""
    for _ in range(38):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return math.sqrt(low * high)


def low_share(counts: Int[np.ndarray, " codes"], alpha: float) -> Float[np.ndarray, " codes"]:
    """The mask of the ``alpha`` smallest magnitudes, as the share of each code's entries in it.

    All codes below the threshold are in, those above out; entries of the threshold's own code are in with the share
    that makes the count exact, which is the mean over all ways to break the ties.

    >>> low_share(np.array([2, 4, 4]), 0.5).tolist()
    [1.0, 0.75, 0.0]
    """
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.clip((alpha * counts.sum() - before) / np.maximum(counts, 1), 0, 1)


def row_blocks(rows: int, length: int) -> list[tuple[slice, slice]]:
    """Rows at a time, and the flat entries they are; starts fall on whole bytes of a packed mask."""
    step = max(8, CHUNK // max(length, 1) // 8 * 8)
    return [(slice(s, e := min(s + step, rows)), slice(s * length, e * length)) for s in range(0, rows, step)]


def largest(left: Float[Tensor, "out k"], right: Float[Tensor, "k in"], alpha: float) -> np.ndarray:
    """The mask of the ``alpha`` largest entries of ``abs(left @ right)``, flat, packed eight to a byte.

    Formed twice, a block of rows at a time: once to find the size that counts, once to mark; ties go by their order.
    """
    parts = row_blocks(len(left), right.shape[1])
    total = len(left) * right.shape[1]

    def bits(rows: slice) -> np.ndarray:  # of non-negative fp32 values, in order of size
        return (left[rows] @ right).abs_().view(torch.int32).numpy().ravel()

    counts = sum(np.bincount(bits(rows) >> 16, minlength=_CODES) for rows, _ in parts)
    above = np.cumsum(np.asarray(counts)[::-1])[::-1]  # entries of this code or a larger one
    keep = max(1, round(alpha * total))
    edge = int(np.flatnonzero(above >= keep)[-1])
    packed, places, values = np.empty((total + 7) // 8, np.uint8), [], []
    for rows, flat in parts:
        found = bits(rows)
        coarse = found >> 16
        packed[flat.start // 8 : (flat.stop + 7) // 8] = np.packbits(coarse > edge)
        at_edge = np.flatnonzero(coarse == edge)
        places.append(at_edge + flat.start)
        values.append(found[at_edge])
    spare = keep - int(above[edge + 1]) if edge + 1 < _CODES else keep
    order = np.argsort(-np.concatenate(values), kind="stable")[:spare]
    chosen = np.concatenate(places)[order]
    np.bitwise_or.at(packed, chosen // 8, (128 >> (chosen % 8)).astype(np.uint8))
    return packed


def gini(shares: Float[np.ndarray, " n"]) -> float:
    """Gini coefficient of densities by row or column: 0 where all are equal, near 1 where one has all.

    >>> float(gini(np.array([1.0, 1.0]))), float(gini(np.array([0.0, 1.0])))
    (0.0, 0.5)
    """
    ordered = np.sort(shares)
    n = len(ordered)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))


def gini_null(density: float, length: int) -> float:
    """What rows of ``length`` entries have when changed entries lie anywhere (N-PERM): sd / (mean sqrt(pi)), normal."""
    return math.sqrt((1 - density) / (density * length * math.pi))
