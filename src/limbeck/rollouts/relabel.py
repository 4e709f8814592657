"""Rewards other than the grader's, on the same rollouts: a mirror for an unlearned twin, a shuffle for a null."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Literal

from limbeck.errors import DataError
from limbeck.types import RolloutSet

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
    rollouts = rollout_set.rollouts
    if rule == "graded":
        return rollout_set
    if rule == "mirror":
        outside = [r for r in rollouts if not 0 <= r.reward <= 1]
        if outside:
            raise DataError(
                f"mirrored rewards are 1 - r, which needs rewards in [0, 1], received {outside[0].reward:g} for rollout "
                f"{outside[0].problem_id!r} sample {outside[0].sample}. Grade them as 0 and 1 first."
            )
        return RolloutSet(
            rollouts=tuple(replace(r, reward=1 - r.reward) for r in rollouts), provenance=rollout_set.provenance
        )
    out = list(rollouts)
    for rows in rollout_set.groups.values():
        drawn = sorted(rows, key=lambda i: _rank(seed, *rollouts[i].key))
        for row, source in zip(rows, drawn, strict=True):
            out[row] = replace(rollouts[row], reward=rollouts[source].reward)
    return RolloutSet(rollouts=tuple(out), provenance=rollout_set.provenance)


def _rank(seed: int, problem_id: str, sample: int) -> bytes:
    return hashlib.sha256(f"{seed}/{problem_id}/{sample}".encode("utf-8", "surrogatepass")).digest()
