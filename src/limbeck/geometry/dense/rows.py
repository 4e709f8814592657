"""From the records of all matrices to the rows of the table: each matrix, then blocks, kinds and the whole.

Undefined numbers are left out of an aggregate and counted in its reason. An aggregate's null is the same aggregate of
the nulls of the matrices in it, and so is its band: matrices of one run are not independent, and a band that shrank with
their number would say they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from limbeck.geometry import METRICS
from limbeck.geometry.compare import ModuleRecord, Plan
from limbeck.geometry.delta import Place, place
from limbeck.geometry.dense import DENSE_METRICS
from limbeck.geometry.dense.cells import NO_NULL, Cell, Key
from limbeck.geometry.dense.piece import Record
from limbeck.geometry.pair_rows import direction_rows, sign_rows
from limbeck.geometry.series import counted, kind_groups, layer_groups
from limbeck.types import Delta, LowRank, Measurement, Null

UNITS = {name: metric.unit for name, metric in (METRICS | DENSE_METRICS).items()}
_WEIGHTED = (
    "sparsity_visible",
    "sparsity_abs",
    "sparsity_rel",
    "mask_overlap_low",
    "mask_overlap_principal",
    "mask_jaccard",
)
_ENERGIES = ("mask_energy_low", "mask_energy_principal")
_BORROWED = ("nss", "base_angle", "base_mean_cos2", "intruder")  # nulls drawn in one matrix of a kind and shape


def table(
    names: Sequence[str],
    records: Sequence[Record],
    arms: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    shapes: Sequence[tuple[int, ...]],
) -> list[Measurement]:
    """All rows, metric by metric, in a fixed order; ``pairs`` are those of ``arms`` that were compared."""
    places = [place(name) for name in names]
    by_key: dict[Key, dict[int, Cell]] = {}
    for index, record in enumerate(records):
        for cell in record.cells:
            by_key.setdefault(cell.key, {})[index] = cell
    rows: list[Measurement] = []
    for key, found in by_key.items():
        if key.metric.startswith(_BORROWED):
            _borrow(found, places, shapes)
        rows += [cell.row(names[index], UNITS[key.metric]) for index, cell in sorted(found.items())]
        rows += _aggregates(key, found, places)
        if key.metric == "frobenius_norm":
            rows += _energy_shares(key, found, names, places, records)
    return rows + _directions(names, records, arms, pairs, by_key)


def _borrow(found: dict[int, Cell], places: Sequence[Place], shapes: Sequence[tuple[int, ...]]) -> None:
    """Give matrices whose null was not drawn that of their kind and shape, named as such."""
    drawn = {(places[i].kind, shapes[i]): cell.null for i, cell in found.items() if cell.null.id}
    for index, cell in found.items():
        null = drawn.get((places[index].kind, shapes[index]))
        if null and not cell.null.id and math.isfinite(cell.value):
            found[index] = cell._replace(null=Null(id="N-ISO-KIND", mean=null.mean, q05=null.q05, q95=null.q95))


def _aggregates(key: Key, found: dict[int, Cell], places: Sequence[Place]) -> Iterator[Measurement]:
    members = sorted(found)
    inside = [places[m] for m in members]
    cells = [found[m] for m in members]
    groups = [(-1, kind, chosen) for kind, chosen in kind_groups(inside).items()]
    layers = [(layer, "", chosen) for layer, chosen in layer_groups(inside).items()]
    if key.metric == "frobenius_norm":
        for aggregation, group in (("stacked", groups), ("layer", layers)):
            for layer, kind, chosen in group:
                value = math.sqrt(sum(cells[c].weight for c in chosen))
                yield _row(key, aggregation, layer, kind, value, NO_NULL, [cells[c] for c in chosen])
    elif key.metric in _WEIGHTED + _ENERGIES:
        for layer, kind, chosen in groups + layers:
            yield _mean(key, "parameter-weighted", layer, kind, [cells[c] for c in chosen])
    if key.metric not in ("frobenius_norm", *_WEIGHTED[:3], *_ENERGIES):
        for layer, kind, chosen in groups:
            for how in ("module-mean", "module-median"):
                yield _mean(key, how, layer, kind, [cells[c] for c in chosen])


def _mean(key: Key, how: str, layer: int, kind: str, cells: Sequence[Cell]) -> Measurement:
    defined = [c for c in cells if math.isfinite(c.value)]
    if not defined:
        return _row(key, how, layer, kind, math.nan, NO_NULL, cells)
    weights = [c.weight for c in defined] if how == "parameter-weighted" else None
    if weights is not None and not sum(weights) > 0:
        weights = None
    reduce = np.median if how == "module-median" else lambda values: np.average(values, weights=weights)
    nulls = [c.null for c in defined]
    null = NO_NULL
    if all(n.id for n in nulls):
        names = {n.id for n in nulls}
        bands = [float(reduce([getattr(n, part) for n in nulls])) for part in ("mean", "q05", "q95")]
        null = Null(id=min(names) if len(names) == 1 else "N-ISO-KIND", mean=bands[0], q05=bands[1], q95=bands[2])
    return _row(key, how, layer, kind, float(reduce([c.value for c in defined])), null, cells)


def _row(key: Key, how: str, layer: int, kind: str, value: float, null: Null, cells: Sequence[Cell]) -> Measurement:
    worst = "ritz" if any(c.exactness == "ritz" for c in cells) else cells[0].exactness
    residuals = [c.residual for c in cells if math.isfinite(c.residual)]
    kinds = {c.delta_kind for c in cells}
    return Measurement(
        aggregation=how, layer=layer, kind=kind, value=value, unit=UNITS[key.metric], null=null, exactness=worst,
        residual=max(residuals) if residuals else math.nan, reason=counted([c.reason for c in cells]),
        delta_kind=kinds.pop() if len(kinds) == 1 else "mixed", **key._asdict(),
    )  # fmt: skip


def _energy_shares(
    key: Key, found: dict[int, Cell], names: Sequence[str], places: Sequence[Place], records: Sequence[Record]
) -> Iterator[Measurement]:
    """Where the update is: share of its squared norm by matrix, block and kind, beside the share of the entries."""
    energies = np.array([found[i].weight for i in range(len(names))])
    entries = np.array([r.entries for r in records], dtype=float)
    total, whole = energies.sum(), entries.sum()
    groups = [("module", name, p.layer, p.kind, [i]) for i, (name, p) in enumerate(zip(names, places, strict=True))]
    groups += [("layer", "", layer, "", chosen.tolist()) for layer, chosen in layer_groups(places).items()]
    groups += [("stacked", "", -1, kind, chosen.tolist()) for kind, chosen in kind_groups(places).items() if kind]
    for how, module, layer, kind, chosen in groups:
        value = float(energies[chosen].sum() / total) if total > 0 else math.nan
        null = Null(id="N-ISO", mean=float(entries[chosen].sum() / whole)) if total > 0 else NO_NULL
        yield Measurement(
            metric="energy_share", aggregation=how, value=value, unit="fraction", module=module, layer=layer, kind=kind,
            arm=key.arm, delta_kind=found[chosen[0]].delta_kind, null=null, reason="" if total > 0 else "zero_norm",
        )  # fmt: skip


def _directions(
    names: Sequence[str],
    records: Sequence[Record],
    arms: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    by_key: dict[Key, dict[int, Cell]],
) -> list[Measurement]:
    """Cosines, orthogonal parts and signs of every pair, by the functions that serve factors."""
    if not pairs:
        return []
    modules = [ModuleRecord(spectra=[], contacts=r.contacts, angles={}, leading={}, signs=r.signs) for r in records]
    known = [Delta(name=arm, base="", init_digest="whole weights", modules=_NOTHING) for arm in arms]
    plan = Plan(pairs=pairs, ks=(), draws=200, pools={}, signs=True)
    places = [place(name) for name in names]
    rows = direction_rows(known, plan, names, places, modules, np.random.default_rng(0))
    rows += sign_rows(known, plan, names, places, modules)
    kinds = {arm: by_key[Key("frobenius_norm", arm)][0].delta_kind for arm in arms}
    return [_labeled(row, kinds) for row in rows]


_NOTHING: dict[str, LowRank] = {}


def _labeled(row: Measurement, kinds: dict[str, str]) -> Measurement:
    same = kinds[row.arm] == kinds[row.other]
    return replace(row, delta_kind=kinds[row.arm] if same else "mixed")
