"""Singular values and leading frames of a matrix that is read a block at a time.

``gram``: the fp64 Gram matrix of the shorter side, all values and the leading frames. Relative error of a value
about 1e-16 (sigma_1 / sigma)**2: 1e-10 at 1e-3 of the largest, 1e-4 at 1e-6; nothing below 1e-8 is told from zero. An
fp32 Gram is 6 % off at 3e-4 already and is never formed. ``ritz`` (:mod:`limbeck.geometry.dense.krylov`): the leading
values alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.geometry.dense.lapack import add_gram, leading_eigen

BLOCK_BYTES = 8 << 20  # of one fp64 block: several fit a shared cache, none counts beside a matrix
FRAME_FLOOR = 1e-6  # a value below this share of the largest has no direction that an fp64 Gram could tell


class Spectral(NamedTuple):
    """What is known of one matrix ``W ~ left * values @ right.T``, fp64.

    Attributes:
        values: descending; all of them with ``exactness`` gram, the leading ones with ritz.
        left, right: orthonormal frames of the leading directions, as many as are numerically there.
        energy: squared Frobenius norm, from the entries.
        shape: (out, in).
        exactness: ``gram`` or ``ritz``.
        residual: largest ``|W v - sigma u| / sigma_1`` over the frame; 0 up to rounding with gram.
    """

    values: Float[Tensor, " values"]
    left: Float[Tensor, "out k"]
    right: Float[Tensor, "in k"]
    energy: float
    shape: tuple[int, int]
    exactness: str = "gram"
    residual: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every singular value is there, as entropies and distances of spectra need."""
        return len(self.values) == min(self.shape)


def nothing(shape: tuple[int, int]) -> Spectral:
    """The decomposition of a zero matrix: all values zero, no direction."""
    left, right = (torch.zeros(side, 0, dtype=torch.float64) for side in shape)
    return Spectral(torch.zeros(min(shape), dtype=torch.float64), left, right, 0.0, shape)


def blocks(
    *matrices: Tensor, dtype: torch.dtype = torch.float64
) -> Iterator[tuple[slice, list[Float[Tensor, "rows n"]]]]:
    """Equal blocks of matrices in fp64 or fp32, each lying along the longer side: ``(slice, [block of each])``.

    A block is always (part of the long side, short side); that of a wide matrix is a transposed view, not turned in memory.
    """
    rows, columns = matrices[0].shape
    step = max(1, BLOCK_BYTES // (8 * min(rows, columns)))
    for start in range(0, max(rows, columns), step):
        chosen = slice(start, min(start + step, max(rows, columns)))
        yield chosen, [m[chosen].to(dtype) if rows >= columns else m[:, chosen].to(dtype).T for m in matrices]


class Gram:
    """The fp64 Gram matrix of the shorter side, summed over blocks."""

    def __init__(self, short: int) -> None:
        self.matrix = np.zeros((short, short), order="F")

    def add(self, block: Float[Tensor, "rows n"]) -> None:
        """Add one block of the long side."""
        add_gram(self.matrix, block.numpy())

    def solve(self, k: int) -> Half:
        """All values and the ``k`` leading directions of the short side; the sum is used up."""
        energy, short = float(np.trace(self.matrix)), len(self.matrix)
        if not energy > 0:
            return Half(torch.zeros(short, dtype=torch.float64), torch.zeros(short, 0, dtype=torch.float64), 0.0)
        squares, vectors = leading_eigen(self.matrix, min(k, short))
        values = torch.from_numpy(np.sqrt(np.clip(squares, 0, None)))
        there = int((values[:k] > FRAME_FLOOR * values[0]).sum())
        return Half(values, torch.from_numpy(vectors[:, :there].copy()), energy)


class Half(NamedTuple):
    """Values, and the directions of the short side alone."""

    values: Float[Tensor, " values"]
    short: Float[Tensor, "short k"]
    energy: float

    def whole(self, image: Float[Tensor, "long k"], shape: tuple[int, int]) -> Spectral:
        """With the directions of the long side, which the image of those of the short one becomes."""
        there = self.short.shape[1]
        if not there:
            return nothing(shape)
        long = image.div_(self.values[:there])
        if self.values[0] > 100 * self.values[there - 1]:
            long = _orthonormal(long)
        left, right = (long, self.short) if shape[0] >= shape[1] else (self.short, long)
        return Spectral(self.values, left, right, self.energy, shape)


def _orthonormal(frame: Float[Tensor, "dim k"]) -> Float[Tensor, "dim k"]:
    """The same columns, nearly orthonormal as they come, made orthonormal; their signs stay."""
    q, r = torch.linalg.qr(frame)
    return q * r.diagonal().sign()


def decompose(matrix: Float[Tensor, "out in"], k: int, *, minus: Tensor | None = None) -> Spectral:
    """All singular values and the ``k`` leading directions of one matrix, or of what it is more than another.

    >>> spectral = decompose(torch.tensor([[3.0, 0.0], [4.0, 0.0], [0.0, 1.0]]), 1)
    >>> spectral.values.tolist(), spectral.left.abs().squeeze(1).tolist()
    ([5.0, 1.0], [0.6, 0.8, 0.0])
    """
    rows, columns = matrix.shape
    gram = Gram(min(rows, columns))

    def read() -> Iterator[tuple[slice, Tensor]]:
        if minus is not None:
            return ((chosen, delta) for chosen, _, delta in change(minus, matrix))
        return ((chosen, block) for chosen, (block,) in blocks(matrix))

    for _, block in read():
        gram.add(block)
    half = gram.solve(k)
    image = matrix.new_empty(max(rows, columns), half.short.shape[1], dtype=torch.float64)
    for chosen, block in read():
        image[chosen] = block @ half.short
    return half.whole(image, (rows, columns))


def change(base: Tensor, tuned: Tensor) -> Iterator[tuple[slice, Float[Tensor, "rows n"], Float[Tensor, "rows n"]]]:
    """Blocks of the tuned weight and of the update ``tuned - base``, exact in fp64."""
    for chosen, (before, after) in blocks(base, tuned):
        yield chosen, after, after - before


class Change(NamedTuple):
    """A tuned matrix, its update, and ``[U0.T D, D V0]``: the update seen by the base's leading directions."""

    tuned: Spectral
    delta: Spectral
    inside: list[Float[Tensor, "_ _"]]


def decompose_pair(base: Tensor, tuned: Tensor, k: int, ground: Spectral, inside: int) -> Change:
    """Everything that is made from a tuned matrix and its update, in two passes over both.

    Args:
        base, tuned: the matrices.
        k: leading directions of either.
        ground: the decomposition of ``base``.
        inside: how many of its directions look at the update.
    """
    shape = (base.shape[0], base.shape[1])
    grams = Gram(min(shape)), Gram(min(shape))
    for _, after, delta in change(base, tuned):
        grams[0].add(after)
        grams[1].add(delta)
    halves = [gram.solve(k) for gram in grams]
    tall = shape[0] >= shape[1]
    long, short = (side[:, :inside] for side in ((ground.left, ground.right) if tall else (ground.right, ground.left)))
    frames = (halves[0].short, halves[1].short, short)
    images = [base.new_empty(max(shape), frame.shape[1], dtype=torch.float64) for frame in frames]
    far = torch.zeros(long.shape[1], min(shape), dtype=torch.float64)
    for chosen, after, delta in change(base, tuned):
        for image, matrix, frame in zip(images, (after, delta, delta), frames, strict=True):
            image[chosen] = matrix @ frame
        far += long[chosen].T @ delta
    seen = [far, images[2]] if tall else [images[2].T, far.T]
    return Change(halves[0].whole(images[0], shape), halves[1].whole(images[1], shape), seen)


def mirsky(one: Spectral, other: Spectral) -> float:
    """Distance of two complete spectra, ``|sigma(one) - sigma(other)|``; at most the norm of the difference."""
    return math.sqrt(float((one.values - other.values).square().sum()))


def block_energies(delta: Spectral, base: Spectral, inside: Sequence[Float[Tensor, "_ _"]], k: int) -> dict[str, float]:
    """Shares of the update's energy in the four blocks of (leading k, rest) x (leading k, rest) of the base.

    ``inside`` are ``U0_k.T D`` and ``D V0_k``. Keys: PP, PQ, QP, QQ, output side first; they add up to 1.
    """
    left, right = inside
    both = float((left @ base.right[:, :k]).square().sum())
    rows, columns = float(left.square().sum()), float(right.square().sum())
    energies = {"PP": both, "PQ": rows - both, "QP": columns - both, "QQ": delta.energy - rows - columns + both}
    return {name: max(0.0, value) / delta.energy for name, value in energies.items()}
