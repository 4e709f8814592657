"""Every row of the table at the far ends of what it may be given: values, metrics and gradients stay finite, or a sentence."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from tests.laws.batches import Batch, gradients, make, settings, tracked

from limbeck.errors import DegenerateError, NotFiniteError
from limbeck.objectives import INPUTS, OBJECTIVES, evaluate, inputs, knobs
from limbeck.objectives.contract import STUDENT_INPUTS
from limbeck.objectives.estimators import k3
from limbeck.rollouts import credit


def rows(wanted=lambda row: True):
    """The rows of the table that are wanted, one test each."""
    return pytest.mark.parametrize(
        "row", [pytest.param(row, id=name) for name, row in OBJECTIVES.items() if wanted(row)]
    )


every, reading_logits = rows(), rows(lambda row: "logits" in inputs(row))
LENGTHS = (3, 1, 4, 2)
GIVEN = ("behavior_logprobs", "old_logprobs", "reference_logprobs", "teacher_logprobs")


def narrow(row, lengths=LENGTHS, **replaced) -> Batch:
    """A float32 batch; ``replaced`` holds one number for every cell of an input that the row reads."""
    batch = make(row, lengths)
    found = {name: x if x.dtype == torch.int64 else x.float() for name, x in batch.inputs.items()}
    found |= {name: torch.full_like(found[name], value) for name, value in replaced.items() if name in found}
    return Batch(found, batch.mask)


def finite(row, batch, **given) -> None:
    """Values, metrics and the gradient of everything that the student says."""
    batch, leaves = tracked(batch)
    out = evaluate(row, *batch, settings(row, **given))
    found = {"values": out.values.detach(), **out.metrics}
    grads = gradients(out.values.sum(), leaves) if out.values.requires_grad else []
    found |= {f"gradient of {name}": grad for name, grad in zip(batch.inputs, grads, strict=False)}
    assert not {name: tensor for name, tensor in found.items() if not bool(torch.isfinite(tensor).all())}


def others(value):
    return dict.fromkeys(GIVEN, value)


CASES = {
    "every token certain": {**others(0.0), "logprobs": 0.0, "entropy": 0.0},
    "given log-probs of -1e9": others(-1e9),
    "a student at -1e9": {"logprobs": -1e9},
    "a student 100 nats below all others": {**others(-0.01), "logprobs": -100.0},
    "a student 10,000 nats below all others": {**others(-0.01), "logprobs": -1e4},
    "all at -1e9": {**others(-1e9), "logprobs": -1e9},
    "a signal of 1e9": {"signal": 1e9},
    "a signal of -1e9": {"signal": -1e9},
    "no advantage anywhere": {"advantages": 0.0, "rewards": 0.0, "correct": 0.0, "group_all_wrong": 1.0},
    "every reward 1": {"advantages": 0.0, "rewards": 1.0, "correct": 1.0, "group_all_wrong": 0.0},
    "advantages of 1e9, ratios of 1": {"advantages": 1e9},
    "advantages of -1e9, ratios of 1": {"advantages": -1e9},
    "logits of 1e4": {"logits": 1e4, "teacher_logits": -1e4, "reference_logits": -1e4},
}


@every
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_far_ends_stay_finite(row, case):
    finite(row, narrow(row, **case))


@every
def test_one_token_answers(row):
    finite(row, narrow(row, lengths=(1, 1)))


@reading_logits
def test_peaked_logits_at_far_temperatures(row):
    batch = narrow(row)
    given = [name for name in batch.inputs if name.endswith("logits")]
    wide = Batch({**batch.inputs, **{name: 30 * batch.inputs[name] for name in given}}, batch.mask)
    for temperature in (1e-3, 1.0, 100.0) if "kd_temperature" in knobs(row) else (None,):
        finite(row, wide, **({} if temperature is None else {"kd_temperature": temperature}))


@reading_logits
@pytest.mark.parametrize("vocab", [2, 200_000])
def test_vocabularies_of_two_and_of_two_hundred_thousand(row, vocab):
    """Against the plain formula at the same float64 numbers, which the laws compare with the reference at 7 words."""
    batch = make(row, (1, 1))
    draw = torch.Generator().manual_seed(0)
    for name in (name for name in batch.inputs if name.endswith("logits")):
        batch.inputs[name] = 2 * torch.randn(2, 1, vocab, generator=draw, dtype=torch.float64)
    low = Batch({n: x if x.dtype == torch.int64 else x.float() for n, x in batch.inputs.items()}, batch.mask)
    finite(row, low)
    exact, single = (evaluate(row, *b, settings(row)).values for b in (batch, low))
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)


@every
def test_what_is_not_finite_is_named(row):
    names = [name for name in inputs(row) if INPUTS[name].axes == "batch time" and name != "mask"]
    for name, bad in product(names, (math.nan, math.inf, -math.inf)):
        batch = narrow(row)
        batch.inputs[name][2, 1] = bad
        if name == "teacher_logprobs" and bad == -math.inf:  # a server's word for "not among my likeliest"
            finite(row, batch)
            continue
        with pytest.raises(NotFiniteError, match=rf"{name} must be finite wherever the mask is, received 1 bad cells"):
            evaluate(row, *batch, settings(row))


@every
def test_nothing_live_is_a_sentence(row):
    batch = narrow(row)
    with pytest.raises(DegenerateError, match="at least one live token"):
        evaluate(row, batch.inputs, torch.zeros_like(batch.mask), settings(row))


def test_only_the_student_carries_a_gradient():
    assert set(STUDENT_INPUTS) == {"logprobs", "entropy", "logits"}


def test_k3_is_the_formula_within_20_nats_and_its_tangent_beyond():
    s = torch.tensor([-1.0, -19.0, -30.0, -500.0], dtype=torch.float64, requires_grad=True)
    values = k3(s, torch.zeros_like(s))
    (slope,) = torch.autograd.grad(values.sum(), s)
    e = math.exp(20)
    expected = [math.exp(1) - 2, math.exp(19) - 20, 11 * e - 31, 481 * e - 501]
    torch.testing.assert_close(values.detach(), torch.tensor(expected, dtype=torch.float64))
    steep = [1 - math.exp(1), 1 - math.exp(19), 1 - e, 1 - e]
    torch.testing.assert_close(slope, torch.tensor(steep, dtype=torch.float64))


@pytest.mark.parametrize("name", credit.CREDITS)
@pytest.mark.parametrize(
    "rewards",
    [[0.0] * 4, [1.0] * 4, [0.1] * 3 + [0.1], [1e30] * 4, [1e30, 0.0, 0.0, 0.0], [1e-300, 0.0], [1e300, 0.0, 1e300]],
    ids=str,
)
def test_credit_of_any_rewards_is_finite_and_of_equal_ones_constant(name, rewards):
    found = credit.assign(name, torch.tensor(rewards, dtype=torch.float64), ["p"] * len(rewards))
    assert bool(torch.isfinite(found).all())
    if len(set(rewards)) == 1:
        assert set(found.tolist()) <= {0.0, credit.BIAS}


@pytest.mark.parametrize("name", sorted(set(credit.CREDITS) - {"max_rl"}))
def test_credit_of_opposite_huge_rewards_is_finite(name):
    found = credit.assign(name, torch.tensor([1e30, -1e30], dtype=torch.float64), ["p", "p"])
    assert bool(torch.isfinite(found).all())
    assert found[0] > found[1]
