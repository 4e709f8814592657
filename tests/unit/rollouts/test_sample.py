"""Decoding: ids are those of the definition, log-probs are exact, and a row does not depend on its batch."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from limbeck.batches.score import score_rollouts
from limbeck.errors import ConfigError, DataError, ModelError
from limbeck.problems.prompts import prompt_ids, stop_ids
from limbeck.rollouts.decode import ROOM
from limbeck.rollouts.sample import Decoding, _stream, complete
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


def by_definition(model, prompt, uniforms, temperature):
    """Each token from one pass over all the text before it, no cache, by inverse CDF in float64."""
    ids, logprobs = list(prompt), []
    for uniform in uniforms.double():
        with torch.no_grad():
            scaled = model(input_ids=torch.tensor([ids])).logits[0, -1].double() / temperature
        cumulative = scaled.softmax(-1).cumsum(-1)
        token = int((cumulative <= uniform * cumulative[-1]).sum())
        ids.append(token)
        logprobs.append(scaled.log_softmax(-1)[token].item())
    return tuple(ids[len(prompt) :]), logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_groups_are_sampled_as_the_definition_says(world, temperature):
    model, _, problems, prompts = world
    asked = [(f"{problems[i].id}/{sample}", prompts[i]) for sample in range(3) for i in (0, 5)]
    settings = Decoding(sampling_temperature=temperature, max_new_tokens=ROOM + 6, seed=7)
    done = complete(model, [prompt for _, prompt in asked], [key for key, _ in asked], settings, stop_ids=[])
    for (key, prompt), completion in list(zip(asked, done, strict=True))[:3]:
        ids, logprobs = by_definition(model, prompt, _stream(settings, key), temperature)
        assert completion.ids == ids
        torch.testing.assert_close(torch.tensor(completion.logprobs), torch.tensor(logprobs), rtol=0, atol=5e-5)
    assert len({completion.ids for completion in done}) == 6


def test_a_prompt_is_read_once_for_all_of_its_samples(world):
    model, _, _, prompts = world
    read = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    short, long = sorted(prompts, key=len)[:: len(prompts) - 1]
    complete(model, [long, short] * 4, list("abcdefgh"), Decoding(max_new_tokens=2), stop_ids=[])
    hook.remove()
    assert read == [(2, len(long)), (8, 1), (1, len(short) + 2)]  # the prompts, one step, the check of the cache


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "llama"])
def test_other_architectures_are_decoded_as_they_read(family):
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    }  # fmt: skip
    own = {
        "gpt2": {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4},
        "gemma3_text": sizes | {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
        "llama": sizes,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **own[family])).eval()
    prompts = [[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], [5, 6], [5, 6], [9]]
    settings = Decoding(sampling_temperature=1.0, max_new_tokens=20)
    done = complete(model, prompts, list("abcd"), settings, stop_ids=[1, 2, 3])  # stops early: rows leave the batch
    for key, prompt, completion in zip("abcd", prompts, done, strict=True):
        ids, _ = by_definition(model, prompt, _stream(settings, key)[: len(completion.ids)], 1.0)
        assert completion.ids == ids
    assert len({len(completion.ids) for completion in done}) > 1


def test_a_prompt_that_leaves_no_room_is_refused(world):
    with pytest.raises(DataError, match=r"must have 1 to 256 - max_new_tokens = 250 tokens"):
        decode(world, max_new_tokens=250)


def test_nonsense_settings_are_refused():
    with pytest.raises(ConfigError, match="max_new_tokens >= 1"):
        Decoding(max_new_tokens=0)


def test_logits_that_are_not_finite_are_refused(world):
    model, _, _, prompts = world
    broken = type(model)(model.config).eval()
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(
        ModelError, match="logits must be finite while decoding, received NaN or infinity in 2 of 2 rows"
    ):
        complete(broken, prompts[:2], ["a", "b"], Decoding(max_new_tokens=3), stop_ids=[])


@pytest.mark.parametrize("how", ["weights", "products"])
def test_bf16_decodes_within_its_own_rounding(world, how):
    model, tokenizer, _, prompts = world
    narrow = type(model)(model.config).eval()
    narrow.load_state_dict(model.state_dict())
    if how == "weights":
        narrow.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "products"):
        done = complete(
            narrow, prompts, list("abcdefghijkl"), Decoding(max_new_tokens=60), stop_ids=stop_ids(tokenizer)
        )
    exact = decode(world, max_new_tokens=60)
    same = [a.ids[:5] == b.ids[:5] for a, b in zip(done, exact, strict=True)]
    assert sum(same) > len(same) / 2


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
