"""Rows of whole weights as the report reads them: an arm's number over its seeds, beside what chance scores there.

The geometry of adapters is seen through :class:`limbeck.report.view.View`; here are numbers that also speak of a module kind,
of a kept step, or of what bf16 storage shows. No number mixes the two kinds of update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from limbeck.report.view import Run, View
from limbeck.report.words import fixed, percent, short
from limbeck.types import Measurement

WALK, EXCH, ORDER = "N-WALK", "N-EXCH", "N-EXCH-NORM"
PARADIGMS = {"sft": "SFT", "opd": "OPD", "rlvr": "RLVR"}
_OBJECTIVES = {"sft": "sft", "opd": "opd", "grpo": "rlvr"}


class Quantity(NamedTuple):
    """A number of one arm, and how it is written. ``k`` below 0 takes the largest that was measured."""

    name: str
    title: str
    metric: str
    aggregation: str
    side: str = ""
    k: int = 0
    style: str = "number"

    def text(self, value: float) -> str:
        """In the unit of its column."""
        return {"percent": percent(value), "fixed": fixed(value, 1), "number": short(value)}[self.style]

    def spread(self, values: Sequence[float]) -> str:
        """From the least to the largest, written like one."""
        return " to ".join(dict.fromkeys(self.text(value) for value in (min(values), max(values))))


QUANTITIES = (
    Quantity("sparsity", "unchanged in bf16", "sparsity_visible", "parameter-weighted", style="percent"),
    Quantity("low", "changed: small weights", "mask_overlap_low", "parameter-weighted", style="percent"),
    Quantity("principal", "changed: principal weights", "mask_overlap_principal", "parameter-weighted", style="percent"),
    Quantity("drift", "spectral drift", "nss", "module-mean"),
    Quantity("rotation", "rotation, degrees", "base_angle_largest", "module-median", "right", -1),
    Quantity("leading", "energy in leading block", "principal_energy", "module-mean", "PP", -1, "percent"),
    Quantity("stable_rank", "stable rank", "stable_rank", "module-mean", style="fixed"),
    Quantity("top", "energy of 8 directions", "topk_energy", "module-mean", k=8, style="percent"),
    Quantity("hill", "Hill exponent, k = 10", "hill", "module-mean", k=10, style="fixed"),
)  # fmt: skip
NORM = Quantity("norm", "norm", "frobenius_norm", "stacked")
RELATIVE = Quantity("relative", "over the base's norm", "relative_norm", "module-mean", style="percent")


class Level(NamedTuple):
    """A number over the seeds of an arm: each run's value and its value over chance (NaN without a null)."""

    values: tuple[float, ...]
    nulls: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values) if self.values else math.nan

    @property
    def null(self) -> float:
        return fmean(self.nulls) if self.nulls else math.nan

    @property
    def ratios(self) -> tuple[float, ...]:
        """Observed over chance, run by run."""
        pairs = zip(self.values, self.nulls, strict=True)
        return tuple(value / null for value, null in pairs if math.isfinite(null) and null > 0)

    @property
    def ratio(self) -> float:
        return fmean(self.ratios) if self.ratios else math.nan


class Whole:
    """Measurements of whole weights, found by whose they are."""

    def __init__(self, view: View) -> None:
        self.view = view
        rows = [row for row in view.results.measurements if row.delta_kind in ("dense_fp32", "bf16_visible")]
        self._rows = {_key(row): row for row in rows if not _moving(row)}
        self._curves: dict[tuple[Any, ...], list[Measurement]] = {}
        for row in sorted(rows, key=lambda row: row.step):
            if _moving(row) and row.aggregation != "module":
                null = WALK if row.null.id.startswith(WALK) else row.null.id
                self._curves.setdefault((row.metric, row.side, row.k, row.kind, row.arm, row.other, null), []).append(
                    row
                )
        self.runs = [run for run in view.runs if self.get(NORM.metric, run.id, aggregation="stacked")]
        self.leads = [run for run in self.runs if run.lead]
        self.settings: dict[str, dict[str, Any]] = {
            arm["name"]: arm for arm in (view.results.study.get("config") or {}).get("arms") or []
        }

    def get(
        self, metric: str, run: str, other: str = "", *, aggregation: str, side: str = "", k: int = 0, kind: str = "",
        layer: int = -1, step: int = -1,
    ) -> Measurement | None:  # fmt: skip
        """One row, whichever of two runs was named first."""
        ends = ((run, other), (other, run)) if other else ((run, ""),)
        keys = [(metric, aggregation, side, k, kind, layer, *who, step) for who in ends]
        return next((self._rows[key] for key in keys if key in self._rows), None)

    def seeds(self, arm: str) -> list[Run]:
        """The measured runs of an arm."""
        return [run for run in self.runs if run.arm == arm]

    def level(self, quantity: Quantity, arm: str, **where: Any) -> Level:
        """A quantity over the seeds of an arm; runs in which it is undefined are left out."""
        k = self.largest_k(quantity.metric) if quantity.k < 0 else quantity.k
        found = [
            self.get(quantity.metric, run.id, aggregation=quantity.aggregation, side=quantity.side, k=k, **where)
            for run in self.seeds(arm)
        ]
        known = [row for row in found if row is not None and math.isfinite(row.value)]
        return Level(tuple(row.value for row in known), tuple(row.null.mean for row in known))

    def largest_k(self, metric: str) -> int:
        """The most leading directions at which a metric was measured."""
        return max((key[3] for key in self._rows if key[0] == metric), default=0)

    def kinds(self) -> list[str]:
        """Module kinds, in the order of the table."""
        return list(dict.fromkeys(key[4] for key in self._rows if key[0] == "energy_share" and key[4]))

    def layers(self) -> list[int]:
        """Blocks, in order."""
        return sorted({key[5] for key in self._rows if key[0] == "energy_share" and key[5] >= 0})

    def between(self, metric: str, pairs: Sequence[tuple[Run, Run]], **where: Any) -> Level:
        """A number of several pairs of runs."""
        found = [self.get(metric, a.id, b.id, **where) for a, b in pairs]
        known = [row for row in found if row is not None and math.isfinite(row.value)]
        return Level(tuple(row.value for row in known), tuple(row.null.mean for row in known))

    def curve(
        self, metric: str, run: str, other: str = "", *, side: str = "", k: int = 0, kind: str = "", null: str = WALK
    ) -> list[Measurement]:
        """A trajectory of a run, snapshot by snapshot, beside one of its nulls."""
        return self._curves.get((metric, side, k, kind, run, other, null), [])

    def curve_ks(self, metric: str) -> list[int]:
        """Numbers of directions at which any trajectory of a metric is defined."""
        found = {
            key[2] for key, rows in self._curves.items() if key[0] == metric and any(r.value == r.value for r in rows)
        }
        return sorted(found)

    # ------------------------------------------------------------------------------------------------- who is who

    @cached_property
    def main(self) -> dict[str, Run]:
        """The lead run of each paradigm at matched steps."""
        found: dict[str, Run] = {}
        for run in self.leads:
            key = self._paradigm(run)
            if key and run.role == "method" and not self.setting(run, "match_norm"):
                found.setdefault(key, run)
        return {key: found[key] for key in PARADIGMS if key in found}

    @cached_property
    def matched(self) -> dict[str, Run]:
        """The lead run of each paradigm at a matched update norm; the arm whose norm it is stands for itself."""
        named = {run.arm for run in self.main.values()}
        stopping = [run for run in self.leads if self.setting(run, "match_norm") in named]
        stopped = {key: run for run in stopping if (key := self._paradigm(run))}
        target = {self.setting(run, "match_norm") for run in stopped.values()}
        own = {key: run for key, run in self.main.items() if run.arm in target}
        found = {**own, **stopped} if stopped else {}
        return {key: found[key] for key in PARADIGMS if key in found}

    @cached_property
    def shown(self) -> list[Run]:
        """Who stands in figures of several quantities: the paradigms and their matched twins, or else the first arms."""
        found = {run.id: run for run in (*self.main.values(), *self.matched.values())}
        return list(found.values()) or self.leads[:8]

    def _paradigm(self, run: Run) -> str:
        changed = any(self.setting(run, key) for key in ("subspace", "start", "rollouts"))
        return "" if changed else _OBJECTIVES.get(str(run.facts["objective"]), "")

    def setting(self, run: Run, key: str) -> Any:
        """What the study's file says of the arm."""
        return self.settings.get(run.arm, {}).get(key)

    def same_seed(self, a: str, b: str) -> list[tuple[Run, Run]]:
        """Runs of two arms that share a seed."""
        return [(x, y) for x in self.seeds(a) for y in self.seeds(b) if x.seed == y.seed]

    def two_seeds(self, arm: str) -> list[tuple[Run, Run]]:
        """Pairs of seeds of one arm."""
        runs = self.seeds(arm)
        return [(a, b) for i, a in enumerate(runs) for b in runs[i + 1 :]]


def _key(row: Measurement) -> tuple[Any, ...]:
    return (row.metric, row.aggregation, row.side, row.k, row.kind, row.layer, row.arm, row.other, row.step)


def _moving(row: Measurement) -> bool:
    """Whether a row belongs to a trajectory, whose nulls are walks."""
    return row.null.id.startswith((WALK, EXCH)) or row.other in ("end", "previous")
