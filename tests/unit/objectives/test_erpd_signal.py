"""The token signal: what it is zero for, how it turns, how it is scaled, and that a mirror doubles it."""

import pytest
import torch

from limbeck.errors import DegenerateError, ShapeError
from limbeck.objectives import OBJECTIVES, check_knobs, evaluate
from limbeck.objectives.erpd import combined, drift, mirrored, signal_scale, token_signal
from limbeck.rollouts.credit import centred, per_token

MASK = torch.tensor([[True, True, False], [True, False, False]])
GEN = torch.Generator().manual_seed(0)
FIRST, SECOND = (-torch.rand(2, 3, generator=GEN, dtype=torch.float64) for _ in range(2))


def test_no_step_no_signal_and_swapping_negates():
    assert not token_signal(FIRST, FIRST, MASK).any()
    assert torch.equal(token_signal(FIRST, SECOND, MASK), -token_signal(SECOND, FIRST, MASK))
    assert not token_signal(FIRST, SECOND, MASK)[~MASK].any()


def test_scale_clamp_and_length():
    difference = torch.where(MASK, FIRST - SECOND, 0.0)
    torch.testing.assert_close(token_signal(FIRST, SECOND, MASK, scale=0.5), 2 * difference)
    assert token_signal(100 * FIRST, 0 * FIRST, MASK).abs().max() == 5
    per_length = token_signal(FIRST, SECOND, MASK, length="inverse")
    torch.testing.assert_close(per_length, difference / torch.tensor([[2.0], [1.0]], dtype=torch.float64))
    assert signal_scale(FIRST, SECOND, MASK) == pytest.approx(difference[MASK].numpy().std())


def test_combination():
    a, b = torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([[3.0, 1.0, 0.0]])
    assert combined([a, b]).tolist() == [[2.0, 0.0, 1.0]]
    assert combined([a, b], rule="agree").tolist() == [[2.0, 0.0, 1.0]]
    assert combined([2 * a, b]).tolist() == [[2.5, -0.5, 2.0]]
    assert combined([2 * a, b], rule="agree").tolist() == [[2.5, 0.0, 2.0]]


def test_refusals():
    with pytest.raises(DegenerateError, match="some spread"):
        signal_scale(FIRST, FIRST, MASK)
    with pytest.raises(DegenerateError, match="at least one live token"):
        drift(FIRST, SECOND, torch.zeros_like(MASK))
    with pytest.raises(ShapeError, match="one or more of one shape"):
        combined([])


def test_drift_is_zero_at_the_base_and_positive_elsewhere():
    assert drift(FIRST, FIRST, MASK) == 0
    d = (FIRST - SECOND)[MASK]
    assert drift(FIRST, SECOND, MASK) == pytest.approx((d.exp() - d - 1).mean().item())


@pytest.mark.parametrize("name", ["erpd_sapo", "erpd_ce", "erpd_mse"])
def test_one_small_step_and_its_mirror_double_the_signal(name):
    """Softmax policy over 4 answers: error of 'mirror = 2 base' falls tenfold with a tenfold smaller step."""
    row = OBJECTIVES[name]
    answers = torch.tensor([0, 1, 2, 3, 1, 0])
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    start = torch.tensor([0.3, -0.2, 0.5, 0.0], dtype=torch.float64)
    mask = torch.ones(6, 1, dtype=torch.bool)
    base = start.log_softmax(-1)[answers][:, None]

    def scores(rewards, rate):
        logits = start.clone().requires_grad_()
        x = {"behavior_logprobs": base, "reference_logprobs": base, "rewards": rewards}
        x |= {"logprobs": logits.log_softmax(-1)[answers][:, None], "advantages": per_token(centred(rewards), mask)}
        (g,) = torch.autograd.grad(evaluate(row, x, mask, check_knobs(row, {})).values.sum(), logits)
        return (start - rate * g).log_softmax(-1)[answers][:, None]

    errors = []
    for rate in (1e-2, 1e-3):
        tuned, twin = scores(rewards, rate), scores(mirrored(rewards), rate)
        single = token_signal(tuned, base, mask)
        errors.append((token_signal(tuned, twin, mask) - 2 * single).norm() / single.norm())
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
