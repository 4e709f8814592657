"""Parquet and Arrow files that anybody may have written: their rows in batches, each valid, together within bounds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from limbeck.bounds import Budget, in_child

VALUE_BYTES = 16  # of a value where the file says how many there are and not how large
ROW_BYTES, OBJECT_BYTES = (
    4096,
    64,
)  # of a row, and of a value in it, once they are Python's: measured with records of problems
BATCH_ROWS = 4096
DAMAGES = (pa.ArrowException, OSError, ValueError, OverflowError, KeyError, MemoryError)
"""What reading a damaged file, or turning its rows into Python's values, may raise beside our own errors."""


def parquet_batches(
    path: Path, columns: Sequence[str] | None = None, *, budget: Budget | None = None, **options: Any
) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file in batches, each checked; the file's own counts are checked before any is read.

    Args:
        path: the file.
        columns: those that are read; all by default.
        budget: what it may hold; by default :func:`limbeck.bounds.allowed`.
        options: of :class:`pyarrow.parquet.ParquetFile`.

    Raises:
        DataError: the budget is spent.
        pyarrow.ArrowException: no Parquet file, or a damaged one; also the others of ``DAMAGES``.
    """
    budget = budget or Budget(path)
    with pq.ParquetFile(path, **options) as file:
        code, claims = in_child(lambda: _claims(file.metadata))
        if code:  # pyarrow ends the process where a column's statistics do not fit
            raise pa.ArrowInvalid("damaged metadata")
        budget.spend(sum(size for size, _ in claims))
        budget.spent = 0  # from here on by what is really there
        rows = budget.limit // max(
            [1, *(text for _, text in claims)]
        )  # text that a page holds once may stand in every row
        size = min(max(rows, 1), BATCH_ROWS)
        for batch in file.iter_batches(batch_size=size, columns=list(columns) if columns else None):
            yield checked(batch, budget)


def python_rows(batches: Iterable[pa.RecordBatch], budget: Budget) -> Iterator[dict[str, Any]]:
    """The rows of batches as Python's values, which take many times what they take in a file.

    Raises:
        DataError: the budget is spent.
    """
    for batch in batches:
        budget.spend(ROW_BYTES * len(batch) + OBJECT_BYTES * sum(map(_num_values, batch.columns)))
        yield from batch.to_pylist()


def _num_values(column: pa.Array) -> int:
    """A column's rows and what is nested in them."""
    kind, inside = column.type, []
    if pa.types.is_struct(kind):
        inside = column.flatten()
    elif pa.types.is_map(kind):
        inside = [column.keys, column.items]
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inside = [column.flatten()]
    return len(column) + sum(map(_num_values, inside))


def read_parquet(path: Path, schema: pa.Schema, chosen: pc.Expression | None = None) -> pa.Table:
    """A Parquet file of a known schema: all of its rows, or those that are chosen, within bounds.

    Raises:
        As :func:`parquet_batches`; ``KeyError`` where a column is missing.
    """
    tables = (pa.Table.from_batches([batch]) for batch in parquet_batches(path, schema.names))
    kept = [table if chosen is None else table.filter(chosen) for table in tables]
    table = pa.concat_tables(kept) if kept else schema.empty_table()
    return table.select(schema.names).cast(schema)


def checked(batch: pa.RecordBatch, budget: Budget) -> pa.RecordBatch:
    """The batch, if its offsets lie inside of it, its text is text, and the budget has room for it.

    Raises:
        DataError: the budget is spent.
        pyarrow.ArrowInvalid: it is not valid.
    """
    if batch.num_rows < 0:
        raise pa.ArrowInvalid(f"a batch of {batch.num_rows} rows")
    batch.validate(full=True)
    budget.spend(batch.nbytes + sum(map(_repeated, batch.columns)))
    return batch


def _claims(metadata: pq.FileMetaData) -> list[tuple[int, int]]:
    """What each row group says it holds: its bytes, or those of its values if each takes a little; and its largest text."""
    out = []
    for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
        columns = [group.column(i) for i in range(group.num_columns)]
        values = sum(column.num_values for column in columns)
        texts = [column.total_uncompressed_size for column in columns if column.physical_type.endswith("BYTE_ARRAY")]
        out.append((max(group.total_byte_size, VALUE_BYTES * values), max([1, *texts])))
    return out


def _repeated(column: pa.Array) -> int:
    """Bytes that the text of a dictionary takes where each row has its own."""
    if not isinstance(column, pa.DictionaryArray):
        return 0
    kind, text = column.dictionary.type, (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
    if kind not in text:
        return 0
    lengths = pc.call_function("binary_length", [column.dictionary])
    return pc.call_function("sum", [lengths.take(column.indices)]).as_py() or 0
