"""How a server is asked for the log-probs of tokens that are already there, and how its answer is read; no network.

:data:`SCORING_APIS` lists the ways, the most exact first. Each sends prompt and response as token ids, asks for temperature
1 and one more token or none, and reads one number for each response token. Where the answer says whose numbers they are,
the ids are compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.rollouts.server.retries import RefusalError
from limbeck.rollouts.server.wire import ABOVE_ZERO, UNBIASED, AnswerError, Reply, Way, the_choice, version_of

NEVER = -9999.0  # vLLM's way to write minus infinity in JSON
TOO_LONG = re.compile(r"context length|maximum model length", re.IGNORECASE)  # vLLM and SGLang, with HTTP 400
SCORING_NOTES = {
    "ids_not_returned": "the server did not say whose log-probs they are; only their number could be compared",
    "too_long": "longer than the server's context: NaN, as for a model in this process",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One rollout as a server reads it: prompt and response in one, scored from ``num_prompt`` on, which is above 0."""

    key: str
    ids: tuple[int, ...]
    num_prompt: int

    @property
    def response(self) -> tuple[int, ...]:
        return self.ids[self.num_prompt :]


def scoring_ways(model: str) -> dict[str, Way[Passage]]:
    """:data:`SCORING_APIS` for one served model."""
    return {name: make(model) for name, make in SCORING_APIS.items()}


def _vllm(model: str) -> Way[Passage]:
    # prompt_logprobs 1, not 0: some versions take 0 for "none"; the token itself is returned either way
    body = {"model": model, "max_tokens": 1, "temperature": 1.0, "top_p": 1.0, **UNBIASED, "prompt_logprobs": 1}
    return Way(
        path="completions",
        sends="token ids",
        body=lambda passage: body | {"prompt": list(passage.ids)},
        read=_read_vllm,
        excused=_too_long,
        gap=mean_gap,
    )


def _sglang(model: str) -> Way[Passage]:
    del model  # its own endpoint takes none: the list of models says what is served
    parameters = {"max_new_tokens": 1, "temperature": 1.0}

    def body(passage: Passage) -> dict[str, Any]:
        returned = {"return_logprob": True, "logprob_start_len": passage.num_prompt - 1}
        return {"input_ids": list(passage.ids), "sampling_params": parameters, **returned}

    return Way(
        path="/generate", sends="token ids", body=body, read=_read_sglang, excused=_too_long, gap=mean_gap, names=False
    )


def _echo(model: str) -> Way[Passage]:
    body = {"model": model, "max_tokens": 0, "temperature": 1.0, "echo": True, "logprobs": 1}
    return Way(
        path="completions",
        sends="token ids",
        body=lambda passage: body | {"prompt": list(passage.ids)},
        read=_read_echo,
        excused=_too_long,
        gap=mean_gap,
    )


SCORING_APIS: dict[str, Callable[[str], Way[Passage]]] = {"vllm": _vllm, "sglang": _sglang, "echo": _echo}


def _read_vllm(payload: Any, passage: Passage) -> Reply:
    """``choices[0].prompt_logprobs``: for each prompt token but the first an object from token id to its log-prob."""
    given = the_choice(payload).get("prompt_logprobs")
    if given is None:
        raise RefusalError(200, "no prompt_logprobs in choices[0]")
    if not isinstance(given, list) or len(given) != len(passage.ids):
        raise AnswerError("prompt_logprobs of another prompt")
    values = []
    for token, entry in zip(passage.response, given[passage.num_prompt :], strict=True):
        found = entry.get(str(token)) if isinstance(entry, dict) else None
        if not isinstance(found, dict):
            raise AnswerError("prompt_logprobs of other ids")
        values.append(found.get("logprob"))
    return _reply(values, payload, served=payload.get("model"))


def _read_sglang(payload: Any, passage: Passage) -> Reply:
    """``meta_info.input_token_logprobs``: [log-prob, id, text] from ``logprob_start_len`` on, the first without a number."""
    about = payload.get("meta_info") if isinstance(payload, dict) else None
    given = about.get("input_token_logprobs") if isinstance(about, dict) else None
    if given is None:
        raise RefusalError(200, "no meta_info.input_token_logprobs")
    last: list[Any] = given[-len(passage.response) :] if isinstance(given, list) else [None]
    if not all(isinstance(entry, list) and len(entry) >= 2 for entry in last):
        raise AnswerError("input_token_logprobs that cannot be read")
    if tuple(entry[1] for entry in last) != passage.response:
        raise AnswerError("input_token_logprobs of other ids")
    return _reply([entry[0] for entry in last], {"metadata": about}, served="")


def _read_echo(payload: Any, passage: Passage) -> Reply:
    """``choices[0].logprobs.token_logprobs`` over the echoed prompt; whose they are is not said."""
    given = the_choice(payload).get("logprobs")
    values = given.get("token_logprobs") if isinstance(given, dict) else None
    if not isinstance(values, list):
        raise RefusalError(200, "no logprobs.token_logprobs in choices[0]")
    if len(values) < len(passage.ids):  # those of a sampled token only: the echo was ignored
        raise RefusalError(200, f"token_logprobs of {len(values)} tokens for a prompt of {len(passage.ids)}")
    if len(values) > len(passage.ids):
        raise AnswerError("token_logprobs of another prompt")
    return _reply(values[passage.num_prompt :], payload, served=payload.get("model"), notes=("ids_not_returned",))


def _reply(values: Sequence[Any], payload: Mapping[str, Any], *, served: Any, notes: Sequence[str] = ()) -> Reply:
    if not all(type(v) in (int, float) and math.isfinite(v) and v <= ABOVE_ZERO for v in values):
        raise AnswerError("a log-prob that is none")
    record = {"logprobs": [min(float(v), 0.0) for v in values], "notes": list(notes)}
    return Reply(record=record, served=str(served or ""), version=version_of(payload))


def _too_long(refusal: RefusalError) -> dict[str, Any] | None:
    return (
        {"logprobs": None, "notes": ["too_long"]} if refusal.status == 400 and TOO_LONG.search(str(refusal)) else None
    )


def mean_gap(record: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Mean absolute difference of two scores of one rollout, nats a token; 0 where one of them has no numbers.

    >>> mean_gap({"logprobs": [-1.0, -2.0]}, {"logprobs": [-1.5, -2.0]})
    0.25
    """
    if record["logprobs"] is None or other["logprobs"] is None:
        return 0.0
    pairs = list(zip(record["logprobs"], other["logprobs"], strict=True))
    return sum(abs(a - b) for a, b in pairs) / len(pairs)
