"""Rewards of one problem's rollouts become advantages: data, computed once, never part of an objective.

Methods then differ in what they say and not in how they were fed. Every rule is a pure function of the rewards of
one group; a group is the rollouts of one problem. A constant group gets exactly 0 by comparison, not 0 / 1e-8,
except where a rule adds a bias on purpose.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import ConfigError, DataError, DegenerateError, ShapeError, nearest
from limbeck.types import RIGHT_ABOVE

Group = Float[Tensor, " group"]
BIAS = 0.1  # arXiv 2606.23740 and krafton-ai/Offline-GRPO


def centred(rewards: Group) -> Group:
    """Reward minus the group's mean. Source: krafton-ai/Offline-GRPO with its standard deviation switched off.

    >>> centred(torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist()
    [0.75, -0.25, -0.25, -0.25]
    """
    return torch.zeros_like(rewards) if _constant(rewards) else rewards - rewards.mean()


def zscore(rewards: Group, *, ddof: int = 0) -> Group:
    """Centred reward over the group's standard deviation. ``ddof`` 0 is our reading; 1 shrinks by sqrt((K-1)/K).

    >>> zscore(torch.tensor([1.0, 1.0, 0.0, 0.0])).tolist()
    [1.0, 1.0, -1.0, -1.0]
    """
    if _constant(rewards):
        return torch.zeros_like(rewards)
    unit = rewards / rewards.abs().max()  # squares of rewards far from 1 leave float64; of 0 and 1 nothing changes
    return centred(unit) / unit.std(correction=ddof)


def loo(rewards: Group) -> Group:
    """Reward minus the mean of the other rollouts, which is K / (K - 1) times ``centred``.

    Raises:
        DegenerateError: a group of one has no others.
    """
    size = len(rewards)
    if size < 2:
        raise DegenerateError("loo needs at least 2 rollouts per problem, received 1. Sample more, or use centred.")
    return centred(rewards) * size / (size - 1)


def centred_bias(rewards: Group) -> Group:
    """Reward minus mean plus 0.1, in all-wrong groups too. Source: arXiv 2606.23740."""
    return centred(rewards) + BIAS


def krafton(rewards: Group) -> Group:
    """``centred``, but set to 0.1 where every reward of the group is positive. Source: krafton-ai/Offline-GRPO."""
    return torch.full_like(rewards, BIAS) if bool((rewards > 0).all()) else centred(rewards)


def max_rl(rewards: Group) -> Group:
    """Centred reward over the group's mean; 0 where the mean is 0. Our reading, to be checked with its source.

    Raises:
        DataError: a negative reward.
    """
    if bool((rewards < 0).any()):
        raise DataError(
            f"max_rl needs rewards of at least 0, received {rewards.min().item()}. Shift the rewards or use centred."
        )
    return centred(rewards) if _constant(rewards) else centred(rewards) / rewards.mean()


CREDITS: dict[str, Callable[..., Tensor]] = {
    "centred": centred,
    "zscore": zscore,
    "loo": loo,
    "centred_bias": centred_bias,
    "krafton": krafton,
    "max_rl": max_rl,
}
ODD = ("centred", "zscore", "loo")  # negative rewards, or 1 - r, give the negative of every advantage


def assign(
    name: str, rewards: Float[Tensor, " batch"], groups: Sequence[Hashable] | Tensor, **settings: int
) -> Float[Tensor, " batch"]:
    """Advantages of all rollouts, each from its own group, in the order given.

    Args:
        name: a key of ``CREDITS``.
        rewards: one per rollout.
        groups: the problem of each rollout, as ids of any kind.
        settings: what the rule takes besides the rewards, e.g. ``ddof=1`` for ``zscore``.

    >>> assign("centred", torch.tensor([1.0, 1.0, 0.0]), ["p1", "p2", "p1"]).tolist()
    [0.5, 0.0, -0.5]
    """
    if name not in CREDITS:
        raise ConfigError(f'credit must be a known rule, received "{name}". {nearest(name, CREDITS)}')
    out = torch.zeros_like(rewards)
    for indices in _members(groups, len(rewards)).values():
        out[indices] = CREDITS[name](rewards[indices], **settings)
    return out


def correct(rewards: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """1 where the reward says right (:func:`limbeck.types.is_right`), else 0: what objectives read as ``correct``."""
    return (rewards > RIGHT_ABOVE).to(rewards.dtype)


def group_all_wrong(rewards: Float[Tensor, " batch"], groups: Sequence[Hashable] | Tensor) -> Float[Tensor, " batch"]:
    """1 where no rollout of the same problem is right, else 0.

    >>> group_all_wrong(torch.tensor([1.0, 0.0, 0.0]), ["p1", "p2", "p1"]).tolist()
    [0.0, 1.0, 0.0]
    """
    out = torch.zeros_like(rewards)
    for indices in _members(groups, len(rewards)).values():
        out[indices] = float(not bool(correct(rewards[indices]).any()))
    return out


def per_token(advantages: Float[Tensor, " rows"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """One advantage per rollout on each of its live tokens, 0 elsewhere."""
    if len(advantages) != len(mask):
        raise ShapeError(
            f"advantages must be (batch,) = ({len(mask)},), received {tuple(advantages.shape)}. Give one per row."
        )
    return torch.where(mask, advantages[:, None], 0.0)


def _constant(rewards: Group) -> bool:
    return bool((rewards == rewards[0]).all())


def _members(groups: Sequence[Hashable] | Tensor, size: int) -> dict[Hashable, list[int]]:
    keys = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if len(keys) != size:
        raise ShapeError(
            f"groups must have one entry per reward = {size}, received {len(keys)}. Give each its problem."
        )
    members: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    return members
