"""Is there a barrier? Registered in docs/results/barrier.md."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pyarrow.parquet as pq
from contrast import HELD, NOT, OPEN, Row, corrected, over_problems
from measured import Data

from limbeck.records import read_json

LOSSES = ("ce_bare", "ce_cot", "accuracy")
SMALL = 0.05  # nats a token
NODES = ("base", "sft", "rft", "dft", "rift", "grpo", "dpo", "dpo-slow")


def barrier(data: Data) -> tuple[list[Row], str]:
    """The mid-point over the chord of every path and loss, over problems and seeds."""
    items = path_items(data)
    worse = {(p["a"], p["b"], p["loss"]): p["worse_than_ends"] for p in read_json(data.folder / "paths.json")}
    rows = []
    asked = [(("rift", "dpo-slow"), "primary"), (("rift", "dpo"), "primary")]
    asked += [(pair, "others") for pair in combinations(NODES, 2) if (pair, "primary") not in asked]
    for (a, b), family in asked:
        for loss in LOSSES:
            ends = [(f"{a}-s{s}" if a != "base" else a, f"{b}-s{s}") for s in data.seeds]
            grid = np.stack([_excess(items[one, other, loss], loss) for one, other in ends], 1)
            over = sum(worse[one, other, loss] for one, other in ends)
            row = over_problems(
                f"{a} to {b}, {loss}: mid-point over the chord ({over} of {len(ends)} worse)", grid, None, family
            )
            rows.append(row)
    seeds = [(f"sft-s{s}", f"sft-s{(s + 1) % len(data.seeds)}") for s in data.seeds]
    for loss in LOSSES:
        grid = np.stack([_excess(items[one, other, loss], loss) for one, other in seeds], 1)
        rows.append(over_problems(f"two seeds of sft, {loss}: mid-point over the chord", grid))
    rows = corrected(rows)
    first = rows[0]
    over = sum(worse[f"rift-s{s}", f"dpo-slow-s{s}", "ce_bare"] for s in data.seeds)
    if first.above and over >= 4:
        return rows, HELD
    return rows, NOT if first.estimate.high < SMALL else OPEN


Curves = dict[tuple[str, str, str], dict[float, np.ndarray]]


def path_items(data: Data) -> Curves:
    """Losses by path and point, problems in one order."""
    table = pq.read_table(data.folder / "path_items.parquet").sort_by("problem_id").to_pydict()
    found: dict[tuple[str, str, str], dict[float, list[float]]] = {}
    for a, b, loss, alpha, value in zip(*(table[n] for n in ("a", "b", "loss", "alpha", "value")), strict=True):
        found.setdefault((a, b, loss), {}).setdefault(alpha, []).append(value)
    return {path: {alpha: np.array(values) for alpha, values in points.items()} for path, points in found.items()}


def _excess(points: dict[float, np.ndarray], loss: str) -> np.ndarray:
    sign = -1.0 if loss == "accuracy" else 1.0
    return sign * (points[0.5] - (points[0.0] + points[1.0]) / 2)
