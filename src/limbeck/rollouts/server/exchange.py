"""One conversation with a pool of addresses: find the way of asking that is taken, then keep many requests under way.

Knows nothing of what is asked: samplers and scorers bring their ways (:class:`limbeck.rollouts.server.wire.Way`).
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic

import httpx2

from limbeck.errors import ServerError
from limbeck.rollouts.server.endpoint import AUTO, Server
from limbeck.rollouts.server.pool import Endpoint, Pool
from limbeck.rollouts.server.retries import HaltError, LackError, Patience, RefusalError, TroubleError, retry_after
from limbeck.rollouts.server.wire import AnswerError, Reply, T, Way

LARGEST_ANSWER = 64 * 2**20  # bytes
REPEATED = (408, 409, 425, 429)  # and all that blame the server, but 501: not implemented
ANOTHER_WAY = (200, 400, 404, 405, 413, 415, 422, 501)  # may be about the way of asking; 200 where a field is not there
LARGEST_GAP = 0.2  # nats a token: 16-bit arithmetic in other batches is off by hundredths, another model by more
NO_WAY = "no way of asking that it takes"
NOT_HERE = (401, 403, 404)  # at the first contact with an address: no key, or no such model


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What was said at first and must go on being said, at every address: the way of asking, the model, its weights."""

    api: str
    model: str
    version: str

    @property
    def shown(self) -> str:
        return self.model[:80] + (f", weights {self.version[:40]}" if self.version else "")


@dataclass(slots=True, kw_only=True)
class Exchange(Generic[T]):
    """The state of one call.

    Attributes:
        took: called with every answer, once.
        served: None until the first answer.
        probe: an item and what is on record for it, to compare addresses by, see ``Way.gap``; None until the first answer.
        largest_gap: between what is on record and what an address said to the same, None where nothing was compared.
    """

    server: Server
    ways: Mapping[str, Way[T]]
    pool: Pool
    patience: Patience
    took: Callable[[T, Reply, Served, Endpoint], None]
    served: Served | None = None
    probe: tuple[T, Mapping[str, Any]] | None = None
    largest_gap: float | None = None
    troubles: Counter[str] = field(default_factory=Counter)

    async def run(self, items: Sequence[T]) -> None:
        """Ask for every item.

        Raises:
            HaltError: there is no use in going on.
            ServerError: the server lacks a field that is needed.
        """
        waiting = iter(items)
        headers = {"Authorization": f"Bearer {self.server.api_key}"} if self.server.api_key else {}
        num = min(self.server.concurrency, len(items))
        limits = httpx2.Limits(max_connections=num, max_keepalive_connections=num)
        async with httpx2.AsyncClient(headers=headers, timeout=None, limits=limits) as client:
            await _together([self._work(client, waiting) for _ in range(num)])

    async def _work(self, client: httpx2.AsyncClient, waiting: Iterator[T]) -> None:
        for item in waiting:  # shared by all workers: each takes the next
            await self._ask(client, item)

    async def _ask(self, client: httpx2.AsyncClient, item: T) -> None:
        """Ask until somebody answers: what failed at one address goes to another that is well, else it waits."""
        first, attempt = math.inf, 0
        failed: set[Endpoint] = set()  # since the request waited last
        refused: dict[Endpoint, RefusalError] = {}
        while True:
            endpoint = await self.pool.take({*failed, *refused})
            if endpoint is None and failed:  # who was to be asked instead is gone by now
                failed = set()
                continue
            if endpoint is None:
                break
            sent = time.monotonic()
            try:
                reply = await self._reply(client, endpoint, item)
            except TroubleError as trouble:
                first = min(first, time.monotonic())
                self.troubles[trouble.kind] += 1
                self.pool.failed(endpoint, trouble, sent=sent)
                failed.add(endpoint)
                if self.pool.another({*failed, *refused}):
                    continue
                rest = self.pool.seconds_until_room()
                if not await self.patience.failed(item.key, trouble, first=first, attempt=attempt, rest=rest):
                    return
                attempt, failed = attempt + 1, set()
            except RefusalError as refusal:
                self.troubles[refusal.kind] += 1
                self.pool.refused(endpoint, refusal)
                refused[endpoint] = refusal
                failed = set()  # whoever failed is worth another try before the request is given up
            else:
                self.pool.answered(endpoint)
                self.patience.succeeded()
                if self.probe is None:
                    self.probe, endpoint.compared = (item, reply[0].record), True
                self.took(item, *reply, endpoint)
                return
        if self.pool.all_gone():
            raise HaltError(self.pool.endpoints[-1].said)
        self.patience.set_aside[item.key] = str(next(reversed(refused.values())))

    async def _reply(self, client: httpx2.AsyncClient, endpoint: Endpoint, item: T) -> tuple[Reply, Served]:
        """One attempt at one address; until somebody has answered, in each way until one is taken."""
        try:
            if self.served is None:
                return await self._find_way(client, endpoint, item)
            return await self._in_this_way(client, endpoint, item, self.served)
        except RefusalError as refusal:
            if not endpoint.met and refusal.status in NOT_HERE:
                raise HaltError(f"{refusal} from {endpoint.base}") from refusal
            raise
        except LackError as lack:
            raise ServerError(f"{endpoint.base} must return {lack} for {item.key!r}. {lack.way_out}") from lack
        finally:
            self.pool.release(endpoint)

    async def _in_this_way(
        self, client: httpx2.AsyncClient, endpoint: Endpoint, item: T, served: Served
    ) -> tuple[Reply, Served]:
        way = self.ways[served.api]
        await self._compare(client, endpoint, way)
        try:
            reply = await self._post(client, endpoint, way, item)
        except RefusalError as refusal:
            excused = way.excused(refusal)
            if excused is None:
                raise
            return Reply(record=excused, served=served.model, version=served.version), served
        return reply, self._checked(endpoint, served.api, reply)

    async def _find_way(self, client: httpx2.AsyncClient, endpoint: Endpoint, item: T) -> tuple[Reply, Served]:
        refusals: list[str] = []
        for api in self.ways if self.server.api == AUTO else (self.server.api,):
            way = self.ways[api]
            try:
                reply = await self._post(client, endpoint, way, item)
            except RefusalError as refusal:
                if refusal.status not in ANOTHER_WAY:
                    raise HaltError(str(refusal)) from refusal
                refusals.append(f"{api} ({way.sends}): {refusal}")
                continue
            served = self._checked(endpoint, api, reply)
            await self._compare(client, endpoint, way)  # where another address was quicker
            return reply, served
        raise HaltError(f"{NO_WAY}: {'; '.join(refusals)}")

    def _checked(self, endpoint: Endpoint, api: str, reply: Reply) -> Served:
        """The model must be the one that was asked for, and stay the same, at every address."""
        said = Served(api=api, model=reply.served, version=reply.version)
        if self.served is None and same_model(self.server.model, said.model):
            self.served = said
        if said == self.served:
            return said
        text = f"answers by another model ({said.shown})"
        if self.served and replace(said, api=self.served.api) == self.served:
            text = f"another way of asking ({api})"
        raise self._another(endpoint, text)

    async def _compare(self, client: httpx2.AsyncClient, endpoint: Endpoint, way: Way[T]) -> None:
        """Ask an address that is new, or failed, for what is on record: other weights under the same name show."""
        if endpoint.compared or self.probe is None or way.gap is None:
            return
        item, record = self.probe
        gap = way.gap(record, (await self._post(client, endpoint, way, item)).record)
        self.largest_gap = max(self.largest_gap or 0.0, gap)
        if not gap <= LARGEST_GAP:
            raise self._another(endpoint, f"answers by other weights ({gap:.2g} nats a token off what is on record)")
        endpoint.compared = True

    def _another(self, endpoint: Endpoint, text: str) -> HaltError | TroubleError:
        """Another model ends the call at an address that is met for the first time; later on it is trouble there."""
        if endpoint.met:
            return TroubleError(text)
        first = f", where {self.served.shown} answered at first (asked by {self.served.api})" if self.served else ""
        return HaltError(f"{text} at {endpoint.base}{first}")

    async def _post(self, client: httpx2.AsyncClient, endpoint: Endpoint, way: Way[T], item: T) -> Reply:
        data = await self._call(client, "POST", endpoint.base, way.path, json.dumps(way.body(item)).encode())
        try:
            reply = way.read(json.loads(data), item)
        except AnswerError as error:
            raise TroubleError(f"garbage: {error}") from error
        except (ValueError, RecursionError) as error:
            raise TroubleError("garbage: not JSON" if data else "garbage: empty body") from error
        if way.names:
            return reply
        if endpoint.name is None:
            endpoint.name = await self._listed(client, endpoint)
        return replace(reply, served=endpoint.name)

    async def _listed(self, client: httpx2.AsyncClient, endpoint: Endpoint) -> str:
        """The model that an address lists: the one that is asked for where it is among several, empty where it lists none."""
        try:
            listed = json.loads(await self._call(client, "GET", endpoint.base, "models"))["data"]
            names = [str(model["id"]) for model in listed]
        except RefusalError:
            return ""
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TroubleError("garbage: a list of models that cannot be read") from error
        return self.server.model if self.server.model in names else next(iter(names), "")

    async def _call(
        self, client: httpx2.AsyncClient, method: str, base: str, path: str, content: bytes | None = None
    ) -> bytes:
        headers = {"Content-Type": "application/json"}
        url = base.removesuffix("v1/") + path[1:] if path.startswith("/") else base + path
        data = bytearray()
        try:
            async with (
                asyncio.timeout(self.server.timeout_seconds),  # over all of it: a server may trickle
                client.stream(method, url, content=content, headers=headers) as response,
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
