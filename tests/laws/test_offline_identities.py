"""Offline and preference objectives: limits, identities between siblings, and numbers that a reader can redo."""

import math

import pytest
import torch
from tests.laws.batches import gradients, loss_of, make, settings, tracked
from tests.laws.probes import LENGTHS, close, joined, one, pull, same

from limbeck.objectives import OBJECTIVES, evaluate
from limbeck.objectives.reduce import count, divisor, total
from limbeck.rollouts.credit import assign, per_token

# ---------------------------------------------------------------------------------------------------- offline


def test_selection_and_reward_weighting_differ_by_the_share_of_right_rollouts():
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    batch = joined("sft", "rift:reward-weighted", rewards=rewards)
    right = rewards > 0
    s, mask = batch.inputs["logprobs"], batch.mask
    rft = evaluate(OBJECTIVES["sft"], {"logprobs": s[right]}, mask[right], {}).values
    selected = total(rft, "token", mask[right], "token") / divisor(count(mask[right]), "token", "token")
    weighted = loss_of(
        OBJECTIVES["rift:reward-weighted"],
        [batch],
        "token",
        settings(OBJECTIVES["rift:reward-weighted"], wrong_reward=0.0),
    )
    close(selected, weighted * mask.sum() / mask[right].sum())


def test_all_right_makes_sft_of_everything():
    ones = torch.ones(4, dtype=torch.float64)
    advantages = per_token(assign("centred_bias", ones, [0, 0, 1, 1]), make(OBJECTIVES["sft"], LENGTHS).mask)
    batch = joined("sft", "rift:reward-weighted", "offline_grpo:advantage-nll", rewards=ones, advantages=advantages)
    same(pull("rift:reward-weighted", batch), pull("sft", batch))
    same(pull("offline_grpo:advantage-nll", batch), [0.1 * x for x in pull("sft", batch)])


def test_rewards_that_are_already_signed_are_kept():
    graded = joined("rift:reward-weighted", rewards=torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64))
    signed = joined("rift:reward-weighted", rewards=torch.tensor([1.0, -0.2, 1.0, -0.2], dtype=torch.float64))
    same(pull("rift:reward-weighted", graded), pull("rift:reward-weighted", signed))


def test_dft_gradient_is_p_times_sft():
    batch = joined("dft")
    p = batch.inputs["logprobs"].exp() * batch.mask
    close(pull("dft", batch)[1], p * pull("sft", batch)[1])


def test_dft_and_krafton_descend_probability():
    batch = joined("offline_grpo:krafton", advantages=torch.ones(4, 4, dtype=torch.float64))
    descent = -batch.inputs["logprobs"].exp() * batch.mask
    close(pull("dft", batch)[1], descent)
    close(pull("offline_grpo:krafton", batch, beta_kl=0.0, entropy_bonus=0.0)[1], descent)


def test_dft_logit_gradient_is_p_times_probabilities_minus_one_hot():
    logits = torch.tensor([0.3, -0.5, 1.2, 0.1], dtype=torch.float64, requires_grad=True)
    s = logits.log_softmax(-1)[2].reshape(1, 1)
    OBJECTIVES["dft"].function(s).values.sum().backward()
    p = logits.detach().softmax(-1)
    close(logits.grad, p[2] * (p - torch.eye(4, dtype=torch.float64)[2]))


def test_paper_printed_rift_weighs_wrong_rollouts_more():
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    batch = joined("rift:paper-printed", rewards=rewards)
    same(pull("rift:paper-printed", batch, lam=0.0), pull("sft", batch))
    weights = -pull("rift:paper-printed", batch, lam=0.5)[1][:, 0]
    close(weights, torch.tensor([0.5, 1.0, 0.5, 1.0], dtype=torch.float64))


def test_source_negatives_are_bounded_and_push_down():
    row = OBJECTIVES["rift:source"]
    mask = torch.ones(1, 10, dtype=torch.bool)
    wrong = torch.zeros(1, dtype=torch.float64)

    def value(s, **given):
        x = {"logprobs": torch.full((1, 10), s, dtype=torch.float64), "rewards": wrong}
        return evaluate(row, x, mask, settings(row, **given)).values.item()

    falling = [value(-x, length_norm=False) for x in (0.0, 0.01, 0.1, 1.0, 10.0)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == pytest.approx(0.2)
    assert 0 <= falling[-1] < 1e-40
    assert value(-0.3) == pytest.approx(0.2 * math.exp(-0.3))  # 0.148, by length norm


def test_summed_source_negatives_underflow_in_single_precision():
    row = OBJECTIVES["rift:source"]
    for length_norm, alive in ((False, False), (True, True)):
        s = torch.full((1, 1000), -0.3, requires_grad=True)
        x = {"logprobs": s, "rewards": torch.zeros(1)}
        evaluate(
            row, x, torch.ones(1, 1000, dtype=torch.bool), settings(row, length_norm=length_norm)
        ).values.sum().backward()
        assert bool(s.grad.any()) == alive


def test_negative_advantages_are_bounded_by_krafton_alone():
    far = {"logprobs": -300.0, "advantages": -1.0, "reference_logprobs": -300.0, "entropy": 0.0}
    assert one("offline_grpo:krafton", **far)[0] == pytest.approx(0, abs=1e-12)
    assert one("offline_grpo:advantage-nll", logprobs=-300.0, advantages=-1.0)[0] == -300


# ------------------------------------------------------------------------------------------------- preference


def start(name, **given):
    """Value of a family member where the student is the reference."""
    row = OBJECTIVES[name]
    batch = make(row, LENGTHS)
    batch.inputs["logprobs"] = torch.full_like(batch.inputs["logprobs"], -1.0)
    if "reference_logprobs" in batch.inputs:
        batch.inputs["reference_logprobs"] = batch.inputs["logprobs"].clone()
    if "pair_weights" in batch.inputs:
        batch.inputs["pair_weights"] = torch.ones(2, dtype=torch.float64)
    leaf_batch, leaves = tracked(batch)
    values = evaluate(row, *leaf_batch, settings(row, **given)).values
    return values.detach(), -gradients(values.sum(), leaves)[0]


@pytest.mark.parametrize(
    ("name", "value", "weight"),
    [
        ("dpo", math.log(2), 0.05),
        ("dpo_norm", math.log(2), 2.5 / 3),
        ("ipo", 25.0, 10.0),
        ("simpo", math.log(1 + math.e), None),
        ("kto", 0.5, None),
        ("cal_dpo", math.log(2) + 50, 10.5),
    ],
)
def test_preference_start_values(name, value, weight):
    values, weights = start(name)
    close(values, torch.full_like(values, value))
    if weight is not None:
        assert weights[0, 0].item() == pytest.approx(weight)
        assert weights[1, 0].item() == pytest.approx(-weight * (3 if name == "dpo_norm" else 1))


def test_kto_pushes_right_up_and_wrong_down_by_a_quarter_of_beta():
    _, weights = start("kto")
    rewards = make(OBJECTIVES["kto"], LENGTHS).inputs["rewards"]
    assert weights[:, 0].tolist() == pytest.approx([0.025 if r else -0.025 for r in rewards])


def test_swapping_a_pair_negates_the_margin():
    batch = joined("dpo")
    straight = evaluate(OBJECTIVES["dpo"], *batch, settings(OBJECTIVES["dpo"]))
    batch.inputs["pairs"] = batch.inputs["pairs"].flip(-1)
    swapped = evaluate(OBJECTIVES["dpo"], *batch, settings(OBJECTIVES["dpo"]))
    close(swapped.metrics["margin_sum"], -straight.metrics["margin_sum"])
    h, w = 0.1 * straight.metrics["margin_sum"], batch.inputs["pair_weights"]
    close(swapped.values - straight.values, w * h)  # -log sigmoid(-h) + log sigmoid(h) = h


@pytest.mark.parametrize("name", ["dpo", "dpo_norm", "ipo", "cal_dpo", "kto"])
def test_what_student_and_reference_share_cancels(name):
    batch = joined(name)
    before = pull(name, batch)
    for key in ("logprobs", "reference_logprobs"):
        batch.inputs[key] = batch.inputs[key].clone()
        batch.inputs[key][0] += 0.7
    same(pull(name, batch), before)


def test_simpo_is_dpo_norm_without_reference():
    batch = joined("simpo", "dpo_norm")
    batch.inputs["reference_logprobs"] = torch.zeros_like(batch.inputs["logprobs"])
    same(pull("simpo", batch, beta=2.0, gamma=0.0), pull("dpo_norm", batch, beta=2.0))


def test_repeating_tokens_doubles_the_sum_and_not_the_mean():
    batch = joined("dpo")
    twice = {k: v.repeat(1, 2) if v.ndim == 2 and k != "pairs" else v for k, v in batch.inputs.items()}
    once = evaluate(OBJECTIVES["dpo"], *batch, settings(OBJECTIVES["dpo"])).metrics
    again = evaluate(OBJECTIVES["dpo"], twice, batch.mask.repeat(1, 2), settings(OBJECTIVES["dpo"])).metrics
    close(again["margin_sum"], 2 * once["margin_sum"])
    close(again["margin_mean"], once["margin_mean"])
    close(again["length_chosen"], 2 * once["length_chosen"])
