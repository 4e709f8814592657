"""Advantages of small groups against numbers a reader can redo."""

import pytest
import torch

from limbeck.errors import ConfigError, DataError, DegenerateError, ShapeError
from limbeck.rollouts.credit import CREDITS, assign, correct, group_all_wrong, loo, max_rl, per_token, zscore

# K = 4, right/wrong at c = 1; 2; 3
EXPECTED = {
    "centred": [(0.75, -0.25), (0.5, -0.5), (0.25, -0.75)],
    "zscore": [(3**0.5, -(3**-0.5)), (1, -1), (3**-0.5, -(3**0.5))],
    "loo": [(1, -1 / 3), (2 / 3, -2 / 3), (1 / 3, -1)],
    "centred_bias": [(0.85, -0.15), (0.6, -0.4), (0.35, -0.65)],
    "krafton": [(0.75, -0.25), (0.5, -0.5), (0.25, -0.75)],
    "max_rl": [(3, -1), (1, -1), (1 / 3, -1)],
}


def group(right: int) -> torch.Tensor:
    return torch.tensor([1.0] * right + [0.0] * (4 - right), dtype=torch.float64)


@pytest.mark.parametrize("name", CREDITS)
def test_published_table(name):
    for right, (plus, minus) in enumerate(EXPECTED[name], start=1):
        assert CREDITS[name](group(right)).tolist() == pytest.approx([plus] * right + [minus] * (4 - right))


@pytest.mark.parametrize("name", CREDITS)
def test_group_sums_and_constant_groups(name):
    bias = {"centred_bias": (0.1, 0.1), "krafton": (0.0, 0.1)}.get(name, (0.0, 0.0))
    for right, per_rollout in ((0, bias[0]), (4, bias[1])):
        assert CREDITS[name](group(right)).tolist() == pytest.approx([per_rollout] * 4, abs=0)
    mixed = 0.4 if name == "centred_bias" else 0.0
    assert CREDITS[name](group(1)).sum().item() == pytest.approx(mixed, abs=1e-12)


def test_a_constant_group_is_exactly_zero_in_single_precision():
    rewards = torch.full((7,), 0.1)
    assert (rewards - rewards.mean()).abs().sum() > 0  # the unguarded form is what the guard is for
    for name in ("centred", "zscore", "loo"):
        assert CREDITS[name](rewards).tolist() == [0.0] * 7


def test_zscore_is_invariant_to_scale_and_shift_and_ddof_shrinks_it():
    rewards = torch.tensor([0.1, 0.7, 0.2, 0.9], dtype=torch.float64)
    torch.testing.assert_close(zscore(3 * rewards - 2), zscore(rewards), rtol=1e-9, atol=0)
    torch.testing.assert_close(zscore(rewards, ddof=1), zscore(rewards) * 0.75**0.5, rtol=1e-9, atol=0)


def test_assign_keeps_order_and_separates_groups():
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0])
    for groups in (["a", "b", "a", "b"], torch.tensor([7, 3, 7, 3])):
        assert assign("centred", rewards, groups).tolist() == [0.5, 0.0, -0.5, 0.0]
    assert assign("zscore", rewards, ["a", "b", "a", "b"], ddof=1)[0].item() == pytest.approx(0.5**0.5)


def test_per_token_leaves_masked_cells_alone():
    mask = torch.tensor([[True, False], [True, True]])
    assert per_token(torch.tensor([2.0, -1.0]), mask).tolist() == [[2.0, 0.0], [-1.0, -1.0]]


def test_outcome_columns():
    rewards = torch.tensor([1.0, 0.0, -0.2, 0.5])
    assert correct(rewards).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert group_all_wrong(rewards, ["a", "b", "b", "c"]).tolist() == [0.0, 1.0, 1.0, 0.0]
    assert group_all_wrong(rewards, ["a", "a", "b", "b"]).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_refusals():
    with pytest.raises(ConfigError, match=r'received "z_score"\. Did you mean "zscore"'):
        assign("z_score", torch.ones(1), ["a"])
    with pytest.raises(ShapeError, match="one entry per reward = 2, received 1"):
        assign("centred", torch.ones(2), ["a"])
    with pytest.raises(ShapeError, match="must be"):
        per_token(torch.ones(3), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(DegenerateError, match="at least 2 rollouts"):
        loo(torch.ones(1))
    with pytest.raises(DataError, match="at least 0, received -1"):
        max_rl(torch.tensor([-1.0, 1.0]))
