"""Rows of one arm alone: how long its update is and over how many directions it spreads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from limbeck.geometry import nulls
from limbeck.geometry.compare import ModuleRecord
from limbeck.geometry.delta import Place
from limbeck.geometry.series import Labels, Series, ShapeNull, kind_groups, layer_groups, series_rows
from limbeck.geometry.spectrum import erank, erank_energy, hill, participation, stable_rank, topk_energy, undefined
from limbeck.types import Delta, Measurement

ISO_DRAWS = 2000  # nulls that depend on shapes alone are drawn once and shared, so they can be fine
HILL_K = 10
_SPECTRAL: tuple[tuple[str, str, int, Callable[[Tensor], Tensor]], ...] = (
    ("stable_rank", "rank", 0, stable_rank),
    ("participation", "rank", 0, participation),
    ("erank_energy", "rank", 0, erank_energy),
    ("erank", "rank", 0, erank),
    *(("topk_energy", "fraction", k, partial(topk_energy, k=k)) for k in (1, 4, 8, 16)),
    ("hill", "exponent", HILL_K, partial(hill, k=HILL_K)),
)


def norm_rows(
    deltas: Sequence[Delta], names: Sequence[str], places: Sequence[Place], records: Sequence[ModuleRecord]
) -> list[Measurement]:
    """Frobenius norms by module, layer and kind, and of the whole arm. A norm has a scale and no chance level."""
    rows = []
    for arm, delta in enumerate(deltas):
        squares = np.array([r.spectra[arm].square().sum().item() for r in records])
        fixed = Labels("frobenius_norm", "weight", delta.name)._asdict()
        norms = np.sqrt(squares).tolist()
        rows += [
            Measurement(aggregation="module", module=n, layer=p.layer, kind=p.kind, value=v, **fixed)
            for n, p, v in zip(names, places, norms, strict=True)
        ]
        for layer, members in layer_groups(places).items():
            rows.append(Measurement(aggregation="layer", layer=layer, value=_root(squares[members]), **fixed))
        for kind, members in kind_groups(places).items():
            rows.append(Measurement(aggregation="stacked", kind=kind, value=_root(squares[members]), **fixed))
    return rows


def _root(squares: np.ndarray) -> float:
    return float(np.sqrt(squares.sum()))


def spectrum_rows(
    deltas: Sequence[Delta],
    names: Sequence[str],
    places: Sequence[Place],
    records: Sequence[ModuleRecord],
    rng: np.random.Generator,
) -> list[Measurement]:
    """Ranks, energy in the leading directions and tail exponent of every arm, beside random factors of its shapes."""
    rows, shared = [], {}
    for arm, delta in enumerate(deltas):
        shapes = tuple((*delta.modules[n].shape, delta.modules[n].left.shape[1]) for n in names)
        if shapes not in shared:
            shared[shapes] = _random_nulls(shapes, rng)
        for (metric, unit, k, function), null in zip(_SPECTRAL, shared[shapes], strict=True):
            needed = k if metric == "hill" else 1
            cells = [_spectral(r.spectra[arm], needed, function) for r in records]
            labels = Labels(metric, unit, delta.name, k=k)
            series = Series(labels, np.array([c[0] for c in cells]), [c[1] for c in cells], null)
            rows += series_rows(series, names, places)
    return rows


def _spectral(values: Tensor, needed: int, function: Callable[[Tensor], Tensor]) -> tuple[float, str]:
    reason = undefined(values, k=needed)
    if reason:
        return np.nan, reason
    value = function(values).item()
    return value, "" if np.isfinite(value) else "flat_spectrum"


def _random_nulls(shapes: Sequence[tuple[int, int, int]], rng: np.random.Generator) -> list[ShapeNull]:
    """One null per spectral statistic, rows in the order of the modules; equal shapes share draws, shuffled apart."""
    pools = {s: nulls.random_spectra(*s, draws=ISO_DRAWS, rng=rng) for s in dict.fromkeys(shapes)}
    drawn = {s: [f(values).numpy() for *_, f in _SPECTRAL] for s, values in pools.items()}
    return [
        ShapeNull("N-ISO", np.stack([rng.permutation(drawn[s][statistic]) for s in shapes]))
        for statistic in range(len(_SPECTRAL))
    ]
