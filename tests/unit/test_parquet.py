"""Rows that become Python's are counted as what they take there, nested values too."""

from __future__ import annotations

import pyarrow as pa
import pytest

from limbeck.bounds import Budget
from limbeck.errors import DataError
from limbeck.parquet import OBJECT_BYTES, ROW_BYTES, python_rows


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array([1, None]), 2),
        (pa.array([[1, 2], [3]]), 5),
        (pa.array([[1, 2], [3, 4]], type=pa.list_(pa.int8(), 2)), 6),
        (pa.array([{"a": [1, 2], "b": "x"}, {"a": [], "b": "y"}]), 8),  # two rows, two lists of two values, two texts
        (pa.array([[("a", 1), ("b", 2)], []], type=pa.map_(pa.string(), pa.int64())), 6),
    ],
)
def test_every_nested_value_costs(tmp_path, column, values):
    (tmp_path / "file").write_text("x")
    batch, cost = pa.record_batch({"c": column}), 2 * ROW_BYTES + values * OBJECT_BYTES
    budget = Budget(tmp_path / "file", cost)
    assert list(python_rows([batch], budget)) == batch.to_pylist()
    assert budget.spent == cost
    with pytest.raises(DataError, match="MiB of records, received more"):
        list(python_rows([batch], budget))
