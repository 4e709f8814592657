"""From a problem to the token ids that a model reads: the chat template where there is one, else the plain text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from transformers import GenerationConfig, PreTrainedTokenizerBase

from limbeck.errors import ModelError
from limbeck.problems.extract import THINK_TAG
from limbeck.problems.templates import rendered

PROBE = "42"  # an answer that no template can take for markup


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, ...]:
    """Ids of one user turn, ready for the assistant's answer; at most one BOS, whoever adds it.

    A tokenizer without a chat template gets the text and a newline.
    """
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        ids = list(rendered(tokenizer, messages, add_generation_prompt=True, tokenize=True))
    else:
        ids = tokenizer.encode(prompt + "\n", add_special_tokens=True)
        if ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers close every text; a prompt stays open
            ids = ids[:-1]
    bos = tokenizer.bos_token_id
    while bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
        ids = ids[1:]
    return tuple(ids)  # type: ignore[return-value]


def response_ids(tokenizer: PreTrainedTokenizerBase, response: str) -> tuple[int, ...]:
    """Ids of a written (not sampled) response, closed exactly once with the token that ends a turn."""
    end = turn_end(tokenizer)
    ids = tuple(tokenizer.encode(response, add_special_tokens=False))
    return ids if ids and ids[-1] == end else (*ids, end)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The special token that the chat template writes after an answer; the end of sequence where it writes none.

    Raises:
        ModelError: neither the template nor the tokenizer names one.
    """
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": PROBE}]
        text = str(rendered(tokenizer, messages, tokenize=False))
        tail = tokenizer.encode(text.rpartition(PROBE)[2].strip(), add_special_tokens=False)
        if tail and tail[0] in tokenizer.all_special_ids:
            return int(tail[0])
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "a tokenizer must name an end-of-sequence token, received none. Set eos_token in tokenizer_config.json."
        )
    return int(str(tokenizer.eos_token_id))


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ids without special tokens; think tags stay where a tokenizer counts them among these."""
    tags = {token for token in tokenizer.all_special_tokens if THINK_TAG.fullmatch(token)}
    if not tags:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))
    dropped = {int(str(tokenizer.convert_tokens_to_ids(t))) for t in tokenizer.all_special_tokens if t not in tags}
    return str(tokenizer.decode([i for i in ids if i not in dropped]))


def stop_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None = None) -> tuple[int, ...]:
    """Every id that ends a response: the template's, the tokenizer's, and those of the model's generation config."""
    stops = [turn_end(tokenizer)]
    stops += [int(str(tokenizer.eos_token_id))] if tokenizer.eos_token_id is not None else []
    listed = generation.eos_token_id if generation is not None else None
    stops += listed if isinstance(listed, list) else [listed] if listed is not None else []
    if not all(isinstance(stop, int) for stop in stops):
        raise ModelError(
            f"generation_config.json: eos_token_id must be an id or a list of them, received {listed!r:.80}."
        )
    return tuple(dict.fromkeys(stops))


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identity of the chat template; part of every rollout set's provenance."""
    return hashlib.sha256(str(tokenizer.chat_template or "plain").encode()).hexdigest()
