"""The leading singular directions alone, by block Krylov, with a residual that says how far they are.

For matrices whose whole spectrum is too dear. The basis is grown in fp32; values, directions and residual come from one
fp64 projection of the matrix itself. A value is never too large and misses at most what the residual says: some true
singular value lies within ``|W v - sigma u|`` of each; entropies of a spectrum are not made from these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.geometry.dense.decompose import FRAME_FLOOR, Spectral, blocks, decompose, nothing
from limbeck.geometry.dense.lapack import leading_eigen

EXTRA = 16
STEPS = 8
PATIENCE = 3  # blocks before the first look whether growing may end, from a random start
FLOOR = 1e-5  # of a squared value over the largest: fp32 growth tells nothing below it, and does not try
HELD_BYTES = 64 << 20  # a matrix whose fp32 copy is no larger is formed once, a larger one anew in every step
Read = Callable[[], Iterable[tuple[slice, Float[Tensor, "rows n"]]]]


def leading(
    base: Tensor,
    tuned: Tensor | None,
    k: int,
    *,
    seed: int,
    tolerance: float = 0.01,
    steps: int = STEPS,
    near: Tensor | None = None,
) -> Spectral:
    """The ``k`` leading values and directions of ``base``, or of ``tuned - base``.

    A basis of blocks ``(W^T W)^j X`` with full reorthogonalization, grown until the residual of every wanted direction
    is below ``tolerance`` times its value, at most ``steps`` times.

    Args:
        base: the matrix, or what is subtracted.
        tuned: the matrix to subtract from; None for ``base`` itself.
        k: how many directions.
        seed: of the start.
        tolerance: relative residual at which growing ends.
        steps: blocks after the first, at most.
        near: directions of the short side to begin with, such as those of an earlier step; fewer blocks are then needed.

    Returns:
        ``exactness`` ritz; ``residual`` the largest over the frame relative to the largest value. A matrix not four
        times as wide as the basis is decomposed whole instead, as gram.
    """
    rows, columns = base.shape
    short, k = min(rows, columns), min(k, rows, columns)
    if short < 4 * (k + EXTRA):
        return decompose(base, k) if tuned is None else decompose(tuned, k, minus=base)
    largest = max(float(block.abs().max()) for _, block in _read(base, tuned, torch.float32))
    if not largest > 0:
        return nothing((rows, columns))
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(short, k + EXTRA, generator=generator)
    if near is not None:
        start[:, : near.shape[1]] = near[:, : k + EXTRA] * math.sqrt(short)
    start = torch.linalg.qr(start).Q
    patience = 0 if near is not None else min(PATIENCE, steps)
    basis = _grow(_scaled(base, tuned, largest), start, k, tolerance, range(patience, steps + 1))
    return _project(base, tuned, torch.linalg.qr(basis.double()).Q, k)


def _scaled(base: Tensor, tuned: Tensor | None, scale: float) -> Read:
    """How to go through the matrix in fp32, in units of ``scale``: squares of small updates would leave its range."""

    def read() -> Iterator[tuple[slice, Tensor]]:
        return ((chosen, block / scale) for chosen, block in _read(base, tuned, torch.float32))

    if 4 * base.numel() > HELD_BYTES:
        return read
    kept = list(read())
    return lambda: kept


def _grow(read: Read, start: Float[Tensor, "n b"], k: int, tolerance: float, looked_at: range) -> Float[Tensor, "n b"]:
    """The leading directions of the short side in the Krylov space of ``start``, as many, in fp32.

    ``looked_at``: numbers of blocks after the first at which growing may end; at the last of them it does.
    """
    short, width = start.shape
    basis = new = start
    inner, vectors = torch.zeros(0, 0), np.eye(width)
    for step in range(looked_at.stop):
        pulled = _squared(read, new)  # W^T W applied to the newest block
        against = basis.T @ pulled
        inner = _bordered(inner, against)
        new, beyond = torch.linalg.qr(pulled - basis @ against)
        new, again = torch.linalg.qr(new - basis @ (basis.T @ new))  # where little was left, much of it was rounding
        last = step == looked_at[-1] or basis.shape[1] + width > short
        if last or step in looked_at:
            squares, vectors = leading_eigen(np.asfortranarray(inner.double().numpy()), width)
            outside = (again @ beyond).double() @ torch.from_numpy(vectors[-width:, :k].copy())
            enough = tolerance * np.maximum(squares[:k], FLOOR * squares[0])
            if last or bool((torch.linalg.vector_norm(outside, dim=0).numpy() <= enough).all()):
                break
        basis = torch.cat([basis, new], 1)
    return basis @ torch.from_numpy(vectors.copy()).float()


def _squared(read: Read, frame: Float[Tensor, "n b"]) -> Float[Tensor, "n b"]:
    out = torch.zeros_like(frame)
    for _, block in read():
        out += block.T @ (block @ frame)
    return out


def _bordered(inner: Float[Tensor, "b b"], column: Float[Tensor, "c d"]) -> Float[Tensor, "c c"]:
    """A symmetric matrix with one more block of columns, and of rows."""
    grown = torch.zeros(len(column), len(column))
    grown[: len(inner), : len(inner)] = inner
    grown[:, len(inner) :] = column
    grown[len(inner) :] = column.T
    return grown


def _project(base: Tensor, tuned: Tensor | None, basis: Float[Tensor, "n b"], k: int) -> Spectral:
    """Values and directions of the matrix inside a basis of the short side, in fp64, and their residual, in one pass."""
    rows, columns = base.shape
    image, pulled, energy = basis.new_empty(max(rows, columns), basis.shape[1]), torch.zeros_like(basis), 0.0
    for chosen, block in _read(base, tuned, torch.float64):
        image[chosen] = block @ basis
        pulled += block.T @ image[chosen]
        energy += float(torch.linalg.vector_norm(block).square())
    squares, vectors = torch.linalg.eigh(image.T @ image)
    vectors = vectors.flip(-1)[:, :k]
    values = squares.flip(-1)[:k].clamp(min=0).sqrt()
    there = int((values > FRAME_FLOOR * values[0]).sum())
    near, long = basis @ vectors[:, :there], image @ vectors[:, :there] / values[:there]
    gaps = pulled @ vectors[:, :there] / values[:there] - near * values[:there]  # W^T u - sigma v
    residual = float(torch.linalg.vector_norm(gaps, dim=0).max() / values[0])
    left, right = (long, near) if rows >= columns else (near, long)
    return Spectral(values, left, right, energy, (rows, columns), "ritz", residual)


def _read(base: Tensor, tuned: Tensor | None, dtype: torch.dtype) -> Iterator[tuple[slice, Float[Tensor, "rows n"]]]:
    if tuned is None:
        yield from ((chosen, block) for chosen, (block,) in blocks(base, dtype=dtype))
    else:
        yield from ((chosen, after - before) for chosen, (before, after) in blocks(base, tuned, dtype=dtype))
