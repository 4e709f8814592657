"""From a problem to the token ids that a model reads: the chat template where there is one, else the plain text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from limbeck.errors import ModelError


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, ...]:
    """Ids of one user turn, ready for the assistant's answer; at most one BOS, whoever adds it.

    A tokenizer without a chat template gets the text and a newline.
    """
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        ids = list(rendered)  # type: ignore[arg-type]
    else:
        ids = tokenizer.encode(prompt + "\n", add_special_tokens=True)
        if ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers close every text; a prompt stays open
            ids = ids[:-1]
    bos = tokenizer.bos_token_id
    while bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
        ids = ids[1:]
    return tuple(ids)  # type: ignore[return-value]


def response_ids(tokenizer: PreTrainedTokenizerBase, response: str) -> tuple[int, ...]:
    """Ids of a written (not sampled) response, closed with the end-of-sequence token exactly once."""
    eos = stop_ids(tokenizer)[0]
    ids = tuple(tokenizer.encode(response, add_special_tokens=False))
    return ids if ids and ids[-1] == eos else (*ids, eos)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of sampled ids, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a response, the tokenizer's own first."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "a tokenizer must name an end-of-sequence token, received none. Set eos_token in tokenizer_config.json."
        )
    return (int(str(tokenizer.eos_token_id)),)


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identity of the chat template; part of every rollout set's provenance."""
    return hashlib.sha256(str(tokenizer.chat_template or "plain").encode()).hexdigest()
