"""Measurements as one Parquet file with exactly the columns of ``types.MEASUREMENT_COLUMNS``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from limbeck.digests import sound
from limbeck.errors import DataError, inert
from limbeck.parquet import DAMAGES, read_parquet
from limbeck.types import MEASUREMENT_COLUMNS, Measurement, Null

_INTEGERS = ("layer", "k", "step")
_FLOATS = ("value", "null_mean", "null_q05", "null_q95", "residual")
SCHEMA = pa.schema(
    [
        (name, pa.int32() if name in _INTEGERS else pa.float64() if name in _FLOATS else pa.string())
        for name in MEASUREMENT_COLUMNS
    ]
)


def write_measurements(path: Path | str, measurements: Sequence[Measurement]) -> None:
    """Write the rows in their order; NaN stays NaN, and zero rows make a table with columns."""
    nulls = {"null_id": "id", "null_mean": "mean", "null_q05": "q05", "null_q95": "q95"}
    columns = {
        name: [getattr(m.null, nulls[name]) if name in nulls else getattr(m, name) for m in measurements]
        for name in MEASUREMENT_COLUMNS
    }
    pq.write_table(pa.table(columns, schema=SCHEMA), str(path))


def write_csv(path: Path | str, measurements: Sequence[Measurement]) -> None:
    """The same rows as text, for a spreadsheet; NaN is an empty cell."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(MEASUREMENT_COLUMNS)
        for measurement in measurements:
            writer.writerow("" if value != value else inert(value) for value in measurement.row().values())


def read_measurements(path: Path | str, chosen: pc.Expression | None = None) -> list[Measurement]:
    """Read what ``write_measurements`` wrote; all rows, or those that are chosen.

    Raises:
        DataError: the file is no Parquet file, or has other columns.
    """
    sound(path)
    try:
        columns = tuple(pq.read_schema(str(path)).names)
        if columns != MEASUREMENT_COLUMNS:
            differ = sorted(set(columns) ^ set(MEASUREMENT_COLUMNS))
            raise DataError(
                f"{path} must have the columns of measurements.parquet in order, received a table that differs in "
                f"{differ or 'their order'}. Measure again with this version."
            )
        table = read_parquet(Path(path), SCHEMA, chosen)
    except DataError:
        raise
    except DAMAGES as error:
        raise DataError(f"{path} must be a Parquet file of measurements, received {error}. Measure again.") from error
    plain = [f.name for f in fields(Measurement) if f.name != "null"]
    return [
        Measurement(
            null=Null(id=row["null_id"], mean=row["null_mean"], q05=row["null_q05"], q95=row["null_q95"]),
            **{name: row[name] for name in plain},
        )
        for row in table.to_pylist()
    ]
