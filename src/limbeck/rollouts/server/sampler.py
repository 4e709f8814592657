"""A server as a sampler: prompts in, completions out, with every answer on record as soon as it is there."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from limbeck.errors import ConfigError, ServerError
from limbeck.folders import digest_of
from limbeck.rollouts.journal import Journal
from limbeck.rollouts.protocol import Prompt
from limbeck.rollouts.sample import Completion, Decoding
from limbeck.rollouts.server.endpoint import KEY_VARIABLES, Server
from limbeck.rollouts.server.exchange import Exchange, Served
from limbeck.rollouts.server.retries import HaltError, Patience
from limbeck.rollouts.server.wire import APIS, Answer
from limbeck.types import Finish

HEADER = ""  # the journal's key for what the server said of itself; prompts have others


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
        self.server, self.tokenizer, self.decoding = server, tokenizer, decoding
        self.stop_ids, self.journal, self.restart, self.tell = tuple(stop_ids), journal, restart, tell
        self.troubles: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.served: Served | None = None

    def __call__(
        self, prompts: Sequence[Prompt], *, advance: Callable[[int], None] = lambda num: None
    ) -> list[Completion]:
        """One completion for each prompt, in their order.

        Raises:
            ServerError: not every prompt was answered within patience; what was answered is in the journal.
            ConfigError: two prompts of one key.
            FolderError: the journal is that of other settings.
        """
        if len({HEADER, *(prompt.key for prompt in prompts)}) != len(prompts) + 1:
            raise ConfigError("prompts must have keys of their own, received one twice or empty. Number the samples.")
        with self._open_journal(prompts) as journal:
            records: dict[str, dict[str, Any]] = journal.done if journal else {}
            keep = journal.append if journal else records.__setitem__
            if HEADER in records:
                self.served = Served(**records[HEADER])
            missing = [prompt for prompt in prompts if prompt.key not in records]
            advance(len(prompts) - len(missing))
            if missing:
                self._ask(missing, records, keep, advance, num_prompts=len(prompts))
        found = [records[prompt.key] for prompt in prompts]
        self.notes = Counter(note for record in found for note in record["notes"])
        return [_completion(record) for record in found]

    def identity(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """What must agree for answers to belong together; the address may change."""
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
        served = self.served
        return {
            "model": self.server.model,
            "model_digest": "",
            "server": {
                "url": self.server.base,
                "api": served.api if served else self.server.api,
                "prompts_sent_as": APIS[served.api].sends if served else "",
                "served_model": served.model if served else "",
                "weights_version": served.version if served else "",
                "tempered_logprobs": self.server.tempered_logprobs,
                "inexact": dict(sorted(self.notes.items())),
                "repeated": dict(sorted(self.troubles.items())),
            },
        }

    def _open_journal(self, prompts: Sequence[Prompt]) -> Journal | nullcontext[None]:
        if self.journal is None:
            return nullcontext()
        return Journal(self.journal, self.identity(prompts), restart=self.restart)

    def _ask(
        self,
        missing: Sequence[Prompt],
        records: Mapping[str, Any],
        keep: Callable[[str, dict[str, Any]], None],
        advance: Callable[[int], None],
        *,
        num_prompts: int,
    ) -> None:
        num_saved = num_prompts - len(missing)

        def took(prompt: Prompt, answer: Answer, served: Served) -> None:
            nonlocal num_saved
            if HEADER not in records:
                self.served = served
                keep(HEADER, asdict(served))
            keep(prompt.key, _record(answer))
            num_saved += 1
            advance(1)

        patience = Patience(seconds=self.server.patience_seconds, troubles=self.troubles, tell=self.tell)
        exchange = Exchange(
            server=self.server,
            tokenizer=self.tokenizer,
            decoding=self.decoding,
            stop_ids=self.stop_ids,
            patience=patience,
            took=took,
            served=self.served,
        )
        try:
            asyncio.run(exchange.run(missing))
        except HaltError as halt:
            raise self._gave_up(str(halt), num_saved, num_prompts) from None
        if patience.set_aside:
            key, reason = next(iter(patience.set_aside.items()))
            count = len(patience.set_aside)
            raise self._gave_up(f"no usable answer to {count}, as to {key!r}: {reason}", num_saved, num_prompts)

    def _gave_up(self, reason: str, num_saved: int, num_prompts: int) -> ServerError:
        troubles = ", ".join(f"{count} x {kind}" for kind, count in self.troubles.most_common(5))
        key = f" Set {KEY_VARIABLES[0]} to a key that it takes." if reason.startswith(("HTTP 401", "HTTP 403")) else ""
        if self.journal:
            way_out = (
                f"{num_saved} of {num_prompts} answers are saved in {self.journal.parent}: the same command continues."
            )
        else:
            way_out = f"{num_saved} of {num_prompts} answers came and were not kept: give a journal to keep them."
        return ServerError(
            f"{self.server.base} must answer every prompt for the model {self.server.model!r} within "
            f"{self.server.patience_seconds:g} s of patience, received {reason}{f' (in all: {troubles})' if troubles else ''}."
            f"{key} {way_out}"
        )


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
