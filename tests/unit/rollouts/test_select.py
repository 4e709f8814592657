"""Selections keep what they say, list what they drop, and do not depend on the order of the file."""

from __future__ import annotations

import json
import random

import pytest
import torch

from limbeck.errors import ConfigError, DegenerateError
from limbeck.rollouts import credit, select
from limbeck.types import Finish, Rollout, RolloutSet, is_right

RULES = ("one_per_group", "zip", "all", "length_matched")


def make(groups, order=None):
    """Groups: problem id to (reward, response length) a sample."""
    rollouts = [
        Rollout(
            problem_id=name,
            sample=i,
            prompt_ids=(1,),
            response_ids=tuple(range(length)),
            behavior_logprobs=(0.0,) * length,
            reward=float(reward),
            finish=Finish.STOP,
            response="x",
        )
        for name, samples in groups.items()
        for i, (reward, length) in enumerate(samples)
    ]
    if order is not None:
        random.Random(order).shuffle(rollouts)
    return RolloutSet(rollouts=tuple(rollouts), provenance={"model": "m"})


MIXED = {
    "a": [(1, 3), (0, 9), (1, 5), (0, 4), (0, 30)],  # c = 2, K - c = 3
    "b": [(1, 2), (1, 3)],
    "c": [(0, 2), (0, 3), (0, 4)],
    "d": [(0, 7), (1, 8)],
}


def test_correct_keeps_rewards_of_both_conventions():
    kept = select.correct(make(MIXED))
    assert kept.indices == (0, 2, 5, 6, 11)
    assert len(kept.dropped["reward_not_above"]) == 7
    signed = make({"a": [(1, 2), (-1, 2), (0, 2)]})
    assert select.correct(signed).indices == (0,)
    graded = make({"a": [(0.2, 2), (0.9, 2), (0, 2)]})
    assert select.correct(graded).indices == (0, 1)
    assert select.correct(graded, above=0.5).indices == (1,)
    with pytest.raises(DegenerateError, match="received none in 3"):
        select.correct(make({"c": MIXED["c"]}))


@pytest.mark.parametrize("order", [None, 1, 2])
def test_distinct_keeps_the_lowest_sample(order):
    rollouts = make({"a": [(1, 3), (0, 3), (1, 4)], "b": [(1, 3)]}, order)
    chosen = select.distinct(rollouts)
    assert {rollouts.rollouts[i].key for i in chosen.indices} == {("a", 0), ("a", 2), ("b", 0)}
    assert chosen.dropped == {"duplicate": (("a", 1),)}


def test_rows_are_nested_seeded_and_independent_of_order():
    def keys(num, seed, order=None):
        rollouts = make(MIXED, order)
        return {rollouts.rollouts[i].key for i in select.rows(rollouts, num, seed).indices}

    assert len(keys(5, 0)) == 5
    assert keys(5, 0) == keys(5, 0, order=7)
    assert keys(4, 0) < keys(5, 0)
    assert len({frozenset(keys(5, seed)) for seed in range(20)}) > 10
    assert keys(12, 0) == {r.key for r in make(MIXED).rollouts}
    with pytest.raises(ConfigError, match="between 1 and the 12 rollouts"):
        select.rows(make(MIXED), 13, 0)


def test_take_records_parent_and_dropped_ids():
    rollouts = make(MIXED)
    chosen = select.take(rollouts, select.correct(rollouts))
    again = select.take(chosen, select.rows(chosen, 2, 0))
    assert len(again) == 2
    first, second = again.provenance["selections"]
    assert (first["parent_digest"], second["parent_digest"]) == (rollouts.digest, chosen.digest)
    assert ["c", 0] in first["dropped"]["reward_not_above"]
    assert again.provenance["model"] == "m"
    json.dumps(again.provenance)


@pytest.mark.parametrize("rule", RULES)
def test_pairs_are_right_then_wrong_of_one_problem_whatever_the_order(rule):
    rollouts = make(MIXED)
    chosen = select.pairs(rollouts, rule, seed=0)
    for right, wrong in chosen.pairs:
        assert rollouts.rollouts[right].problem_id == rollouts.rollouts[wrong].problem_id
        assert (rollouts.rollouts[right].reward, rollouts.rollouts[wrong].reward) == (1.0, 0.0)
    assert (chosen.num_mixed, chosen.num_all_right, chosen.num_all_wrong) == (2, 1, 1)
    for order in range(3):
        shuffled = make(MIXED, order)
        again = select.pairs(shuffled, rule, seed=0)
        assert again.ids(shuffled) == chosen.ids(rollouts)
        assert again.record(shuffled) == chosen.record(rollouts)
    json.dumps(chosen.record(rollouts))


@pytest.mark.parametrize("rule", RULES)
def test_every_rollout_is_paired_or_listed_as_dropped(rule):
    rollouts = make(MIXED)
    chosen = select.pairs(rollouts, rule, seed=1)
    paired = {key for pair in chosen.ids(rollouts) for key in pair}
    dropped = [key for keys in chosen.dropped.values() for key in keys]
    assert len(dropped) == len(set(dropped))
    assert paired.isdisjoint(dropped)
    assert paired | set(dropped) == {r.key for r in rollouts.rollouts}
    assert chosen.dropped["all_right"] == (("b", 0), ("b", 1))
    assert len(chosen.dropped["all_wrong"]) == 3


def test_counts_and_weights_of_each_rule():
    rollouts = make(MIXED)
    sizes = {rule: len(select.pairs(rollouts, rule, seed=0).pairs) for rule in RULES}
    assert sizes == {"one_per_group": 2, "zip": 3, "all": 7, "length_matched": 2}  # zip: min(2, 3) + 1; all: 2 * 3 + 1
    every = select.pairs(rollouts, "all", seed=0)
    assert every.weights == (1 / 6,) * 6 + (1.0,)
    assert len(set(every.pairs)) == 7
    zipped = select.pairs(rollouts, "zip", seed=0).pairs
    assert len({i for pair in zipped for i in pair}) == 6  # disjoint
    assert set(select.pairs(rollouts, "zip", seed=0).weights) == {1.0}


def test_closest_lengths():
    rollouts = make(MIXED)
    ids = select.pairs(rollouts, "length_matched", seed=0).ids(rollouts)
    gaps = {tuple(sorted((a[1], b[1]))) for a, b in ids if a[0] == "a"}
    assert gaps <= {(0, 3), (2, 3)}  # lengths 3 and 4, or 5 and 4: both one apart, decided by hash
    seen = {select.pairs(rollouts, "length_matched", seed=s).ids(rollouts)[0] for s in range(20)}
    assert len(seen) == 2


def test_one_per_group_draws_every_pair_over_seeds():
    rollouts = make({"a": MIXED["a"]})
    seen = {select.pairs(rollouts, seed=s).ids(rollouts) for s in range(100)}
    assert len(seen) == 6


def test_no_mixed_group_and_unknown_rule():
    with pytest.raises(DegenerateError, match="received none in 2 problems"):
        select.pairs(make({"b": MIXED["b"], "c": MIXED["c"]}), seed=0)
    with pytest.raises(ConfigError, match=r'no rule "zipp"\. Did you mean "zip"\?'):
        select.pairs(make(MIXED), "zipp", seed=0)


@pytest.mark.parametrize("rule", RULES)
def test_paired_rows_are_those_of_the_pairs(rule):
    rollouts = make(MIXED)
    kept = select.paired(rollouts, rule, seed=3)
    assert set(kept.indices) == {row for pair in select.pairs(rollouts, rule, seed=3).pairs for row in pair}
    assert len(kept.indices) + len(kept.dropped["unpaired"]) == 12


def test_one_of_each_has_the_same_problems_at_every_share_and_turns_wrong_rows_right():
    groups = {f"p{i}": MIXED["a"] for i in range(20)} | {"b": MIXED["b"], "c": MIXED["c"]}
    rollouts = make(groups)
    told = rollouts.outline
    pairs = set(select.pairs(rollouts, seed=0).pairs)
    before: set[int] = set()
    for share in (0.0, 0.25, 0.5, 1.0):
        rows = list(select.one_of_each(rollouts, share, seed=0).indices)
        assert sorted(told.problems[p] for p in told.problem[rows]) == sorted(f"p{i}" for i in range(20))
        assert told.reward[rows].sum() == 20 * share
        right = {row for row in rows if told.reward[row] > 0}
        assert before <= right
        assert all(len({row, other} & set(rows)) == 1 for row, other in pairs)  # those that an objective of pairs reads
        before = right
    shuffled = make(groups, 5)
    keys = [{s.rollouts[i].key for i in select.one_of_each(s, 0.25, seed=0).indices} for s in (rollouts, shuffled)]
    assert keys[0] == keys[1]
    with pytest.raises(DegenerateError, match="received none in 1 problems"):
        select.one_of_each(make({"b": MIXED["b"]}), 0.5, seed=0)


def test_a_selection_within_another_keeps_both_reasons():
    rollouts = make(MIXED)
    outer = select.one_of_each(rollouts, 0.5, seed=0)
    right = select.within(select.correct(rollouts), outer)
    assert len(right.indices) == 1
    dropped = [key for keys in right.dropped.values() for key in keys]
    assert len(set(dropped)) == len(dropped) == 11
    assert set(right.dropped) == {"other_of_pair", "reward_not_above"}
    assert select.within(select.everything(rollouts), outer).indices == tuple(outer.indices)


@pytest.mark.parametrize("reward", [-1.0, -1e-9, 0.0, 1e-9, 0.3, 0.5, 1.0])
def test_one_rule_of_right_for_selection_pairs_and_credit(reward):
    group = make({"a": [(reward, 2), (-2, 2), (2, 2)]})
    rewards = torch.tensor([r.reward for r in group.rollouts], dtype=torch.float64)
    right = is_right(reward)
    assert right == (reward > 0)
    assert (0 in select.correct(group).indices) == right
    assert (0 in {wrong for _, wrong in select.pairs(group, "all", seed=0).pairs}) == (not right)
    assert bool(credit.correct(rewards)[0]) == right
    assert bool(credit.group_all_wrong(rewards[:2], ["a", "a"])[0]) == (not right)
