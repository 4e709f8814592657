"""When to ask a server again: how long to wait, how long to go on, and what went wrong how often."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

BASE_SECONDS, LONGEST_SECONDS = 0.5, 30.0  # of the exponential waits
TELL_SECONDS = 5.0


class TroubleError(Exception):
    """An attempt that failed and may be repeated; ``kind`` in a few words, to be counted."""

    def __init__(self, kind: str, *, said: str = "", retry_after: float = 0.0) -> None:
        super().__init__(f"{kind}: {said}" if said else kind)
        self.kind = kind
        self.retry_after = retry_after


class RefusalError(Exception):
    """An attempt that the server refused for good: asking again gets the same. 200 for an answer without the field."""

    def __init__(self, status: int, said: str) -> None:
        self.kind = said if status == 200 else f"HTTP {status}"
        super().__init__(self.kind if status == 200 or not said else f"{self.kind}: {said}")
        self.status = status


class HaltError(Exception):
    """There is no use in going on with any request."""


class LackError(Exception):
    """An answer that is good and without something that this call insists on."""

    def __init__(self, needed: str, missing: str, way_out: str) -> None:
        super().__init__(f"{needed}, received {missing}")
        self.way_out = way_out


@dataclass(slots=True, kw_only=True)
class Patience:
    """Shared by all requests of one call.

    A request is repeated until ``seconds`` have passed since its first failure. When it runs out, the server counts as
    gone if nobody was answered in that time, by any address, else the request alone is set aside.
    """

    seconds: float | int
    tell: Callable[[str], None]
    set_aside: dict[str, str] = field(default_factory=dict)
    _last_success: float = 0.0
    _last_told: float = field(default_factory=time.monotonic)

    def succeeded(self) -> None:
        """Note that somebody was answered."""
        self._last_success = time.monotonic()

    async def failed(self, key: str, trouble: TroubleError, *, first: float, attempt: int, rest: float) -> bool:
        """Wait before the next attempt; false where there is to be none and the request was set aside.

        Args:
            key: of the request.
            trouble: what went wrong last.
            first: when the request failed first, on the monotonic clock.
            attempt: how often it waited before.
            rest: seconds until somebody may be asked at all.

        Raises:
            HaltError: nobody was answered since ``first``.
        """
        now = time.monotonic()
        wait = max(backoff(attempt), rest)
        if now + wait - first <= self.seconds:
            self._tell(trouble, first=first, now=now)
            await asyncio.sleep(wait)
            return True
        asked = f", asking to wait {trouble.retry_after:.0f} s" if trouble.retry_after else ""
        if self._last_success < first:
            raise HaltError(f"{trouble}{asked}") from trouble
        self.set_aside[key] = f"{trouble}{asked}"
        return False

    def _tell(self, trouble: TroubleError, *, first: float, now: float) -> None:
        """Say now and then that it is the server one waits for."""
        if self._last_success < first and now - self._last_told > TELL_SECONDS:
            self._last_told = now
            self.tell(f"waiting for the server ({trouble.kind}), {first + self.seconds - now:.0f} s of patience left")


def backoff(attempt: int) -> float:
    """Seconds before the next attempt: doubling, with jitter so that many do not come back at once.

    >>> 0.25 <= backoff(0) <= 0.5 and 15 <= backoff(40) <= 30
    True
    """
    longest = min(LONGEST_SECONDS, BASE_SECONDS * 2.0 ** min(attempt, 20))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311


def retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 where it asks for nothing readable.

    >>> retry_after("2.5"), retry_after(None), retry_after("soon"), retry_after("Thu, 01 Jan 1970 00:00:00 GMT")
    (2.5, 0.0, 0.0, 0.0)
    """
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), 1e6) if seconds == seconds else 0.0
