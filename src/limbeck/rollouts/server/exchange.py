"""One conversation with a server: find the way of asking that it takes, then keep many requests under way."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx2
from transformers import PreTrainedTokenizerBase

from limbeck.errors import ServerError
from limbeck.rollouts.protocol import Prompt
from limbeck.rollouts.sample import Decoding
from limbeck.rollouts.server.endpoint import AUTO, Server
from limbeck.rollouts.server.retries import HaltError, Patience, RefusalError, TroubleError, retry_after
from limbeck.rollouts.server.wire import APIS, Answer, AnswerError, read_answer

LARGEST_ANSWER = 64 * 2**20  # bytes
REPEATED = (408, 409, 425, 429)  # and all that blame the server, but 501: not implemented
ANOTHER_WAY = (400, 404, 405, 413, 415, 422, 501)  # refusals that may be about the way of asking
MISSING = {
    "retokenized": "no token_ids in choices[0]",
    "prompt_differs": "prompt_token_ids or usage.prompt_tokens of another prompt",
    "closed": "no stop token at the end of token_ids",
    "untempered": "logprobs.token_logprobs of temperature 1 where another was sampled at",
    "no_logprobs": "no logprobs.token_logprobs with one number for each id",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What the server said at first and must go on saying: the way of asking it took, its model, the weights' version."""

    api: str
    model: str
    version: str


@dataclass(slots=True, kw_only=True)
class Exchange:
    """The state of one call. ``took`` is called with every answer, once; ``served`` is None until the first."""

    server: Server
    tokenizer: PreTrainedTokenizerBase
    decoding: Decoding
    stop_ids: tuple[int, ...]
    patience: Patience
    took: Callable[[Prompt, Answer, Served], None]
    served: Served | None = None

    async def run(self, prompts: Sequence[Prompt]) -> None:
        """Ask for every prompt.

        Raises:
            HaltError: there is no use in going on.
            ServerError: log-probs are required and the server has none.
        """
        waiting = iter(prompts)
        headers = {"Authorization": f"Bearer {self.server.api_key}"} if self.server.api_key else {}
        num = min(self.server.concurrency, len(prompts))
        limits = httpx2.Limits(max_connections=num, max_keepalive_connections=num)
        async with httpx2.AsyncClient(headers=headers, timeout=None, limits=limits) as client:
            served = self.served or await self._find_api(client, next(waiting))
            await _together([self._work(client, waiting, served) for _ in range(num)])

    async def _find_api(self, client: httpx2.AsyncClient, prompt: Prompt) -> Served:
        """Ask the first question in each way until the server takes one."""
        refusals: list[str] = []
        for api in APIS if self.server.api == AUTO else (self.server.api,):
            try:
                answer = await self._answer(client, prompt, api)
            except RefusalError as refusal:
                if refusal.status not in ANOTHER_WAY:
                    raise HaltError(str(refusal)) from refusal
                refusals.append(f"{api} ({APIS[api].sends}): {refusal}")
                continue
            if answer is None:
                raise HaltError(self.patience.set_aside[prompt.key])
            self.served = Served(api=api, model=answer.served, version=answer.version)
            self.took(prompt, answer, self.served)
            return self.served
        raise HaltError("no way of asking that it takes: " + "; ".join(refusals))

    async def _work(self, client: httpx2.AsyncClient, waiting: Iterator[Prompt], served: Served) -> None:
        for prompt in waiting:  # shared by all workers: each takes the next
            try:
                answer = await self._answer(client, prompt, served.api)
            except RefusalError as refusal:
                self.patience.refused(prompt.key, refusal)
            else:
                if answer is not None:
                    self.took(prompt, answer, served)

    async def _answer(self, client: httpx2.AsyncClient, prompt: Prompt, api: str) -> Answer | None:
        """The answer, or None when patience ran out and the request was set aside."""
        first, attempt = math.inf, 0
        while True:
            await self.patience.turn()
            try:
                answer = self._read(await self._post(client, prompt, api), prompt)
            except TroubleError as trouble:
                first = min(first, time.monotonic())
                if not await self.patience.failed(prompt.key, trouble, first=first, attempt=attempt):
                    return None
                attempt += 1
            else:
                self.patience.succeeded()
                return answer

    async def _post(self, client: httpx2.AsyncClient, prompt: Prompt, api: str) -> bytes:
        way = APIS[api]
        body = {"model": self.server.model} | way.body(prompt, self.decoding, self.stop_ids, self.tokenizer)
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        data = bytearray()
        try:
            async with (
                asyncio.timeout(self.server.timeout_seconds),  # over all of it: a server may trickle
                client.stream("POST", self.server.base + way.path, content=content, headers=headers) as response,
            ):
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > LARGEST_ANSWER:
                        raise TroubleError(f"garbage: more than {LARGEST_ANSWER // 2**20} MB")
        except TimeoutError as error:
            raise TroubleError(f"no answer in {self.server.timeout_seconds:g} s") from error
        except httpx2.HTTPError as error:
            raise TroubleError(f"connection ({type(error).__name__})") from error
        status = response.status_code
        if status in REPEATED or (status >= 500 and status != 501):
            wait = retry_after(response.headers.get("retry-after"))
            raise TroubleError(f"HTTP {status}", said=self._excerpt(data), retry_after=wait)
        if status != 200:
            raise RefusalError(status, self._excerpt(data))
        return bytes(data)

    def _read(self, data: bytes, prompt: Prompt) -> Answer:
        try:
            answer = read_answer(json.loads(data), prompt, self.decoding, self.stop_ids, self.tokenizer)
        except AnswerError as error:
            raise TroubleError(f"garbage: {error}") from error
        except (ValueError, RecursionError) as error:
            raise TroubleError("garbage: not JSON" if data else "garbage: empty body") from error
        self._check_served(answer)
        answer = self._without_untempered(answer)
        inexact = [note for note in MISSING if note in answer.notes]
        if self.server.require_logprobs and inexact:
            raise ServerError(
                f"{self.server.base} must return the sampled ids and a log-prob for each, which on-policy use needs, "
                f"received {MISSING[inexact[0]]} for {prompt.key!r}. vLLM and SGLang return them; without, sample offline."
            )
        return answer

    def _check_served(self, answer: Answer) -> None:
        """The model must be the one that was asked for, and stay the same."""
        if self.served is not None:
            good = (answer.served, answer.version) == (self.served.model, self.served.version)
        else:
            good = same_model(self.server.model, answer.served)
        if not good:
            name = answer.served[:80] + (f", weights {answer.version[:40]}" if answer.version else "")
            raise TroubleError(f"answers by another model ({name})")

    def _without_untempered(self, answer: Answer) -> Answer:
        """Log-probs are kept where they are those of the distribution that was sampled from, else dropped."""
        if self.decoding.sampling_temperature in (0.0, 1.0) or self.server.tempered_logprobs:
            return answer
        if "no_logprobs" in answer.notes:
            return answer
        unknown = (math.nan,) * len(answer.completion.ids)
        notes = (*answer.notes, "untempered", "no_logprobs")
        return replace(answer, completion=replace(answer.completion, logprobs=unknown), notes=notes)

    def _excerpt(self, data: bytearray) -> str:
        """What a server said, for a message: short, on one line, without the key that it may repeat."""
        text = " ".join(data[:2000].decode("utf-8", "replace").split())
        return (text.replace(self.server.api_key, "(key)") if self.server.api_key else text)[:300]


def same_model(asked: str, served: str) -> bool:
    """Whether the name in an answer is the one that was asked for, up to a date, a revision or a folder.

    >>> same_model("gpt-x", "gpt-x-2026-01-01"), same_model("a", "a@main"), same_model("/models/a", "a")
    (True, True, True)
    >>> same_model("gpt-x", "gpt-xl"), same_model("a", "b"), same_model("a", "")
    (False, False, True)
    """
    same = re.fullmatch(rf"({re.escape(asked)}((-\d|[@:]).*)?)?", served, re.DOTALL)
    return bool(same) or asked.rstrip("/").endswith("/" + served)


async def _together(jobs: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all; when one raises, end the others and raise."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
