"""Entry by entry: how much of an update storage shows, where it lies, and whether it lies where the weights are small.

One pass over base and tuned weights in blocks of rows. Everything is a count or an fp64 sum and exact.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import erf, ndtr
from torch import Tensor

from limbeck.geometry.dense import codes
from limbeck.geometry.dense.cells import NO_NULL, Cell, Key
from limbeck.types import Measured, Null

ALPHA = 0.3  # share of entries in either mask; the chance level of the published figure
ABSOLUTE = (0, 8, 6, 5, 4)  # tolerance 10**-k; 0 stands for none
RELATIVE = (5, 3)  # times the root mean square of the base's entries


class Ground(NamedTuple):
    """What the entries of one base matrix are, once for all checkpoints.

    Attributes:
        grid: the 16-bit type whose codes are compared.
        on_grid: whether every base entry is a value of that type.
        counts: how often each magnitude occurs.
        low: share of each magnitude's entries in the low-magnitude mask.
        principal: mask of the largest entries of the leading reconstruction, packed; empty where there is none.
        principal_counts: how often each magnitude occurs inside it.
        rms: root mean square of the entries.
    """

    grid: torch.dtype
    on_grid: bool
    counts: np.ndarray
    low: np.ndarray
    principal: np.ndarray
    principal_counts: np.ndarray
    rms: float


def ground_of(base: Tensor, grid: torch.dtype, principal: np.ndarray | None = None) -> Ground:
    """Histogram and masks of one base matrix; ``principal`` is a packed mask over its flat entries."""
    counts, squares, on_grid = np.zeros(1 << 16, np.int64), 0.0, True
    packed = np.empty(0, np.uint8) if principal is None else principal
    for rows, flat in codes.row_blocks(len(base), base[0].numel()):
        block = base[rows]
        found = codes.codes(block, grid) & codes.MAGNITUDE
        if len(packed):  # the free sign bit says whether an entry is inside
            found |= _unpacked(packed, flat).astype(np.int16) << 15
        counts += np.bincount(found.view(np.uint16), minlength=1 << 16)
        values = block.double().flatten()
        squares += values.dot(values).item()
        on_grid = on_grid and (block.dtype == grid or bool((block.to(grid).to(block.dtype) == block).all()))
    inside = counts[1 << 15 :]
    counts = counts[: 1 << 15] + inside
    rms = math.sqrt(squares / base.numel())
    return Ground(grid, on_grid, counts, codes.low_share(counts, ALPHA), packed, inside, rms)


class Within(NamedTuple):
    """How many changed entries lie in a mask, and the squared norm of the update there."""

    changed: float
    energy: float


class Seen(NamedTuple):
    """Counts and sums of one update.

    Attributes:
        changed: entries with another code.
        total: squared norm.
        low, principal: what lies in the two masks; a code that the edge of the low one cuts counts with its share.
        rows, columns: density of changed entries.
        within: how many entries moved by at most a tolerance, by metric and k.
    """

    changed: int
    total: float
    low: Within
    principal: Within
    rows: np.ndarray
    columns: np.ndarray
    within: dict[tuple[str, int], int]


def see(base: Tensor, tuned: Tensor, ground: Ground) -> Seen:
    """The pass over all entries."""
    tolerances = {("sparsity_abs", k): 10.0**-k if k else 0.0 for k in ABSOLUTE}
    tolerances |= {("sparsity_rel", k): 10.0**-k * ground.rms for k in RELATIVE}
    within = dict.fromkeys(tolerances, 0)
    length = base[0].numel()
    rows, columns = np.zeros(len(base)), np.zeros(length)
    edge = np.flatnonzero((ground.low < 1) & (ground.counts > 0)).min(initial=1 << 15)  # where the low mask ends
    total, masks = 0.0, np.zeros((3, 2))  # below the edge, at it, in the principal mask: changed entries, energy
    for chosen, flat in codes.row_blocks(len(base), length):
        before = codes.codes(base[chosen], ground.grid)
        differ = codes.changed(before, codes.codes(tuned[chosen], ground.grid))
        step = (tuned[chosen].double() - base[chosen].double()).flatten()
        size = step.float().abs_().numpy()
        squares = step.square_()
        total += squares.sum().item()
        grid = differ.view(np.uint8).reshape(-1, length)
        rows[chosen] = grid.sum(1, dtype=np.int32)
        columns += grid.sum(0, dtype=np.int32)
        for name, tolerance in tolerances.items():
            within[name] += int(np.count_nonzero(size <= tolerance))
        magnitude = before & codes.MAGNITUDE
        masks[0] += _inside(magnitude < edge, differ, squares)
        masks[1] += _inside(magnitude == edge, differ, squares)
        if len(ground.principal):
            masks[2] += _inside(_unpacked(ground.principal, flat), differ, squares)
    share = ground.low[edge] if edge < len(ground.low) else 0.0
    low, principal = (Within(*sums.tolist()) for sums in (masks[0] + share * masks[1], masks[2]))
    return Seen(int(rows.sum()), total, low, principal, rows / length, columns / len(base), within)


def _inside(mask: np.ndarray, differ: np.ndarray, squares: Tensor) -> tuple[int, float]:
    """Changed entries and energy in a mask of one block."""
    return int(np.count_nonzero(mask & differ)), squares.dot(torch.from_numpy(mask).double()).item()


def entry_cells(arm: str, seen: Seen, ground: Ground, *, stored: bool, kind: str) -> list[Cell]:
    """Sparsities, localization inside the matrix, and mask overlaps, each beside its null.

    Args:
        arm: whose.
        seen: counts of this update.
        ground: the base's.
        stored: the pair is stored in 16 bits, so that the update itself is what rounding left.
        kind: ``delta_kind`` of the update.
    """
    entries, visible = int(ground.counts.sum()), seen.changed
    density, shown = visible / entries, "fp16_visible" if ground.grid == torch.float16 else "bf16_visible"
    matched = codes.match_energy(ground.counts, seen.total, ground.grid, stored=stored) if seen.total > 0 else None
    null = Null(id="N-ROUND", mean=1 - float(matched.visible @ ground.counts) / entries) if matched else NO_NULL
    cells = [Cell(Key("sparsity_visible", arm), 1 - density, null, entries, shown)]
    for (metric, k), count in seen.within.items():
        tolerance = (10.0**-k if k else 0.0) * (ground.rms if metric == "sparsity_rel" else 1.0)
        mean = _within_chance(tolerance, matched, ground, stored=stored) if matched else math.nan
        cells.append(Cell(Key(metric, arm, k=k), count / entries, _known("N-ROUND", mean), entries, kind))
    for side, densities, length in (
        ("left", seen.rows, len(seen.columns)),
        ("right", seen.columns, len(seen.rows)),
    ):
        value = Measured(codes.gini(densities)) if visible else Measured(math.nan, "empty_mask")
        null = _known("N-PERM", codes.gini_null(density, length)) if 0 < density < 1 else NO_NULL
        if len(densities) > 1:
            cells.append(Cell.of(Key("density_gini", arm, side=side), value, null=null, delta_kind=shown))
    scale = matched.scale if matched and stored else math.nan
    return cells + _mask_cells(arm, seen, ground, scale, shown, kind)


def _known(null_id: str, mean: float) -> Null:
    return Null(id=null_id, mean=mean) if math.isfinite(mean) else NO_NULL


def _within_chance(tolerance: float, matched: codes.Rounding, ground: Ground, *, stored: bool) -> float:
    """Share of entries that the isotropic update of equal norm leaves within a tolerance."""
    if not stored:
        return float(erf(tolerance / matched.scale / math.sqrt(2)))

    def stay(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        gap = above + below
        return 1 - 2 * ndtr(-(np.floor(tolerance / gap) + 0.5) * gap / matched.scale)

    chance = codes.by_magnitude(ground.grid, stay)
    return float(chance @ ground.counts[: len(chance)] / ground.counts.sum())


def _mask_cells(arm: str, seen: Seen, ground: Ground, scale: float, shown: str, kind: str) -> list[Cell]:
    """Share of visible entries, and of energy, in the low-magnitude and in the principal mask.

    ``scale`` is that of the isotropic step of equal norm where rounding decides its energy, else NaN.
    """
    visible, entries = seen.changed, int(ground.counts.sum())
    chance = None
    if visible:
        chance = codes.match_density(ground.counts, visible / entries, ground.grid, on_grid=ground.on_grid).visible
    masks = [("low", ground.low, seen.low)]
    if len(ground.principal):
        share = ground.principal_counts / np.maximum(ground.counts, 1)
        masks.append(("principal", share, seen.principal))
    cells = []
    for name, share, (overlap, energy) in masks:
        value, null = Measured(math.nan, "empty_mask"), NO_NULL
        if chance is not None:
            expected = float((chance * share) @ ground.counts / (chance @ ground.counts))
            value, null = Measured(overlap / visible), _known("N-ROUND", expected)
        cells.append(Cell.of(Key(f"mask_overlap_{name}", arm), value, null=null, weight=visible, delta_kind=shown))
        held = Measured(energy / seen.total) if seen.total > 0 else Measured(math.nan, "zero_norm")
        null = _energy_null(share, scale, ground)
        cells.append(Cell.of(Key(f"mask_energy_{name}", arm), held, null=null, weight=seen.total, delta_kind=kind))
    return cells


def _energy_null(share: np.ndarray, scale: float, ground: Ground) -> Null:
    """Share of an isotropic update's energy in a mask: its share of the entries, unless rounding decides."""
    if math.isnan(scale):
        return Null(id="N-ISO", mean=float(share @ ground.counts / ground.counts.sum()))
    energy = codes.by_magnitude(ground.grid, lambda above, below: codes.visible_energy(scale, above + below))
    energy *= ground.counts[: len(energy)]
    return _known("N-ROUND", float(energy @ share[: len(energy)] / energy.sum()))


def _unpacked(packed: np.ndarray, flat: slice) -> np.ndarray:
    part = packed[flat.start // 8 : (flat.stop + 7) // 8]
    return np.unpackbits(part, count=flat.stop - flat.start).astype(bool)
