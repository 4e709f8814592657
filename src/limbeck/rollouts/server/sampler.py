"""A server as a sampler: prompts in, completions out, with every answer on record as soon as it is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from limbeck.records import digest_of
from limbeck.rollouts.protocol import Prompt
from limbeck.rollouts.sample import Completion, Decoding
from limbeck.rollouts.server.client import Client
from limbeck.rollouts.server.endpoint import Server
from limbeck.rollouts.server.retries import LackError
from limbeck.rollouts.server.wire import APIS, Answer, Api, Reply, Way, read_answer
from limbeck.types import Finish

MISSING = {
    "retokenized": "no token_ids in choices[0]",
    "prompt_differs": "prompt_token_ids or usage.prompt_tokens of another prompt",
    "closed": "no stop token at the end of token_ids",
    "untempered": "logprobs.token_logprobs of temperature 1 where another was sampled at",
    "no_logprobs": "no logprobs.token_logprobs with one number for each id",
}


class ServerSampler:
    """A server as a :class:`limbeck.rollouts.protocol.Sampler`.

    With a journal, a call that died is continued by the same call: nothing that was answered is asked again.
    :meth:`provenance` says, after a call, what was asked and how exact the answers are.

    Args:
        server: where, and how patiently.
        tokenizer: in whose ids the completions are kept; the server's must be the same where it is asked by ids.
        decoding: temperature, length limit and seed; the batch size is the server's own.
        stop_ids: ids that end a response, the turn's end first.
        journal: file for finished answers, or None to keep them in memory.
        restart: drop what the journal holds where it is that of other settings.
        tell: called with a sentence while the server does not answer.

    Raises:
        ConfigError: ``server.api`` is no way to sample.
    """

    def __init__(
        self,
        server: Server,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        *,
        stop_ids: Sequence[int],
        journal: Path | None = None,
        restart: bool = False,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.server, self.tokenizer, self.decoding, self.stop_ids = server, tokenizer, decoding, tuple(stop_ids)
        ways = {name: self._way(api) for name, api in APIS.items()}
        self.client = Client(server, ways, journal=journal, restart=restart, tell=tell)

    def __call__(
        self, prompts: Sequence[Prompt], *, advance: Callable[[int], None] = lambda num: None
    ) -> list[Completion]:
        """One completion for each prompt, in their order.

        Raises:
            ServerError: not every prompt was answered within patience; what was answered is in the journal.
            ConfigError: two prompts of one key.
            FolderError: the journal is that of other settings.
        """
        return [_completion(record) for record in self.client(prompts, self.identity(prompts), advance=advance)]

    def identity(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """What must agree for answers to belong together; the addresses may change."""
        return {
            "model": self.server.model,
            "api": self.server.api,
            "sampling_temperature": self.decoding.sampling_temperature,
            "max_new_tokens": self.decoding.max_new_tokens,
            "seed": self.decoding.seed,
            "tempered_logprobs": self.server.tempered_logprobs,
            "require_logprobs": self.server.require_logprobs,
            "stop_ids": self.stop_ids,
            "num_prompts": len(prompts),
            "prompts": digest_of([[prompt.key, prompt.ids, prompt.text] for prompt in prompts]),
        }

    def provenance(self) -> dict[str, Any]:
        """What a rollout set records of where it came from; the weights' digest cannot be known here."""
        about = {**self.client.provenance(), "tempered_logprobs": self.server.tempered_logprobs}
        return {"model": self.server.model, "model_digest": "", "server": about}

    def _way(self, api: Api) -> Way[Prompt]:
        def body(prompt: Prompt) -> dict[str, Any]:
            return {"model": self.server.model} | api.body(prompt, self.decoding, self.stop_ids, self.tokenizer)

        return Way(path=api.path, sends=api.sends, body=body, read=self._read)

    def _read(self, payload: Any, prompt: Prompt) -> Reply:
        answer = read_answer(payload, prompt, self.decoding, self.stop_ids, self.tokenizer)
        answer = self._without_untempered(answer)
        inexact = [note for note in MISSING if note in answer.notes]
        if self.server.require_logprobs and inexact:
            raise LackError(
                "the sampled ids and a log-prob for each, which on-policy use needs",
                MISSING[inexact[0]],
                "vLLM and SGLang return them; without, sample offline.",
            )
        return Reply(record=_record(answer), served=answer.served, version=answer.version)

    def _without_untempered(self, answer: Answer) -> Answer:
        """Log-probs are kept where they are those of the distribution that was sampled from, else dropped."""
        if self.decoding.sampling_temperature in (0.0, 1.0) or self.server.tempered_logprobs:
            return answer
        if "no_logprobs" in answer.notes:
            return answer
        unknown = (math.nan,) * len(answer.completion.ids)
        notes = (*answer.notes, "untempered", "no_logprobs")
        return replace(answer, completion=replace(answer.completion, logprobs=unknown), notes=notes)


def _record(answer: Answer) -> dict[str, Any]:
    logprobs = [None if math.isnan(x) else x for x in answer.completion.logprobs]
    known = any(x is not None for x in logprobs)
    return {
        "ids": list(answer.completion.ids),
        "logprobs": logprobs if known else None,
        "finish": str(answer.completion.finish),
        "notes": list(answer.notes),
    }


def _completion(record: dict[str, Any]) -> Completion:
    logprobs = record["logprobs"] or [None] * len(record["ids"])
    return Completion(
        ids=tuple(record["ids"]),
        logprobs=tuple(math.nan if x is None else x for x in logprobs),
        finish=Finish(record["finish"]),
    )
