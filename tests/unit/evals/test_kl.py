"""KL accounting against enumeration: every answer of a tiny model, its probability, and what the estimators give for it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from limbeck.errors import ShapeError
from limbeck.evals.kl import account, estimate, token_divergences
from limbeck.rollouts.sample import Decoding, complete
from limbeck.stats.intervals import item_bootstrap, ratio_of_items
from limbeck.types import Finish, Rollout

VOCAB, STOP, PROMPT = 7, 1, (2, 5, 3)


def model(seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 16,
    }
    config = Qwen3Config(
        vocab_size=VOCAB, num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.4,
        pad_token_id=0, eos_token_id=STOP, bos_token_id=None, **shape,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


STUDENT, BASE = model(0), model(1)


def rollout(ids, name="p", sample=0) -> Rollout:
    finish = Finish.STOP if ids[-1] == STOP else Finish.LENGTH
    return Rollout(
        problem_id=name, sample=sample, prompt_ids=PROMPT, response_ids=tuple(ids), reward=0.0, finish=finish,
        behavior_logprobs=(-1.0,) * len(ids), response="",
    )  # fmt: skip


def all_answers(longest: int) -> list[Rollout]:
    """Every answer that ends with the stop token or at the limit."""
    out = []
    for length in range(1, longest + 1):
        for ids in itertools.product(range(VOCAB), repeat=length):
            if STOP not in ids[:-1] and (ids[-1] == STOP or length == longest):
                out.append(rollout(ids, sample=len(out)))
    return out


def sequence_logprobs(policy, answers) -> torch.Tensor:
    out = []
    for answer in answers:
        ids = torch.tensor([*PROMPT, *answer.response_ids])[None]
        with torch.no_grad():
            logp = policy(input_ids=ids).logits[0].double().log_softmax(-1)
        at = torch.arange(len(PROMPT) - 1, ids.shape[1] - 1)
        out.append(logp[at, torch.tensor(answer.response_ids)].sum())
    return torch.stack(out)


@pytest.mark.parametrize("estimator", ["exact", "k1", "k3"])
@pytest.mark.parametrize(("own", "other"), [(STUDENT, BASE), (BASE, STUDENT)])
def test_the_mean_over_all_answers_is_the_kl_of_sequences(own, other, estimator):
    answers = all_answers(3)
    ours, theirs = (sequence_logprobs(policy, answers) for policy in (own, other))
    assert float(ours.exp().sum()) == pytest.approx(1, abs=1e-5)
    expected = float((ours.exp() * (ours - theirs)).sum())
    found = token_divergences(own, other, answers, token_budget=64)
    per_answer = torch.stack([d.values(estimator).sum() for d in found])
    assert float((ours.exp() * per_answer).sum()) == pytest.approx(expected, rel=1e-4)


def test_entropy_is_the_sampler_s_and_equal_policies_are_at_zero():
    (found,) = token_divergences(STUDENT, STUDENT, [rollout([4, 1])])
    assert found.exact.abs().max() < 1e-6
    assert not found.log_ratio.any()
    with torch.no_grad():
        logp = STUDENT(input_ids=torch.tensor([[*PROMPT, 4]])).logits[0, 2:].double().log_softmax(-1)
    torch.testing.assert_close(found.entropy, -(logp.exp() * logp).sum(-1), rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def sampled() -> list[Rollout]:
    out = []
    for p in range(60):
        keys = [f"{p}/{i}" for i in range(4)]
        done = complete(
            STUDENT, [PROMPT] * 4, keys, Decoding(sampling_temperature=1.0, max_new_tokens=3), stop_ids=(STOP,)
        )
        out += [rollout(c.ids, name=f"p{p}", sample=i) for i, c in enumerate(done)]
    return out


def test_samples_agree_with_enumeration_and_with_each_other(sampled):
    answers = all_answers(3)
    ours, theirs = (sequence_logprobs(policy, answers) for policy in (STUDENT, BASE))
    kl = float((ours.exp() * (ours - theirs)).sum())
    tokens = float((ours.exp() * torch.tensor([len(a.response_ids) for a in answers])).sum())
    found = token_divergences(STUDENT, BASE, sampled)
    for estimator in ("exact", "k1", "k3"):
        for unit, expected in (("nats/sequence", kl), ("nats/token", kl / tokens)):
            got = estimate(found, sampled, estimator, unit)
            error = (got.high - got.low) / 2 / 1.96
            assert abs(got.value - expected) < 4 * error
    widths = {
        e: np.ptp([getattr(estimate(found, sampled, e, "nats/token"), x) for x in ("low", "high")])
        for e in ("exact", "k1")
    }
    assert widths["exact"] < widths["k1"]


def test_a_record_names_everything_that_it_must_be_read_with(sampled):
    found = token_divergences(STUDENT, BASE, sampled)
    rows = account(found, sampled, direction="student_reference", facts={"sampling_temperature": 1.0, "dtype": "fp32"})
    assert {(r["estimator"], r["unit"]) for r in rows} == set(
        itertools.product(("exact", "k1", "k3"), ("nats/token", "nats/sequence"))
    )
    for row in rows:
        assert (row["direction"], row["sampler"], row["problems"], row["rollouts"]) == (
            "student_reference",
            "student",
            60,
            240,
        )
        assert row["tokens"] == sum(len(r.response_ids) for r in sampled)
        assert row["truncated_share"] == np.mean([r.finish == "length" for r in sampled])
        assert row["low"] <= row["value"] <= row["high"]
        assert row["level"] == 0.95
        assert row["n"] == 60


def test_a_reference_of_probability_zero_is_floored_counted_and_exactly_undefined():
    blind = model(1)
    blind.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCAB))
    blind.lm_head.bias.data[4] = -float("inf")
    answers = [rollout([3, 1], name="b"), rollout([4, 1], name="a")]
    found = token_divergences(STUDENT, blind, answers)
    assert [d.floored for d in found] == [0, 1]
    assert float(found[1].log_ratio[0]) == pytest.approx(
        20 + float(sequence_logprobs(STUDENT, [rollout([4])])[0]), rel=1e-5
    )
    exact = estimate(found, answers, "exact", "nats/token")
    assert np.isnan(exact.value)
    assert "probability 0" in exact.reason


def test_rollouts_that_fit_no_context_are_refused():
    with pytest.raises(ShapeError, match="received 1 that do not"):
        token_divergences(STUDENT, BASE, [rollout([3] * 40), rollout([3])])


def test_a_ratio_is_that_of_sums_and_covers():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        counts = rng.integers(1, 9, size=80)
        sums = counts * 0.3 + rng.normal(size=80) * np.sqrt(counts)
        got = ratio_of_items(sums, counts, seed=trial, draws=400)
        assert got.value == pytest.approx(sums.sum() / counts.sum())
        hits += got.low <= 0.3 <= got.high
    assert 180 <= hits <= 199
    same = ratio_of_items(sums, np.ones(80), seed=1)
    plain = item_bootstrap(sums, seed=1)
    assert (same.low, same.high) == pytest.approx((plain.low, plain.high), rel=1e-6)
