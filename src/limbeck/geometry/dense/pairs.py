"""Two checkpoints of one base: direction, signs, visible masks, leading subspaces, matrix by matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.geometry import nulls
from limbeck.geometry.dense import codes
from limbeck.geometry.dense.cells import NO_NULL, Cell, Key
from limbeck.geometry.dense.decompose import Spectral, blocks
from limbeck.geometry.dense.relate import ANGLES, frame_reason, rotation
from limbeck.geometry.direction import Contact, SignAgreement
from limbeck.geometry.subspace import LEADING_GAP
from limbeck.types import Measured, Null

_CANCELS = 1e-6
_DRAWS = 200


class Meeting(NamedTuple):
    """Sums over the entries of two updates."""

    inner: float
    energy: float
    other_energy: float
    signs: SignAgreement


def meet(base: Tensor, one: Tensor, other: Tensor) -> Meeting:
    """Inner product, energies and sign agreement, in fp64, a block at a time."""
    sums, agree, joint, weight, weight_agree = np.zeros(3), 0, 0, 0.0, 0.0
    for _, (before, first, second) in blocks(
        *(t if t.ndim == 2 else t.reshape(len(t), -1) for t in (base, one, other))
    ):
        x, y = first - before, second - before
        product = x * y
        sums += [product.sum().item(), x.square().sum().item(), y.square().sum().item()]
        agree, joint = agree + int((product > 0).sum()), joint + int((product != 0).sum())
        size = product.abs().sum().item()
        weight, weight_agree = weight + size, weight_agree + (size + product.sum().item()) / 2
    signs = SignAgreement(math.nan, math.nan, 0, "empty_mask")
    if joint:
        signs = SignAgreement(agree / joint, weight_agree / weight, joint)
    inner, energy, other_energy = sums.tolist()
    return Meeting(inner, energy, other_energy, signs)


def contact_of(
    meeting: Meeting, base: Tensor, one: Tensor, other: Tensor, frames: Sequence[Spectral] | None
) -> Contact:
    """What direction metrics are built from; see :class:`limbeck.geometry.direction.Contact`.

    The variance under N-ROT, ``|Y X^T|^2 / out``, is exact for the leading right frames and takes the rest of either
    update as isotropic in what they leave; without frames (vectors) all of it is.
    """
    inner, energy, other_energy, _ = meeting
    residual = _residual(base, one, other, inner, energy, other_energy)
    swapped = _residual(base, other, one, inner, other_energy, energy)
    variance = energy * other_energy / base.numel()
    if frames is not None and energy > 0 and other_energy > 0:
        variance = _shared_rows(*frames) / base.shape[0]
    return Contact(inner, energy, other_energy, residual, swapped, variance)


def _residual(base: Tensor, one: Tensor, other: Tensor, inner: float, energy: float, other_energy: float) -> float:
    if other_energy == 0 or energy == 0:
        return energy
    residual = energy - inner * (inner / other_energy)
    if residual > _CANCELS * energy:
        return residual
    coefficient, total = inner / other_energy, 0.0
    for _, (before, first, second) in blocks(
        *(t if t.ndim == 2 else t.reshape(len(t), -1) for t in (base, one, other))
    ):
        total += ((first - before) - coefficient * (second - before)).square().sum().item()
    return total


def _shared_rows(x: Spectral, y: Spectral) -> float:
    """``|Y X^T|_F^2`` from leading right frames; remainders spread evenly over the directions that are left."""
    s, t = x.values[: x.right.shape[1]].square(), y.values[: y.right.shape[1]].square()
    overlaps = (x.right.T @ y.right).square()
    dim = x.shape[1]
    rest_x, rest_y = max(0.0, x.energy - s.sum().item()), max(0.0, y.energy - t.sum().item())
    free_x, free_y = dim - len(s), dim - len(t)
    total = (s @ overlaps @ t).item()
    if free_x:  # leading rows of Y inside what X's frame leaves, and the other way around
        total += rest_x / free_x * (t @ (1 - overlaps.sum(0))).item()
    if free_y:
        total += rest_y / free_y * (s @ (1 - overlaps.sum(1))).item()
    if free_x and free_y:
        common = dim - len(s) - len(t) + overlaps.sum().item()
        total += rest_x / free_x * rest_y / free_y * max(0.0, common)
    return total


def jaccard_cell(base: Tensor, one: Tensor, other: Tensor, grid: torch.dtype, names: tuple[str, str]) -> Cell:
    """Overlap of the visible entries of two updates, |both| / |either|, against independence at their densities."""
    both = either = first = second = 0
    for rows, _ in codes.row_blocks(len(base), base[0].numel()):
        before = codes.codes(base[rows], grid)
        a, b = (codes.changed(before, codes.codes(t[rows], grid)) for t in (one, other))
        both, either = both + int(np.count_nonzero(a & b)), either + int(np.count_nonzero(a | b))
        first, second = first + int(np.count_nonzero(a)), second + int(np.count_nonzero(b))
    kind = "fp16_visible" if grid == torch.float16 else "bf16_visible"
    key = Key("mask_jaccard", *names)
    if not either:
        return Cell(key, math.nan, weight=0.0, delta_kind=kind, reason="empty_mask")
    d, e = first / base.numel(), second / base.numel()
    return Cell(key, both / either, Null(id="independent", mean=d * e / (d + e - d * e)), float(either), kind)


class AngleNulls:
    """Principal angles of unrelated frames (N-ISO), drawn once for a width and k."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._known: dict[tuple[int, int], list[Null]] = {}

    def of(self, dim: int, k: int) -> list[Null]:
        """Smallest, median, largest angle and mean squared cosine."""
        if (dim, k) not in self._known:
            rng = np.random.default_rng([self._seed, dim, k])
            drawn = np.stack(nulls.isotropic_angles(dim, k, draws=_DRAWS, rng=rng))
            self._known[dim, k] = nulls.summarize_draws("N-ISO", drawn)
        return self._known[dim, k]


def subspace_cells(
    x: Spectral, y: Spectral, ks: tuple[int, ...], names: tuple[str, str], known: AngleNulls, kind: str
) -> list[Cell]:
    """Angles between the leading subspaces of two updates, and overlap of their first directions, on both sides."""
    cells = []
    residual = max(x.residual, y.residual) if x.exactness == "ritz" else math.nan
    label: dict[str, Any] = {"delta_kind": kind, "exactness": x.exactness, "residual": residual}
    metrics = [f"principal_angle_{which}" for which in ANGLES] + ["mean_cos2"]
    for (metric, side, k), measured in rotation(x, y, ks, "").items():
        dim = x.shape[0 if side == "left" else 1]
        null = known.of(dim, k)[metrics.index(metric)] if k <= min(x.shape) else NO_NULL
        cells.append(Cell.of(Key(metric, *names, side, k), measured, null=null, **label))
    unclear = frame_reason(x, 1) or frame_reason(y, 1)
    if not unclear and min(_first_gap(x), _first_gap(y)) < LEADING_GAP:
        unclear = "gap_ratio"
    for side in ("left", "right"):
        dim = x.shape[0 if side == "left" else 1]
        value = Measured(math.nan, unclear)
        if not unclear:
            value = Measured(min(1.0, abs(getattr(x, side)[:, 0].dot(getattr(y, side)[:, 0]).item())))
        cells.append(
            Cell.of(Key("leading_overlap", *names, side, 1), value, null=nulls.isotropic_overlap(dim), **label)
        )
    return cells


def _first_gap(spectral: Spectral) -> float:
    values = spectral.values
    return values[0].item() / values[1].item() if len(values) > 1 and values[1] > 0 else math.inf
