"""The same numbers as plain tables for a terminal: what `limbeck measure` and `limbeck compare` say when they are done."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from limbeck.types import Measurement

SHOWN = (
    ("frobenius_norm", "stacked"),
    ("stable_rank", "module-mean"),
    ("erank", "module-mean"),
    ("cosine", "stacked"),
    ("orthogonal_norm_fraction", "stacked"),
    ("principal_angle_smallest", "module-median"),
    ("principal_angle_largest", "module-median"),
    ("leading_overlap", "module-mean"),
)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Folder names, with as much of the path before them as makes them distinct.

    >>> short_names([Path("a/run"), Path("b/run")])
    ['a/run', 'b/run']
    """
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def measurement_table(rows: Sequence[Measurement]) -> str:
    """The aggregates of a measurement table that a first look wants, each beside its null."""
    table = Table("metric", "whose", "side", "k", "value", "null 5-95 %", "unit", "note")
    for row in rows:
        if (row.metric, row.aggregation) in SHOWN and not row.kind:
            whose = f"{row.arm} | {row.other}" if row.other else row.arm
            band = f"{row.null.q05:.4g} to {row.null.q95:.4g} ({row.null.id})" if row.null.id else ""
            k = str(row.k) if row.k else ""
            table.add_row(
                row.metric, escape(whose), row.side, k, f"{row.value:.4g}", band, row.unit, escape(row.reason)
            )
    return _text(table)


def comparison_table(result: dict[str, Any]) -> str:
    """Accuracy with intervals, then every pair with its exact test."""
    arms = Table("whose", "correct", "n", "accuracy", "95 % interval")
    for arm in result["arms"]:
        interval = f"{arm['low']:.3f} to {arm['high']:.3f}"
        arms.add_row(escape(arm["name"]), str(arm["correct"]), str(arm["n"]), f"{arm['value']:.3f}", interval)
    pairs = Table("a", "b", "a only", "b only", "a - b", "interval", "p (Holm)")
    for pair in result["pairs"]:
        interval = f"{pair['low']:+.3f} to {pair['high']:+.3f}"
        cells = (
            str(pair["a_only"]),
            str(pair["b_only"]),
            f"{pair['difference']:+.3f}",
            interval,
            f"{pair['p_holm']:.2g}",
        )
        pairs.add_row(escape(pair["a"]), escape(pair["b"]), *cells)
    return _text(arms) + _text(pairs)


def objective_table(rows: Sequence[dict[str, str]]) -> str:
    """One line per objective."""
    shown = ("objective", "unit", "normalizer", "inputs", "knobs", "formula", "status", "source")
    table = Table(*shown)
    for row in rows:
        table.add_row(*(escape(row[name]) for name in shown))
    return _text(table, width=220)


def metric_table(metrics: Mapping[str, Any]) -> str:
    """One line per metric of the geometry."""
    table = Table("metric", "unit", "null", "meaning")
    for name, metric in metrics.items():
        table.add_row(name, metric.unit, metric.null, metric.meaning)
    return _text(table)


def _text(table: Table, *, width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
