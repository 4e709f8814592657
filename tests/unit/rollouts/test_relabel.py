"""Mirrored and shuffled rewards: what they turn, what they keep, what they cannot be made from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from limbeck.errors import DataError
from limbeck.rollouts import credit
from limbeck.rollouts.relabel import relabelled
from limbeck.types import Finish, Rollout, RolloutSet


def rollouts(*rewards: list[float]) -> RolloutSet:
    made = [
        Rollout(
            problem_id=f"p{group}", sample=i, prompt_ids=(1,), response_ids=(2,), behavior_logprobs=(-1.0,),
            reward=reward, finish=Finish.STOP, response="",
        )
        for group, row in enumerate(rewards)
        for i, reward in enumerate(row)
    ]  # fmt: skip
    return RolloutSet(rollouts=tuple(made), provenance={"made": "by a test"})


GIVEN = rollouts([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0, 0.0, 0.0], [1.0, 1.0])


def test_a_mirror_negates_every_odd_credit_and_only_these_are_called_odd():
    groups = [r.problem_id for r in GIVEN.rollouts]
    kept, turned = (
        torch.tensor([r.reward for r in s.rollouts], dtype=torch.float64) for s in (GIVEN, relabelled(GIVEN, "mirror"))
    )
    odd = []
    for name in credit.CREDITS:
        one, other = (credit.assign(name, rewards, groups) for rewards in (kept, turned))
        if torch.allclose(one, -other, atol=1e-12):
            odd.append(name)
    assert tuple(odd) == credit.ODD


def test_a_shuffle_keeps_each_group_s_rewards_whatever_the_order_of_the_file():
    shuffled = relabelled(GIVEN, "shuffled", seed=3)
    assert [r.key for r in shuffled.rollouts] == [r.key for r in GIVEN.rollouts]
    for rows in GIVEN.groups.values():
        assert sorted(shuffled.rollouts[i].reward for i in rows) == sorted(GIVEN.rollouts[i].reward for i in rows)
    assert [r.reward for r in shuffled.rollouts] != [r.reward for r in GIVEN.rollouts]
    assert [r.reward for r in relabelled(GIVEN, "shuffled", seed=4).rollouts] != [r.reward for r in shuffled.rollouts]


def test_graded_is_the_set_itself_and_other_rewards_have_no_mirror():
    assert relabelled(GIVEN, "graded") is GIVEN
    graded = RolloutSet(rollouts=(replace(GIVEN.rollouts[0], reward=-1.0),), provenance={})
    with pytest.raises(DataError, match=r"needs rewards in \[0, 1\], received -1 for rollout 'p0' sample 0"):
        relabelled(graded, "mirror")
