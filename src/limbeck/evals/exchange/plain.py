"""Score tables as plain files in the fixed columns: JSONL, CSV or Parquet, ours or anybody's.

Beside the columns of :mod:`limbeck.evals.tables` each row repeats what makes the table comparable (grader, decoding,
digests), so that one file is the whole table and comes back as it was.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.errors import ConfigError, DataError, inert
from limbeck.evals.exchange.files import json_lines, parquet_rows
from limbeck.evals.exchange.rows import MAX_RECORD, Answer, Regrade, budget_of, table_of, text_of
from limbeck.evals.tables import IDENTITY, SCHEMA, row_of
from limbeck.records import digest_of
from limbeck.types import Finish, Outcome, ScoreTable

SUFFIXES = (".jsonl", ".csv", ".parquet")
STATED = tuple(name for name in IDENTITY if name != "name")


def write_file(table: ScoreTable, path: Path) -> Path:
    """The whole table as one file; the suffix says of which kind.

    Raises:
        ConfigError: another suffix, or a file that exists.
    """
    if path.suffix not in SUFFIXES or path.exists():
        what = "a new file" if path.exists() else f"a file that ends in {', '.join(SUFFIXES)}"
        raise ConfigError(f"--out must be {what}, received {path}.")
    stated = {name: getattr(table, name) for name in STATED}
    rows = [{**row_of(score), **stated} for score in sorted(table.scores, key=lambda s: (s.problem_id, s.sample))]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        schema = pa.schema([*SCHEMA, *(pa.field(name, pa.string(), nullable=False) for name in STATED)])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, [*SCHEMA.names, *STATED])
            writer.writeheader()
            writer.writerows(
                {name: inert(value) for name, value in {**row, "correct": int(bool(row["correct"]))}.items()}
                for row in rows
            )
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def read(path: Path, *, name: str, metric: str = "", regrade: Regrade = "") -> ScoreTable:
    """The table in a plain file: ``problem_id`` and ``correct`` are needed, every other column is optional.

    Args:
        path: JSONL, CSV or Parquet.
        name: whose table this is.
        metric: the column to read instead of ``correct``.
        regrade: judge ``response`` against ``answer`` by limbeck's grader.

    Raises:
        DataError: a column is missing, a cell is not what it must be, or rows disagree about grader or decoding.
    """
    column = metric or "correct"
    rows = list(_rows(path))
    stated = {key: {text_of(row.get(key)) for _, row in rows} for key in STATED}
    mixed = [key for key, values in stated.items() if len(values) > 1]
    if mixed:
        raise DataError(
            f"{path}: all rows must share one {mixed[0]}, received {len(stated[mixed[0]])}. Split the file."
        )
    one = {key: min(values, default="") for key, values in stated.items()}
    table = table_of(
        (_answer(where, row, column) for where, row in rows),
        path=path,
        name=name,
        grader=one["grader"] or f"{column} of {path.name}",
        decoding=one["decoding"],
        regrade=regrade,
    )
    known = {key: one[key] for key in STATED if key not in ("grader", "decoding") and one[key]}
    return ScoreTable(
        name=name, scores=table.scores, grader=table.grader, decoding=table.decoding,
        **{"problems_digest": table.problems_digest, **known},
    )  # fmt: skip


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".parquet":
        yield from parquet_rows(path)
    elif path.suffix == ".csv":
        yield from _csv_rows(path)
    else:
        yield from json_lines(path)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    budget_of(path).spend(path.stat().st_size)
    csv.field_size_limit(MAX_RECORD)  # of this process; its default, 128 KiB, is below a long response
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or ())
            if len(set(names)) < len(names):
                raise DataError(f"{path} must name each column once, received {', '.join(names):.200}. Rename one.")
            ours = set(STATED) <= set(names)
            for row in reader:
                cells = {str(k): v for k, v in row.items() if v not in (None, "")}
                yield f"{path} line {reader.line_num}", {k: _as_it_was(v) for k, v in cells.items()} if ours else cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} must be CSV in UTF-8, received {error}. Export it again.") from error


def _as_it_was(cell: Any) -> Any:
    """A cell without the apostrophe that :func:`limbeck.errors.inert` gave it."""
    return cell[1:] if isinstance(cell, str) and cell[:1] == "'" and inert(cell[1:]) == cell else cell


def _answer(where: str, row: dict[str, Any], column: str) -> Answer:
    for key in ("problem_id", column):
        if row.get(key) is None:
            raise DataError(
                f"{where}: a row needs {key}, received {', '.join(map(str, row)) or 'nothing'}. Add the column."
            )
    try:
        answer, response = text_of(row.get("answer")), row.get("response")
        return Answer(
            problem_id=str(row["problem_id"]),
            sample=int(row.get("sample") or 0),
            value=_flag(row[column]),
            target=answer,
            problem=digest_of(["", answer]),
            responses=[] if response is None else [str(response)],
            extracted=text_of(row.get("extracted")),
            finish=Finish(row["finish"]) if row.get("finish") else None,
            response_tokens=int(row["response_tokens"]) if row.get("response_tokens") is not None else None,
            outcome=Outcome(row["outcome"]) if row.get("outcome") else None,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: a cell must be what its column says, received {error}. Mend the row.") from error


def _flag(value: object) -> object:
    """What CSV made of a truth value or a number, as such."""
    words = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    return words.get(value.strip().lower(), value) if isinstance(value, str) else value
