"""What is kept of one matrix at one step: leading directions of the update and of its last increment, and what they leave out.

A full-parameter update is decomposed on the spot, ``D_t = W_t - W_0`` and ``D_t - D_s`` with s the snapshot before. An
adapter's factors are kept whole: they are small, and everything that can be asked of them later is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.geometry.dense.codes import codes, count_changed
from limbeck.geometry.dense.decompose import Spectral
from limbeck.geometry.dense.krylov import leading
from limbeck.geometry.dense.relate import spectrum
from limbeck.geometry.spectrum import RANK_FLOOR, factor
from limbeck.types import LowRank

GRID = torch.bfloat16  # what storage would show of the update
RANKS = (("stable_rank", 0), ("participation", 0), *(("topk_energy", k) for k in (1, 4, 8, 16)), ("hill", 10))


class Kept(NamedTuple):
    """One matrix (or vector) at one step.

    Attributes:
        tensors: fp32 directions and values, by short names; empty for vectors.
        facts: plain numbers for the record.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def of_weights(base: Tensor, tuned: Tensor, before: Tensor, k: int, near: Mapping[str, Tensor]) -> Kept:
    """A snapshot of one full-parameter matrix or vector.

    Args:
        base: W_0, in any floating type.
        tuned: W_t, fp32.
        before: the same at the last snapshot; W_0 at the first.
        k: leading directions to keep, at most as many as there are.
        near: the tensors of the last snapshot, near whose directions to look; empty at the first.
    """
    base, before = base.to(tuned.dtype), before.to(tuned.dtype)
    update, increment = tuned - base, tuned - before
    facts: dict[str, Any] = {
        "shape": list(tuned.shape),
        "frobenius_norm": _norm(update),
        "increment_norm": _norm(increment),
        "sparsity_visible": _unchanged(base, tuned),
    }
    if tuned.ndim < 2:
        return Kept({}, facts)
    short = "right" if tuned.shape[0] >= tuned.shape[1] else "left"
    matrices = {"update": update, "increment": increment}
    found = {
        name: leading(matrix, None, k, seed=0, near=near.get(f"{name}.{short}")) for name, matrix in matrices.items()
    }
    tensors = {f"{name}.{part}": t for name, spectral in found.items() for part, t in _parts(spectral).items()}
    for name, spectral in found.items():
        facts |= {f"{name}_exactness": spectral.exactness, f"{name}_residual": spectral.residual}
    return Kept(tensors, facts | _ranks(found["update"]))


def of_factors(base: Tensor, factors: LowRank, before: LowRank | None) -> Kept:
    """A snapshot of one adapted matrix.

    Args:
        base: the frozen weight, (out, in).
        factors: the update, scale folded into the left factor.
        before: the same at the last snapshot; None at the first.
    """
    update = factored(factors)
    tuned = base.float() + factors.left @ factors.right
    facts: dict[str, Any] = {
        "shape": list(factors.shape),
        "frobenius_norm": math.sqrt(update.energy),
        "increment_norm": math.sqrt(factored(increment_of(factors, before)).energy),
        "sparsity_visible": _unchanged(base.float(), tuned),
    }
    return Kept({"left": factors.left, "right": factors.right}, facts | _ranks(update))


def increment_of(now: LowRank, before: LowRank | None) -> LowRank:
    """``now - before`` as factors of twice the rank."""
    if before is None:
        return now
    return LowRank(torch.cat([now.left, -before.left], 1), torch.cat([now.right, before.right], 0))


def factored(update: LowRank) -> Spectral:
    """The exact decomposition of a product of factors, all of its values, those past the rank zero."""
    frames = factor(update)
    short, there = min(update.shape), int((frames.values > RANK_FLOOR * frames.values[0]).sum())
    values = torch.zeros(short, dtype=torch.float64)
    rank = min(short, len(frames.values))
    values[:rank] = frames.values[:rank]
    energy = float(values.square().sum())
    return Spectral(values, frames.left[:, :there], frames.right[:, :there], energy, update.shape, "exact", 0.0)


def _parts(spectral: Spectral) -> dict[str, Tensor]:
    return {
        "left": spectral.left.float().contiguous(),
        "right": spectral.right.float().contiguous(),
        "values": spectral.values.float(),
    }


def _ranks(update: Spectral) -> dict[str, Any]:
    """Rank dynamics for the record; ``limbeck measure`` makes them again from what is kept, beside their nulls."""
    found = spectrum(update)
    return {f"{metric}_{k}" if k else metric: found[metric, "", k].value for metric, k in RANKS}


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


def _unchanged(base: Tensor, tuned: Tensor) -> float:
    """Share of entries whose bf16 code is the base's, counted."""
    one, other = (codes(weight.to(GRID).cpu(), GRID) for weight in (base, tuned))
    return 1 - count_changed(one, other) / max(len(one), 1)
