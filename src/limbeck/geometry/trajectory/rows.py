"""From what was found of every matrix of a run to the rows of the table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from limbeck.geometry import METRICS
from limbeck.geometry.delta import Place, place
from limbeck.geometry.dense.codes import half_gaps, visible_chance
from limbeck.geometry.dense.decompose import Spectral
from limbeck.geometry.series import counted, kind_groups
from limbeck.geometry.trajectory import TRAJECTORY_METRICS
from limbeck.geometry.trajectory.course import PREVIOUS, Course, Name
from limbeck.geometry.trajectory.snapshot import GRID
from limbeck.geometry.trajectory.store import Trajectory
from limbeck.types import Measured, Measurement, Null

NO_NULL = Null()
UNITS = {name: metric.unit for name, metric in (METRICS | TRAJECTORY_METRICS).items()} | {
    "sparsity_visible": "fraction"
}
DRAWN = ("N-WALK", "N-EXCH", "N-EXCH-NORM")
SCALARS = ("frobenius_norm", "increment_norm", "sparsity_visible")


class Matrix(NamedTuple):
    """What was found of one matrix of a run.

    Attributes:
        names: of its numbers, the rows of the draws.
        observed: as the run was.
        shuffled: the same from the kept part of the increments, in the run's own order; empty without nulls.
        draws: of each null, each (names, snapshots); none without nulls.
        lost: share of the increments' energy that was not kept and that ``shuffled`` and exchanges know nothing of.
        updates: as decomposed at the snapshots.
        adapter: whether it is the product of two factors.
    """

    names: list[Name]
    observed: Course
    shuffled: Course
    draws: Mapping[str, Float[np.ndarray, "draws names steps"]]
    lost: float
    updates: list[Spectral]
    adapter: bool


class Cell(NamedTuple):
    """One number of one matrix at one snapshot, with the draws or the band of its null."""

    value: Measured
    null: Null
    exactness: str
    residual: float
    draws: np.ndarray


def table(run: Trajectory, matrices: Mapping[str, Matrix]) -> list[Measurement]:
    """All rows of one run, in a fixed order."""
    names = list(matrices)
    places = [place(name) for name in names]
    adapter = any(matrix.adapter for matrix in matrices.values())
    walk, kind = ("N-WALK-ROW", "lora_fp32") if adapter else ("N-WALK", run.delta_kind)
    rows: list[Measurement] = []
    for number, name in enumerate(matrices[names[0]].names):
        fixed = {"arm": run.name, "delta_kind": kind, "unit": UNITS[name.metric], **name._asdict()}
        for index, step in enumerate(run.steps):
            found = [[_walked(m, name, number, index, walk) for m in matrices.values()]]
            found += [[_exchanged(m, name, number, index, null) for m in matrices.values()] for null in DRAWN[1:]]
            for cells in found:
                rows += _rows(cells, names, places, {**fixed, "step": step})
    return rows + list(_scalars(run, kind, walk))


def _walked(matrix: Matrix, name: Name, number: int, index: int, null_id: str) -> Cell | None:
    value = matrix.observed[name].get(index)
    if value is None:
        return None
    point = matrix.updates[index]
    residual = point.residual if point.exactness == "ritz" else math.nan
    null = _band(null_id, matrix.draws["N-WALK"][:, number, index]) if math.isfinite(value.value) else NO_NULL
    return Cell(value, null, point.exactness, residual, np.empty(0))


def _exchanged(matrix: Matrix, name: Name, number: int, index: int, null_id: str) -> Cell | None:
    value = matrix.shuffled.get(name, {}).get(index)
    if value is None:
        return None
    seen = matrix.observed[name][index]
    if math.isfinite(value.value) and math.isfinite(seen.value):
        value = value._replace(reason=seen.reason)  # caveats are about the matrix, not the coordinates of its walk
    draws = matrix.draws[null_id][:, number, index]
    null = _band(null_id, draws) if math.isfinite(value.value) else NO_NULL
    whole = matrix.lost < 1e-6
    exactness = matrix.updates[index].exactness if whole else "truncated"
    return Cell(value, null, exactness, math.nan if whole else matrix.lost, draws)


def _band(null_id: str, draws: Float[np.ndarray, " draws"]) -> Null:
    known = draws[np.isfinite(draws)].astype(float)
    if not len(known):
        return NO_NULL
    low, high = np.quantile(known, (0.05, 0.95)).tolist()
    return Null(id=null_id, mean=float(known.mean()), q05=low, q95=high)


def _rows(
    cells: Sequence[Cell | None], names: Sequence[str], places: Sequence[Place], fixed: dict[str, Any]
) -> Iterator[Measurement]:
    """Each matrix, then their mean over all and over each kind."""
    found = [index for index, cell in enumerate(cells) if cell is not None]
    there = [cell for cell in cells if cell is not None]
    for index, cell in zip(found, there, strict=True):
        where = places[index]
        yield Measurement(
            aggregation="module", module=names[index], layer=where.layer, kind=where.kind, value=cell.value.value,
            null=cell.null, exactness=cell.exactness, residual=cell.residual, reason=cell.value.reason, **fixed,
        )  # fmt: skip
    for kind, members in kind_groups([places[index] for index in found]).items() if found else ():
        chosen = [there[member] for member in members]
        yield _mean(chosen, kind, fixed)


def _mean(cells: Sequence[Cell], kind: str, fixed: dict[str, Any]) -> Measurement:
    """The mean over matrices. One order of the increments is tried in all of them at once, so the draws of N-EXCH are averaged
    and then ranked; matrices of one run do not walk apart, so the bands of N-WALK are averaged as they are."""
    defined = [cell for cell in cells if math.isfinite(cell.value.value)]
    value = float(np.mean([cell.value.value for cell in defined])) if defined else math.nan
    nulls = [cell.null for cell in defined if cell.null.id]
    null = NO_NULL
    if nulls and all(len(cell.draws) for cell in defined):
        null = _band(nulls[0].id, _over_defined(np.stack([cell.draws for cell in defined])))
    elif nulls:
        parts = [float(np.mean([getattr(one, part) for one in nulls])) for part in ("mean", "q05", "q95")]
        null = Null(id=nulls[0].id, mean=parts[0], q05=parts[1], q95=parts[2])
    worst = max(cells, key=lambda cell: (cell.exactness == "ritz", cell.exactness == "truncated"))
    residuals = [cell.residual for cell in cells if math.isfinite(cell.residual)]
    return Measurement(
        aggregation="module-mean", kind=kind, value=value, null=null, exactness=worst.exactness,
        residual=max(residuals) if residuals else math.nan, reason=counted([cell.value.reason for cell in cells]), **fixed,
    )  # fmt: skip


def _over_defined(draws: Float[np.ndarray, "modules draws"]) -> Float[np.ndarray, " draws"]:
    """Mean over the modules in which a draw is defined; NaN where it is in none."""
    counts = np.isfinite(draws).sum(0)
    return np.where(counts > 0, np.nansum(draws, axis=0, dtype=float) / np.maximum(counts, 1), np.nan)


# --- what the record has of every matrix and vector --------------------------------------------------------------


def _scalars(run: Trajectory, kind: str, walk: str) -> Iterator[Measurement]:
    names = list(run.facts)
    places = [place(name) for name in names]
    sizes = np.array([math.prod(run.facts[name][0]["shape"]) for name in names])
    squares = {m: np.array([[f[m] for f in run.facts[n]] for n in names]) ** 2 for m in SCALARS[:2]}
    walked = squares["increment_norm"].cumsum(1)  # the squares of increments without a common direction add up
    for metric in SCALARS[:2]:
        for index, step in enumerate(run.steps):
            fixed = _fixed(run, metric, step, kind)
            nulled = metric == "frobenius_norm"
            yield from _stacked(
                squares[metric][:, index], walked[:, index] if nulled else None, walk, names, places, fixed
            )
    for index, step in enumerate(run.steps):
        fixed = _fixed(run, "sparsity_visible", step, kind)
        yield from _sparsity(run, index, names, places, sizes, fixed)


def _fixed(run: Trajectory, metric: str, step: int, kind: str) -> dict[str, Any]:
    other = PREVIOUS if metric == "increment_norm" else ""
    return {
        "metric": metric, "unit": UNITS[metric], "arm": run.name, "other": other, "step": step, "delta_kind": kind,
    }  # fmt: skip


def _stacked(
    squares: np.ndarray,
    walked: np.ndarray | None,
    walk: str,
    names: Sequence[str],
    places: Sequence[Place],
    fixed: dict[str, Any],
) -> Iterator[Measurement]:
    """Norms of each matrix, of all of them, and of each kind."""

    def row(how: str, members: np.ndarray, **where: Any) -> Measurement:
        null = NO_NULL if walked is None else Null(id=walk, mean=math.sqrt(walked[members].sum()))
        return Measurement(aggregation=how, value=math.sqrt(squares[members].sum()), null=null, **where, **fixed)

    for index, (name, where) in enumerate(zip(names, places, strict=True)):
        yield row("module", np.array([index]), module=name, layer=where.layer, kind=where.kind)
    for kind, members in kind_groups(places).items():
        yield row("stacked", members, kind=kind)


def _sparsity(
    run: Trajectory,
    index: int,
    names: Sequence[str],
    places: Sequence[Place],
    sizes: np.ndarray,
    fixed: dict[str, Any],
) -> Iterator[Measurement]:
    """Share of entries that storage does not show as changed, beside an isotropic step of equal norm that is rounded."""
    facts = [run.facts[name][index] for name in names]
    found = np.array([f["sparsity_visible"] for f in facts])
    null = np.array([
        rounded(run.base(name), f["frobenius_norm"] ** 2) for name, f in zip(names, facts, strict=True)
    ])  # fmt: skip
    for place_of, name, value, chance in zip(places, names, found.tolist(), null.tolist(), strict=True):
        yield Measurement(
            aggregation="module", module=name, layer=place_of.layer, kind=place_of.kind, value=value,
            null=Null(id="N-ROUND", mean=chance), **fixed,
        )  # fmt: skip
    for kind, members in kind_groups(places).items():
        value, chance = (float(np.average(x[members], weights=sizes[members])) for x in (found, null))
        yield Measurement(
            aggregation="parameter-weighted", kind=kind, value=value, null=Null(id="N-ROUND", mean=chance), **fixed
        )  # fmt: skip


def rounded(base: Mapping[str, Any], energy: float) -> float:
    """Share of entries that keep their code when each moves by a normal step and all together by this squared norm."""
    if not energy > 0:
        return 1.0
    found, counts = base["codes"].numpy(), base["counts"].numpy()
    above, below = half_gaps(GRID)
    scale = math.sqrt(energy / counts.sum())
    visible = visible_chance(scale, above[found], below[found], on_grid=bool(base["on_grid"]))
    return 1 - float(visible @ counts) / float(counts.sum())
