"""The step that walks from one run to another in a straight line and asks whether there is a barrier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.evals.apply import applied
from limbeck.evals.evaluate import evaluate
from limbeck.evals.paths import Item, between, split_solution, teacher_forced
from limbeck.folders import publish
from limbeck.geometry.adapters import read_adapter
from limbeck.geometry.connectivity import Barrier, barrier
from limbeck.records import write_json
from limbeck.rollouts.sample import Decoding
from limbeck.stats.intervals import item_bootstrap, mean_of_items
from limbeck.studies.inputs import read_problems
from limbeck.train.models import load_model, load_tokenizer
from limbeck.types import Estimate

UNITS = {"accuracy": "fraction"}  # the others are nats per token


def walk(params: dict[str, Any], inputs: dict[str, Path], out: Path, tell: Callable[[float], None]) -> None:
    """Losses at every point of the line between ``params["ends"]``, with barriers; the ends are walked like the rest."""
    pairs = read_problems(params["problems"])[: params["num"]]
    items = [split_solution(problem, solution, params["answer_prefix"]) for problem, solution in pairs]
    deltas = {role: read_adapter(inputs[role], name=params["ends"][role]) if role in inputs else None for role in "ab"}
    model, tokenizer = load_model(params["base"]), load_tokenizer(params["base"])
    decoding = Decoding(max_new_tokens=params["max_new_tokens"], batch_size=params["batch_size"])
    alphas = params["alphas"]
    points: list[dict[str, Tensor]] = []
    for alpha in alphas:
        with applied(model, between(deltas["a"], deltas["b"], alpha)) as point:
            losses = teacher_forced(point, tokenizer, items)
            if params["accuracy"]:
                table = evaluate(point, tokenizer, [i.problem for i in items], decoding, name=f"{alpha:g}")
                losses["accuracy"] = _in_order(items, table)
        points.append(losses)
        tell(len(points) / len(alphas))
    curves = {name: torch.stack([point[name] for point in points]) for name in points[0]}
    with publish(out, kind="path", facts={"ends": params["ends"]}) as temporary:
        write_json(
            temporary / "path.json", [_line(params["ends"], name, alphas, grid) for name, grid in curves.items()]
        )
        pq.write_table(_per_item(items, alphas, curves), temporary / "items.parquet")


def _in_order(items: list[Item], table: Any) -> Float[Tensor, " items"]:
    right = {score.problem_id: score.correct for score in table.scores}
    return torch.tensor([float(right[item.problem.id]) for item in items], dtype=torch.float64)


def _line(ends: dict[str, str], name: str, alphas: list[float], grid: Float[Tensor, "points items"]) -> dict[str, Any]:
    found: Barrier = barrier(alphas, grid, rng=np.random.default_rng(0), higher_is_better=name == "accuracy")
    rows = [row.numpy() for row in grid]
    means = [mean_of_items(row) if name == "accuracy" else item_bootstrap(row, seed=0) for row in rows]
    return {
        **ends,
        "loss": name,
        "unit": UNITS.get(name, "nats/token"),
        "alphas": alphas,
        "mean": list(found.curve),
        "low": [m.low for m in means],
        "high": [m.high for m in means],
        "excess_midpoint": _plain(found.midpoint),
        "barrier": _plain(found.maximum),
        "worse_than_ends": found.worse_than_ends,
        "null": ends["a"].rpartition("-s")[0] == ends["b"].rpartition("-s")[0],
    }


def _plain(estimate: Estimate) -> dict[str, Any]:
    names = ("value", "low", "high", "level", "method", "n", "seed", "reason")
    return {name: getattr(estimate, name) for name in names}


def _per_item(items: list[Item], alphas: list[float], curves: dict[str, Tensor]) -> pa.Table:
    rows = [
        {"problem_id": item.problem.id, "loss": name, "alpha": alpha, "value": float(grid[i, j])}
        for name, grid in curves.items()
        for i, alpha in enumerate(alphas)
        for j, item in enumerate(items)
    ]
    return pa.Table.from_pylist(rows)
