"""What sampling and scoring share: items in, a record for each out, each on record as soon as it is there."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic

from limbeck.errors import ConfigError, ServerError, nearest
from limbeck.rollouts.journal import Journal
from limbeck.rollouts.server.endpoint import AUTO, KEY_VARIABLES, Server
from limbeck.rollouts.server.exchange import NO_WAY, Exchange, Served
from limbeck.rollouts.server.pool import Endpoint, Pool
from limbeck.rollouts.server.retries import HaltError, Patience
from limbeck.rollouts.server.wire import Reply, T, Way

HEADER = ""  # the journal's key for what the server said of itself; items have others


class Client(Generic[T]):
    """Asks each item once. With a journal, a call that died is continued by the same call, at whatever addresses.

    Args:
        server: where, and how patiently.
        ways: to ask, the most exact first.
        journal: file for finished answers, or None to keep them in memory.
        restart: drop what the journal holds where it is that of other settings.
        tell: called with a sentence while the server does not answer.
        instead: what to do where the server takes none of the ways.

    Raises:
        ConfigError: ``server.api`` is none of the ways.
    """

    def __init__(
        self,
        server: Server,
        ways: Mapping[str, Way[T]],
        *,
        journal: Path | None,
        restart: bool,
        tell: Callable[[str], None],
        instead: str = "",
    ) -> None:
        if server.api not in (AUTO, *ways):
            raise ConfigError(f'api "{server.api}" is for something else. {nearest(server.api, (AUTO, *ways))}')
        self.server, self.ways, self.journal, self.restart, self.tell = server, ways, journal, restart, tell
        self.instead = instead
        self.troubles: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.served: Served | None = None
        self.largest_gap: float | None = None

    def __call__(
        self, items: Sequence[T], identity: Mapping[str, Any], *, advance: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """One record for each item, in their order.

        Args:
            items: what is asked, in the order in which it is asked.
            identity: what must agree for answers to belong together; addresses may change.
            advance: called with the number of items just answered.

        Raises:
            ServerError: not every item was answered within patience; what was answered is in the journal.
            ConfigError: two items of one key.
            FolderError: the journal is that of other settings.
        """
        if len({HEADER, *(item.key for item in items)}) != len(items) + 1:
            raise ConfigError("prompts must have keys of their own, received one twice or empty. Number the samples.")
        opened = Journal(self.journal, identity, restart=self.restart) if self.journal else nullcontext()
        with opened as journal:
            records: dict[str, dict[str, Any]] = journal.done if journal else {}
            keep = journal.append if journal else records.__setitem__
            if HEADER in records:
                self.served = Served(**records[HEADER])
            missing = [item for item in items if item.key not in records]
            advance(len(items) - len(missing))
            if missing:
                known = next(((item, records[item.key]) for item in items if item.key in records), None)
                self._ask(missing, known, keep, advance, num_items=len(items))
        found = [records[item.key] for item in items]
        self.notes = Counter(note for record in found for note in record["notes"])
        self.answers = Counter(record["from"] for record in found if "from" in record)
        return found

    def provenance(self) -> dict[str, Any]:
        """What was asked where, after a call, and what is known of how exact the answers are."""
        served = self.served
        return {
            "endpoints": dict.fromkeys(self.server.bases, 0) | dict(sorted(self.answers.items())),
            "api": served.api if served else self.server.api,
            "prompts_sent_as": self.ways[served.api].sends if served else "",
            "served_model": served.model if served else "",
            "weights_version": served.version if served else "",
            "inexact": dict(sorted(self.notes.items())),
            "repeated": dict(sorted(self.troubles.items())),
        }

    def _ask(
        self,
        missing: Sequence[T],
        known: tuple[T, Mapping[str, Any]] | None,
        keep: Callable[[str, dict[str, Any]], None],
        advance: Callable[[int], None],
        *,
        num_items: int,
    ) -> None:
        num_saved = num_items - len(missing)

        def took(item: T, reply: Reply, served: Served, endpoint: Endpoint) -> None:
            nonlocal num_saved
            if self.served is None:
                self.served = served
                keep(HEADER, asdict(served))
            keep(item.key, {**reply.record, "from": endpoint.base})
            num_saved += 1
            advance(1)

        seconds = self.server.patience_seconds
        pool = Pool.of(self.server.bases, concurrency=self.server.concurrency, longest_rest=seconds, tell=self.tell)
        exchange = Exchange(
            server=self.server,
            ways=self.ways,
            pool=pool,
            patience=Patience(seconds=seconds, tell=self.tell),
            took=took,
            served=self.served,
            probe=known,
            troubles=self.troubles,
        )
        reason = ""
        try:
            asyncio.run(exchange.run(missing))
        except HaltError as halt:
            reason = str(halt)
        self.largest_gap = exchange.largest_gap
        set_aside = exchange.patience.set_aside
        if set_aside and not reason:
            key, why = next(iter(set_aside.items()))
            reason = f"no usable answer to {len(set_aside)}, as to {key!r}: {why}"
        if reason:
            raise self._gave_up(reason, pool.described(), num_saved, num_items)

    def _gave_up(self, reason: str, endpoints: str, num_saved: int, num_items: int) -> ServerError:
        troubles = ", ".join(f"{count} x {kind}" for kind, count in self.troubles.most_common(5))
        key = f" Set {KEY_VARIABLES[0]} to a key that it takes." if reason.startswith(("HTTP 401", "HTTP 403")) else ""
        instead = f" {self.instead}" if reason.startswith(NO_WAY) else ""
        if self.journal:
            way_out = (
                f"{num_saved} of {num_items} answers are saved in {self.journal.parent}: the same command continues."
            )
        else:
            way_out = f"{num_saved} of {num_items} answers came and were not kept: give a journal to keep them."
        return ServerError(
            f"{' or '.join(self.server.bases)} must answer every prompt for the model {self.server.model!r} within "
            f"{self.server.patience_seconds:g} s of patience, received {reason}"
            f"{f' (in all: {troubles})' if troubles else ''}.{f' Of several, {endpoints}.' if endpoints else ''}"
            f"{key}{instead} {way_out}"
        )
