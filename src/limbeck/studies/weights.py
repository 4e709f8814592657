"""The geometry of arms that train every weight: each result against the student, then chosen runs against each other.

All arms are measured from one anchor, the study's student, rounded once as it is stored. A run's result is fp32: norms,
spectra, angles and directions are those of the fp32 update; what bf16 storage would show of it (sparsity, masks) is read
by rounding the result once, and its rows say ``bf16_visible``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from limbeck.folders import publish
from limbeck.geometry.dense.checkpoints import open_checkpoint
from limbeck.geometry.dense.suite import measure
from limbeck.geometry.table import write_measurements
from limbeck.geometry.trajectory.suite import measure as measure_trajectory
from limbeck.progress import counted
from limbeck.studies.config import StudyConfig
from limbeck.studies.runs import Point, Runs, run_name
from limbeck.studies.step import Plan
from limbeck.train.models import model_folder
from limbeck.types import Measurement

Params = dict[str, Any]
Inputs = dict[str, Path]
END = -1  # the step of a row that speaks of a run's end


def add_weights(plan: Plan, runs: Runs, config: StudyConfig) -> None:
    """One step an arm, over the seeds and kept steps that are measured, and one for the pairs."""
    dense = [arm for arm in config.arms if config.training(arm, 0).method == "full"]
    params: Params = {**runs.student, "ks": list(config.geometry.ks)}
    measured = {arm.name: config.measured_seeds(arm) for arm in dense}
    for arm in dense:
        kept = sorted(set(config.training(arm, 0).keep))
        points = [Point(run_name(arm.name, seed), step) for seed in measured[arm.name] for step in (*kept, None)]
        read = {point.run: runs.final[point.run] for point in points}
        given = {**params, "points": [[point.run, point.step] for point in points], "pairs": []}
        plan.add(f"measure/{arm.name}", "weights", given, read, 1.0 * len(points))
    pairs = chosen_pairs(config, measured)
    if pairs:
        names = list(dict.fromkeys(run for pair in pairs for run in pair))
        places = {name: place for place, name in enumerate(names)}
        given = {**params, "points": [[name, None] for name in names]}
        given["pairs"] = [[places[a], places[b]] for a, b in pairs]
        plan.add("measure/pairs", "weights", given, {name: runs.final[name] for name in names}, 0.3 * len(pairs))


def add_trajectories(plan: Plan, runs: Runs, config: StudyConfig) -> None:
    """One step an arm that took snapshots of its runs, adapters or whole weights."""
    for arm in config.arms:
        if config.training(arm, 0).trajectory:
            read = {run: runs.final[run] for run in (run_name(arm.name, seed) for seed in config.measured_seeds(arm))}
            plan.add(f"trajectory/{arm.name}", "trajectory", {"draws": config.geometry.draws}, read, 3.0 * len(read))


def chosen_pairs(config: StudyConfig, measured: Mapping[str, Sequence[int]]) -> list[tuple[str, str]]:
    """All pairs of runs, or the near ones: seeds of one arm, methods of one seed, and anything beside the reference arm."""
    runs = [(arm, seed) for arm, seeds in measured.items() for seed in seeds]
    reference = config.reference_arm or config.arms[0].name
    methods = {arm.name for arm in config.arms if arm.role == "method"}

    def near(a: tuple[str, int], b: tuple[str, int]) -> bool:
        return a[0] == b[0] or (a[1] == b[1] and (reference in (a[0], b[0]) or {a[0], b[0]} <= methods))

    found = [pair for pair in combinations(runs, 2) if config.geometry.pairs == "all" or near(*pair)]
    return [(run_name(*a), run_name(*b)) for a, b in found]


def measure_weights(params: Params, inputs: Inputs, out: Path, tell: Callable[[float], None]) -> None:
    """Whole weights against the base: every point by itself, or, where pairs are named, what is between them alone."""
    points = [Point(run, step) for run, step in params["points"]]
    base = open_checkpoint(model_folder(params["base"]), name="base")
    tuned = [open_checkpoint(_folder(inputs[point.run], point.step), name=point.name) for point in points]
    pairs = [(a, b) for a, b in params["pairs"]]
    rows = measure(
        base, tuned, ks=params["ks"], pairs=pairs, only="pairs" if pairs else "", progress=counted(tell),
        workers=torch.get_num_threads(),
    )  # fmt: skip
    steps = {point.name: point for point in points}
    kept = [_named(row, steps) for row in rows if bool(row.other) == bool(pairs)]
    with publish(out, kind="measurements", facts={"anchor_digest": params["base_digest"]}) as temporary:
        write_measurements(temporary / "measurements.parquet", kept)


def follow_runs(params: Params, inputs: Inputs, out: Path, tell: Callable[[float], None]) -> None:
    """What snapshots on the way say: overlap with the end, ranks, norms, each beside its walks."""
    rows = measure_trajectory(
        list(inputs.values()),
        list(inputs),
        draws=params["draws"],
        progress=counted(tell),
        workers=torch.get_num_threads(),
    )
    with publish(out, kind="measurements") as temporary:
        write_measurements(temporary / "measurements.parquet", rows)


def _folder(run: Path, step: int | None) -> Path:
    return run if step is None else run / "kept" / f"step-{step:06d}"


def _named(row: Measurement, points: Mapping[str, Point]) -> Measurement:
    """The row under its run's name, with the kept step that it speaks of beside it."""
    point = points[row.arm]
    return replace(row, arm=point.run, step=END if point.step is None else point.step)
