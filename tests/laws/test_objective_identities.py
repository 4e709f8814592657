"""What single objectives promise: limits, identities between siblings, and numbers that a reader can redo."""

import math

import pytest
import torch
from tests.laws.batches import gradients, loss_of, make, settings, tracked

from limbeck.objectives import OBJECTIVES, check_knobs, evaluate
from limbeck.objectives.policy import surrogate
from limbeck.objectives.reduce import count, divisor, total
from limbeck.rollouts.credit import CREDITS, assign, per_token

LENGTHS = (3, 1, 4, 2)


def close(ours, theirs, rtol=1e-9):
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=rtol, atol=1e-12)


def pull(name, batch, **given):
    """Values and gradient on log-probs of one objective on a batch that may hold more tensors than it reads."""
    row = OBJECTIVES[name]
    leaf_batch, leaves = tracked(batch)
    out = evaluate(row, *leaf_batch, settings(row, **given))
    at = [k for k in batch.inputs if k in ("logprobs", "entropy", "logits")].index("logprobs")
    return out.values.detach(), gradients(out.values.sum(), leaves)[at]


def same(first, second):
    for ours, theirs in zip(first, second, strict=True):
        close(ours, theirs)


def joined(*names, seed=0, fresh=False, **replace):
    """One batch with every tensor that the named objectives read."""
    batch = make(OBJECTIVES[names[0]], LENGTHS, seed=seed)
    for name in names[1:]:
        more = make(OBJECTIVES[name], LENGTHS, seed=seed)
        batch.inputs.update({k: v for k, v in more.inputs.items() if k not in batch.inputs})
    if fresh:
        batch.inputs["old_logprobs"] = batch.inputs["logprobs"].clone()
    batch.inputs.update(replace)
    return batch


def cell(value):
    return torch.tensor([[value]], dtype=torch.float64)


def one(name, *, given=None, **tensors):
    """Value and weight -dv/ds of an objective at a single token."""
    row = OBJECTIVES[name]
    ready = {k: cell(v) for k, v in tensors.items()}
    ready["logprobs"].requires_grad_()
    values = evaluate(row, ready, torch.ones(1, 1, dtype=torch.bool), settings(row, **(given or {}))).values
    (gradient,) = torch.autograd.grad(values.sum(), ready["logprobs"])
    return values.item(), -gradient.item()


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


# ----------------------------------------------------------------------------------------------------- policy


@pytest.mark.parametrize("name", ["ppo", "grpo", "dapo", "dr_grpo", "sapo", "gspo"])
def test_fresh_surrogate_is_advantage_nll(name):
    batch = joined(name, fresh=True)
    close(pull(name, batch)[1], pull("offline_grpo:advantage-nll", batch)[1])


EDGE = 1e-6


@pytest.mark.parametrize(
    ("advantage", "u", "alive"),
    [
        (1.0, 1.2 - EDGE, True), (1.0, 1.2 + EDGE, False), (1.0, 0.01, True),
        (-1.0, 0.8 + EDGE, True), (-1.0, 0.8 - EDGE, False), (-1.0, 3 - EDGE, True), (-1.0, 3 + EDGE, False),
    ],
)  # fmt: skip
def test_surrogate_edges(advantage, u, alive):
    _, weight = one("ppo", logprobs=math.log(u) - 5, old_logprobs=-5.0, advantages=advantage)
    assert weight == pytest.approx(u * advantage if alive else 0.0)


def test_dual_clip_bounds_blame():
    u = torch.linspace(0.1, 1e6, 1000, dtype=torch.float64)
    values = surrogate(u, torch.full_like(u, -0.7), clip_low=0.2, clip_high=0.2, dual_clip=3.0).values
    assert values.max().item() == pytest.approx(3 * 0.7)


def test_a_ratio_beyond_float_range_leaves_finite_gradients():
    s = torch.tensor([[-1.0]], requires_grad=True)
    x = {"logprobs": s, "old_logprobs": torch.tensor([[-200.0]]), "advantages": torch.tensor([[1.0]])}
    evaluate(
        OBJECTIVES["grpo"], x, torch.ones(1, 1, dtype=torch.bool), settings(OBJECTIVES["grpo"])
    ).values.sum().backward()
    assert torch.isfinite(s.grad).all()
    overflown = (s - torch.tensor([[-200.0]])).exp()  # the control: without the limit, 0 * inf
    values = surrogate(overflown, torch.tensor([[1.0]]), clip_low=0.2, clip_high=0.2).values
    (gradient,) = torch.autograd.grad(values.sum(), s)
    assert torch.isnan(gradient).all()


def test_gspo_is_the_surrogate_of_the_sequence_ratio_and_grpo_on_one_token():
    batch = joined("gspo", "grpo")
    s = batch.inputs["logprobs"].clone().requires_grad_()
    lengths = batch.mask.sum(-1)
    mean = torch.where(batch.mask, s - batch.inputs["old_logprobs"], 0.0).sum(-1) / lengths
    whole = surrogate(mean.exp(), batch.inputs["advantages"][:, 0], clip_low=0.3, clip_high=0.3).values
    (expected,) = torch.autograd.grad(whole.sum(), s)
    close(pull("gspo", batch)[1] / lengths[:, None], expected)
    single = make(OBJECTIVES["gspo"], (1, 1))
    single.inputs.update(make(OBJECTIVES["grpo"], (1, 1)).inputs)
    same(pull("gspo", single), pull("grpo", single, clip_low=0.3, clip_high=0.3))


def test_sapo_gate():
    def gate(u, tau=1.0):
        given = {"tau_positive": tau}
        return one("sapo", given=given, logprobs=math.log(u) - 5, old_logprobs=-5.0, advantages=1.0)

    assert [round(-gate(u)[0], 4) for u in (1e-12, 1.0, 2.0, 4.0)] == [1.0758, 2.0, 2.9242, 3.8103]
    for tau in (0.5, 1.0, 1.05, 3.0):
        assert gate(1.0, tau)[1] == pytest.approx(1.0)
    assert gate(1e-8)[1] == pytest.approx(0, abs=1e-7)
    assert gate(1e3)[1] == pytest.approx(0, abs=1e-7)
    assert max(gate(u / 100)[1] for u in range(1, 1000)) == pytest.approx(1.575, abs=1e-3)
    assert gate(2.06)[1] == pytest.approx(1.575, abs=1e-3)


def test_mismatch_weight():
    batch = joined("grpo:mismatch-corrected", "grpo")
    batch.inputs["behavior_logprobs"] = batch.inputs["old_logprobs"].clone()
    same(pull("grpo:mismatch-corrected", batch), pull("grpo", batch))
    batch.inputs["behavior_logprobs"] = batch.inputs["old_logprobs"] - 5
    row = OBJECTIVES["grpo:mismatch-corrected"]
    for form, weight in (("truncate", 2.0), ("mask", 0.0)):
        out = evaluate(row, *batch, settings(row, form=form))
        close(out.metrics["mismatch_weight"][batch.mask], torch.full((10,), weight, dtype=torch.float64))


# ------------------------------------------------------------------------------------------------------ joint


def test_kdrl_limits():
    batch = joined("kdrl", "opd:clipped", "grpo")
    same(pull("kdrl", batch, beta=0.0), pull("grpo", batch))
    batch.inputs["advantages"] = torch.zeros_like(batch.inputs["logprobs"])
    same(pull("kdrl", batch, beta=1.0), pull("opd:clipped", batch))


def test_kdrl_paths_agree_on_fresh_rollouts():
    batch = joined("kdrl", fresh=True)
    close(pull("kdrl", batch, beta=0.1)[1], pull("kdrl", batch, beta=0.1, kd_path="k2")[1])
    stale = joined("kdrl")
    assert not torch.allclose(pull("kdrl", stale, beta=2.0)[1], pull("kdrl", stale, beta=2.0, kd_path="k2")[1])


def test_clipped_opd_is_opd_where_nothing_is_clipped():
    batch = joined("opd:clipped", "opd")
    batch.inputs["old_logprobs"] = batch.inputs["logprobs"] + 0.1
    same(pull("opd:clipped", batch), pull("opd", batch))


def test_srpo_and_hdpo_choose_by_outcome():
    wrong, right = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    batch = joined("srpo", "opd:clipped", "grpo", "hdpo", correct=wrong)
    same(pull("srpo", batch), pull("opd:clipped", batch))
    same(pull("srpo", joined("srpo", "grpo", correct=right)), pull("grpo", batch))
    same(pull("hdpo", joined("hdpo", "grpo", group_all_wrong=wrong), beta=0.5), pull("grpo", batch))
    both = joined("hdpo", "kdrl", group_all_wrong=right)
    same(pull("hdpo", both, beta=0.5), pull("kdrl", both, beta=0.5))


@pytest.mark.parametrize(("a", "d", "expected"), [(1, 1, 1.2), (-1, -1, -1.2), (-1, 1, -0.8), (1, -1, 0.8)])
def test_rlsd_scales_and_never_turns(a, d, expected):
    _, weight = one("rlsd", logprobs=-2.0, old_logprobs=-2.0, teacher_logprobs=-2.0 + d, advantages=float(a))
    assert weight == pytest.approx(expected)


def test_rlsd_limits():
    batch = joined("rlsd", "grpo")
    same(pull("rlsd", batch, share=0.0), pull("grpo", batch))
    batch.inputs["teacher_logprobs"] = batch.inputs["logprobs"].clone()
    same(pull("rlsd", batch), pull("grpo", batch))


@pytest.mark.parametrize(("step", "beta"), [(0, 0.2), (50, 0.101), (100, 0.002)])
def test_annealing_is_kdrl_at_the_step_s_beta(step, beta):
    batch = joined("kdrl_annealing", "kdrl")
    row = OBJECTIVES["kdrl_annealing"]
    knobs = {**check_knobs(row, {}), "step": step, "num_steps": 101}
    close(evaluate(row, *batch, knobs).values, pull("kdrl", batch, beta=beta)[0])


def test_opd_then_rl_switches_at_the_step():
    batch = joined("opd_then_rl", "opd:clipped", "grpo")
    row = OBJECTIVES["opd_then_rl"]
    knobs = check_knobs(row, {"switch_step": 60})
    close(evaluate(row, *batch, {**knobs, "step": 59}).values, pull("opd:clipped", batch)[0])
    close(evaluate(row, *batch, {**knobs, "step": 60}).values, pull("grpo", batch)[0])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_trrd_limits(alpha):
    batch = joined("trrd", "grpo", "ppo")
    same(pull("trrd", batch, alpha=1.0), pull("ppo", batch))
    batch.inputs["teacher_logprobs"] = batch.inputs["old_logprobs"].clone()
    same(pull("trrd", batch, alpha=alpha), pull("ppo", batch))
    batch.inputs["advantages"] = torch.zeros_like(batch.inputs["logprobs"])
    assert not pull("trrd", batch, alpha=alpha)[1].any()


@pytest.mark.parametrize(
    ("advantage", "p_over_q", "weight"),
    [
        (1, 1.4256, 1.194), (1, 1.4544, 0.0), (-1, 0.6336, 0.0), (-1, 0.6464, -0.804), (-1, 8.9, -2.983), (-1, 9.1, 0.0),
    ],
)  # fmt: skip
def test_trrd_edges(advantage, p_over_q, weight):
    tokens = {"logprobs": -3.0, "old_logprobs": -3.0, "teacher_logprobs": -3.0 - math.log(p_over_q)}
    assert one("trrd", **tokens, advantages=float(advantage))[1] == pytest.approx(weight, abs=5e-4)


# ----------------------------------------------------------------------------------------------- distillation


def test_gopd_limits():
    batch = joined("gopd", "opd")
    same(pull("gopd", batch, lam=1.0), pull("opd", batch))
    reference = joined("gopd", "opd")
    reference.inputs["teacher_logprobs"] = reference.inputs["reference_logprobs"].clone()
    same(pull("gopd", batch, lam=0.0), pull("opd", reference))


def test_opd_is_silent_where_student_and_teacher_agree():
    batch = joined("opd")
    batch.inputs["teacher_logprobs"] = batch.inputs["logprobs"].clone()
    values, gradient = pull("opd", batch)
    assert not values.any()
    assert not gradient.any()


def test_minillm_without_discounting_the_future_is_opd_plus_reward():
    batch = joined("minillm", "opd")
    batch.inputs["advantages"] = torch.zeros_like(batch.inputs["logprobs"])
    same(pull("minillm", batch, gamma=0.0), pull("opd", batch))


# ------------------------------------------------------------------------------------------------------- erpd


def test_stage_1_weights_at_the_start():
    base = {"logprobs": -2.0, "behavior_logprobs": -2.0, "advantages": 0.75}
    assert one("erpd_sapo", **base)[1] == pytest.approx(0.75)
    for advantage, weight in ((0.75, 0.15), (-0.25, -0.05)):
        tokens = {"logprobs": -2.0, "reference_logprobs": -2.0, "advantages": advantage}
        assert one("erpd_mse", **tokens)[1] == pytest.approx(weight)
    batch = make(OBJECTIVES["erpd_ce"], (1, 1))
    batch.inputs.update(
        reference_logprobs=batch.inputs["logprobs"].clone(), rewards=torch.tensor([1.0, 0.0], dtype=torch.float64)
    )
    close(-pull("erpd_ce", batch)[1][:, 0], torch.tensor([0.05, -0.05], dtype=torch.float64))


def test_mirrored_rewards_negate_odd_credits_exactly():
    from limbeck.objectives.erpd import mirrored

    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    for name in ("centred", "zscore", "loo"):
        close(CREDITS[name](mirrored(rewards)), -CREDITS[name](rewards))


def test_erpd_kl_is_gopd():
    batch = joined("erpd_kl", "gopd", "opd")
    x = batch.inputs
    x["signal"] = x["teacher_logprobs"] - x["reference_logprobs"]  # the stage-1 policy is the teacher, unscaled
    wide = {"clip_low": 1.0, "clip_high": 1e6, "dual_clip": 0.0}
    for beta in (0.5, 1.0, 4.0):
        expected = [beta * part for part in pull("gopd", batch, lam=1 / beta)]
        same(pull("erpd_kl", batch, beta=beta, **wide), expected)
    same(pull("erpd_kl", batch, beta=1.0, **wide), pull("opd", batch))


def test_a_snapshot_in_the_advantage_would_delete_the_pull_on_fixed_rollouts():
    batch = joined("erpd_kl")
    x = batch.inputs
    x["old_logprobs"] = x["reference_logprobs"].clone()
    x["signal"] = torch.zeros_like(x["logprobs"])
    x["logprobs"] = x["reference_logprobs"] + 0.1
    _, gradient = pull("erpd_kl", batch)
    assert gradient[batch.mask].gt(0).all()  # the student rose above the base everywhere and is pulled back
    snapshot = x["signal"] - (x["old_logprobs"] - x["reference_logprobs"])  # the control: it is zero
    assert not snapshot.any()


def test_gate_and_pull_coincide_on_fixed_rollouts():
    batch = joined("erpd_kl", "erpd_kl_clip")
    batch.inputs["old_logprobs"] = batch.inputs["reference_logprobs"].clone()
    same(pull("erpd_kl", batch), pull("erpd_kl_clip", batch))
    same(pull("erpd_clip", batch), pull("erpd_kl_clip", batch, beta=0.0))


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_stage_2_bandit_optimum(beta):
    """One state, five actions: where the expected gradient vanishes the policy is softmax(log F + signal / beta)."""
    gen = torch.Generator().manual_seed(1)
    base = torch.randn(5, generator=gen, dtype=torch.float64).log_softmax(-1)
    signal = torch.randn(5, generator=gen, dtype=torch.float64)
    row = OBJECTIVES["erpd_kl"]
    for logits, settled in (((base + signal / beta), True), (base, False)):
        free = logits.clone().requires_grad_()
        s = free.log_softmax(-1)
        x = {
            "logprobs": s,
            "old_logprobs": s.detach(),
            "reference_logprobs": base,
            "signal": signal,
            "advantages": 0 * base,
        }
        x = {name: tensor[None] for name, tensor in x.items()}
        values = evaluate(row, x, torch.ones(1, 5, dtype=torch.bool), settings(row, beta=beta)).values
        (gradient,) = torch.autograd.grad((s.detach().exp() * values[0]).sum(), free)
        assert (gradient.abs().max().item() < 1e-12) == settled
