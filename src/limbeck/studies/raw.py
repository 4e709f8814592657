"""Raw measurements of a study as two tables, small enough to keep: right or wrong by problem, and losses along paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from limbeck.evals.tables import read_table
from limbeck.records import read_json
from limbeck.studies.step import Step

SCORES, PATHS = "scores.parquet", "path_items.parquet"


def write_raw(out: Path, steps: Sequence[Step], folders: Mapping[str, Path]) -> None:
    """Every result's answers, kept steps among them, and every path's losses; nothing where a study has none.

    ``scores.parquet``: ``name`` (a run, ``run@step``, ``base`` or ``teacher``), ``problem_id``, ``right``, the share of its
    samples that are. ``path_items.parquet``: ``a``, ``b``, ``loss``, ``alpha``, ``problem_id``, ``value``.
    """
    tables = {step.name.removeprefix("eval/"): folders[step.name] for step in steps if step.name.startswith("eval/")}
    _write(out / SCORES, [_scores(name, folder) for name, folder in tables.items()])
    _write(out / PATHS, [_items(folders[step.name]) for step in steps if step.kind == "path"])


def _scores(name: str, folder: Path) -> pa.Table:
    table = read_table(folder)
    right = table.correct.float().mean(1).numpy()
    return pa.table({"name": [name] * len(right), "problem_id": list(table.problem_ids), "right": right})


def _items(folder: Path) -> pa.Table:
    """Losses of one path under the names of its ends."""
    items = pq.read_table(folder / "items.parquet")
    ends = read_json(folder / "path.json")[0]
    named = {end: pa.array([ends[end]] * len(items)) for end in "ab"}
    values = {name: items[name] for name in ("loss", "alpha", "problem_id")}
    return pa.table({**named, **values, "value": pc.cast(items["value"], pa.float32(), safe=False)})  # type: ignore[attr-defined]


def _write(path: Path, tables: Sequence[pa.Table]) -> None:
    if tables:
        pq.write_table(pa.concat_tables(tables), path, compression="zstd")
