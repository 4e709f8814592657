"""A server as a scorer: rollouts in, the log-prob of every response token out, at temperature 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from limbeck.records import digest_of
from limbeck.rollouts.server.client import Client
from limbeck.rollouts.server.endpoint import Server
from limbeck.rollouts.server.scoring import NEVER, Passage, scoring_ways
from limbeck.types import Rollout

INSTEAD = "Where the weights are at hand, `limbeck score --model FOLDER` scores with the model itself."


class ServerScorer:
    """What :func:`limbeck.batches.score.score_rollouts` does, by the model behind a server.

    With a journal, a call that died is continued by the same call: nothing that was answered is asked again.
    :meth:`provenance` says, after a call, what was asked and how exact the answers are.

    Args:
        server: where, and how patiently.
        journal: file for finished answers, or None to keep them in memory.
        restart: drop what the journal holds where it is that of other settings.
        tell: called with a sentence while the server does not answer.

    Raises:
        ConfigError: ``server.api`` is no way to score.
    """

    def __init__(
        self,
        server: Server,
        *,
        journal: Path | None = None,
        restart: bool = False,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.server = server
        ways = scoring_ways(server.model)
        self.client = Client(server, ways, journal=journal, restart=restart, tell=tell, instead=INSTEAD)

    def __call__(
        self, rollouts: Sequence[Rollout], *, advance: Callable[[int], None] = lambda num: None
    ) -> list[list[float]]:
        """Log p(response token), nats, for every rollout in the order given; NaN for one that the server has no room for.

        Raises:
            ServerError: not every rollout was scored within patience; what was scored is in the journal.
            FolderError: the journal is that of other settings.
        """
        passages = [_passage(rollout) for rollout in rollouts]
        shortest = sorted(passages, key=lambda passage: len(passage.ids))  # the first finds out how to ask: it must fit
        records = self.client(shortest, self.identity(passages), advance=advance)
        found = {passage.key: record["logprobs"] for passage, record in zip(shortest, records, strict=True)}
        return [_values(found[passage.key], len(passage.response)) for passage in passages]

    def identity(self, passages: Sequence[Passage]) -> dict[str, Any]:
        """What must agree for answers to belong together; the addresses may change."""
        return {
            "job": "score",
            "model": self.server.model,
            "api": self.server.api,
            "num_rollouts": len(passages),
            "rollouts": digest_of([[passage.key, passage.ids, passage.num_prompt] for passage in passages]),
        }

    def provenance(self) -> dict[str, Any]:
        """What a folder of log-probs records of where they came from; the weights' digest cannot be known here."""
        about = {**self.client.provenance(), "largest_gap_nats": self.client.largest_gap}
        return {"model": self.server.model, "server": about}


def _passage(rollout: Rollout) -> Passage:
    ids = (*rollout.prompt_ids, *rollout.response_ids)
    return Passage(key=f"{rollout.problem_id}/{rollout.sample}", ids=ids, num_prompt=len(rollout.prompt_ids))


def _values(logprobs: Sequence[float] | None, length: int) -> list[float]:
    if logprobs is None:
        return [math.nan] * length
    return [-math.inf if x <= NEVER else x for x in logprobs]
