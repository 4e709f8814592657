"""Is there a barrier between two arms: excess loss over the chord along the straight path between their updates.

Works on losses per item that somebody else evaluated at every point of the path. The excess at the midpoint is the
primary number, fixed in advance; the maximum over the path is biased upwards by the choice. A path can rise steadily
from a good end to a bad one without any barrier, so "worse than its worse end" is a flag of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import ConfigError, DataError
from limbeck.geometry.delta import combine
from limbeck.types import Delta, Estimate

MIN_ITEMS = 30


class Barrier(NamedTuple):
    """What lies between two ends, in the unit of the losses (the score's, reversed, where higher is better).

    Attributes:
        midpoint: excess over the chord at alpha = 1/2, the primary number.
        maximum: largest excess over the interior points.
        curve: mean loss (or score) at each alpha.
        worse_than_ends: some interior point is worse than the worse end.
    """

    midpoint: Estimate
    maximum: Estimate
    curve: tuple[float, ...]
    worse_than_ends: bool


def interpolate(start: Delta, end: Delta, alpha: float | int, *, name: str = "") -> Delta:
    """``(1 - alpha) * start + alpha * end``, exactly, by concatenating ranks; the ends are returned bit for bit.

    Raises:
        ConfigError: alpha must lie in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must lie in [0, 1], received {alpha}. Swap the ends for the other direction.")
    named = name or f"{start.name}-{end.name}@{alpha:g}"
    if alpha in (0, 1):
        exact = end if alpha else start
        return Delta(name=named, base=exact.base, init_digest=exact.init_digest, modules=exact.modules)
    return combine((1 - alpha, alpha), (start, end), name=named)


def barrier(
    alphas: Sequence[float | int],
    losses: Float[Tensor, "points items"],
    *,
    rng: np.random.Generator,
    higher_is_better: bool = False,
    weights: Float[Tensor, " items"] | None = None,
    draws: int = 2000,
) -> Barrier:
    """Excess over the chord with 95 % intervals from resampling items, the whole curve at a time.

    excess(a) = L(a) - ((1-a) L(0) + a L(1)), with L the item mean; for scores the sign is reversed, so that a positive
    number is always a barrier. Intervals are percentile, widened to contain the point where the maximum's bias would
    leave it outside.

    Args:
        alphas: ascending from 0 to 1, with 0.5 among them.
        losses: one row per alpha, the same items in the same order.
        rng: of the resampling.
        higher_is_better: ``losses`` are scores, e.g. accuracy.
        weights: None for the item mean; else how much each item counts, e.g. its tokens.
        draws: resamples.

    Returns:
        NaN estimates with ``too_few_items`` under 30 items.

    Raises:
        ConfigError: alphas do not form such a path. DataError: losses do not fit it or are not finite.

    >>> bump = torch.tensor([[1.0], [3.0], [2.0]]).expand(3, 30)
    >>> barrier([0, 0.5, 1], bump, rng=np.random.default_rng(0)).midpoint.value       # 3 - (1 + 2) / 2
    1.5
    """
    path = _check_path(alphas, losses)
    items = losses.shape[1]
    weight = np.ones(items) if weights is None else weights.double().numpy()
    sign = -1.0 if higher_is_better else 1.0
    cost = sign * losses.double().numpy()
    curve = cost @ weight / weight.sum()
    worse = bool(curve[1:-1].max() > max(curve[0], curve[-1]))
    excess = _excess(path, curve)
    if items < MIN_ITEMS:
        nothing = Estimate(
            value=math.nan, low=math.nan, high=math.nan, level=0.95, method=_METHOD, n=items, reason="too_few_items"
        )
        return Barrier(nothing, nothing, tuple((sign * curve).tolist()), worse)
    resampled = rng.multinomial(items, np.full(items, 1 / items), size=draws) * weight
    drawn = _excess(path, resampled @ cost.T / resampled.sum(axis=1, keepdims=True))
    middle = int(np.flatnonzero(path == 0.5)[0]) - 1
    return Barrier(
        midpoint=_estimate(excess[middle], drawn[:, middle], items),
        maximum=_estimate(excess.max(), drawn.max(axis=1), items),
        curve=tuple((sign * curve).tolist()),
        worse_than_ends=worse,
    )


_METHOD = "percentile bootstrap over items"


def _excess(path: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """Above the chord, at the interior points."""
    chord = (1 - path) * curves[..., :1] + path * curves[..., -1:]
    return (curves - chord)[..., 1:-1]


def _estimate(value: float, drawn: np.ndarray, items: int) -> Estimate:
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    point = float(value)
    return Estimate(value=point, low=min(low, point), high=max(high, point), level=0.95, method=_METHOD, n=items)


def _check_path(alphas: Sequence[float | int], losses: Float[Tensor, "points items"]) -> np.ndarray:
    path = np.array(alphas, dtype=float)
    if len(path) < 3 or path[0] != 0 or path[-1] != 1 or 0.5 not in path or (np.diff(path) <= 0).any():
        raise ConfigError(
            f"a path needs ascending alphas from 0 to 1 with 0.5 among them, received {list(alphas)}. "
            "Use 0, 0.25, 0.5, 0.75, 1 or a finer grid."
        )
    if len(losses) != len(path):
        raise DataError(f"losses need one row per alpha = {len(path)}, received {len(losses)}. Evaluate every point.")
    bad = int((~torch.isfinite(losses)).sum())
    if bad:
        raise DataError(f"losses must be finite, received {bad} that are not. Drop those items at every alpha alike.")
    return path
