"""A score table as a folder: one Parquet file with fixed columns, and a manifest with what makes it comparable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck import folders, records
from limbeck.digests import sound
from limbeck.errors import DataError, ProvenanceError
from limbeck.parquet import DAMAGES, read_parquet
from limbeck.rollouts.store import storable, unicode_id
from limbeck.types import Finish, Outcome, Score, ScoreTable

KIND = "scores"
FILE = "scores.parquet"
SCHEMA = pa.schema(
    [
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("extracted", pa.string(), nullable=False),
        pa.field("finish", pa.string()),  # null in these three: not known
        pa.field("response_tokens", pa.int32()),
        pa.field("outcome", pa.string()),
        pa.field("response", pa.string(), nullable=False),
    ]
)
IDENTITY = (
    "name", "problems_digest", "grader", "decoding", "template_digest", "model_digest", "adapter_digest",
)  # fmt: skip


def write_table(
    table: ScoreTable, out: Path | str, *, overwrite: bool = False, source: Mapping[str, Any] | None = None
) -> Path:
    """Write the scores, sorted by problem and sample, and a manifest with what makes it comparable.

    Args:
        table: what to write.
        out: the folder to make.
        overwrite: replace a complete folder of ours.
        source: where the answers came from, for the record; comparisons do not read it.

    Raises:
        FolderError: ``out`` exists, see :func:`limbeck.folders.publish`.
    """
    rows = [row_of(s) for s in sorted(table.scores, key=lambda s: (s.problem_id, s.sample))]
    facts = {
        **{name: getattr(table, name) for name in IDENTITY},
        "digest": records.digest_of(rows),
        "num_problems": len(table.problem_ids),
        "num_scores": len(table.scores),
        "source": dict(source or {}),
    }
    with folders.publish(out, overwrite=overwrite, kind=KIND, facts=facts) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary / FILE, compression="zstd")
    return Path(out)


def read_table(path: Path | str) -> ScoreTable:
    """Read a score table and check that its rows are what was written.

    Raises:
        FolderError: the folder is missing, unfinished or of another kind.
        DataError: the Parquet file cannot be read.
        ProvenanceError: file or rows do not match the manifest.
    """
    manifest = folders.read_manifest(path, KIND)
    folders.stated(manifest, path, digest=str)
    file = sound(Path(path) / FILE)
    try:
        rows = read_parquet(file, SCHEMA).to_pylist()
        scores = tuple(map(_score, rows))
    except DataError:
        raise
    except DAMAGES as error:
        raise DataError(f"{file} must be a Parquet score table, received {error}. Copy the folder again.") from error
    if records.digest_of(rows) != manifest["digest"]:
        raise ProvenanceError(
            f"scores in {path} must match their manifest's digest {manifest['digest'][:8]}..., received "
            f"{len(rows)} rows with {records.digest_of(rows)[:8]}... Files were changed after writing: evaluate again."
        )
    return ScoreTable(scores=scores, **{name: str(manifest.get(name, "")) for name in IDENTITY})


def _score(row: dict[str, Any]) -> Score:
    finish = None if row["finish"] is None else Finish(row["finish"])
    outcome = None if row["outcome"] is None else Outcome(row["outcome"])
    return Score(**{**row, "finish": finish, "outcome": outcome})


def row_of(score: Score) -> dict[str, object]:
    """The fixed columns of one score; what no file can hold in its texts is replaced."""
    row = {f.name: getattr(score, f.name) for f in fields(score)}
    text = {name: storable(row[name]) for name in ("answer", "extracted", "response")}
    named = {name: row[name] and str(row[name]) for name in ("finish", "outcome")}
    return {**row, **text, **named, "problem_id": unicode_id(score.problem_id)}
