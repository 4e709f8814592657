"""Where a turn ends: the template's own token, not only the tokenizer's end of text."""

from __future__ import annotations

import pytest
from transformers import GenerationConfig

from limbeck.errors import ModelError
from limbeck.problems.extract import opens_thinking
from limbeck.problems.prompts import prompt_ids, response_ids, stop_ids, text_of, turn_end
from limbeck.worlds.abacus.tokenizer import build_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def chatml():
    """A base tokenizer whose end of text is not what its template ends a turn with."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def test_the_turn_ends_with_the_token_of_the_template(chatml):
    end = chatml.convert_tokens_to_ids("<|im_end|>")
    assert turn_end(chatml) == end != chatml.eos_token_id
    assert response_ids(chatml, "Start 7.")[-1] == end
    assert set(stop_ids(chatml)) == {end, chatml.eos_token_id}


def test_stop_tokens_of_the_generation_config_count(chatml):
    both = stop_ids(chatml, GenerationConfig(eos_token_id=[3, 4]))
    assert {3, 4} < set(both)
    assert stop_ids(chatml, GenerationConfig(eos_token_id=3))[-1] == 3
    assert len(both) == len(set(both))


def test_a_template_without_an_end_falls_back_on_the_end_of_text(chatml):
    chatml.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert turn_end(chatml) == chatml.eos_token_id


def test_no_template_is_the_text_and_a_line():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    assert list(prompt_ids(tokenizer, "A box holds 3 coins.")) == tokenizer.encode("A box holds 3 coins.\n")


def test_a_tokenizer_that_names_no_end_is_refused():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="must name an end-of-sequence token"):
        response_ids(tokenizer, "Start 7.")


def test_think_tags_stay_in_the_text_even_as_special_tokens(chatml):
    assert text_of(chatml, chatml.encode("<|im_start|>Start 7.<|im_end|>")) == "Start 7."
    chatml.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]})
    chatml.chat_template = CHATML.replace("assistant\n", "assistant\n<think>\n")
    assert text_of(chatml, chatml.encode("<think>3</think>7<|im_end|>")) == "<think>3</think>7"
    assert opens_thinking(text_of(chatml, prompt_ids(chatml, "How many?")))
