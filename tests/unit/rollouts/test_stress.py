"""Sampling at its ends: vocabularies of 2 and of 200,000, temperatures of 1e-3 and 100, answers and prompts of one token."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.batches.score import score_rollouts
from limbeck.errors import ConfigError, DataError, DegenerateError
from limbeck.rollouts import select
from limbeck.rollouts.decode import draw
from limbeck.rollouts.sample import Decoding, complete
from limbeck.rollouts.store import read_rollouts, write_rollouts
from limbeck.types import Finish, Rollout, RolloutSet

from ..train.toy import VOCAB, tiny_model


@pytest.mark.parametrize("vocab", [2, 200_000])
@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1.0, 100.0, 1e30])
def test_draws_have_the_log_prob_of_what_they_are_drawn_from(vocab, temperature):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, vocab, generator=generator) * 3
    uniform = torch.tensor([0.0, 1e-7, 0.1, 0.3, 0.5, 0.7, 0.9, 1 - 2**-24])
    token, logprob = draw(logits, temperature, uniform)
    exact = (logits.double() / temperature).log_softmax(-1).gather(1, token[:, None])[:, 0]
    torch.testing.assert_close(logprob.double(), exact, rtol=1e-5, atol=1e-4)
    if temperature < 1e-2:
        assert torch.equal(token, logits.argmax(-1))


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ConfigError, match="finite sampling_temperature >= 0"):
        Decoding(sampling_temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-3, 100.0])
def test_prompts_of_one_token_at_any_temperature(temperature):
    """At a small temperature rounding of the logits is large in log-probs: no fault of the model's cache."""
    decoding = Decoding(sampling_temperature=temperature, max_new_tokens=12)
    done = complete(tiny_model(), [(5,), (6,), (5, 6, 7)], ["a", "b", "c"], decoding, stop_ids=[1])
    for completion in done:
        assert 1 <= len(completion.ids) == len(completion.logprobs) <= 12
        assert all(-1e4 < x <= 1e-6 for x in completion.logprobs)


def test_an_answer_of_the_end_token_alone():
    every = list(range(VOCAB))  # whatever comes first ends the answer
    (done,) = complete(tiny_model(), [(5,)], ["a"], Decoding(max_new_tokens=5), stop_ids=every)
    assert (len(done.ids), done.finish) == (1, Finish.STOP)


def test_an_empty_prompt_and_one_without_room_are_sentences():
    for prompt in ((), (5,) * 120):
        with pytest.raises(DataError, match="must have 1 to 128 - max_new_tokens = 12 tokens"):
            complete(tiny_model(), [prompt], ["a"], Decoding(max_new_tokens=12), stop_ids=[1])


def rollout(prompt=(5,), response=(1,), **changed) -> Rollout:
    values = {
        "problem_id": "p",
        "sample": 0,
        "prompt_ids": prompt,
        "response_ids": response,
        "behavior_logprobs": (-1.0,) * len(response),
        "reward": 0.0,
        "finish": Finish.STOP,
        "response": "",
    }
    return Rollout(**(values | changed))


@pytest.mark.parametrize("empty", [{"prompt": ()}, {"response": ()}])
def test_rows_without_a_token_are_refused(empty):
    with pytest.raises(DataError, match="prompt and response must each have at least one token"):
        rollout(**empty)


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_behaviour_log_probs_of_infinity_are_refused(bad):
    with pytest.raises(DataError, match="behavior_logprobs must be finite, or NaN where the sampler gave none"):
        rollout(behavior_logprobs=(bad,))


@pytest.mark.parametrize("reward", [1e30, -1e30, 1e308, 5e-324])
def test_any_finite_number_is_a_reward_and_is_kept_to_the_bit(tmp_path, reward):
    rollouts = RolloutSet(rollouts=(rollout(reward=reward, behavior_logprobs=(-1e9,)),), provenance={})
    again = read_rollouts(write_rollouts(rollouts, tmp_path / "rollouts"))
    assert tuple(again.rollouts) == rollouts.rollouts
    assert again.digest == rollouts.digest


def test_two_tokens_are_enough_to_be_scored():
    ((score,),) = score_rollouts(tiny_model(), [rollout()])
    exact = tiny_model()(torch.tensor([[5]])).logits[0, -1].log_softmax(-1)[1]
    assert score == pytest.approx(exact.item(), abs=1e-4)


def test_no_mixed_group_is_a_sentence():
    same = RolloutSet(rollouts=tuple(rollout(sample=i, response=(i + 2, 1)) for i in range(3)), provenance={})
    with pytest.raises(DegenerateError):
        select.pairs(same, seed=0)
