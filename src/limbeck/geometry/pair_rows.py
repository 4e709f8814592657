"""Rows of two arms: direction, signs, principal angles and leading overlaps, each beside its null."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import starmap
from typing import NamedTuple

import numpy as np

from limbeck.geometry import nulls
from limbeck.geometry.compare import SIDES, Cells, ModuleRecord, Plan
from limbeck.geometry.delta import Place, same_init
from limbeck.geometry.direction import Contact, cosine, orthogonal_fraction
from limbeck.geometry.series import NO_NULL, Labels, Series, ShapeNull, kind_groups, layer_groups, series_rows
from limbeck.types import Delta, Measured, Measurement, Null

ISO_DRAWS = 2000
_ANGLES = (
    ("principal_angle_smallest", "degree"),
    ("principal_angle_median", "degree"),
    ("principal_angle_largest", "degree"),
    ("mean_cos2", "none"),
)
_SIGNS = (
    ("sign_agreement", lambda found: found.plain, nulls.arcsine_law),
    ("sign_agreement_weighted", lambda found: found.weighted, nulls.weighted_arcsine_law),
)


def init_reason(x: Delta, y: Delta) -> str:
    """``init_mismatch`` where the arms are known to start from different factors, ``init_unknown``, or nothing."""
    return {True: "", False: "init_mismatch", None: "init_unknown"}[same_init(x, y)]


class _Group(NamedTuple):
    """Modules that share a number, and how the row that holds it is labelled."""

    aggregation: str
    module: str
    layer: int
    kind: str
    members: Sequence[int]


def _groups(names: Sequence[str], places: Sequence[Place]) -> Iterator[_Group]:
    for m, (name, place) in enumerate(zip(names, places, strict=True)):
        yield _Group("module", name, place.layer, place.kind, [m])
    for layer, members in layer_groups(places).items():
        yield _Group("layer", "", layer, "", members.tolist())
    for kind, members in kind_groups(places).items():
        yield _Group("stacked", "", -1, kind, members.tolist())


def direction_rows(
    deltas: Sequence[Delta],
    plan: Plan,
    names: Sequence[str],
    places: Sequence[Place],
    records: Sequence[ModuleRecord],
    rng: np.random.Generator,
) -> list[Measurement]:
    """Cosine of every pair, and both orthogonal fractions (norm and energy), by module, layer, kind and stacked."""
    rows, groups = [], list(_groups(names, places))
    for p, (i, j) in enumerate(plan.pairs):
        x, y, caveat = deltas[i], deltas[j], init_reason(deltas[i], deltas[j])
        contacts = [r.contacts[p] for r in records]
        for group in groups:
            chosen = [contacts[m] for m in group.members]
            labels = Labels("cosine", "none", x.name, y.name)
            rows.append(_row(labels, group, cosine(chosen), nulls.rotated_cosine(chosen), caveat))
        swapped = [c.swapped() for c in contacts]
        for arm, other, seen in ((x, y, contacts), (y, x, swapped)):
            for group in groups:
                rows += _fraction_rows(arm.name, other.name, group, [seen[m] for m in group.members], caveat)
            rows += _pooled_rows(arm.name, other.name, seen, caveat, plan.draws, rng)
    return rows


def _fraction_rows(
    arm: str, other: str, group: _Group, contacts: Sequence[Contact], caveat: str
) -> Iterator[Measurement]:
    norm = orthogonal_fraction(contacts, pooled=False)
    for name, energy in (("orthogonal_norm_fraction", False), ("orthogonal_energy_fraction", True)):
        value = Measured(norm.value**2 if energy else norm.value, norm.reason)
        null = nulls.rotated_fraction(contacts, energy=energy)
        yield _row(Labels(name, "fraction", arm, other), group, value, null, caveat)


def _pooled_rows(
    arm: str, other: str, contacts: Sequence[Contact], caveat: str, draws: int, rng: np.random.Generator
) -> Iterator[Measurement]:
    everywhere = _Group("pooled", "", -1, "", ())
    norm = orthogonal_fraction(contacts, pooled=True)
    for name, energy in (("orthogonal_norm_fraction", False), ("orthogonal_energy_fraction", True)):
        value = Measured(norm.value**2 if energy else norm.value, norm.reason)
        null = nulls.rotated_pooled_fraction(contacts, energy=energy, draws=draws, rng=rng)
        yield _row(Labels(name, "fraction", arm, other), everywhere, value, null, caveat)


def _row(labels: Labels, group: _Group, measured: Measured, null: Null, caveat: str) -> Measurement:
    where = {"aggregation": group.aggregation, "module": group.module, "layer": group.layer, "kind": group.kind}
    if caveat == "init_mismatch":
        measured = Measured(np.nan)
    defined = np.isfinite(measured.value)
    return Measurement(
        value=measured.value,
        reason=";".join(filter(None, (measured.reason, caveat))),
        null=null if defined else NO_NULL,
        **where,
        **labels._asdict(),
    )


def subspace_rows(
    deltas: Sequence[Delta],
    plan: Plan,
    names: Sequence[str],
    places: Sequence[Place],
    records: Sequence[ModuleRecord],
    rng: np.random.Generator,
) -> list[Measurement]:
    """Principal angles, mean squared cosines and leading overlaps, left against N-ISO and right against N-ROW."""
    if not plan.pairs:
        return []
    outs = [deltas[0].modules[n].shape[0] for n in names]
    isotropic = {k: _angle_nulls(outs, k, rng) for k in plan.ks}
    leading = _leading_null(outs, rng)
    rows = []
    for p, (i, j) in enumerate(plan.pairs):
        whose, init = (deltas[i].name, deltas[j].name), init_reason(deltas[i], deltas[j])
        for side in SIDES:
            caveat = init if side == "right" else ""
            for k in plan.ks:
                cells = [r.angles[side, k] for r in records]
                for statistic, (metric, unit) in enumerate(_ANGLES):
                    labels = Labels(metric, unit, *whose, side, k)
                    null = isotropic[k][statistic] if side == "left" else None
                    rows += series_rows(_series(labels, cells, p, statistic, null, caveat), names, places)
            labels = Labels("leading_overlap", "none", *whose, side, 1)
            null = leading if side == "left" else None
            cells = [r.leading[side] for r in records]
            rows += series_rows(_series(labels, cells, p, 0, null, caveat), names, places)
    return rows


def _series(
    labels: Labels, cells: Sequence[Cells], pair: int, statistic: int, null: ShapeNull | None, caveat: str
) -> Series:
    values = np.array([c.values[pair, statistic] for c in cells])
    if caveat == "init_mismatch":
        values = np.full_like(values, np.nan)
    if null is None:
        null = ShapeNull("N-ROW", np.stack([c.draws[pair, statistic] for c in cells]))
    return Series(labels, values, [c.reasons[pair] for c in cells], null, caveat)


def _angle_nulls(outs: Sequence[int], k: int, rng: np.random.Generator) -> list[ShapeNull]:
    pools = {
        dim: np.stack(nulls.isotropic_angles(dim, k, draws=ISO_DRAWS, rng=rng)) if k <= dim else np.full((4, 1), np.nan)
        for dim in dict.fromkeys(outs)
    }
    shuffled = [np.broadcast_to(pools[dim], (4, ISO_DRAWS))[:, rng.permutation(ISO_DRAWS)] for dim in outs]
    return list(starmap(ShapeNull, (("N-ISO", np.stack(rows)) for rows in zip(*shuffled, strict=True))))


def _leading_null(outs: Sequence[int], rng: np.random.Generator) -> ShapeNull:
    closed = {dim: nulls.isotropic_overlap(dim) for dim in dict.fromkeys(outs)}
    draws = np.stack([nulls.overlap_draws(dim, draws=ISO_DRAWS, rng=rng) for dim in outs])
    return ShapeNull("N-ISO", draws, [closed[dim] for dim in outs])


def sign_rows(
    deltas: Sequence[Delta],
    plan: Plan,
    names: Sequence[str],
    places: Sequence[Place],
    records: Sequence[ModuleRecord],
) -> list[Measurement]:
    """Sign agreement by module and parameter-weighted, beside what the arcsine law expects at the measured cosine."""
    rows = []
    for p, (i, j) in enumerate(plan.pairs):
        caveat, whose = init_reason(deltas[i], deltas[j]), (deltas[i].name, deltas[j].name)
        found = [r.signs[p] for r in records]
        cosines = [cosine([r.contacts[p]]).value for r in records]
        joint = np.array([f.joint for f in found], dtype=float)
        for group in _groups(names, places):
            if group.aggregation != "module" and group.layer >= 0:
                continue
            label = group if group.aggregation == "module" else group._replace(aggregation="parameter-weighted")
            weights = joint[group.members]
            for metric, read, law in _SIGNS:
                value, reason = _weighted([read(found[m]) for m in group.members], weights)
                expected = [law(cosines[m]) if weights[n] else np.nan for n, m in enumerate(group.members)]
                null = Null(id="arcsine", mean=_weighted(expected, weights).value)
                rows.append(_row(Labels(metric, "fraction", *whose), label, Measured(value, reason), null, caveat))
    return rows


def _weighted(values: Sequence[float], weights: np.ndarray) -> Measured:
    total = weights.sum()
    if total == 0:
        return Measured(np.nan, "empty_mask")
    return Measured(float(np.where(weights > 0, values, 0) @ weights / total))
