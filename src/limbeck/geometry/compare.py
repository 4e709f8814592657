"""One module of all arms: factorise each arm's factors once, then every pair from small overlap matrices.

The frames of a module exist only while it is being compared, so memory does not grow with the number of modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.geometry import nulls
from limbeck.geometry.direction import Contact, SignAgreement, contact, sign_agreement
from limbeck.geometry.spectrum import Frames, factor, gap_ratio, undefined
from limbeck.geometry.subspace import LEADING_GAP, angle_caveat, principal_angles, summarize
from limbeck.types import LowRank

Pair = tuple[int, int]
SIDES = ("left", "right")
_BLOCK = 16  # pairs whose wide frames are stacked at a time; bounds memory for many arms


class Cells(NamedTuple):
    """Per pair: the values of a group of statistics, why they are undefined or doubtful, and null draws (fp32: there are many).

    ``values`` is (pairs, statistics); ``reasons`` one text per pair, also beside a defined value (a caveat);
    ``draws`` (pairs, statistics, draws), empty on the side whose null depends on the shape alone.
    """

    values: Float[np.ndarray, "pairs statistics"]
    reasons: list[str]
    draws: Float[np.ndarray, "pairs statistics draws"]


class ModuleRecord(NamedTuple):
    """Everything known of one module: spectra by arm, contacts by pair, angles and leading overlaps by side (and k)."""

    spectra: list[Float[Tensor, " rank"]]
    contacts: list[Contact]
    angles: Mapping[tuple[str, int], Cells]
    leading: Mapping[str, Cells]
    signs: list[SignAgreement]


class Plan(NamedTuple):
    """What to compute for every module: pairs of arms, numbers of directions, null draws, Haar pools by rank."""

    pairs: Sequence[Pair]
    ks: Sequence[int]
    draws: int
    pools: Mapping[int, Float[Tensor, "count rank k"]]
    signs: bool


def compare_module(arms: Sequence[LowRank], plan: Plan, rng: np.random.Generator) -> ModuleRecord:
    """All spectra, contacts, angles and overlaps of one module, with the null draws that depend on its weights."""
    frames = [factor(arm) for arm in arms]
    overlaps = {"left": _overlaps([f.left for f in frames]), "right": _overlaps([f.right for f in frames])}
    rows = [_redraw(frames, pair, overlaps["right"][pair], plan, rng) for pair in plan.pairs]
    contacts = [contact(frames[i], frames[j], overlaps["left"][i, j], overlaps["right"][i, j]) for i, j in plan.pairs]
    sides = SIDES if plan.pairs else ()
    return ModuleRecord(
        spectra=[f.values for f in frames],
        contacts=contacts,
        angles={(side, k): _angles(frames, side, k, plan.pairs, rows) for side in sides for k in plan.ks},
        leading={side: _leading(frames, side, plan.pairs, overlaps[side], rows) for side in sides},
        signs=[sign_agreement(arms[i], arms[j]) for i, j in plan.pairs] if plan.signs else [],
    )


def _overlaps(bases: Sequence[Float[Tensor, "dim _"]]) -> dict[Pair, Float[Tensor, "_ _"]]:
    """Overlap matrices between all arms' frames of one side, from a single product."""
    joined = torch.cat(list(bases), dim=1)
    gram = joined.T @ joined
    edges = np.cumsum([0] + [b.shape[1] for b in bases])
    return {
        (i, j): gram[edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
        for i in range(len(bases))
        for j in range(len(bases))
    }


def _redraw(
    frames: Sequence[Frames], pair: Pair, cross: Float[Tensor, "_ _"], plan: Plan, rng: np.random.Generator
) -> Float[Tensor, "draws _ _"]:
    one, other = (plan.pools[frames[arm].right.shape[1]] for arm in pair)
    return nulls.row_overlaps(cross, one, other, draws=plan.draws, rng=rng)


def _dims(frames: Sequence[Frames]) -> tuple[int, int]:
    return frames[0].left.shape[0], frames[0].right.shape[0]


def _angles(
    frames: Sequence[Frames], side: str, k: int, pairs: Sequence[Pair], rows: Sequence[Float[Tensor, "draws _ _"]]
) -> Cells:
    missing = ["k_gt_dim" if k > min(_dims(frames)) else undefined(f.values, k=k) for f in frames]
    reasons = [missing[i] or missing[j] for i, j in pairs]
    defined = [p for p, reason in enumerate(reasons) if not reason]
    values = np.full((len(pairs), 4), np.nan)
    draws = np.full((len(pairs), 4, len(rows[0]) if side == "right" else 0), np.nan, dtype=np.float32)
    bases = [getattr(f, side)[:, :k] for f in frames]
    for block in (defined[start : start + _BLOCK] for start in range(0, len(defined), _BLOCK)):
        one = torch.stack([bases[pairs[p][0]] for p in block])
        other = torch.stack([bases[pairs[p][1]] for p in block])
        values[block] = torch.stack(summarize(principal_angles(one, other)), dim=-1).numpy()
        if side == "right":
            redrawn = nulls.row_angles(torch.cat([rows[p][:, :k, :k] for p in block]), k=k)
            draws[block] = torch.stack(redrawn).unflatten(1, (len(block), -1)).movedim(1, 0).numpy()
    for p in defined:
        gap = min(gap_ratio(frames[arm].values, k=k) for arm in pairs[p])
        reasons[p] = angle_caveat(gap, k=k, dims=_dims(frames))
    return Cells(values, reasons, draws)


def _leading(
    frames: Sequence[Frames],
    side: str,
    pairs: Sequence[Pair],
    overlaps: Mapping[Pair, Float[Tensor, "_ _"]],
    rows: Sequence[Float[Tensor, "draws _ _"]],
) -> Cells:
    unclear = [undefined(f.values) or ("gap_ratio" if gap_ratio(f.values, k=1) < LEADING_GAP else "") for f in frames]
    reasons = [unclear[i] or unclear[j] for i, j in pairs]
    values = [np.nan if why else min(1.0, abs(overlaps[p][0, 0].item())) for p, why in zip(pairs, reasons, strict=True)]
    drawn = (
        [r[:, 0, 0].abs().float().numpy()[None] for r in rows] if side == "right" else [np.empty((1, 0))] * len(pairs)
    )
    return Cells(np.array(values).reshape(len(pairs), 1), reasons, np.array(drawn).reshape(len(pairs), 1, -1))
