"""Spectra of one matrix and what an update did to the base's singular directions, each beside its null.

A record is measured twice by the same functions where its null is drawn: once on the checkpoint, once on an isotropic
update of equal norm, rounded as the checkpoint is stored.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

from limbeck.geometry.dense.cells import NO_NULL, Cell, Key
from limbeck.geometry.dense.decompose import Spectral, block_energies, change, mirsky, nothing
from limbeck.geometry.spectrum import erank, erank_energy, hill, participation
from limbeck.geometry.subspace import GAP_WARNING, principal_angles, summarize
from limbeck.types import Measured, Null

TOP = (1, 4, 8, 16, 64)
HILL = (10, 64)
INTRUDER_K, INTRUDER_BELOW = 10, 0.5
RANK_FLOOR = 1e-6  # what an fp64 Gram can tell of sigma_k / sigma_1
ANGLES = ("smallest", "median", "largest")
Found = dict[tuple[str, str, int], Measured]


class Pair(NamedTuple):
    """A base, a tuned matrix and their difference, decomposed."""

    base: Spectral
    tuned: Spectral
    delta: Spectral


def spectrum(delta: Spectral) -> Found:
    """Ranks, tails and leading energies of one update; those that need every value are NaN for a truncated spectrum."""
    if not delta.energy > 0:
        reason = Measured(math.nan, "zero_norm")
        return dict.fromkeys((*((m, "", 0) for m in _ENTROPIES), ("stable_rank", "", 0), *_LEADING), reason)
    values = delta.values
    found: Found = {("stable_rank", "", 0): Measured(delta.energy / values[0].item() ** 2)}
    for metric, function in _ENTROPIES.items():
        whole = Measured(function(values).item()) if delta.complete else Measured(math.nan, "spectrum_truncated")
        found[metric, "", 0] = whole
    return found | {(metric, side, k): _leading(delta, metric, k) for metric, side, k in _LEADING}


def _leading(delta: Spectral, metric: str, k: int) -> Measured:
    values, short = delta.values, min(delta.shape)
    if metric == "topk_energy":
        enough = k <= len(values) or delta.complete
        top = values[:k].square().sum().item() / delta.energy
        return Measured(min(1.0, top)) if enough else Measured(math.nan, "spectrum_truncated")
    if k > short:
        return Measured(math.nan, "k_gt_dim")
    if k > len(values):
        return Measured(math.nan, "spectrum_truncated")
    if not values[k - 1] > RANK_FLOOR * values[0]:
        return Measured(math.nan, "rank_lt_k")
    value = hill(values, k=k).item()
    return Measured(value) if math.isfinite(value) else Measured(math.nan, "flat_spectrum")


_ENTROPIES = {"participation": participation, "erank_energy": erank_energy, "erank": erank}
_LEADING = [("topk_energy", "", k) for k in TOP] + [("hill", "", k) for k in HILL]


def relate(pair: Pair, inside: list[Tensor], ks: tuple[int, ...]) -> Found:
    """Drift of the spectrum, rotation of the leading frames, energy by block of the base, intruders."""
    found: Found = {}
    base, tuned, delta = pair
    if base.complete and tuned.complete:
        moved = mirsky(base, tuned)
        found["nss", "", 0] = _over(moved, math.sqrt(base.energy), "zero_norm")
        found["spectrum_share", "", 0] = _over(
            min(moved, math.sqrt(delta.energy)), math.sqrt(delta.energy), "zero_norm"
        )
    else:
        found["nss", "", 0] = found["spectrum_share", "", 0] = Measured(math.nan, "spectrum_truncated")
    found |= rotation(base, tuned, ks, "base_")
    k = min(max(ks), inside[0].shape[0])
    names = ("PP", "PQ", "QP", "QQ")
    if delta.energy > 0 and k:
        shares = block_energies(delta, base, inside, k)
        found |= {("principal_energy", name, k): Measured(shares[name]) for name in names}
    else:
        found |= {("principal_energy", name, max(ks)): Measured(math.nan, "zero_norm") for name in names}
    return found | _intruders(base, tuned)


def _over(top: float, bottom: float, reason: str) -> Measured:
    return Measured(top / bottom) if bottom > 0 else Measured(math.nan, reason)


def rotation(one: Spectral, other: Spectral, ks: tuple[int, ...], prefix: str) -> Found:
    """Principal angles between leading frames of one side, smallest, median, largest, and their mean squared cosine."""
    found: Found = {}
    names = [f"{prefix}angle_{which}" for which in ANGLES] if prefix else [f"principal_angle_{w}" for w in ANGLES]
    names.append(f"{prefix}mean_cos2")
    for k in ks:
        reason = frame_reason(one, k) or frame_reason(other, k)
        caveat = "" if reason else frame_caveat(one, other, k)
        for side in ("left", "right"):
            if reason:
                found |= {(name, side, k): Measured(math.nan, reason) for name in names}
                continue
            frames = (getattr(s, side)[:, :k].contiguous() for s in (one, other))
            values = summarize(principal_angles(*frames))
            found |= {(name, side, k): Measured(v.item(), caveat) for name, v in zip(names, values, strict=True)}
    return found


def frame_reason(spectral: Spectral, k: int) -> str:
    """Why a matrix has no ``k`` leading directions."""
    if not spectral.energy > 0:
        return "zero_norm"
    if k > min(spectral.shape):
        return "k_gt_dim"
    return "rank_lt_k" if spectral.left.shape[1] < k else ""


def frame_caveat(one: Spectral, other: Spectral, k: int) -> str:
    """What to keep in mind about a frame that is there: no gap behind it, or k large for the matrix."""
    gaps = [
        s.values[k - 1].item() / s.values[k].item() if len(s.values) > k and s.values[k] > 0 else math.inf
        for s in (one, other)
    ]
    arbitrary = ["gap_ratio"] if min(gaps) < GAP_WARNING else []
    return ";".join(arbitrary + (["k_over_eighth"] if k > min(one.shape) / 8 else []))


def _intruders(base: Spectral, tuned: Spectral) -> Found:
    """Leading left vectors of the **tuned** matrix that no left vector of the base resembles, and how well its frame holds them.

    Only the base's leading frame is known: a vector that lies outside it counts, with the caveat ``beyond_frame``, because
    it might resemble a base direction further down. ``intruder_capture`` says how much of the worst lies in the leading 2k.
    """
    k = INTRUDER_K
    reason = frame_reason(base, 2 * k) or frame_reason(tuned, k)
    if reason:
        return {(name, "left", k): Measured(math.nan, reason) for name in ("intruders", "intruder_capture")}
    overlaps = base.left.T @ tuned.left[:, :k]
    strange = overlaps.abs().amax(0) < INTRUDER_BELOW
    outside = (1 - overlaps.square().sum(0)).clamp(min=0).sqrt() >= INTRUDER_BELOW
    known = base.left.shape[1] == min(base.shape)
    caveat = "beyond_frame" if bool((strange & outside).any()) and not known else ""
    count = Measured(float(strange.sum()), caveat)
    capture = torch.linalg.vector_norm(overlaps[: 2 * k], dim=0).min().item()
    return {("intruders", "left", k): count, ("intruder_capture", "left", k): Measured(min(1.0, capture))}


def inside_base(base: Spectral, first: Tensor, second: Tensor, k: int) -> list[Tensor]:
    """``U0_k.T D`` and ``D V0_k`` for ``D = second - first``, from one pass."""
    k = min(k, base.left.shape[1])
    left, right = base.left[:, :k], base.right[:, :k]
    tall = base.shape[0] >= base.shape[1]
    long, short = (left, right) if tall else (right, left)
    far, near = torch.zeros(k, short.shape[0], dtype=torch.float64), torch.empty(len(long), k, dtype=torch.float64)
    for chosen, _, delta in change(first, second):
        far += long[chosen].T @ delta
        near[chosen] = delta @ short
    return [far, near] if tall else [near.T, far.T]


class ShapeNulls:
    """Spectral nulls that depend on the shape alone: iid Gaussian matrices, drawn once a shape (N-ISO)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._known: dict[tuple[int, int], dict[tuple[str, str, int], Null]] = {}

    def of(self, shape: tuple[int, int]) -> dict[tuple[str, str, int], Null]:
        """Mean and band of every spectral statistic; one draw where the short side is over 256, where all agree."""
        short, long = sorted(shape)
        if (short, long) not in self._known:
            rng = np.random.default_rng([self._seed, short, long])
            draws = 1 if short > 256 else 20
            found = [spectrum(_gaussian(long, short, rng)) for _ in range(draws)]
            self._known[short, long] = {key: _summary([f[key].value for f in found]) for key in found[0]}
        return self._known[short, long]


def _gaussian(long: int, short: int, rng: np.random.Generator) -> Spectral:
    """The singular values of an iid Gaussian matrix, drawn without the matrix: those of a bidiagonal one of chi variables.

    Source: Silverstein 1985; Dumitriu and Edelman 2002 (beta = 1).
    """
    diagonal = np.sqrt(rng.chisquare(long - np.arange(short)))
    beside = np.sqrt(rng.chisquare(short - 1 - np.arange(short - 1)))
    squares = diagonal**2 + np.concatenate([[0.0], beside**2])
    values = np.sqrt(np.clip(eigvalsh_tridiagonal(squares, diagonal[:-1] * beside)[::-1], 0, None))
    return nothing((long, short))._replace(values=torch.from_numpy(values), energy=float(values @ values))


def _summary(draws: list[float]) -> Null:
    values = np.array(draws)
    if not np.isfinite(values).all():
        return NO_NULL
    band = np.quantile(values, (0.05, 0.95)) if len(values) > 1 else (math.nan, math.nan)
    return Null(id="N-ISO", mean=float(values.mean()), q05=float(band[0]), q95=float(band[1]))


def energy_null(name: str, shape: tuple[int, int], k: int) -> Null:
    """Share of an isotropic update's energy in a block of the base: k**2/(mn) for PP and so on."""
    rows, columns = k / shape[0], k / shape[1]
    share = {
        "PP": rows * columns,
        "PQ": rows * (1 - columns),
        "QP": (1 - rows) * columns,
        "QQ": (1 - rows) * (1 - columns),
    }
    return Null(id="N-ISO", mean=share[name])


def share_null(shape: tuple[int, int]) -> Null:
    """Share of a small isotropic update that moves singular values: 1 / sqrt(max(m, n))."""
    return Null(id="N-ISO", mean=1 / math.sqrt(max(shape)))


def found_cells(
    arm: str, found: Found, nulls: dict[tuple[str, str, int], Null], spectral: Spectral, kind: str
) -> list[Cell]:
    """Cells of what was found, with the label of the decomposition they came from."""
    residual = spectral.residual if spectral.exactness == "ritz" else math.nan
    return [
        Cell.of(
            Key(metric, arm, side=side, k=k), measured, null=nulls.get((metric, side, k), NO_NULL), delta_kind=kind,
            exactness=spectral.exactness, residual=residual,
        )
        for (metric, side, k), measured in found.items()
    ]  # fmt: skip
