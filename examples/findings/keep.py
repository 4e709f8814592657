"""What the registered numbers and figures are made of, small enough for a repository."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from limbeck.records import read_json, write_json

KEPT = ("study.json", "arms.json", "paths.json", "frontier.json", "factorial.json")
FROM = ("versions", "python", "started", "seconds")  # of where it ran; no names of machines or folders


def keep(results: Path, out: Path, *, stacked: bool = False) -> Path:
    """Whatever a question reads: all but samples, and but measurements of single matrices and of kinds of matrices.

    Args:
        results: of a study.
        stacked: only numbers of whole updates.
        out: replaced; `python examples/findings NAME out` prints what the results themselves print.
    """
    if out.is_dir() and out.resolve() != results.resolve():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (results / name).is_file():
            write_json(out / name, read_json(results / name))
    comparison = read_json(results / "comparison.json")
    write_json(out / "comparison.json", comparison | {"pairs": []})  # which the scores below give again
    chosen = pc.field("aggregation") == "stacked" if stacked else pc.field("aggregation") != "module"
    _rewrite(results / "measurements.parquet", out, chosen & (pc.field("kind") == ""))
    for name in ("scores.parquet", "path_items.parquet", "training.parquet"):
        if (results / name).is_file():
            _rewrite(results / name, out, None)
    _training(results / "training.json", out / "training.parquet")
    if (results / "provenance.json").is_file():
        provenance = read_json(results / "provenance.json")
        write_json(out / "provenance.json", {key: provenance[key] for key in FROM})
    return out


def _rewrite(path: Path, out: Path, chosen: pc.Expression | None) -> None:
    table = pq.read_table(path, filters=chosen)
    pq.write_table(table, out / path.name, compression="zstd", compression_level=19)


def _training(path: Path, out: Path) -> None:
    """Curves as columns: a row a step of a run."""
    if path.is_file():
        rows = [{"run": run, **line} for run, lines in read_json(path).items() for line in lines]
        pq.write_table(pa.Table.from_pylist(rows), out, compression="zstd", compression_level=19)
