"""Score once, train many: log-probs that a frozen model gives to the rollouts, stored by digest, shared by all arms."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.batches import align
from limbeck.batches.collate import TrainingData, collate, micro_batches
from limbeck.batches.forward import check_head, head_of, hidden_states, unwrapped
from limbeck.digests import sound
from limbeck.errors import ProvenanceError
from limbeck.folders import claim, publish, read_manifest
from limbeck.heads import score_tokens
from limbeck.objectives.contract import TEACHER_FLOOR
from limbeck.records import write_json
from limbeck.rollouts.digest import ragged
from limbeck.rollouts.journal import JOURNAL
from limbeck.rollouts.server import Server, ServerScorer
from limbeck.rollouts.stored import Records
from limbeck.types import Rollout, RolloutSet, outline

FLOOR = TEACHER_FLOOR  # a token that a frozen model gives probability 0
READ_ROWS = 1024  # held at once while scores are read
SCHEMA = pa.schema([("problem_id", pa.string()), ("sample", pa.int32()), ("logprobs", pa.list_(pa.float32()))])


@torch.no_grad()
def score_rollouts(
    model: nn.Module,
    rollouts: Sequence[Rollout],
    *,
    token_budget: int = 16384,
    advance: Callable[[int], None] = lambda num: None,
) -> list[list[float]]:
    """Log p(response token), nats, at temperature 1, for every rollout in the order given.

    A rollout longer than the model's context gets NaN: it is dropped, and counted, where training selects its rows.

    Raises:
        ModelError: the model's log-probs cannot be had from its hidden states.
    """
    head = head_of(unwrapped(model))
    out = [[math.nan] * num for num in outline(rollouts).response_tokens.tolist()]
    for index, hidden in frozen_passes(model, rollouts, token_budget=token_budget, advance=advance):
        if hidden is not None:
            targets = torch.tensor([t for i in index for t in rollouts[i].response_ids], device=head.weight.device)
            flat = score_tokens(torch.cat(list(hidden)), head, targets).logprobs.cpu()
            for i, row in zip(index, flat.split([len(part) for part in hidden]), strict=True):
                out[i] = row.tolist()
    return out


@torch.no_grad()
def frozen_passes(
    model: nn.Module,
    rollouts: Sequence[Rollout],
    *,
    token_budget: int,
    advance: Callable[[int], None] = lambda num: None,
) -> Iterator[tuple[list[int], Sequence[Float[Tensor, "tokens hidden"]] | None]]:
    """Which rollouts, and their final hidden states at the predicting positions of response tokens, pass by pass.

    Every rollout comes once; those longer than the model's context come together, with None.

    Raises:
        ModelError: the model's log-probs cannot be had from its hidden states.
    """
    model.eval()
    device = next(model.parameters()).device
    first = rollouts[0]
    check_head(model, torch.tensor([*first.prompt_ids, *first.response_ids][:16]))
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None) or sys.maxsize
    items = np.arange(len(rollouts))[:, None]
    data = TrainingData(rollouts=rollouts, items=items, weights=np.ones(len(rollouts)))
    fits = data.outline.tokens <= context
    fitting = np.flatnonzero(fits).tolist()
    if len(fitting) < len(rollouts):
        yield np.flatnonzero(~fits).tolist(), None
    for items in micro_batches(data, fitting, token_budget=token_budget) if fitting else []:
        batch = collate(data, items, ()).to(device)
        hidden = align.predictors(hidden_states(model, batch.ids, batch.lengths))[batch.mask]
        yield items, hidden.split(data.outline.response_tokens[items].tolist())
        advance(len(items))


def write_scores(
    out: Path,
    rollout_set: RolloutSet,
    scores: Sequence[Sequence[float]],
    *,
    model_digest: str,
    kind: str = "logprobs",
    beside: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Store scores as a folder that names the rollouts and the model they belong to, with more facts in its manifest and
    JSON files beside them.
    """
    columns = {
        "problem_id": [problem for problem, _ in rollout_set.outline.every_key()],
        "sample": rollout_set.outline.sample,
        "logprobs": list(scores),
    }
    known = {"rollouts_digest": rollout_set.digest, "model_digest": model_digest, **(facts or {})}
    with publish(out, kind=kind, facts=known, overwrite=overwrite) as folder:
        pq.write_table(pa.table(columns, schema=SCHEMA), folder / "logprobs.parquet")
        for name, value in (beside or {}).items():
            write_json(folder / name, value)
    return out


def score_from_server(
    server: Server,
    rollout_set: RolloutSet,
    out: Path,
    *,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda num: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Path:
    """As :func:`score_rollouts`, by the model behind a server, into ``out``; an interrupted call is continued by the same call.

    The weights' digest cannot be known: the manifest has an empty one, the server and what it said of itself.

    Raises:
        ServerError: not every rollout was scored; what was scored is kept in ``out``.
        ConfigError: ``server.api`` is no way to score.
        FolderError: ``out`` is complete, another's, or holds answers to other questions.
    """
    scorer = ServerScorer(server, journal=out / JOURNAL, restart=overwrite, tell=tell)
    claim(out, overwrite=overwrite)
    scores = scorer(rollout_set.rollouts, advance=advance)
    return write_scores(out, rollout_set, scores, model_digest="", facts=scorer.provenance())


class StoredScores(Sequence[list[float]]):
    """Scores of a folder, one list per rollout, read when they are asked for."""

    def __init__(self, records: Records, lengths: np.ndarray, *, num_impossible: int, floor: float = -math.inf) -> None:
        self.num_impossible = num_impossible  # tokens of probability 0
        self._records, self._ends, self._lengths = records, np.cumsum(lengths, dtype=np.int64), lengths
        self._floor = floor

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        size = int(self._lengths[row])
        values = np.frombuffer(self._records.read(4 * (int(self._ends[row]) - size), 4 * size), np.float32)
        return np.where(values == -np.inf, np.float32(self._floor), values).tolist()

    def floored(self) -> StoredScores:
        """The same with -20 nats in place of -inf."""
        return StoredScores(self._records, self._lengths, num_impossible=self.num_impossible, floor=FLOOR)


def floored(scores: Sequence[Sequence[float]]) -> tuple[Sequence[Sequence[float]], int]:
    """Scores with every -inf, a token of probability 0, at -20 nats, and how many there were.

    >>> floored([[-1.0, -math.inf]])
    ([[-1.0, -20.0]], 1)
    """
    if isinstance(scores, StoredScores):
        return scores.floored(), scores.num_impossible
    count = sum(x == -math.inf for row in scores for x in row)
    return [[FLOOR if x == -math.inf else x for x in row] for row in scores], count


def read_scores(path: Path, rollout_set: RolloutSet, *, kind: str = "logprobs") -> StoredScores:
    """Scores in the order of the rollouts, from a folder of this kind (``logprobs`` or ``signal``).

    Raises:
        ProvenanceError: they were made for other rollouts.
    """
    check_rollouts(path, kind, rollout_set)
    records, keys, num_impossible = Records(), rollout_set.outline.every_key(), 0
    lengths = [np.zeros(0, dtype=np.int32)]
    with pq.ParquetFile(sound(path / "logprobs.parquet")) as file:
        for batch in file.iter_batches(batch_size=READ_ROWS):
            table = pa.Table.from_batches([batch]).cast(SCHEMA)
            flat, sizes = ragged(table["logprobs"])
            own = list(zip(table["problem_id"].to_pylist(), table["sample"].to_pylist(), strict=True))
            if own != list(islice(keys, len(own))):
                raise _others(path)
            records.append(flat.tobytes())
            lengths.append(sizes)
            num_impossible += int(np.isneginf(flat).sum())
    if next(keys, None) is not None:
        raise _others(path)
    return StoredScores(records, np.concatenate(lengths), num_impossible=num_impossible)


def _others(path: Path) -> ProvenanceError:
    return ProvenanceError(
        f"scores in {path} must have a row for each rollout, in the rollouts' order, received other rows. Run limbeck score on "
        "these rollouts."
    )


def check_rollouts(path: Path, kind: str, rollout_set: RolloutSet) -> dict[str, Any]:
    """The manifest of a folder of this kind that was made for these rollouts.

    Raises:
        ProvenanceError: it was made for others.
    """
    manifest = read_manifest(path, kind=kind)
    digest = manifest["rollouts_digest"]
    if digest != rollout_set.digest:
        raise ProvenanceError(
            f"scores in {path} must belong to rollouts {rollout_set.digest[:12]}, received {str(digest)[:12]}. "
            "Run limbeck score on these rollouts."
        )
    return manifest
