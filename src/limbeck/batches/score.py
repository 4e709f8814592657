"""Score once, train many: log-probs that a frozen model gives to the rollouts, stored by digest, shared by all arms."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from limbeck.batches.collate import TrainingData, collate, micro_batches
from limbeck.batches.forward import Student, check_head
from limbeck.errors import ProvenanceError
from limbeck.folders import publish, read_manifest
from limbeck.types import Rollout, RolloutSet

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
    student = Student(model).eval()
    device = next(model.parameters()).device
    first = rollouts[0]
    check_head(model, torch.tensor([*first.prompt_ids, *first.response_ids][:16]))
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None) or sys.maxsize
    data = TrainingData(rollouts=rollouts, items=[(i,) for i in range(len(rollouts))], weights=[1.0] * len(rollouts))
    out = {i: [math.nan] * len(r.response_ids) for i, r in enumerate(rollouts) if data.width(i) > context}
    fitting = [i for i in range(len(rollouts)) if i not in out]
    for items in micro_batches(data, fitting, token_budget=token_budget) if fitting else []:
        batch = collate(data, items, ()).to(device)
        logprobs = student(batch).logprobs.cpu()
        mask = batch.mask.cpu()
        out.update({i: logprobs[j][mask[j]].tolist() for j, i in enumerate(items)})
        advance(len(items))
    return [out[i] for i in range(len(rollouts))]


def write_scores(
    out: Path, rollout_set: RolloutSet, scores: Sequence[Sequence[float]], *, model_digest: str, overwrite: bool = False
) -> Path:
    """Store scores as a folder that names the rollouts and the model they belong to."""
    columns = {
        "problem_id": [r.problem_id for r in rollout_set.rollouts],
        "sample": [r.sample for r in rollout_set.rollouts],
        "logprobs": list(scores),
    }
    facts = {"rollouts_digest": rollout_set.digest, "model_digest": model_digest}
    with publish(out, kind="logprobs", facts=facts, overwrite=overwrite) as folder:
        pq.write_table(pa.table(columns, schema=SCHEMA), folder / "logprobs.parquet")
    return out


def read_scores(path: Path, rollout_set: RolloutSet) -> list[list[float]]:
    """Scores in the order of the rollouts.

    Raises:
        ProvenanceError: they were made for other rollouts.
    """
    digest = read_manifest(path, kind="logprobs")["rollouts_digest"]
    if digest != rollout_set.digest:
        raise ProvenanceError(
            f"scores in {path} must belong to rollouts {rollout_set.digest[:12]}, received {str(digest)[:12]}. "
            "Run limbeck score on these rollouts."
        )
    table = pq.read_table(path / "logprobs.parquet").to_pylist()
    by_key = {(row["problem_id"], row["sample"]): row["logprobs"] for row in table}
    return [by_key[r.key] for r in rollout_set.rollouts]
