"""Policy, joint, distillation and ERPD objectives: limits, identities, edges, and numbers that a reader can redo."""

import math

import pytest
import torch
from tests.laws.batches import make, settings
from tests.laws.probes import close, joined, one, pull, same

from limbeck.objectives import OBJECTIVES, check_knobs, evaluate
from limbeck.objectives.erpd import mirrored
from limbeck.objectives.policy import surrogate
from limbeck.rollouts.credit import CREDITS

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


def test_opd_rlvr_is_opd_at_one_end_and_the_reward_at_the_other():
    batch = joined("opd_rlvr", "opd", "grpo")  # stale: ratios on both sides of 1
    same(pull("opd_rlvr", batch, alpha=1.0), pull("opd", batch))
    same(pull("opd_rlvr", batch, alpha=0.0, clip=0.2), pull("grpo", batch))
    fresh = joined("opd_rlvr", "opd", "grpo", fresh=True)
    same(pull("opd_rlvr", fresh, alpha=0.0), pull("grpo", fresh))
    halves = 0.25 * pull("opd", batch)[1] + 0.75 * pull("opd_rlvr", batch, alpha=0.0)[1]
    close(pull("opd_rlvr", batch, alpha=0.25)[1], halves)
    assert OBJECTIVES["opd_rlvr"].credit == "centred"


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
