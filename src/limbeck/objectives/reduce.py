"""Sums of unreduced values and the one number that divides them.

Objectives never divide. Totals of micro-batches are added, and the step divides once, by a count taken over the
whole optimizer step and all processes before the first backward, from data only. So neither the size of a
micro-batch nor the number of processes can change a gradient.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import ConfigError, DegenerateError, ShapeError
from limbeck.types import Normalizer, Unit


class StepCount(NamedTuple):
    """What one optimizer step contains. Add the counts of micro-batches and processes.

    A row that weighs nothing (advantage 0) is counted; a row that a selection dropped is not.

    >>> StepCount(tokens=1, rollouts=1).plus(StepCount(tokens=9, rollouts=1))
    StepCount(tokens=10, rollouts=2, pairs=0)
    """

    tokens: int
    rollouts: int
    pairs: int = 0

    def plus(self, other: "StepCount") -> "StepCount":
        return StepCount(self.tokens + other.tokens, self.rollouts + other.rollouts, self.pairs + other.pairs)


def count(mask: Bool[Tensor, "batch time"], *, pairs: int = 0) -> StepCount:
    """Live tokens and live rollouts of one micro-batch.

    >>> count(torch.tensor([[True, False], [True, True], [False, False]]))
    StepCount(tokens=3, rollouts=2, pairs=0)
    """
    return StepCount(int(mask.sum()), int(mask.any(-1).sum()), pairs)


def total(
    values: Float[Tensor, "*units"], unit: Unit, mask: Bool[Tensor, "batch time"], normalizer: Normalizer
) -> Float[Tensor, ""]:
    """The sum of one micro-batch's values, each token weighted 1 / T_i under the ``sequence`` normalizer.

    Args:
        values: as returned by ``evaluate``: (batch, time), (batch,) or (pairs,).
        unit: what one value belongs to.
        mask: true where a token is scored.
        normalizer: the rule that ``divisor`` completes.
    """
    _check_normalizer(unit, normalizer, additive=True)
    if unit == "pair":
        return values.sum()
    live = mask if unit == "token" else mask.any(-1)
    if values.shape != live.shape:
        raise ShapeError(
            f"values of unit {unit} must be {tuple(live.shape)}, received {tuple(values.shape)}. Reduce what evaluate "
            "returned, with the mask it was given."
        )
    kept = torch.where(live, values, 0.0)
    if unit == "token" and normalizer == "sequence":
        return (kept.sum(-1) / mask.sum(-1).clamp(min=1)).sum()
    return kept.sum()


def divisor(
    count: StepCount, unit: Unit, normalizer: Normalizer, *, length: float | int = 1.0, additive: bool = False
) -> float:
    """What the step's total is divided by.

    Args:
        count: of the whole step, all micro-batches and processes.
        unit: what one value belongs to.
        normalizer: ``token``: live tokens. ``sequence``: live rollouts or pairs. ``constant``: those times ``length``.
        length: tokens, for ``constant`` only; 1 gives sums per rollout, the longest response allowed gives Dr. GRPO's.
        additive: the sequence values are sums over tokens; only then can tokens divide them.

    Raises:
        ConfigError: tokens cannot divide pairs or sequence values that are not sums over tokens.
        DegenerateError: the step contains nothing.

    >>> step = StepCount(tokens=10, rollouts=2)
    >>> [divisor(step, "token", n, length=10) for n in ("token", "sequence", "constant")]
    [10.0, 2.0, 20.0]
    """
    _check_normalizer(unit, normalizer, additive=additive)
    if not length > 0:
        raise ConfigError(f"length must be above 0 tokens, received {length}. Use 1 for sums or the maximum length.")
    base = count.tokens if normalizer == "token" else count.pairs if unit == "pair" else count.rollouts
    if base == 0:
        raise DegenerateError(f"a step needs at least one {unit}, received {count}. Skip the step and log it.")
    return float(base) * (length if normalizer == "constant" else 1.0)


def _check_normalizer(unit: Unit, normalizer: Normalizer, *, additive: bool) -> None:
    if normalizer == "token" and (unit == "pair" or (unit == "sequence" and not additive)):
        raise ConfigError(
            f"the token normalizer needs values that are sums over tokens, received unit {unit}. "
            'Use "sequence" or "constant".'
        )
