"""Decoding: greedy equals the library's, log-probs are exact, and a row does not depend on its batch."""

from __future__ import annotations

import pytest
import torch

from limbeck.batches.score import score_rollouts
from limbeck.errors import ConfigError, DataError, ModelError
from limbeck.problems.prompts import prompt_ids, stop_ids
from limbeck.rollouts.sample import Decoding, _draw, complete
from limbeck.train.models import load_model, load_tokenizer
from limbeck.types import Finish, Rollout
from limbeck.worlds.abacus.generator import generate

BASE = "abacus:base"


@pytest.fixture(scope="module")
def world():
    tokenizer = load_tokenizer(BASE)
    problems = [problem for problem, _ in generate("test", 12, seed=8)]
    return load_model(BASE), tokenizer, problems, [prompt_ids(tokenizer, p.prompt) for p in problems]


def decode(world, **settings):
    model, tokenizer, problems, prompts = world
    return complete(model, prompts, [p.id for p in problems], Decoding(**settings), stop_ids=stop_ids(tokenizer))


def test_greedy_equals_the_library_row_by_row(world):
    model, tokenizer, _, prompts = world
    done = decode(world, max_new_tokens=96, batch_size=5)
    for prompt, completion in zip(prompts, done, strict=True):
        ids = torch.tensor([prompt])
        generated = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=96)
        assert tuple(generated[0, len(prompt) :].tolist()) == completion.ids
        assert completion.finish == (Finish.STOP if completion.ids[-1] in stop_ids(tokenizer) else Finish.LENGTH)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.3])
def test_a_row_is_the_same_in_any_batch(world, temperature):
    together = decode(world, sampling_temperature=temperature, max_new_tokens=40, batch_size=12, seed=3)
    alone = decode(world, sampling_temperature=temperature, max_new_tokens=40, batch_size=1, seed=3)
    assert [c.ids for c in together] == [c.ids for c in alone]


def test_behavior_logprobs_are_those_of_the_sampled_distribution(world):
    model, _, problems, prompts = world
    done = decode(world, sampling_temperature=1.0, max_new_tokens=60, seed=1)
    rows = [
        Rollout(
            problem_id=p.id,
            sample=0,
            prompt_ids=prompt,
            response_ids=c.ids,
            behavior_logprobs=c.logprobs,
            reward=0.0,
            finish=c.finish,
            response="",
        )
        for p, prompt, c in zip(problems, prompts, done, strict=True)
    ]
    for row, scored in zip(rows, score_rollouts(model, rows, token_budget=300), strict=True):
        torch.testing.assert_close(torch.tensor(row.behavior_logprobs), torch.tensor(scored), rtol=0, atol=2e-5)


def test_a_hot_distribution_is_sampled_in_its_proportions():
    p = torch.tensor([0.5, 0.2, 0.2, 0.1])
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    token, logprob = _draw((p.log() * 2).expand(10_000, 4), 2.0, uniform)
    torch.testing.assert_close(torch.bincount(token, minlength=4) / 10_000, p, rtol=0, atol=2e-4)
    torch.testing.assert_close(logprob, p.log()[token], rtol=0, atol=1e-5)


def test_a_prompt_that_leaves_no_room_is_refused(world):
    with pytest.raises(DataError, match=r"must have 1 to 256 - max_new_tokens = 250 tokens"):
        decode(world, max_new_tokens=250)


def test_nonsense_settings_are_refused():
    with pytest.raises(ConfigError, match="max_new_tokens >= 1"):
        Decoding(max_new_tokens=0)


def test_a_model_that_forgets_its_cache_is_refused_instead_of_sampled_from(world):
    model, tokenizer, _, prompts = world

    class Forgetful(type(model)):
        """Reads each new token as if nothing stood before it, as a model does that ignores the cache it is handed."""

        def forward(self, input_ids, attention_mask=None, past_key_values=None, **kwargs):
            kept = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
            return super().forward(input_ids=input_ids, attention_mask=kept, **kwargs)

    forgetful = Forgetful(model.config).eval()
    forgetful.load_state_dict(model.state_dict())
    with pytest.raises(ModelError, match="Forgetful cannot be decoded here with a key-value cache"):
        complete(forgetful, prompts[:2], ["a", "b"], Decoding(max_new_tokens=20), stop_ids=stop_ids(tokenizer))
