"""The addresses that one call asks: which of them is asked next, and how each has fared.

What is slow or fails gets less: an address has a share of the requests under way and no more; one that asks for time is
left alone for as long; one that keeps failing is tried with one request at a time, further and further apart, and has its
share again with its next answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from limbeck.rollouts.server import retries
from limbeck.rollouts.server.retries import RefusalError, TroubleError, backoff

DOUBT = 5  # failures in a row after which an address is tried with one request at a time
REFUSALS_IN_A_ROW = 20  # an address that refuses so many different requests refuses all


@dataclass(eq=False, slots=True, kw_only=True)
class Endpoint:
    """One address and how it has fared in this call; times are on the monotonic clock.

    Attributes:
        base: the address.
        share: requests under way there at most.
        met: it has been asked before, whatever came of it.
        answered: it has answered, so its model is known to be the right one.
        name: of the model as its list of models has it, None where that is to be asked; see ``Way.names``.
        compared: what it says was compared with what is on record, since it failed last.
        gone: not asked again, for good.
        said: what went wrong last.
    """

    base: str
    share: int
    in_flight: int = 0
    met: bool = False
    answered: bool = False
    name: str | None = None
    compared: bool = False
    gone: bool = False
    said: str = ""
    failures: int = 0  # in a row, as the next two
    refusals: int = 0
    rests: int = 0
    rested_at: float = 0.0
    not_before: float = 0.0

    def room(self, now: float) -> int:
        """How many requests may be under way."""
        if self.gone or now < self.not_before:
            return 0
        return self.share if self.answered and self.failures < DOUBT else 1

    def well(self, now: float) -> bool:
        """Whether an answer can be expected of it at once."""
        return self.answered and self.failures < DOUBT and self.room(now) > 0


@dataclass(slots=True, kw_only=True)
class Pool:
    """The addresses of one call. ``tell`` is called with a sentence when one of several falls out or comes back."""

    endpoints: tuple[Endpoint, ...]
    longest_rest: float
    tell: Callable[[str], None]
    _freed: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, bases: Collection[str], *, concurrency: int, longest_rest: float, tell: Callable[[str], None]) -> Pool:
        """A pool whose addresses share ``concurrency``, rounded up."""
        share = -(-concurrency // len(bases))
        endpoints = tuple(Endpoint(base=base, share=share) for base in bases)
        return cls(endpoints=endpoints, longest_rest=longest_rest, tell=tell)

    async def take(self, avoid: Collection[Endpoint]) -> Endpoint | None:
        """Wait for room at the address with the fewest requests under way and take it; give it back by :meth:`release`.

        None where there is nobody to wait for: every address is to be avoided or gone.
        """
        while True:
            now = time.monotonic()
            asked = [e for e in self.endpoints if not e.gone and e not in avoid]
            if not asked:
                return None
            free = [e for e in asked if e.in_flight < e.room(now)]
            if free:
                endpoint = min(free, key=lambda e: e.in_flight)
                endpoint.in_flight += 1
                return endpoint
            await self._change(min((e.not_before - now for e in asked if e.not_before > now), default=None))

    def release(self, endpoint: Endpoint) -> None:
        """Give back what :meth:`take` took."""
        endpoint.in_flight -= 1
        self._freed.set()

    def answered(self, endpoint: Endpoint) -> None:
        """Note an answer: the address is well. What it asked for stands: the answer may be to an older request."""
        if endpoint.failures >= DOUBT:
            self._say(f"{endpoint.base} answers again")
        endpoint.met = endpoint.answered = True
        endpoint.failures = endpoint.refusals = endpoint.rests = 0
        self._freed.set()

    def failed(self, endpoint: Endpoint, trouble: TroubleError, *, sent: float) -> None:
        """Note a failure; the address rests where it asked for time, or keeps failing.

        Args:
            endpoint: who failed.
            trouble: how.
            sent: when the request was sent: what was under way before a rest does not lengthen it.
        """
        now = time.monotonic()
        endpoint.met, endpoint.said = True, str(trouble)
        endpoint.name, endpoint.compared = None, False  # it may have come back as somebody else
        endpoint.failures += 1
        rest = trouble.retry_after
        if endpoint.failures == DOUBT:
            self._say(f"{endpoint.base} keeps failing ({trouble.kind}) and is only tried now and then")
        if endpoint.failures >= DOUBT and sent >= endpoint.rested_at:
            rest = max(rest, backoff(endpoint.rests))
            endpoint.rests, endpoint.rested_at = endpoint.rests + 1, now
        if rest:
            endpoint.not_before = max(endpoint.not_before, now + min(rest, self.longest_rest))

    def refused(self, endpoint: Endpoint, refusal: RefusalError) -> None:
        """Note a refusal; the address is gone where it takes no key, or refuses whatever it is asked."""
        endpoint.met, endpoint.said = True, str(refusal)
        endpoint.refusals += 1
        if not endpoint.gone and (refusal.status in (401, 403) or endpoint.refusals >= REFUSALS_IN_A_ROW):
            endpoint.gone = True
            self._freed.set()
            self._say(f"{endpoint.base} refuses what it is asked ({refusal}) and is left out from here on")

    def another(self, avoid: Collection[Endpoint]) -> bool:
        """Whether an address that is well is left beside these."""
        now = time.monotonic()
        return any(e.well(now) for e in self.endpoints if e not in avoid)

    def seconds_until_room(self) -> float:
        """How long every address that is left rests yet, 0 where one does not."""
        now = time.monotonic()
        return max(min((e.not_before - now for e in self.endpoints if not e.gone), default=0.0), 0.0)

    def all_gone(self) -> bool:
        """Whether nobody is left to ask."""
        return all(e.gone for e in self.endpoints)

    def described(self) -> str:
        """What went wrong last at each of several addresses; empty for one, of which the error itself tells."""
        if len(self.endpoints) == 1:
            return ""
        return "; ".join(f"{e.base} last said {e.said or 'nothing amiss'}" for e in self.endpoints)

    async def _change(self, seconds: float | None) -> None:
        """Wait until room may have come, or so many seconds and a little, not the same for all who wait."""
        self._freed.clear()
        if seconds is not None:
            seconds += random.uniform(0, retries.BASE_SECONDS)  # noqa: S311
        try:
            async with asyncio.timeout(seconds):
                await self._freed.wait()
        except TimeoutError:
            pass

    def _say(self, text: str) -> None:
        if len(self.endpoints) > 1:
            self.tell(text)
