"""All rows of any number of runs' trajectories: read what is kept of one matrix, measure it, draw its nulls, forget it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.geometry.delta import place
from limbeck.geometry.dense.decompose import Spectral
from limbeck.geometry.parallel import side_by_side
from limbeck.geometry.trajectory import walks
from limbeck.geometry.trajectory.course import Course, course, orthonormal, summed, values
from limbeck.geometry.trajectory.rows import DRAWN, Matrix, table
from limbeck.geometry.trajectory.snapshot import factored, increment_of
from limbeck.geometry.trajectory.store import Trajectory, open_trajectory
from limbeck.types import LowRank, Measurement

NULLS = ("kind", "all", "none")
WALKS = 20  # draws of N-WALK: each is as many decompositions as there are snapshots, and they hardly differ


class Plan(NamedTuple):
    """What is drawn for every matrix of a run."""

    orders: np.ndarray
    walks: int
    seed: int


def measure(
    folders: Sequence[Path | str],
    names: Sequence[str] | None = None,
    *,
    draws: int = 50,
    nulls: str = "kind",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Measurement]:
    """Measure the snapshots of runs: similarities over time and rank dynamics, beside walks of the same increments.

    Args:
        folders: run folders that hold a trajectory.
        names: how rows call the runs; the folders' names by default.
        draws: orders of the increments that N-EXCH tries, the same for all matrices of a run; all orders if there are no
            more. N-WALK is drawn at most 20 times.
        nulls: draw them for ``all`` matrices, for the middle block's of each ``kind`` and shape, or ``none``.
        seed: of every draw.
        workers: matrices at a time, each with one BLAS thread; None takes the machine's cores, at most 8.
        progress: called with the share of the work just done.

    Returns:
        Rows in a fixed order (``docs/trajectories.md``).

    Raises:
        ConfigError: fewer than 20 draws, an unknown choice of nulls, or two runs of one name.
        FolderError: a run without snapshots, or with damaged ones.
    """
    opened = [open_trajectory(f, n) for f, n in zip(folders, names or [""] * len(folders), strict=True)]
    _check([one.name for one in opened], draws, nulls)
    total = sum(len(one.matrices) for one in opened)
    rows: list[Measurement] = []
    for run in opened:
        rng = np.random.default_rng([seed, 0])
        plan = Plan(walks.orders(len(run.steps), draws, rng), min(draws, WALKS), seed)
        drawn = _drawn(run, nulls)

        def one(module: str, run: Trajectory = run, plan: Plan = plan, drawn: frozenset[str] = drawn) -> Matrix:
            found = _measured(run, module, plan if module in drawn else None)
            if progress is not None:
                progress(1 / total)
            return found

        found = side_by_side(one, run.matrices, workers=workers)
        matrices = dict(zip(run.matrices, found, strict=True))
        rows += table(run, matrices)
    return rows


def _check(names: Sequence[str], draws: int, nulls: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"runs need distinct names, received {twice[0]!r} twice. Pass a name for each folder.")
    if draws < 20 or nulls not in NULLS:
        raise ConfigError(
            f"trajectories need draws >= 20 and nulls of {', '.join(NULLS)}, received {draws} and {nulls!r}."
        )


def _drawn(run: Trajectory, nulls: str) -> frozenset[str]:
    """Matrices whose nulls are drawn."""
    if nulls != "kind":
        return frozenset(run.matrices if nulls == "all" else ())
    groups: dict[Any, list[str]] = {}
    for name in run.matrices:
        groups.setdefault((place(name).kind, tuple(run.facts[name][0]["shape"])), []).append(name)
    return frozenset(sorted(found, key=lambda n: place(n).layer)[len(found) // 2] for found in groups.values())


class Known(NamedTuple):
    """What a run kept of one matrix: the update at every snapshot, its increments, and bases of adapters' row spaces."""

    updates: list[Spectral]
    increments: list[Spectral]
    rows: list[Tensor] | None


def _read(run: Trajectory, module: str) -> Known:
    facts, tensors = run.facts[module], run.tensors(module)
    if "update.values" in tensors[0]:
        pairs = list(zip(facts, tensors, strict=True))
        updates, increments = ([_spectral(f, t, part) for f, t in pairs] for part in ("update", "increment"))
        return Known(updates, increments, None)
    factors = [LowRank(t["left"], t["right"]) for t in tensors]
    steps = [increment_of(now, before) for now, before in zip(factors, [None, *factors[:-1]], strict=True)]
    return Known(
        [factored(f) for f in factors],
        [factored(step) for step in steps],
        [orthonormal(f.right.T) for f in factors],
    )


def _spectral(facts: Any, tensors: dict[str, Tensor], part: str) -> Spectral:
    rows, columns = facts["shape"]
    norm = facts["frobenius_norm" if part == "update" else "increment_norm"]
    left, right = (orthonormal(tensors[f"{part}.{side}"]) for side in ("left", "right"))
    found = tensors[f"{part}.values"].double()
    exactness, residual = facts[f"{part}_exactness"], facts[f"{part}_residual"]
    return Spectral(found, left, right, norm**2, (rows, columns), exactness, residual)


def _measured(run: Trajectory, module: str, plan: Plan | None) -> Matrix:
    known = _read(run, module)
    observed, count = course(known.updates), len(run.steps)
    shuffled: Course = {}
    nothing = np.empty((0, len(observed), count), np.float32)
    draws: dict[str, np.ndarray] = dict.fromkeys(DRAWN, nothing)
    labels = list(observed)
    lost = walks.lost(known.increments)
    if plan is not None and all(one.energy > 0 for one in known.increments):
        k = max(one.left.shape[1] for one in known.updates)
        rng = np.random.default_rng([plan.seed, 1, run.matrices.index(module)])
        cores = walks.cores(known.increments)
        shuffled = course(summed(cores, k))
        drawn = {
            "N-WALK": (walks.walk(known.increments, known.rows, rng) for _ in range(plan.walks)),
            "N-EXCH": (walks.reordered(cores, order, in_place=False) for order in plan.orders),
            "N-EXCH-NORM": (walks.reordered(cores, order, in_place=True) for order in plan.orders),
        }
        draws = {
            null: np.stack([values(course(summed(one, k)), labels, count) for one in many])
            for null, many in drawn.items()
        }
    return Matrix(labels, observed, shuffled, draws, lost, known.updates, known.rows is not None)
