"""A rollout set as a folder: Parquet shards and a manifest with the digest, which reading checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from limbeck import folders
from limbeck.digests import sound
from limbeck.errors import DataError, ProvenanceError
from limbeck.parquet import DAMAGES, parquet_batches
from limbeck.rollouts.digest import Digest
from limbeck.rollouts.stored import Outliner, Records, StoredRollouts, append
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
GROUP_ROWS, GROUP_TOKENS = 256, 2**18  # of a row group, whichever comes first: what is held at once
DICTIONARY: Any = ["problem_id", "finish"]  # columns of few values; pyarrow's annotation knows only a flag


def write_rollouts(
    rollout_set: RolloutSet, out: Path | str, *, overwrite: bool = False, shard_rows: int = SHARD_ROWS
) -> Path:
    """Write the set as ``rollouts-00000.parquet``, ... and a manifest with its digest and provenance.

    A lone surrogate in a response's text is written as ``?``: the ids, not the text, are what trains.

    Raises:
        FolderError: ``out`` exists, see :func:`limbeck.folders.publish`.
        DataError: a problem id that is not valid Unicode.
    """
    provenance = rollout_set.provenance
    return write_stream(rollout_set.rollouts, out, provenance=provenance, overwrite=overwrite, shard_rows=shard_rows)


def write_stream(
    rollouts: Iterable[Rollout],
    out: Path | str,
    *,
    provenance: Mapping[str, object],
    overwrite: bool = False,
    shard_rows: int = SHARD_ROWS,
) -> Path:
    """As :func:`write_rollouts`, from rollouts that come one after another; a few of them are held at a time.

    Args:
        rollouts: read once, after the folder was found free.
        out: the folder to make.
        provenance: read after the last rollout, so who makes these may add to it on the way.
        overwrite: replace a complete folder of ours.
        shard_rows: rows a file.

    Raises:
        FolderError: as there.
        DataError: as there, or a rollout that comes twice.
    """
    digest, outliner, facts = Digest(), Outliner(), dict[str, Any]()
    with folders.publish(out, overwrite=overwrite, kind=KIND, facts=facts) as temporary:
        for number, shard in enumerate(_cut(iter(rollouts), shard_rows)):
            path = temporary / f"rollouts-{number:05d}.parquet"
            with pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=DICTIONARY) as writer:
                for group in _groups(shard):
                    table = _table(group)
                    writer.write_table(table)
                    digest.update(table)
                    outliner.add(table)
        told = outliner.outline()
        told.check_keys()
        facts |= {
            "digest": digest.hexdigest(),
            "num_rollouts": len(told),
            "num_problems": len(told.problems),
            "provenance": dict(provenance),
        }
    return Path(out)


def read_rollouts(path: Path | str) -> RolloutSet:
    """Read a set and check that its content is what was written.

    Its rows stay on disk (:mod:`limbeck.rollouts.stored`) and are read when they are asked for.

    Raises:
        FolderError: the folder is missing, unfinished or of another kind.
        DataError: a shard cannot be read.
        ProvenanceError: a shard or the content does not match its digest in the manifest.
    """
    manifest = folders.read_manifest(path, KIND)
    folders.stated(manifest, path, digest=str, provenance=dict, num_rollouts=int)
    digest, outliner, records, sizes = Digest(), Outliner(), Records(), [np.zeros(0, dtype=np.int32)]
    for shard in sorted(Path(path).glob("rollouts-*.parquet")):
        for table in _read_shard(shard):
            outliner.add(table)
            digest.update(table)
            sizes.append(append(records, table))
    row_sizes = np.concatenate(sizes)
    if digest.hexdigest() != manifest["digest"]:
        raise ProvenanceError(
            f"rollouts in {path} must match their manifest's digest {manifest['digest'][:8]}..., received content with "
            f"{digest.hexdigest()[:8]}... ({len(row_sizes)} of {manifest['num_rollouts']} rows). "
            "Files were changed or lost after writing: copy the folder again or make it anew."
        )
    rollouts = StoredRollouts(
        outline=outliner.outline(),
        records=records,
        starts=np.cumsum(row_sizes, dtype=np.int64) - row_sizes,
        sizes=row_sizes,
        digest=manifest["digest"],
    )
    return RolloutSet(rollouts=rollouts, provenance=manifest["provenance"])


def _read_shard(path: Path) -> Iterator[pa.Table]:
    """The rows of a file in the store's columns, a few at a time."""
    sound(path)
    try:
        for batch in parquet_batches(path, SCHEMA.names):
            table = pa.Table.from_batches([batch]).select(SCHEMA.names).cast(SCHEMA)
            _check_values(path, table)
            for begin in range(0, len(table), GROUP_ROWS):
                yield table.slice(begin, GROUP_ROWS)
    except DataError:
        raise
    except DAMAGES as error:
        raise DataError(
            f"{path} must be a Parquet shard of rollouts, received {error}. Copy the folder again."
        ) from error


def _check_values(path: Path, table: pa.Table) -> None:
    """Refuse what the columns' types allow and no rollout has."""
    lists = [name for name in SCHEMA.names if pa.types.is_list(SCHEMA.field(name).type)]
    if hollow := [name for name in lists if any(chunk.flatten().null_count for chunk in table[name].chunks)]:
        raise DataError(
            f"{path} must have a number for each token, received null in {hollow[0]}. Copy the folder again."
        )
    for name in pc.call_function("unique", [table["finish"]]).to_pylist():
        Finish(name)


def _cut(rollouts: Iterator[Rollout], shard_rows: int) -> Iterator[Iterable[Rollout]]:
    """The rows of each file, to be read before the next is asked for; one file without any for an empty set."""
    yield islice(rollouts, shard_rows)
    for first in rollouts:
        yield chain([first], islice(rollouts, shard_rows - 1))


def _groups(rollouts: Iterable[Rollout]) -> Iterator[list[Rollout]]:
    group: list[Rollout] = []
    tokens = 0
    for rollout in rollouts:
        group.append(rollout)
        tokens += len(rollout.prompt_ids) + len(rollout.response_ids)
        if len(group) == GROUP_ROWS or tokens >= GROUP_TOKENS:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _table(rollouts: Sequence[Rollout]) -> pa.Table:
    """Rollouts in the store's columns."""

    def lists(rows: Sequence[Sequence], kind: pa.DataType) -> pa.Array:
        ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
        flat = np.fromiter(chain.from_iterable(rows), dtype=kind.to_pandas_dtype(), count=int(ends[-1]))
        return pa.ListArray.from_arrays(pa.array(ends), pa.array(flat, from_pandas=False))

    columns = {
        "problem_id": [unicode_id(r.problem_id) for r in rollouts],
        "sample": [r.sample for r in rollouts],
        "prompt_ids": lists([r.prompt_ids for r in rollouts], pa.int32()),
        "response_ids": lists([r.response_ids for r in rollouts], pa.int32()),
        "behavior_logprobs": lists([r.behavior_logprobs for r in rollouts], pa.float64()),
        "reward": [float(r.reward) for r in rollouts],
        "finish": [str(r.finish) for r in rollouts],
        "response": [storable(r.response) for r in rollouts],
    }
    return pa.table(columns, schema=SCHEMA)


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
