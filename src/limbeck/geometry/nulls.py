"""What chance scores: for every geometric number a distribution that keeps the shapes and destroys the structure.

N-ISO keeps the shape: isotropic frames (left side) or Gaussian factors (ranks). N-ROT keeps each arm's spectrum
and right frame and turns the left one by a Haar rotation. N-ROW keeps each arm's row space and redraws the right
frame inside it, which is what chance means for arms that share an initial A: they all live in one r-dimensional
space. Draws cost O(rank^3), whatever the width. The generator is always required; nothing touches global state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.geometry.direction import Contact
from limbeck.geometry.subspace import AngleSummary, summarize
from limbeck.types import Null

Z90 = 1.6448536269514722  # half width of the central 90 % of a standard normal


def summarize_draws(null_id: str, draws: Float[np.ndarray, "modules draws"]) -> list[Null]:
    """One null per row of draws: mean and 5-95 % band."""
    means, (low, high) = draws.mean(axis=1, dtype=float), np.quantile(draws, (0.05, 0.95), axis=1)
    rows = zip(means.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Null(id=null_id, mean=m, q05=lo, q95=hi) for m, lo, hi in rows]


# --- subspaces -------------------------------------------------------------------------------------------------


def isotropic_angles(dim: int, k: int, *, draws: int, rng: np.random.Generator) -> AngleSummary:
    """Angles between unrelated ``k``-frames of R^dim, one draw each (N-ISO); cost O(k^3) a draw for any dim.

    A Haar frame against the first k axes: the QR of a (dim, k) Gaussian needs only its first k rows and the
    triangular factor of the others (Bartlett), so the top k x k block of the small Q is the overlap matrix.

    Raises:
        ConfigError: k must be at most dim.
    """
    if not 1 <= k <= dim:
        raise ConfigError(f"k must lie between 1 and dim = {dim}, received {k}. Lower k for this matrix.")
    top = rng.standard_normal((draws, k, k))
    stacked = np.concatenate([top, _triangle(dim - k, k, draws, rng)], axis=1)
    overlap = torch.linalg.qr(torch.from_numpy(stacked)).Q[:, :k, :]
    return _from_overlaps(overlap)


def _triangle(rows: int, k: int, draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draws short k"]:
    """A matrix with the Gram distribution of a (rows, k) standard Gaussian in at most k rows."""
    if rows <= k:
        return rng.standard_normal((draws, rows, k))
    upper = np.triu(rng.standard_normal((draws, k, k)), 1)
    upper[:, np.arange(k), np.arange(k)] = np.sqrt(rng.chisquare(rows - np.arange(k), size=(draws, k)))
    return upper


def _from_overlaps(overlap: Float[Tensor, "draws k k"]) -> AngleSummary:
    return summarize(torch.rad2deg(torch.linalg.svdvals(overlap).clamp(max=1).acos()))


def isotropic_overlap(dim: int) -> Null:
    """|<u, u'>| of two unrelated directions of R^dim (N-ISO), closed form: the square is Beta(1/2, (dim-1)/2).

    >>> round(isotropic_overlap(2560).mean, 4)     # about sqrt(2 / (pi 2560))
    0.0158
    """
    mean = math.exp(math.lgamma(dim / 2) - math.lgamma((dim + 1) / 2)) / math.sqrt(math.pi)
    if dim == 1:
        return Null(id="N-ISO", mean=1.0, q05=1.0, q95=1.0)
    low, high = np.sqrt(stats.beta.ppf((0.05, 0.95), 0.5, (dim - 1) / 2)).tolist()
    return Null(id="N-ISO", mean=mean, q05=low, q95=high)


def overlap_draws(dim: int, *, draws: int, rng: np.random.Generator) -> Float[np.ndarray, " draws"]:
    """Draws of |<u, u'>| in R^dim, for mixing over modules of different widths."""
    return np.ones(draws) if dim == 1 else np.sqrt(rng.beta(0.5, (dim - 1) / 2, size=draws))


def haar_frames(rank: int, k: int, *, count: int, rng: np.random.Generator) -> Float[Tensor, "count rank k"]:
    """``count`` uniformly distributed orthonormal ``k``-frames of R^rank, fp64."""
    q, r = torch.linalg.qr(torch.from_numpy(rng.standard_normal((count, rank, k))))
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # without the signs, QR is not Haar


def row_overlaps(
    cross: Float[Tensor, "rank other_rank"],
    frames: Float[Tensor, "count rank kmax"],
    other_frames: Float[Tensor, "other_count other_rank other_kmax"],
    *,
    draws: int,
    rng: np.random.Generator,
) -> Float[Tensor, "draws kmax other_kmax"]:
    """Overlap matrices of right frames redrawn inside the arms' own row spaces (N-ROW).

    ``cross = Q_x^T Q_y`` for any orthonormal bases of the two row spaces (the right frames serve). Pairs are drawn
    from pools of Haar frames, so that no QR is paid per module. The leading k x k block belongs to k directions.
    """
    one = frames[torch.from_numpy(rng.integers(len(frames), size=draws))]
    other = other_frames[torch.from_numpy(rng.integers(len(other_frames), size=draws))]
    return one.mT @ cross @ other


def row_angles(overlaps: Float[Tensor, "draws kmax other_kmax"], *, k: int) -> AngleSummary:
    """The angles of the leading k directions of each draw of ``row_overlaps``."""
    return _from_overlaps(overlaps[:, :k, :k])


# --- direction -------------------------------------------------------------------------------------------------


def rotated_sd(contacts: Sequence[Contact]) -> float:
    """Standard deviation of the cosine over the given modules when X's output side is turned at random (N-ROT).

    Variance = sum_l c_l/m_l / (sum |X_l|^2 sum |Y_l|^2), c = |Y X^T|_F^2; NaN where the cosine is.
    """
    energy = sum(c.energy for c in contacts) * sum(c.other_energy for c in contacts)
    return math.sqrt(sum(c.rotated_variance for c in contacts) / energy) if energy > 0 else math.nan


def rotated_cosine(contacts: Sequence[Contact]) -> Null:
    """The band of the cosine under N-ROT: mean 0, normal with ``rotated_sd``, cut at 1."""
    half = min(1.0, Z90 * rotated_sd(contacts))
    return Null(id="N-ROT", mean=0.0, q05=-half, q95=half) if math.isfinite(half) else Null()


_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_CHI2_LOW, _CHI2_HIGH = stats.chi2.ppf((0.05, 0.95), 1).tolist()


def rotated_fraction(contacts: Sequence[Contact], *, energy: bool) -> Null:
    """Stacked orthogonal fraction under N-ROT: 1 - cos^2 with a normal cosine for ``energy``, else its root."""
    sd = rotated_sd(contacts)
    if not math.isfinite(sd):
        return Null()
    power = 1.0 if energy else 0.5
    values = np.clip(1 - sd**2 * np.append(_NODES**2, (_CHI2_HIGH, _CHI2_LOW)), 0, 1) ** power
    return Null(id="N-ROT", mean=float(values[:-2] @ _WEIGHTS), q05=float(values[-2]), q95=float(values[-1]))


def rotated_pooled_fraction(contacts: Sequence[Contact], *, energy: bool, draws: int, rng: np.random.Generator) -> Null:
    """Orthogonal fraction with a coefficient per module under N-ROT: 1 - sum_l w_l cos_l^2, w_l = share of |X|^2."""
    total = sum(c.energy for c in contacts)
    both = [c for c in contacts if c.energy > 0 and c.other_energy > 0]
    if total == 0:
        return Null()
    explained = np.array([c.rotated_variance / c.other_energy / total for c in both])
    left = 1 - (np.square(rng.standard_normal((draws, len(both)))) * explained).sum(axis=1)
    values = np.clip(left, 0, 1) ** (1.0 if energy else 0.5)
    return summarize_draws("N-ROT", values[None])[0]


def arcsine_law(cosine: float) -> float:
    """Expected sign agreement of two Gaussian updates with this cosine: 1/2 + asin(c)/pi.

    >>> round(arcsine_law(0.74), 3), arcsine_law(0.0), arcsine_law(1.0)
    (0.765, 0.5, 1.0)
    """
    return 0.5 + math.asin(max(-1.0, min(1.0, cosine))) / math.pi


def weighted_arcsine_law(cosine: float) -> float:
    """The same with entries weighted by |x*y|: 1/2 + (pi/4) c / (sqrt(1-c^2) + c asin c).

    >>> weighted_arcsine_law(0.0), weighted_arcsine_law(1.0), round(weighted_arcsine_law(0.5), 4)
    (0.5, 1.0, 0.8482)
    """
    c = max(-1.0, min(1.0, cosine))
    return 0.5 + math.pi / 4 * c / (math.sqrt(1 - c * c) + c * math.asin(c))


# --- spectra ---------------------------------------------------------------------------------------------------


def random_spectra(
    rows: int, columns: int, rank: int, *, draws: int, rng: np.random.Generator
) -> Float[Tensor, "draws short"]:
    """Singular values of products of Gaussian (rows, rank) and (rank, columns) factors (N-ISO), from their cores.

    Raises:
        ConfigError: sizes must be positive.
    """
    if min(rows, columns, rank) < 1:
        raise ConfigError(f"a null spectrum needs positive sizes, received {rows} x {columns} at rank {rank}.")
    left, right = (torch.from_numpy(_triangle(size, rank, draws, rng)) for size in (rows, columns))
    return torch.linalg.svdvals(left @ right.mT)
