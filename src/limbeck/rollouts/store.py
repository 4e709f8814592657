"""A rollout set as a folder: Parquet shards and a manifest with the digest, which reading checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck import folders
from limbeck.errors import DataError, ProvenanceError
from limbeck.parquet import DAMAGES, read_parquet
from limbeck.types import Finish, Rollout, RolloutSet

KIND = "rollouts"
SCHEMA = pa.schema(
    [
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("response_ids", pa.list_(pa.int32()), nullable=False),
        # double, not float: the digest rounds to six decimals, and a value must come back on the same side
        pa.field("behavior_logprobs", pa.list_(pa.float64()), nullable=False),
        pa.field("reward", pa.float64(), nullable=False),
        pa.field("finish", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
    ]
)
SHARD_ROWS = 16_384


def write_rollouts(
    rollout_set: RolloutSet, out: Path | str, *, overwrite: bool = False, shard_rows: int = SHARD_ROWS
) -> Path:
    """Write the set as ``rollouts-00000.parquet``, ... and a manifest with its digest and provenance.

    A lone surrogate in a response's text is written as ``?``: the ids, not the text, are what trains.

    Raises:
        FolderError: ``out`` exists, see :func:`limbeck.folders.publish`.
        DataError: a problem id that is not valid Unicode.
    """
    facts = {
        "digest": rollout_set.digest,
        "num_rollouts": len(rollout_set),
        "num_problems": len(rollout_set.groups),
        "provenance": dict(rollout_set.provenance),
    }
    with folders.publish(out, overwrite=overwrite, kind=KIND, facts=facts) as temporary:
        for number, begin in enumerate(range(0, max(len(rollout_set), 1), shard_rows)):
            rows = [_row(r) for r in rollout_set.rollouts[begin : begin + shard_rows]]
            path = temporary / f"rollouts-{number:05d}.parquet"
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, compression="zstd")
    return Path(out)


def read_rollouts(path: Path | str) -> RolloutSet:
    """Read a set and check that its content is what was written.

    Raises:
        FolderError: the folder is missing, unfinished or of another kind.
        DataError: a shard cannot be read.
        ProvenanceError: the content does not match the digest in the manifest.
    """
    manifest = folders.read_manifest(path, KIND)
    folders.stated(manifest, path, digest=str, provenance=dict, num_rollouts=int)
    rollouts = tuple(r for shard in sorted(Path(path).glob("rollouts-*.parquet")) for r in _read_shard(shard))
    rollout_set = RolloutSet(rollouts=rollouts, provenance=manifest["provenance"])
    if rollout_set.digest != manifest["digest"]:
        raise ProvenanceError(
            f"rollouts in {path} must match their manifest's digest {manifest['digest'][:8]}..., received content with "
            f"{rollout_set.digest[:8]}... ({len(rollouts)} of {manifest['num_rollouts']} rows). "
            "Files were changed or lost after writing: copy the folder again or make it anew."
        )
    return rollout_set


def _read_shard(path: Path) -> Iterator[Rollout]:
    try:
        table = read_parquet(path, SCHEMA)
        lists = [name for name in SCHEMA.names if pa.types.is_list(SCHEMA.field(name).type)]
        if hollow := [name for name in lists if any(chunk.flatten().null_count for chunk in table[name].chunks)]:
            raise DataError(
                f"{path} must have a number for each token, received null in {hollow[0]}. Copy the folder again."
            )
        rows = table.to_pylist()
        finishes = [Finish(row["finish"]) for row in rows]
    except DataError:
        raise
    except DAMAGES as error:
        raise DataError(
            f"{path} must be a Parquet shard of rollouts, received {error}. Copy the folder again."
        ) from error
    for row, finish in zip(rows, finishes, strict=True):
        yield Rollout(
            problem_id=row["problem_id"],
            sample=row["sample"],
            prompt_ids=tuple(row["prompt_ids"]),
            response_ids=tuple(row["response_ids"]),
            behavior_logprobs=tuple(row["behavior_logprobs"]),
            reward=row["reward"],
            finish=finish,
            response=row["response"],
        )


def _row(rollout: Rollout) -> dict[str, Any]:
    return {
        "problem_id": unicode_id(rollout.problem_id),
        "sample": rollout.sample,
        "prompt_ids": rollout.prompt_ids,
        "response_ids": rollout.response_ids,
        "behavior_logprobs": rollout.behavior_logprobs,
        "reward": rollout.reward,
        "finish": str(rollout.finish),
        "response": storable(rollout.response),
    }


def storable(text: str) -> str:
    r"""The text with lone surrogates, which no file can hold, replaced.

    >>> storable("a\ud800b")
    'a?b'
    """
    return text.encode("utf-8", "replace").decode()


def unicode_id(identifier: str) -> str:
    """The id itself; refused when writing it would change it."""
    if storable(identifier) != identifier:
        raise DataError(f"a problem id must be valid Unicode, received {identifier!r}. Rename the problem.")
    return identifier
