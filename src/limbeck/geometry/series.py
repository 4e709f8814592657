"""From one number per module to rows: each module, then mean and median over modules, all and by kind.

Undefined modules are left out of an aggregate and counted in its reason (``rank_lt_k:3/144``); its null mixes the
draws of exactly the modules that it averages, because chance depends on their widths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from limbeck.geometry.delta import Place
from limbeck.geometry.nulls import summarize_draws
from limbeck.types import Measurement, Null

_AGGREGATES: dict[str, Callable] = {"module-mean": np.mean, "module-median": np.median}
NO_NULL = Null()


class Labels(NamedTuple):
    """What a row says of itself besides its value: metric, unit, side, k, whose."""

    metric: str
    unit: str
    arm: str
    other: str = ""
    side: str = ""
    k: int = 0


class ShapeNull:
    """Null draws that depend on the shapes alone, shared by all pairs; summaries are made once per set of modules."""

    def __init__(self, null_id: str, draws: Float[np.ndarray, "modules draws"], closed: Sequence[Null] = ()) -> None:
        self.null_id = null_id
        self.draws = draws
        self._closed = list(closed)
        self._mixed: dict[tuple[str, bytes], Null] = {}

    def modules(self) -> list[Null]:
        """One null per module, in closed form where there is one."""
        if not self._closed:
            self._closed = summarize_draws(self.null_id, self.draws)
        return self._closed

    def mixed(self, how: str, members: np.ndarray) -> Null:
        """The null of a mean or median over the modules at these positions."""
        key = how, members.tobytes()
        if key not in self._mixed:
            mixed = _AGGREGATES[how](self.draws[members], axis=0)
            self._mixed[key] = summarize_draws(self.null_id, mixed[None])[0]
        return self._mixed[key]


class Series(NamedTuple):
    """One statistic over all modules. ``caveat`` holds for every row, ``reasons`` for single modules."""

    labels: Labels
    values: Float[np.ndarray, " modules"]
    reasons: list[str]
    null: ShapeNull
    caveat: str = ""


def series_rows(series: Series, names: Sequence[str], places: Sequence[Place]) -> list[Measurement]:
    """Rows of one statistic: every module, then module-mean and module-median over all modules and over each kind."""
    fixed = series.labels._asdict()
    defined = np.isfinite(series.values)
    rows = [
        Measurement(
            aggregation="module", module=name, layer=place.layer, kind=place.kind, value=value,
            null=null if ok else NO_NULL, reason=join(reason, series.caveat), **fixed,
        )
        for name, place, value, null, ok, reason in zip(
            names, places, series.values.tolist(), series.null.modules(), defined, series.reasons, strict=True
        )
    ]  # fmt: skip
    for kind, members in kind_groups(places).items():
        chosen = members[defined[members]]
        reason = join(counted([series.reasons[m] for m in members.tolist()]), series.caveat)
        for how, reduce in _AGGREGATES.items():
            value = float(reduce(series.values[chosen])) if len(chosen) else np.nan
            null = series.null.mixed(how, chosen) if len(chosen) else NO_NULL
            rows.append(Measurement(aggregation=how, kind=kind, value=value, null=null, reason=reason, **fixed))
    return rows


def kind_groups(places: Sequence[Place]) -> dict[str, np.ndarray]:
    """Positions of all modules under the empty kind, then of each kind if there is more than one."""
    kinds = sorted({p.kind for p in places})
    groups = {"": np.arange(len(places))}
    if len(kinds) > 1:
        groups |= {kind: np.array([m for m, p in enumerate(places) if p.kind == kind]) for kind in kinds}
    return groups


def layer_groups(places: Sequence[Place]) -> dict[int, np.ndarray]:
    """Positions of the modules of each block; modules outside any block belong to none."""
    layers = sorted({p.layer for p in places if p.layer >= 0})
    return {layer: np.array([m for m, p in enumerate(places) if p.layer == layer]) for layer in layers}


def counted(reasons: list[str]) -> str:
    """How often each reason occurs among modules; a reason that all share stands without a count.

    >>> counted(["rank_lt_k", "", "rank_lt_k;gap_ratio"]), counted(["zero_norm", "zero_norm"])
    ('gap_ratio:1/3;rank_lt_k:2/3', 'zero_norm')
    """
    counts = Counter(word for reason in reasons for word in reason.split(";") if word)
    return join(*(w if n == len(reasons) else f"{w}:{n}/{len(reasons)}" for w, n in sorted(counts.items())))


def join(*reasons: str) -> str:
    """Reasons in one text, empty ones left out."""
    return ";".join(reason for reason in reasons if reason)
