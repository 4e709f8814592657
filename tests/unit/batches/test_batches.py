"""Alignment, planning, cutting and collating: what is scored is exactly the response, whatever else is in the batch."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck import folders
from limbeck.batches import score
from limbeck.batches.align import per_token, response_mask
from limbeck.batches.collate import TrainingData, collate, micro_batches, plan
from limbeck.errors import DegenerateError, ProvenanceError, ShapeError
from limbeck.rollouts import stored
from limbeck.types import Finish, Rollout, RolloutSet


def rollout(name, prompt, response, sample=0, reward=1.0):
    return Rollout(
        problem_id=name,
        sample=sample,
        prompt_ids=tuple(prompt),
        response_ids=tuple(response),
        behavior_logprobs=tuple(-0.1 * (i + 1) for i in range(len(response))),
        reward=reward,
        finish=Finish.STOP,
        response="",
    )


ROWS = [
    rollout("a", range(2), [7, 8, 9, 10, 11, 12, 0]),
    rollout("b", range(9), [5]),
    rollout("c", [3], [4, 4]),
    rollout("d", [3, 3], [0, 1, 0]),  # 0 is an ordinary token here, though padding is 0 too
]


def data(items=None, **columns):
    items = items or [(i,) for i in range(len(ROWS))]
    return TrainingData(rollouts=ROWS, items=items, weights=[1.0] * len(items), columns=columns)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [1]])
def test_the_scored_tokens_of_every_row_are_its_response(order):
    batch = collate(data(), order, ("behavior_logprobs",))
    for position, row in enumerate(order):
        mask = batch.mask[position]
        assert batch.ids[position, 1:][mask].tolist() == list(ROWS[row].response_ids)
        torch.testing.assert_close(
            batch.inputs["behavior_logprobs"][position][mask], torch.tensor(ROWS[row].behavior_logprobs)
        )
        assert batch.lengths[position] == len(ROWS[row].prompt_ids) + len(ROWS[row].response_ids)


def test_a_pad_that_is_also_a_token_does_not_hide_it():
    mask = response_mask(torch.tensor([2]), torch.tensor([5]), width=8)
    assert mask.sum() == 3


def test_scores_of_other_rollouts_are_refused():
    mask = response_mask(torch.tensor([1]), torch.tensor([3]), width=3)
    with pytest.raises(ProvenanceError, match=r"one value per response token = \[2\], received \[3\]"):
        per_token([[0.0, 0.0, 0.0]], mask)


def test_advantages_sit_on_live_tokens_only():
    batch = collate(data(advantages=[1.0, -2.0, 3.0, 4.0]), [0, 1], ("advantages",))
    assert batch.inputs["advantages"][1].sum() == -2.0
    assert (batch.inputs["advantages"][~batch.mask] == 0).all()


def test_pairs_are_indices_of_chosen_and_rejected():
    batch = collate(data(items=[(0, 1), (3, 2)]), [1, 0], ("pairs", "pair_weights"))
    chosen, rejected = batch.inputs["pairs"].T
    assert batch.row_index[chosen].tolist() == [3, 0]
    assert batch.row_index[rejected].tolist() == [2, 1]


def test_a_missing_column_is_named():
    with pytest.raises(ShapeError, match="reads teacher_logprobs; these data have rewards"):
        collate(data(rewards=[0.0] * 4), [0], ("teacher_logprobs",))


def test_no_items_is_an_error_and_not_a_loss_of_zero():
    with pytest.raises(DegenerateError, match="received 0 from 4 rollouts"):
        TrainingData(rollouts=ROWS, items=[], weights=[])


def test_micro_batches_hold_every_item_once_within_the_budget():
    items = [3, 0, 2, 1]
    cuts = micro_batches(data(), items, token_budget=12)
    assert sorted(i for cut in cuts for i in cut) == sorted(items)
    for cut in cuts:
        assert len(cut) == 1 or len(cut) * max(data().width(i) for i in cut) <= 12


def test_every_item_is_used_once_before_any_is_used_twice():
    keys = [f"p{i}" for i in range(10)]
    used = [item for step in plan(keys, batch_size=4, num_steps=5, seed=3) for item in step]
    assert sorted(used[:10]) == sorted(used[10:]) == list(range(10))
    assert used[:10] != used[10:]


def test_shared_rows_of_two_arms_come_in_the_same_order():
    everything = [f"p{i}" for i in range(40)]
    some = everything[::2]
    whole = [everything[i] for step in plan(everything, batch_size=8, num_steps=5, seed=1) for i in step]
    part = [some[i] for step in plan(some, batch_size=4, num_steps=5, seed=1) for i in step]
    assert [key for key in whole if key in set(some)] == part


def test_seeds_change_the_order():
    keys = [f"p{i}" for i in range(20)]
    first, second = (list(plan(keys, batch_size=20, num_steps=1, seed=seed)) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("limit", [stored.IN_MEMORY, 8])
def test_stored_scores_are_read_a_rollout_at_a_time(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "IN_MEMORY", limit)
    monkeypatch.setattr(score, "READ_ROWS", 3)
    given = [[-0.5] * 6 + [-math.inf], [math.nan], [-1.25, -2.0], [-math.inf, 0.0, -3.0]]
    rollout_set = RolloutSet(rollouts=tuple(ROWS), provenance={})
    found = score.read_scores(score.write_scores(tmp_path / "s", rollout_set, given, model_digest="m"), rollout_set)
    assert [found[2], found[-1], *found[:1]] == [given[2], given[3], given[0]]
    assert math.isnan(found[1][0])
    floors, count = score.floored(found)
    assert (floors[0], floors[3], count) == ([-0.5] * 6 + [-20.0], [-20.0, 0.0, -3.0], 2)
    assert found[3] == given[3]
    assert len(found) == len(floors) == 4


def test_scores_of_other_rows_are_refused(tmp_path):
    rollout_set, fewer = (RolloutSet(rollouts=tuple(rows), provenance={}) for rows in (ROWS, ROWS[:3]))
    given = [[0.0] * len(r.response_ids) for r in ROWS]
    for rows, scores in ((fewer, given[:3]), (RolloutSet(rollouts=tuple(ROWS[::-1]), provenance={}), given[::-1])):
        folder = score.write_scores(tmp_path / "s", rows, scores, model_digest="m", overwrite=True)
        manifest = folder / "manifest.json"
        told = {**folders.read_manifest(folder), "rollouts_digest": rollout_set.digest}
        manifest.write_bytes(folders.manifest_bytes(told))
        with pytest.raises(ProvenanceError, match="a row for each rollout, in the rollouts' order"):
            score.read_scores(folder, rollout_set)
