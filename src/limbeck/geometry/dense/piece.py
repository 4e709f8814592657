"""One matrix of all checkpoints: the base factorized once, every checkpoint against it, then every pair.

At most the base, one checkpoint (two, for a pair) and the compact frames are there at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import ModelError
from limbeck.geometry.dense import codes
from limbeck.geometry.dense.cells import Cell, Key
from limbeck.geometry.dense.checkpoints import Checkpoint
from limbeck.geometry.dense.decompose import Spectral, decompose, decompose_pair
from limbeck.geometry.dense.entries import ALPHA, Ground, entry_cells, ground_of, see
from limbeck.geometry.dense.krylov import leading
from limbeck.geometry.dense.layout import Piece
from limbeck.geometry.dense.pairs import AngleNulls, contact_of, jaccard_cell, meet, subspace_cells
from limbeck.geometry.dense.relate import (
    INTRUDER_K,
    Found,
    Pair,
    ShapeNulls,
    energy_null,
    found_cells,
    inside_base,
    relate,
    share_null,
    spectrum,
)
from limbeck.geometry.direction import Contact, SignAgreement
from limbeck.types import Null

PRINCIPAL_RANK = 64  # of the reconstruction whose largest entries are the principal mask; never over an eighth
NULL_ENTRIES = 1 << 26  # an isotropic update is drawn whole, for matrices up to this size
BLOCK = 1 << 22  # entries whose codes are formed at a time where nothing else is asked


class Plan(NamedTuple):
    """What is computed for every matrix.

    Attributes:
        ks: numbers of leading directions for angles and energies; the largest is that of the frames kept.
        spectra: ``gram`` for whole spectra, ``ritz`` for leading values alone.
        nulls: modules for which an isotropic update of equal norm is drawn and measured too.
        pairs: which checkpoints are also compared with each other, by place.
        seed: of every draw.
        shapes: nulls that depend on shapes alone.
        angles: the same for angles between two updates.
    """

    ks: tuple[int, ...]
    spectra: str
    nulls: frozenset[str]
    pairs: tuple[tuple[int, int], ...]
    seed: int
    shapes: ShapeNulls
    angles: AngleNulls

    @property
    def frame(self) -> int:
        """How many leading directions are kept of every matrix."""
        return max(*self.ks, 2 * INTRUDER_K, PRINCIPAL_RANK)


class Record(NamedTuple):
    """All numbers of one matrix, plain enough for a journal."""

    entries: int
    cells: list[Cell]
    contacts: list[Contact]
    signs: list[SignAgreement]

    def plain(self) -> dict[str, object]:
        """As JSON has it."""
        cells, contacts, signs = (
            [c.plain() for c in self.cells],
            [[*c] for c in self.contacts],
            [[*s] for s in self.signs],
        )
        return {"entries": self.entries, "cells": cells, "contacts": contacts, "signs": signs}

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Record:
        """What :meth:`plain` gave, after JSON."""
        signs = [
            SignAgreement(*(math.nan if v is None else v for v in (plus, weighted)), joint=joint, reason=reason)
            for plus, weighted, joint, reason in plain["signs"]
        ]
        contacts = [Contact(*numbers) for numbers in plain["contacts"]]
        return cls(int(plain["entries"]), [Cell.read(c) for c in plain["cells"]], contacts, signs)


def measure_piece(piece: Piece, base: Checkpoint, tuned: Sequence[Checkpoint], plan: Plan) -> Record:
    """Every number of one matrix or vector.

    Raises:
        ModelError: a weight that is not finite; names tensor and checkpoint.
    """
    before = _read(piece, base)
    matrix = len(piece.shape) == 2 and min(piece.shape) > 1
    ground = _Ground(piece, base, before, plan) if matrix else None
    cells: list[Cell] = []
    deltas: list[Spectral] = []
    for checkpoint in tuned:
        after = _read(piece, checkpoint)
        grid, stored, kind = storage(base.tensors[piece.tensor].dtype, checkpoint.tensors[piece.tensor].dtype)
        entries = ground.entries(grid) if ground else ground_of(before, grid)
        seen = see(before, after, entries)
        if not math.isfinite(seen.total):
            raise not_finite(piece, [base, checkpoint], [before, after])
        cells += _norm_cells(checkpoint.name, seen.total, entries.rms * math.sqrt(piece.entries), piece.entries, kind)
        cells += entry_cells(checkpoint.name, seen, entries, stored=stored, kind=kind)
        if ground:
            found, delta = ground.against(before, after)
            nulls = _closed_nulls(piece, plan, found)
            if piece.module in plan.nulls and seen.total > 0 and piece.entries <= NULL_ENTRIES:
                nulls = ground.drawn_nulls(before, seen.total, grid, checkpoint.name, stored=stored) | nulls
            cells += found_cells(checkpoint.name, found, nulls, delta, kind)
            deltas.append(delta)
    met = _pairs(piece, before, base, tuned, deltas, plan)
    return Record(piece.entries, cells + met[0], met[1], met[2])


def meet_piece(piece: Piece, base: Checkpoint, tuned: Sequence[Checkpoint], plan: Plan) -> Record:
    """What is between checkpoints alone: their updates decomposed, nothing of the base or of a tuned matrix; and norms.

    Raises:
        ModelError: a weight that is not finite.
    """
    before = _read(piece, base)
    base_norm = float(torch.linalg.vector_norm(before, dtype=torch.float64))
    cells: list[Cell] = []
    deltas: list[Spectral] = []
    for checkpoint in tuned:
        after = _read(piece, checkpoint)
        update = after.double() - before.double()
        energy = float(update.square().sum())
        if not math.isfinite(energy):
            raise not_finite(piece, [base, checkpoint], [before, after])
        _, _, kind = storage(base.tensors[piece.tensor].dtype, checkpoint.tensors[piece.tensor].dtype)
        cells += _norm_cells(checkpoint.name, energy, base_norm, piece.entries, kind)
        if update.ndim == 2 and min(update.shape) > 1:
            deltas.append(_decompose(update, plan))
    met = _pairs(piece, before, base, tuned, deltas, plan)
    return Record(piece.entries, cells + met[0], met[1], met[2])


def count_piece(piece: Piece, base: Checkpoint, tuned: Sequence[Checkpoint], plan: Plan) -> Record:
    """Visible sparsity alone, at the speed at which memory is read; no null, which would need the norm.

    Raises:
        ModelError: a weight that is not finite.
    """
    before, cells = _read(piece, base), []
    for checkpoint in tuned:
        after, changed = _read(piece, checkpoint), 0
        grid, _, _ = storage(base.tensors[piece.tensor].dtype, checkpoint.tensors[piece.tensor].dtype)
        for rows, _ in codes.row_blocks(len(before), before[0].numel(), BLOCK):
            one, other = (codes.codes(tensor[rows], grid) for tensor in (before, after))
            num, sound = codes.tally(one, other, grid)
            if not sound:
                raise not_finite(piece, [base, checkpoint], [before, after])
            changed += num
        key = Key("sparsity_visible", checkpoint.name)
        shown = "fp16_visible" if grid == torch.float16 else "bf16_visible"
        cells.append(Cell(key, 1 - changed / piece.entries, weight=piece.entries, delta_kind=shown))
    return Record(piece.entries, cells, [], [])


def storage(base: str, tuned: str) -> tuple[torch.dtype, bool, str]:
    """The 16-bit type whose codes are compared, whether the tuned weight is stored in it, and ``delta_kind``.

    >>> storage("BF16", "BF16"), storage("F32", "F32")[2], storage("BF16", "F32")[2]
    ((torch.bfloat16, True, 'bf16_visible'), 'dense_fp32', 'dense_fp32')
    """
    if tuned == "F16":
        return torch.float16, True, "fp16_visible"
    return torch.bfloat16, tuned == "BF16", "bf16_visible" if tuned == "BF16" else "dense_fp32"


def _read(piece: Piece, checkpoint: Checkpoint) -> Tensor:
    return piece.cut(checkpoint.read(piece.tensor))


def _norm_cells(arm: str, energy: float, base_norm: float, entries: int, kind: str) -> list[Cell]:
    norm = math.sqrt(energy)
    relative = norm / base_norm if base_norm > 0 else math.nan
    reason = "" if base_norm > 0 else "zero_base"
    return [
        Cell(Key("frobenius_norm", arm), norm, weight=energy, delta_kind=kind),
        Cell(Key("relative_norm", arm), relative, weight=entries, delta_kind=kind, reason=reason),
    ]


class _Ground:
    """A base matrix, decomposed once for all checkpoints."""

    def __init__(self, piece: Piece, base: Checkpoint, before: Tensor, plan: Plan) -> None:
        self._plan, self._piece = plan, piece
        if not all(torch.isfinite(end) for end in before.aminmax()):  # NaN is passed on by either
            raise not_finite(piece, [base], [before])
        self.spectral = _decompose(before, plan)
        self._mask = self._principal()
        self._entries: dict[torch.dtype, Ground] = {}
        self._before = before

    def _principal(self) -> np.ndarray:
        k = max(1, min(PRINCIPAL_RANK, min(self.spectral.shape) // 8))  # a whole matrix has no leading part
        left = self.spectral.left[:, :k]  # fewer where the base's rank is lower
        left = (left * self.spectral.values[: left.shape[1]]).float()
        return codes.largest(left, self.spectral.right[:, :k].float().T.contiguous(), ALPHA)

    def entries(self, grid: torch.dtype) -> Ground:
        """Histograms and masks on the codes of one type."""
        if grid not in self._entries:
            self._entries[grid] = ground_of(self._before, grid, self._mask)
        return self._entries[grid]

    def against(self, before: Tensor, after: Tensor) -> tuple[Found, Spectral]:
        """Everything spectral of one update, with the decomposition of the update."""
        plan = self._plan
        if plan.spectra == "gram":
            tuned, delta, inside = decompose_pair(before, after, plan.frame, self.spectral, max(plan.ks))
        else:
            tuned = leading(after, None, plan.frame, seed=plan.seed)
            delta = leading(before, after, plan.frame, seed=plan.seed)
            inside = inside_base(self.spectral, before, after, max(plan.ks))
        found = spectrum(delta) | relate(Pair(self.spectral, tuned, delta), inside, plan.ks)
        return found, delta

    def drawn_nulls(
        self, before: Tensor, energy: float, grid: torch.dtype, arm: str, *, stored: bool
    ) -> dict[tuple[str, str, int], Null]:
        """The same numbers of an isotropic update of equal norm, rounded as the checkpoint is stored."""
        counts = self._entries[grid].counts
        scale = codes.match_energy(counts, energy, grid, stored=stored).scale
        name = hashlib.sha256(f"{self._plan.seed}/{self._piece.module}/{arm}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(name[:7], "big"))
        moved = torch.randn(before.shape, generator=generator).mul_(scale).add_(before.float())
        found, _ = self.against(before, moved.to(grid) if stored else moved)
        return {key: Null(id="N-ISO", mean=m.value) for key, m in found.items() if math.isfinite(m.value)}


def _decompose(matrix: Tensor, plan: Plan) -> Spectral:
    if plan.spectra == "gram":
        return decompose(matrix, plan.frame)
    return leading(matrix, None, plan.frame, seed=plan.seed)


def _closed_nulls(piece: Piece, plan: Plan, found: Found) -> dict[tuple[str, str, int], Null]:
    rows, columns = piece.shape
    known = dict(plan.shapes.of((rows, columns)))
    known["spectrum_share", "", 0] = share_null((rows, columns))
    for metric, side, k in found:
        if metric == "principal_energy":
            known[metric, side, k] = energy_null(side, (rows, columns), k)
    return known


def _pairs(
    piece: Piece, before: Tensor, base: Checkpoint, tuned: Sequence[Checkpoint], deltas: list[Spectral], plan: Plan
) -> tuple[list[Cell], list[Contact], list[SignAgreement]]:
    cells, contacts, signs = [], [], []
    for i, j in plan.pairs:
        one, other = _read(piece, tuned[i]), _read(piece, tuned[j])
        names = tuned[i].name, tuned[j].name
        meeting = meet(before, one, other)
        frames = [deltas[i], deltas[j]] if deltas else None
        contacts.append(contact_of(meeting, before, one, other, frames))
        signs.append(meeting.signs)
        types = [c.tensors[piece.tensor].dtype for c in (base, tuned[i], tuned[j])]
        grid, _, kind = storage(types[0], types[1])
        if storage(types[0], types[2])[0] == grid:
            cells.append(jaccard_cell(before, one, other, grid, names))
        if frames:
            cells += subspace_cells(*frames, plan.ks, names, plan.angles, kind)
    return cells, contacts, signs


def not_finite(piece: Piece, checkpoints: Sequence[Checkpoint], tensors: Sequence[Tensor]) -> ModelError:
    """The error that names the folder and the tensor whose entries are NaN or infinite."""
    for checkpoint, tensor in zip(checkpoints, tensors, strict=True):
        bad = int((~torch.isfinite(tensor.float())).sum())
        if bad:
            return ModelError(
                f"{checkpoint.folder}: weights must be finite, received {bad} NaN or infinite entries in "
                f"{piece.tensor!r}. The run diverged: measure an earlier checkpoint."
            )
    return ModelError(f"{piece.tensor!r}: an update must have a finite norm, received one that overflows fp64.")
