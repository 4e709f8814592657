"""What a study left in its results folder, by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from limbeck.geometry.table import read_measurements
from limbeck.records import read_json
from limbeck.stats.seeds import Grid
from limbeck.types import Measurement


class Data:
    """What a study left, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "results" if (folder / "results").is_dir() else folder
        self.seeds: list[int] = read_json(self.folder / "study.json")["seeds"]
        self._rows: dict[str, dict[tuple[Any, ...], Measurement]] = {}
        self.runs: dict[str, dict[str, Any]] = {run["run"]: run for run in read_json(self.folder / "arms.json")}

    def of(self, metric: str) -> dict[tuple[Any, ...], Measurement]:
        """Its numbers of more than one matrix, over all kinds of matrices."""
        if metric not in self._rows:
            whole = [("metric", "=", metric), ("aggregation", "!=", "module"), ("kind", "=", "")]
            found = read_measurements(self.folder / "measurements.parquet", pq.filters_to_expression(whole))
            self._rows[metric] = {(*_key(row), row.arm, row.other, row.step, _null(row)): row for row in found}
        return self._rows[metric]

    def number(
        self, metric: str, arm: str, other: str = "", *, aggregation: str = "stacked", side: str = "", k: int = 0,
        layer: int = -1, step: int = -1, null: str = "",
    ) -> Measurement:  # fmt: skip
        """A measurement, whichever of two runs was named first; NaN where there is none."""
        kind = (metric, aggregation, side, k, layer)
        keys = [(*kind, *ends, step, null) for ends in ((arm, other), (other, arm))]
        missing = Measurement(metric=metric, aggregation=aggregation, value=math.nan, unit="")
        return next((self.of(metric)[key] for key in keys if key in self.of(metric)), missing)

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """Share of right samples by result; problems in one order for all."""
        table = pq.read_table(self.folder / "scores.parquet").sort_by("problem_id").to_pydict()
        found: dict[str, list[float]] = {}
        for name, right in zip(table["name"], table["right"], strict=True):
            found.setdefault(name, []).append(right)
        return {name: np.array(values) for name, values in found.items()}

    @cached_property
    def steepness(self) -> dict[str, float]:
        """Mean norm of the gradient over a run."""
        if (self.folder / "training.json").is_file():
            lines = ((run, line) for run, lines in read_json(self.folder / "training.json").items() for line in lines)
        else:
            lines = ((line["run"], line) for line in pq.read_table(self.folder / "training.parquet").to_pylist())
        found: dict[str, list[float]] = {}
        for run, line in lines:
            found.setdefault(run, []).append(line["grad_norm"])
        return {run: fmean(norms) for run, norms in found.items()}

    def grid(self, arm: str, seeds: Sequence[int] | None = None) -> Grid:
        """Problems by seeds."""
        return np.stack([self.scores[f"{arm}-s{seed}"] for seed in (self.seeds if seeds is None else seeds)], 1)

    def seeds_of(self, arm: str) -> list[int]:
        """The seeds of an arm, which may be its own."""
        return [run["seed"] for run in self.runs.values() if run["arm"] == arm]

    def matched(self, a: str, b: str, *, within: float = 0.1) -> bool:
        """Whether the updates of two arms are about equally long in every seed."""
        return all(abs(log) < math.log1p(within) for log in self.logs_of_lengths(a, b))

    def logs_of_lengths(self, a: str, b: str) -> list[float]:
        """By what factor the update of one arm is longer than that of another, by seed, as a logarithm."""
        norms = [[float(self.runs[f"{arm}-s{seed}"]["update_norm"]) for arm in (a, b)] for seed in self.seeds]
        return [math.log(one / other) for one, other in norms]


def _key(row: Measurement) -> tuple[Any, ...]:
    return row.metric, row.aggregation, row.side, row.k, row.layer


def _null(row: Measurement) -> str:
    """Which walk a trajectory's row stands beside; everything else has one null."""
    return row.null.id if row.step >= 0 and row.null.id.startswith(("N-WALK", "N-EXCH")) else ""
