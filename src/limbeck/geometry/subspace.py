"""Where two updates act: principal angles between leading frames, and overlap of the leading directions.

Angles come from the cosine where it is small and from the sine where it is not, in fp64: the cosine alone loses
everything below 3e-6 degrees (0.03 in fp32), the sine alone digits near 90. Frames are those of
:func:`limbeck.geometry.spectrum.factor`, already orthonormal to fp64; anything else goes through ``orthonormal``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import ShapeError

GAP_WARNING = 1.05  # sigma_k / sigma_{k+1} below which the frame is an arbitrary choice
LEADING_GAP = 1.01  # sigma_1 / sigma_2 below which the leading direction is not defined


class AngleSummary(NamedTuple):
    """Smallest, median and largest of k principal angles in degrees, and their mean squared cosine (= Sim_k)."""

    smallest: Float[Tensor, "*batch"]
    median: Float[Tensor, "*batch"]
    largest: Float[Tensor, "*batch"]
    mean_cos2: Float[Tensor, "*batch"]


def orthonormal(frame: Float[Tensor, "*batch dim k"]) -> Float[Tensor, "*batch dim k"]:
    """The same span with orthonormal columns in fp64; what a frame read from fp32 needs before any angle."""
    return torch.linalg.qr(frame.double()).Q


def principal_angles(x: Float[Tensor, "*batch dim k"], y: Float[Tensor, "*_ _ _"]) -> Float[Tensor, "*batch k"]:
    """Principal angles between the spans of two orthonormal frames, degrees in [0, 90], ascending.

    With M = X^T Y: cosines = svdvals(M), sines = svdvals(Y - X M); theta_i = asin(s_i) where c_i^2 >= 1/2, else
    acos(c_i). Invariant to rotations inside either frame; symmetric in X and Y to rounding.

    Raises:
        ShapeError: frames of different shape, or of less than fp64 (take ``orthonormal`` first).

    Source: Bjoerck and Golub (1973); Knyazev and Argentati (2002).

    >>> plane = torch.eye(3, dtype=torch.float64)
    >>> round(principal_angles(plane[:, :1], (plane[:, :1] + plane[:, 1:2]) / 2**0.5).item(), 9)
    45.0
    """
    if x.shape != y.shape or x.dtype != torch.float64 or y.dtype != torch.float64:
        raise ShapeError(
            f"principal angles need two fp64 frames of one shape, received {tuple(x.shape)} {x.dtype} and "
            f"{tuple(y.shape)} {y.dtype}. Take subspace.orthonormal of each, with the same k."
        )
    overlap = x.mT @ y
    cosines = torch.linalg.svdvals(overlap).clamp(max=1)
    outside = torch.linalg.qr(y - x @ overlap, mode="r").R
    sines = torch.linalg.svdvals(outside).flip(-1).clamp(max=1)
    return torch.rad2deg(torch.where(cosines.square() >= 0.5, sines.asin(), cosines.acos()))


def summarize(angles: Float[Tensor, "*batch k"]) -> AngleSummary:
    """The four numbers reported of k ascending angles; an even k takes the mean of its two middle angles.

    >>> [round(x.item(), 3) for x in summarize(torch.tensor([0.0, 60.0, 90.0]))]   # (1 + 1/4 + 0) / 3
    [0.0, 60.0, 90.0, 0.417]
    """
    k = angles.shape[-1]
    middle = (angles[..., (k - 1) // 2] + angles[..., k // 2]) / 2
    return AngleSummary(angles[..., 0], middle, angles[..., -1], angles.deg2rad().cos().square().mean(-1))


def angle_caveat(gap: float, *, k: int, dims: tuple[int, int]) -> str:
    """What to keep in mind about defined angles: a gap that leaves the frame arbitrary, a k large for the matrix.

    >>> angle_caveat(1.01, k=10, dims=(64, 4096)), angle_caveat(2.0, k=10, dims=(1024, 2560))
    ('gap_ratio;k_over_eighth', '')
    """
    arbitrary = ["gap_ratio"] if gap < GAP_WARNING else []
    return ";".join(arbitrary + (["k_over_eighth"] if k > min(dims) / 8 else []))


def leading_overlap(x: Float[Tensor, " dim"], y: Float[Tensor, " dim"]) -> float:
    """|<u1, u1'>| of two unit vectors, in [0, 1]; chance sqrt(2/(pi dim)) for unrelated ones."""
    return min(1.0, math.fabs(torch.dot(x, y).item()))
