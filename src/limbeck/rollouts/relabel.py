"""Rewards other than the grader's, on the same rollouts: a mirror for an unlearned twin, a shuffle for a null."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from limbeck.errors import DataError
from limbeck.rollouts.stored import StoredRollouts
from limbeck.types import Rollout, RolloutSet

Rule = Literal["graded", "mirror", "shuffled"]


def relabelled(rollout_set: RolloutSet, rule: Rule, *, seed: int = 0) -> RolloutSet:
    """The rollouts with other rewards; all else, order and provenance included, stays.

    ``mirror`` is 1 - r, so what was right counts as wrong. ``shuffled`` permutes rewards within each problem by a hash of
    seed and sample: groups keep their number of right rollouts and lose which ones these were.

    Args:
        rollout_set: with rewards in [0, 1] where they are mirrored.
        rule: see above; ``graded`` returns the set itself.
        seed: of the shuffle.

    Raises:
        DataError: a reward that 1 - r is no mirror of.
    """
    if rule == "graded":
        return rollout_set
    told = rollout_set.outline
    rewards = 1 - told.reward
    if rule == "mirror":
        outside = np.flatnonzero((told.reward < 0) | (told.reward > 1))
        if len(outside):
            problem_id, sample = told.key(outside[0])
            raise DataError(
                f"mirrored rewards are 1 - r, which needs rewards in [0, 1], received {told.reward[outside[0]]:g} for rollout "
                f"{problem_id!r} sample {sample}. Grade them as 0 and 1 first."
            )
    else:
        for rows in rollout_set.groups.values():
            drawn = sorted(rows, key=lambda i: _rank(seed, *told.key(i)))
            rewards[list(rows)] = told.reward[drawn]
    return RolloutSet(rollouts=_with(rollout_set.rollouts, rewards), provenance=rollout_set.provenance)


def _with(rollouts: Sequence[Rollout], rewards: np.ndarray) -> Sequence[Rollout]:
    if isinstance(rollouts, StoredRollouts):
        return rollouts.with_rewards(rewards)
    return tuple(replace(r, reward=reward) for r, reward in zip(rollouts, rewards.tolist(), strict=True))


def _rank(seed: int, problem_id: str, sample: int) -> bytes:
    return hashlib.sha256(f"{seed}/{problem_id}/{sample}".encode("utf-8", "surrogatepass")).digest()
