"""What walks do that know nothing of direction, or of time: the nulls of everything cumulative.

An update is a sum of increments, so an early and a late one share most of themselves by construction, and k/n is the floor
of nothing. N-WALK draws the directions of every increment anew and keeps its spectrum: do directions persist? N-EXCH
keeps the increments and shuffles their order: are the early ones special? Steady drift passes the first alone. Under a
falling rate early increments are longer, and in that alone special; N-EXCH-NORM shuffles directions and leaves every length
where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise, permutations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.geometry.dense.decompose import FRAME_FLOOR, Spectral
from limbeck.geometry.nulls import _triangle


def walk(
    increments: Sequence[Spectral], rows: Sequence[Tensor] | None, rng: np.random.Generator
) -> Iterator[Float[Tensor, "out in"]]:
    """Increments with the spectra of these and directions of nothing (N-WALK).

    Frames are uniformly distributed. Where there are fewer directions in all than dimensions, the walk is drawn in
    coordinates of their span, which has every singular value and angle of the walk in full. What a truncated spectrum left
    out is an isotropic rest of its energy.

    Args:
        increments: with as many values as are known of each.
        rows: for adapters, a basis of each increment's row space: the leading directions stay in it.
        rng: draws.
    """
    out, into = increments[0].shape
    known = [one.values[one.values > FRAME_FLOOR * one.values[0]] for one in increments]
    rests = [
        0.0 if one.complete else math.sqrt(max(0.0, one.energy - float(one.values.square().sum())))
        for one in increments
    ]
    small = [rest <= FRAME_FLOOR * math.sqrt(one.energy) for rest, one in zip(rests, increments, strict=True)]
    widths = [len(values) for values in known]
    lefts = frames(out, widths, rng, reduced=all(small))
    rights = frames(into, widths, rng, reduced=all(small) and rows is None)
    for index, values in enumerate(known):
        right = next(rights)
        if rows is not None:
            inside = rows[index] @ next(frames(rows[index].shape[1], [rows[index].shape[1]], rng, reduced=False))
            right = torch.cat([inside, right], 1)[:, : len(values)]
        increment = (next(lefts) * values) @ right.T
        if not small[index]:
            rest = torch.from_numpy(rng.standard_normal((out, into)))
            increment += rest * (rests[index] / math.sqrt(out * into))
        yield increment


def frames(
    dim: int, widths: Sequence[int], rng: np.random.Generator, *, reduced: bool
) -> Iterator[Float[Tensor, "dim width"]]:
    """Independent, uniformly distributed orthonormal frames of R^dim.

    With ``reduced``, in coordinates of their joint span where that is smaller: the triangular factor of a Gaussian matrix is
    drawn without the matrix (Bartlett), and each frame is its columns made orthonormal.
    """
    edges = list(accumulate(widths, initial=0))
    joint = _triangle(dim, edges[-1], 1, rng)[0] if reduced and edges[-1] < dim else None
    for begin, end in pairwise(edges):
        drawn = rng.standard_normal((dim, end - begin)) if joint is None else joint[:, begin:end]
        q, r = torch.linalg.qr(torch.from_numpy(np.ascontiguousarray(drawn)))
        yield q * r.diagonal().sign()


def cores(increments: Sequence[Spectral]) -> Float[Tensor, "steps p q"]:
    """The known part of each increment, all in one pair of bases, those of the joint spans where these are smaller."""
    lefts, rights = _bases([one.left for one in increments]), _bases([one.right for one in increments])
    return torch.stack(
        [(u * s.values[: u.shape[1]]) @ v.T for s, u, v in zip(increments, lefts, rights, strict=True)]
    )  # fmt: skip


def _bases(sides: Sequence[Float[Tensor, "dim _"]]) -> list[Float[Tensor, "p _"]]:
    joined = torch.cat(list(sides), 1)
    if joined.shape[1] >= joined.shape[0]:
        return list(sides)
    basis = torch.linalg.qr(joined).Q
    return [basis.T @ side for side in sides]


def reordered(
    increments: Float[Tensor, "steps p q"], order: Int[np.ndarray, " steps"], *, in_place: bool
) -> Float[Tensor, "steps p q"]:
    """Increments in another order; with ``in_place`` each is scaled to the length of the one whose place it takes."""
    chosen = increments[torch.from_numpy(order)]
    if not in_place:
        return chosen
    lengths = torch.linalg.vector_norm(increments, dim=(1, 2))
    return chosen * (lengths / lengths[torch.from_numpy(order)])[:, None, None]


def lost(increments: Sequence[Spectral]) -> float:
    """Share of all increments' energy that their kept directions leave out."""
    kept = sum(float(one.values[: one.left.shape[1]].square().sum()) for one in increments)
    energy = sum(one.energy for one in increments)
    return max(0.0, 1 - kept / energy) if energy > 0 else 0.0


def orders(count: int, draws: int, rng: np.random.Generator) -> Int[np.ndarray, "draws count"]:
    """All orders of ``count`` increments if they are no more than ``draws``, else so many random ones (N-EXCH).

    >>> orders(3, 10, np.random.default_rng(0)).tolist()
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    """
    if math.factorial(count) <= draws:
        return np.array(list(permutations(range(count))))
    return np.stack([rng.permutation(count) for _ in range(draws)])
