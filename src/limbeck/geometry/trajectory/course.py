"""The numbers of one matrix along a run: how alike its leading directions are over time, and how many there are.

The same functions measure a run and the walks that are its nulls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.geometry.dense.decompose import Spectral
from limbeck.geometry.dense.krylov import leading
from limbeck.geometry.dense.relate import frame_caveat, frame_reason, spectrum
from limbeck.geometry.trajectory.snapshot import RANKS
from limbeck.types import Measured

KS = (4, 8, 16, 32)
SIDES = ("left", "right")
END, PREVIOUS = "end", "previous"


class Name(NamedTuple):
    """What a number along a run is."""

    metric: str
    side: str = ""
    k: int = 0
    other: str = ""


Course = dict[Name, dict[int, Measured]]  # by the place of the snapshot; the end is not compared with itself


def course(points: Sequence[Spectral]) -> Course:
    """Similarities and ranks of an update at every snapshot of it."""
    out: Course = {}
    for place, point in enumerate(points):
        ranks = spectrum(point)
        for metric, k in RANKS:
            out.setdefault(Name(metric, k=k), {})[place] = ranks[metric, "", k]
        others = {END: points[-1]} if place + 1 < len(points) else {}
        others |= {PREVIOUS: points[place - 1]} if place else {}
        for name, other in others.items():
            for (side, k), value in similarities(point, other).items():
                out.setdefault(Name("sim_k", side, k, name), {})[place] = value
    return out


def similarities(one: Spectral, other: Spectral) -> dict[tuple[str, int], Measured]:
    """``sim_k`` by side and k: ``norm(V_k(one)^T V_k(other))**2 / k``, the mean squared cosine of the k principal angles.

    1 for equal spans whatever their bases, k/n for unrelated ones. NaN where a frame of k directions does not exist.
    Source: arXiv 2606.07082 (right side, k = 16).
    """
    inside = {
        side: (getattr(one, side).T @ getattr(other, side)).square().cumsum(0).cumsum(1).numpy() for side in SIDES
    }
    out: dict[tuple[str, int], Measured] = {}
    for k in KS:
        reason = frame_reason(one, k) or frame_reason(other, k)
        caveat = "" if reason else frame_caveat(one, other, k)
        for side in SIDES:
            value = math.nan if reason else min(1.0, float(inside[side][k - 1, k - 1]) / k)
            out[side, k] = Measured(value, reason or caveat)
    return out


def values(found: Course, names: Sequence[Name], count: int) -> Float[np.ndarray, "names steps"]:
    """A course as numbers alone; NaN where it has none."""
    out = np.full((len(names), count), np.nan, dtype=np.float32)
    for row, name in enumerate(names):
        for place, measured in found.get(name, {}).items():
            out[row, place] = measured.value
    return out


def summed(increments: Iterable[Float[Tensor, "out in"]], k: int) -> list[Spectral]:
    """What the sum of increments is after each of them, in its ``k`` leading directions."""
    total, out = None, []
    for increment in increments:
        total = increment.clone() if total is None else total.add_(increment)
        out.append(leading(total, None, k, seed=0))
    return out


def orthonormal(frame: Float[Tensor, "dim k"]) -> Float[Tensor, "dim k"]:
    """A frame that was stored in fp32, orthonormal in fp64 and column by column the same span."""
    return torch.linalg.qr(frame.double()).Q
