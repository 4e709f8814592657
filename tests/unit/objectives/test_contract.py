"""The door: what is refused, in which words, and what a caller gets."""

import math

import pytest
import torch

from limbeck.errors import ConfigError, DegenerateError, ShapeError
from limbeck.objectives import OBJECTIVES, check_knobs, evaluate, find, inputs, knobs
from limbeck.objectives.reduce import StepCount, count, divisor, total

MASK = torch.tensor([[True, True, False], [True, False, False]])
LOGPROBS = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]])


def test_inputs_and_knobs_come_from_the_signature():
    assert inputs(find("dpo")) == ("logprobs", "reference_logprobs", "mask", "pairs", "pair_weights")
    assert list(knobs(find("dpo"))) == ["beta", "label_smoothing"]
    assert knobs(find("dpo"))["beta"].default == 0.1
    assert knobs(find("rift:paper-printed"))["lam"].required
    assert check_knobs(find("dpo"), {"beta": 1}) == {"beta": 1.0, "label_smoothing": 0.0}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("dpo", {"betta": 1.0}, 'dpo has no setting "betta" .dpo takes beta, label_smoothing.. Did you mean "beta"'),
        ("dpo", {"beta": 0.0}, r"must be a number in \(0, inf\), received 0.0. The default is 0.1"),
        ("dpo", {"beta": "big"}, "must be a number"),
        ("dpo", {"beta": True}, "must be a number"),
        ("dpo", {"beta": math.nan}, "must be a number"),
        ("sft", {"beta": 1.0}, "sft takes no settings"),
        ("rift:paper-printed", {}, "needs a value for lam"),
        ("rift:source", {"length_norm": 1}, "must be true or false, received 1"),
    ],
)
def test_settings_are_refused_in_a_sentence(name, given, message):
    with pytest.raises(ConfigError, match=message):
        check_knobs(find(name), given)


@pytest.mark.parametrize(("name", "message"), [("dppo", 'Did you mean "ppo"'), ("rift", "Three"), ("rft", "selection")])
def test_unknown_objectives_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        find(name)


def test_a_missing_tensor_is_named_with_its_remedy():
    with pytest.raises(
        ConfigError, match="`dpo` reads reference_logprobs and pairs and pair_weights; this batch has none"
    ):
        evaluate(find("dpo"), {"logprobs": LOGPROBS}, MASK, {})


@pytest.mark.parametrize("shape", [(2,), (2, 1), (1, 3), (3, 2), (2, 3, 1)])
def test_nothing_is_broadcast(shape):
    with pytest.raises(ShapeError, match=r"advantages must be \(batch, time\) = \(2, 3\), received .*credit.per_token"):
        evaluate(find("offline_grpo:advantage-nll"), {"logprobs": LOGPROBS, "advantages": torch.ones(shape)}, MASK, {})


def test_dead_batches_and_unknown_scores_are_refused():
    with pytest.raises(DegenerateError, match="at least one live token"):
        evaluate(find("sft"), {"logprobs": LOGPROBS}, torch.zeros_like(MASK), {})
    broken = LOGPROBS.clone()
    broken[1, 0] = math.nan
    with pytest.raises(
        DegenerateError, match=r"logprobs must be finite wherever the mask is, received 1 bad .* \(1, 0\)"
    ):
        evaluate(find("sft"), {"logprobs": broken}, MASK, {})
    with pytest.raises(ShapeError, match="mask must be boolean"):
        evaluate(find("sft"), {"logprobs": LOGPROBS}, MASK.long(), {})


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        (torch.tensor([[0, 0]]), DegenerateError, "two different rows"),
        (torch.tensor([[0, 2]]), DegenerateError, "below 2"),
        (torch.empty(0, 2, dtype=torch.long), DegenerateError, "received 0 pairs"),
        (torch.tensor([0, 1]), ShapeError, "pairs, 2"),
        (torch.tensor([[0.0, 1.0]]), ShapeError, "whole numbers"),
    ],
)
def test_pairs_are_checked(pairs, error, message):
    batch = {
        "logprobs": LOGPROBS,
        "reference_logprobs": LOGPROBS,
        "pairs": pairs,
        "pair_weights": torch.ones(len(pairs)),
    }
    with pytest.raises(error, match=message):
        evaluate(find("dpo"), batch, MASK, {})


def test_half_precision_is_widened_and_the_output_masked():
    out = evaluate(find("sft"), {"logprobs": LOGPROBS.bfloat16()}, MASK, {})
    assert out.values.dtype == torch.float32
    assert out.values.tolist() == [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]
    assert out.metrics["nll"].tolist() == out.values.tolist()


def test_the_three_divisors_of_the_worked_example():
    # Rollouts of 1 and 9 tokens worth 1.0 and 2.0 each: 19 / 10, (1 + 2) / 2, 19 / 20.
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 0] = mask[1] = True
    values = torch.where(mask, torch.tensor([[1.0], [2.0]]), torch.tensor(float("nan")))
    step = count(mask)
    assert step == StepCount(tokens=10, rollouts=2)
    got = {
        n: float(total(values, "token", mask, n)) / divisor(step, "token", n, length=10)
        for n in ("token", "sequence", "constant")
    }
    assert got == pytest.approx({"token": 1.9, "sequence": 1.5, "constant": 0.95})


def test_divisors_refuse_what_they_cannot_mean():
    step = StepCount(tokens=10, rollouts=2, pairs=1)
    for unit in ("pair", "sequence"):
        with pytest.raises(ConfigError, match="sums over tokens"):
            divisor(step, unit, "token")
    assert divisor(step, "sequence", "token", additive=True) == 10
    assert divisor(step, "pair", "constant", length=4) == 4
    with pytest.raises(DegenerateError, match="Skip the step"):
        divisor(StepCount(0, 0), "token", "token")
    with pytest.raises(ConfigError, match="length"):
        divisor(step, "token", "constant", length=0)


def test_every_row_is_named_after_its_key_and_can_be_described():
    for name, row in OBJECTIVES.items():
        assert row.name == name
        assert row.function.__doc__
        assert all(knob.meaning for knob in knobs(row).values()), name
        meanings = [knob.meaning for knob in knobs(row).values()]
        assert len(meanings) == len(set(meanings)), name
