"""What is sent to an OpenAI-compatible server and how its answer is read: pure functions, no network.

Servers differ in what they take. :data:`APIS` lists the ways to ask, the most exact first: by token ids with the sampled
ids and their log-probs in return, by text, by chat message. Whatever a server says is checked before it is believed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from transformers import PreTrainedTokenizerBase

from limbeck.problems.prompts import response_ids
from limbeck.rollouts.protocol import Prompt
from limbeck.rollouts.sample import Completion, Decoding
from limbeck.rollouts.server.retries import RefusalError
from limbeck.types import Finish

ABOVE_ZERO = 1e-3  # nats; a log-prob above it is none
# every bias is switched off by name: servers take defaults for what is left out from the model's folder
UNBIASED = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@runtime_checkable
class Keyed(Protocol):
    """Whatever is asked for: it has a name of its own."""

    @property
    def key(self) -> str: ...


T = TypeVar("T", bound=Keyed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer that was read: what goes on record, and what the server says of itself."""

    record: Mapping[str, Any]
    served: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Way(Generic[T]):
    """One way to ask, with all that it needs to know bound in.

    Attributes:
        path: appended to the address; from its root, without ``/v1``, where it begins with a slash.
        sends: what prompts are sent as, in words.
        body: an item to the JSON that is sent.
        read: the decoded answer to an item; raises :class:`AnswerError`, or ``LackError`` for a field that is needed.
        excused: what goes on record for an item that is refused like this, None where it must not be refused.
        gap: how far two records of one item are apart, nats a token; None where answers are drawn and may differ.
        names: an answer names the model; otherwise the server's list of models is asked.
    """

    path: str
    sends: str
    body: Callable[[T], dict[str, Any]]
    read: Callable[[Any, T], Reply]
    excused: Callable[[RefusalError], dict[str, Any] | None] = field(default=lambda refusal: None)
    gap: Callable[[Mapping[str, Any], Mapping[str, Any]], float] | None = None
    names: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One way to ask: where, and what the prompt is sent as."""

    path: str
    sends: str
    body: Callable[[Prompt, Decoding, Sequence[int], PreTrainedTokenizerBase], dict[str, Any]]


class AnswerError(ValueError):
    """An answer that cannot be used; the text says why, in a few words that can be counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A completion, and what there is to know about how it was obtained.

    Attributes:
        completion: ids, log-probs (NaN where the server gave none), ending.
        served: the model's name as the server gives it.
        version: of the weights, empty where the server does not say.
        notes: what is not exact about it, out of :data:`NOTES`.
    """

    completion: Completion
    served: str
    version: str
    notes: tuple[str, ...]


NOTES = {
    "retokenized": "response ids are the tokenizer's reading of the text: the server returned none",
    "token_count_differs": "re-tokenized ids are not as many as the server says it sampled",
    "prompt_differs": "the server read another number of prompt tokens, or other ones",
    "no_logprobs": "no log-prob for each sampled token",
    "untempered": "log-probs of the server were dropped: they belong to temperature 1, and another was sampled at",
    "closed": "the server left out the stop token; it was put back, without a log-prob",
    "reasoning_joined": "the reasoning came apart from the answer and was put before it in <think> tags",
}


def request_seed(decoding: Decoding, key: str) -> int:
    """31 bits for one request: equal seeds and keys ask for equal numbers, as far as the server honours that.

    >>> request_seed(Decoding(seed=1), "p/0") == request_seed(Decoding(seed=2), "p/0")
    False
    """
    name = f"{decoding.seed}/{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") >> 1


def _common(prompt: Prompt, decoding: Decoding) -> dict[str, Any]:
    return {
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.sampling_temperature,
        "top_p": 1.0,
        "seed": request_seed(decoding, prompt.key),
    }


def _by_ids(
    prompt: Prompt, decoding: Decoding, stops: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    del tokenizer
    returned = {"logprobs": 1, "return_token_ids": True}
    return _common(prompt, decoding) | UNBIASED | returned | {"prompt": list(prompt.ids), "stop_token_ids": list(stops)}


def _by_transformers(
    prompt: Prompt, decoding: Decoding, stops: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    # `transformers serve` decodes greedily at any temperature unless the generation config says otherwise
    sampled = decoding.sampling_temperature > 0
    config = {"do_sample": sampled, "max_new_tokens": decoding.max_new_tokens, "eos_token_id": list(stops)}
    config |= {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0} if sampled else {}
    config |= {"pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]}
    return _by_text(prompt, decoding, stops, tokenizer) | {"generation_config": json.dumps(config)}


def _by_text(
    prompt: Prompt, decoding: Decoding, stops: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    del stops
    return _common(prompt, decoding) | {"prompt": prompt_text(tokenizer, prompt.ids)}


def _by_chat(
    prompt: Prompt, decoding: Decoding, stops: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    del stops, tokenizer
    return _common(prompt, decoding) | {"messages": [{"role": "user", "content": prompt.text}]}


APIS: dict[str, Api] = {
    "ids": Api(path="completions", sends="token ids", body=_by_ids),
    "transformers": Api(path="completions", sends="text", body=_by_transformers),
    "text": Api(path="completions", sends="text", body=_by_text),
    "chat": Api(path="chat/completions", sends="messages", body=_by_chat),
}


def prompt_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text that the server's tokenizer, if it is the same, reads as these ids: without the BOS that it adds itself."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id:
        rest = str(tokenizer.decode(list(ids[1:]), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if tokenizer.encode(rest) == list(ids):
            return rest
    return text


def read_answer(
    payload: Any, prompt: Prompt, decoding: Decoding, stops: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> Answer:
    """Check an answer and read it.

    Args:
        payload: the decoded JSON body.
        prompt: what was asked.
        decoding: how it was asked to be decoded.
        stops: ids that end a response; the first closes one that came without.
        tokenizer: the student's, in whose ids the rollout is kept.

    Raises:
        AnswerError: it is not an answer to this question.
    """
    choice = the_choice(payload)
    if choice.get("finish_reason") not in ("stop", "length"):
        raise AnswerError(f"finish_reason {str(choice.get('finish_reason'))[:20]!r}")
    finish = Finish(choice["finish_reason"])
    usage = payload["usage"] if isinstance(payload.get("usage"), dict) else {}
    notes: list[str] = []
    ids = _ids(choice, len(tokenizer), decoding)
    if ids is None:
        ids = _retokenized(choice, prompt, finish, usage, tokenizer, notes)
    logprobs = _logprobs(choice, len(ids)) if "retokenized" not in notes else None
    if finish is Finish.STOP and ids[-1] not in stops:
        ids, notes = [*ids, stops[0]], [*notes, "closed"]
        logprobs = [*logprobs, math.nan] if logprobs is not None else None
    if logprobs is None or any(map(math.isnan, logprobs)):
        notes.append("no_logprobs")
    if _prompt_differs(choice, usage, prompt):
        notes.append("prompt_differs")
    unknown = [math.nan] * len(ids)
    return Answer(
        completion=Completion(ids=tuple(ids), logprobs=tuple(logprobs or unknown), finish=finish),
        served=str(payload.get("model") or ""),
        version=version_of(payload),
        notes=tuple(notes),
    )


def the_choice(payload: Any) -> Mapping[str, Any]:
    """The one choice of an answer in OpenAI's form.

    Raises:
        AnswerError: it is none, or has another number of choices.
    """
    if not isinstance(payload, dict):
        raise AnswerError("not a JSON object")
    choices = payload.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise AnswerError(f"{len(choices) if isinstance(choices, list) else 'no'} choices instead of 1")
    return choices[0]


def _ids(choice: Mapping[str, Any], vocabulary: int, decoding: Decoding) -> list[int] | None:
    ids = choice.get("token_ids")
    if ids is None:
        return None
    if not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < vocabulary for i in ids):
        raise AnswerError("token_ids that are not the tokenizer's")
    if len(ids) > decoding.max_new_tokens:
        raise AnswerError("more token_ids than max_tokens")
    return ids


def _retokenized(
    choice: Mapping[str, Any],
    prompt: Prompt,
    finish: Finish,
    usage: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    notes: list[str],
) -> list[int]:
    text = _text(choice, notes)
    if text.startswith(prompt_text(tokenizer, prompt.ids)):
        raise AnswerError("the answer begins with the prompt itself")
    sampled = usage.get("completion_tokens")
    if not text and (finish is Finish.LENGTH or sampled != 1):
        raise AnswerError("an empty answer")
    ids = (
        list(response_ids(tokenizer, text))
        if finish is Finish.STOP
        else tokenizer.encode(text, add_special_tokens=False)
    )
    notes.append("retokenized")
    if isinstance(sampled, int) and sampled != len(ids):
        notes.append("token_count_differs")
    return ids


def _text(choice: Mapping[str, Any], notes: list[str]) -> str:
    message = choice.get("message")
    if isinstance(message, dict):
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        text = message.get("content") or ("" if reasoning else message.get("content"))
        if isinstance(reasoning, str) and isinstance(text, str):
            notes.append("reasoning_joined")
            return f"<think>\n{reasoning.strip()}\n</think>\n\n{text}" if text else f"<think>\n{reasoning.strip()}"
    else:
        text = choice.get("text")
    if not isinstance(text, str):
        raise AnswerError("no text in the choice")
    return text


def _logprobs(choice: Mapping[str, Any], length: int) -> list[float] | None:
    """One log-prob for each id, or None: as many numbers as ids, or they belong to something else."""
    given = choice.get("logprobs")
    values = given.get("token_logprobs") if isinstance(given, dict) else None
    if not isinstance(values, list) or len(values) != length:
        return None
    return [min(float(v), 0.0) if _is_logprob(v) else math.nan for v in values]


def _is_logprob(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value <= ABOVE_ZERO


def _prompt_differs(choice: Mapping[str, Any], usage: Mapping[str, Any], prompt: Prompt) -> bool:
    read = choice.get("prompt_token_ids")
    if isinstance(read, list):
        return tuple(read) != prompt.ids
    count = usage.get("prompt_tokens")
    return isinstance(count, int) and count != len(prompt.ids)


def version_of(payload: Mapping[str, Any]) -> str:
    """The weights' version, empty where the server does not say (SGLang does)."""
    metadata = payload.get("metadata")
    return str(metadata.get("weight_version") or "") if isinstance(metadata, dict) else ""
