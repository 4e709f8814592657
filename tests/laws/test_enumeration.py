"""Expected gradients by enumerating everything that can be sampled: five tokens, sequences of three.

A toy student writes three tokens out of five; each step's distribution depends on the whole prefix. Summing an
objective over all 125 sequences, each weighted by the probability of having been sampled, gives its exact expected
gradient, which must be the gradient of the quantity that the objective claims to follow.
"""

from itertools import product

import pytest
import torch
from tests.laws.batches import settings

from limbeck.objectives import OBJECTIVES, evaluate
from limbeck.objectives.divergences import forward_kl, reverse_kl
from limbeck.objectives.estimators import k1, k2, k3, k3_plus

VOCAB, STEPS = 5, 3
SEQUENCES = torch.tensor(list(product(range(VOCAB), repeat=STEPS)))
MASK = torch.ones(len(SEQUENCES), STEPS, dtype=torch.bool)


class Toy:
    """A table of logits for every prefix of up to two tokens."""

    def __init__(self, seed):
        gen = torch.Generator().manual_seed(seed)
        size = 1 + VOCAB + VOCAB * VOCAB
        self.logits = torch.randn(size, VOCAB, generator=gen, dtype=torch.float64).requires_grad_()

    def steps(self):
        """Next-token log-probs at each step of each sequence, (sequences, steps, vocab)."""
        first = torch.zeros(len(SEQUENCES), dtype=torch.long)
        second = 1 + SEQUENCES[:, 0]
        third = 1 + VOCAB + VOCAB * SEQUENCES[:, 0] + SEQUENCES[:, 1]
        return self.logits[torch.stack([first, second, third], 1)]

    def tokens(self):
        return self.steps().log_softmax(-1).gather(2, SEQUENCES[..., None])[..., 0]


STUDENT, TEACHER, OLD, BASE = (Toy(seed) for seed in range(4))
Q, F = (toy.tokens().detach() for toy in (TEACHER, BASE))


def expected_gradient(per_sequence, sampler):
    """Gradient of the expectation with the sampler held fixed, at the student's logits."""
    weight = sampler.tokens().detach().sum(-1).exp()
    (gradient,) = torch.autograd.grad((weight * per_sequence).sum(), STUDENT.logits)
    return gradient


def objective(name, sampler, **given):
    row = OBJECTIVES[name]
    old = sampler.tokens().detach()
    inputs = {
        "logprobs": STUDENT.tokens(), "old_logprobs": old, "teacher_logprobs": Q, "reference_logprobs": F,
        "advantages": torch.zeros_like(Q), "signal": Q - F,
    }  # fmt: skip
    return expected_gradient(evaluate(row, inputs, MASK, settings(row, **given)).values.sum(-1), sampler)


def state_wise(sampler):
    """Gradient of sum_t KL(student||teacher) at the prefixes that the sampler visits, prefixes held fixed."""
    divergence = reverse_kl(STUDENT.steps(), TEACHER.steps().detach()).values
    return expected_gradient(divergence.sum(-1), sampler)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sampler", [STUDENT, OLD], ids=["fresh", "stale"])
@pytest.mark.parametrize("name", ["opd", "reverse_kl_k2", "reverse_kl_k3_plus"])
def test_opd_expects_reverse_kl(name, sampler):
    close(objective(name, sampler), state_wise(sampler))


def test_a_snapshot_preference_is_exact_only_on_fresh_rollouts():
    close(objective("opd", STUDENT, d_source="snapshot"), state_wise(STUDENT))
    assert not torch.allclose(objective("opd", OLD, d_source="snapshot"), state_wise(OLD), rtol=1e-3)


def test_full_vocabulary_distillation_is_the_same_without_noise():
    row = OBJECTIVES["opd_full"]
    inputs = {"logits": STUDENT.steps(), "teacher_logits": TEACHER.steps().detach()}
    values = evaluate(row, inputs, MASK, settings(row)).values.sum(-1)
    close(expected_gradient(values, STUDENT), objective("opd", STUDENT))


def sequence_kl():
    """Gradient of the exact KL(student||teacher) between distributions over whole sequences."""
    s = STUDENT.tokens().sum(-1)
    (gradient,) = torch.autograd.grad((s.exp() * (s - Q.sum(-1))).sum(), STUDENT.logits)
    return gradient


def test_minillm_is_sequence_kl():
    exact = sequence_kl()
    close(objective("minillm", STUDENT), exact)
    rest = objective("minillm", STUDENT, first="next")
    close(rest + state_wise(STUDENT), exact)
    assert not torch.allclose(objective("minillm", STUDENT) + state_wise(STUDENT), exact, rtol=1e-3)  # counted twice
    assert not torch.allclose(objective("opd", STUDENT), exact, rtol=1e-3)  # blind to later states


def test_summed_state_wise_kl_is_the_sequence_kl():
    s = STUDENT.tokens().detach().sum(-1)
    whole = (s.exp() * (s - Q.sum(-1))).sum()
    steps = reverse_kl(STUDENT.steps(), TEACHER.steps()).values.detach().sum(-1)
    close((s.exp() * steps).sum(), whole)
    tokens = STUDENT.tokens().detach()
    close((s.exp() * k1(tokens, Q).sum(-1)).sum(), whole)
    close((s.exp() * k3(tokens, Q).sum(-1)).sum(), whole)


def test_gopd_follows_the_kl_to_its_interpolated_teacher():
    lam = 1.25
    steps = (1 - lam) * BASE.steps().detach().log_softmax(-1) + lam * TEACHER.steps().detach().log_softmax(-1)
    divergence = reverse_kl(STUDENT.steps(), steps).values.sum(-1)  # log_softmax normalizes, per state
    close(objective("gopd", STUDENT, lam=lam), expected_gradient(divergence, STUDENT))


def test_stage_2_follows_its_regularized_objective():
    beta = 2.0
    wide = {"clip_low": 1.0, "clip_high": 1e6, "dual_clip": 0.0}
    steps = STUDENT.steps().log_softmax(-1)
    signal = (TEACHER.steps().log_softmax(-1) - BASE.steps().log_softmax(-1)).detach()
    claim = beta * reverse_kl(STUDENT.steps(), BASE.steps().detach()).values - (steps.exp() * signal).sum(-1)
    close(objective("erpd_kl", OLD, beta=beta, **wide), expected_gradient(claim.sum(-1), OLD))


def test_a_ratio_weighted_penalty_follows_the_named_direction():
    claim = 0.3 * reverse_kl(STUDENT.steps(), BASE.steps().detach()).values.sum(-1)
    close(objective("grpo:kl", OLD, beta_kl=0.3, ratio_weighted=True), expected_gradient(claim, OLD))
    other = 0.3 * forward_kl(STUDENT.steps(), BASE.steps().detach()).values.sum(-1)
    close(objective("grpo:kl", STUDENT, beta_kl=0.3), expected_gradient(other, STUDENT))


@pytest.mark.parametrize("name", ["ppo", "grpo", "dapo", "dr_grpo", "offline_grpo:advantage-nll"])
def test_policy_gradients_on_fresh_rollouts_are_the_gradient_of_expected_reward(name):
    reward = torch.randn(len(SEQUENCES), generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    row = OBJECTIVES[name]
    tokens = STUDENT.tokens()
    inputs = {"logprobs": tokens, "old_logprobs": tokens.detach(), "advantages": reward[:, None].expand(-1, STEPS)}
    surrogate = expected_gradient(evaluate(row, inputs, MASK, settings(row)).values.sum(-1), STUDENT)
    (exact,) = torch.autograd.grad(-(STUDENT.tokens().sum(-1).exp() * reward).sum(), STUDENT.logits)
    close(surrogate, exact)


# ---------------------------------------------------------------------------------- estimators at one position

LOGITS_P = torch.tensor([0.3, -0.5, 1.2, 0.1], dtype=torch.float64)
LOGITS_Q = torch.tensor([1.0, 0.2, -0.7, 0.4], dtype=torch.float64)
REVERSE = [-0.3008, -0.1351, 0.6129, -0.1770]
FORWARD = [-0.2470, -0.1110, 0.4365, -0.0785]


def estimate(estimator, *, cost):
    """Expected value and gradient, back-propagated or as the detached cost of a policy gradient."""
    logits = LOGITS_P.clone().requires_grad_()
    s, q = logits.log_softmax(-1), LOGITS_Q.log_softmax(-1)
    p = s.detach().exp()
    value = estimator(s, q)
    loss = (p * (value.detach() * s if cost else value)).sum()
    if not loss.requires_grad:
        return (p * value).sum().item(), [0.0] * 4
    return (p * value.detach()).sum().item(), torch.autograd.grad(loss, logits)[0].tolist()


def test_estimator_gradients():
    assert estimate(k1, cost=False) == (pytest.approx(0.6482, abs=5e-5), [0.0] * 4)  # detached: it cannot be misused
    assert estimate(k1, cost=True)[1] == pytest.approx(REVERSE, abs=5e-5)
    assert estimate(k2, cost=False) == (pytest.approx(0.9715, abs=5e-5), pytest.approx(REVERSE, abs=5e-5))
    assert estimate(k2, cost=True)[1] != pytest.approx(REVERSE, abs=1e-2)
    assert estimate(k3, cost=False) == (pytest.approx(0.6482, abs=5e-5), pytest.approx(FORWARD, abs=5e-5))
    difference = [r - f for r, f in zip(REVERSE, FORWARD, strict=True)]
    assert estimate(k3, cost=True)[1] == pytest.approx(difference, abs=2e-4)
    assert estimate(k3_plus, cost=False) == (pytest.approx(0.6482, abs=5e-5), pytest.approx(REVERSE, abs=5e-5))


def test_k1_back_propagated_has_expected_gradient_zero():
    logits = LOGITS_P.clone().requires_grad_()
    s = logits.log_softmax(-1)
    (gradient,) = torch.autograd.grad((s.detach().exp() * (s - LOGITS_Q.log_softmax(-1))).sum(), logits)
    assert gradient.abs().max() < 1e-15
