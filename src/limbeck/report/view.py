"""Results seen from the report: who took part and in which color, and every number found by whose it is.

The first seed of an arm stands for it; further seeds, and arms whose role is "null", say how far chance alone goes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

from limbeck.report.load import Results
from limbeck.report.words import number
from limbeck.types import Measurement, Null

NUM_COLORS = 8
_RECIPE = (
    "objective", "normalizer", "credit", "selection", "learning_rate", "pair_rule", "stop_norm", "rollouts_digest",
    "init_seed", "knobs", "batch_size", "items", "rewards",
)  # fmt: skip
NOT_MEASURED = Measurement(metric="", aggregation="", value=math.nan, unit="", reason="not_measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run as the report names it. ``lead`` is the first seed of its arm; ``color`` and ``shape`` belong to the arm.

    Where colors come round again, shapes are shifted by one: the ninth arm has the first one's color and the second one's shape.
    """

    id: str
    arm: str
    label: str
    seed: object
    role: str
    note: str
    lead: bool
    color: int
    shape: int
    facts: dict[str, Any]


class Pair(NamedTuple):
    """A paired comparison seen from ``a``: ``difference`` is a minus b, a fraction."""

    a: str
    b: str
    n: int
    both_right: float
    a_only: float
    b_only: float
    both_wrong: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    smallest_callable: float
    smallest_callable_holm: float  # infinite where none could have been called, NaN where it was not computed

    def swapped(self) -> Pair:
        """The same comparison seen from ``b``."""
        return self._replace(
            a=self.b, b=self.a, a_only=self.b_only, b_only=self.a_only,
            difference=-self.difference, low=-self.high, high=-self.low,
        )  # fmt: skip


class View:
    """The results by run, by pair and by metric."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.runs = _runs(results)
        self.by_id = {run.id: run for run in self.runs}
        self.leads = [run for run in self.runs if run.lead]
        self.contenders = [run for run in self.leads if run.role != "null"]
        self.seed_pairs = _seed_pairs(self.runs)
        alpha = number(results.comparison.get("alpha"))
        self.alpha = alpha if math.isfinite(alpha) else 0.05
        self._pairs = _pairs(results.comparison)
        self._arm_pairs = _pairs(results.comparison.get("over_seeds") or {})
        self._rows = _index(results.measurements)
        self.angle_k = self._angle_k()

    @property
    def reference(self) -> Run | None:
        """The lead run of the arm that every other is held against."""
        name = self.results.study.get("reference_arm", "")
        return next((run for run in self.leads if run.arm == name), None)

    def label(self, name: str) -> str:
        """How a run, the base or the teacher is called on the page."""
        return self.by_id[name].label if name in self.by_id else name

    def arms(self, *names: str) -> tuple[str, ...]:
        """The arms of runs; base and teacher are none."""
        return tuple(dict.fromkeys(self.by_id[name].arm for name in names if name in self.by_id))

    def color(self, name: str) -> str:
        """The theme's name of a run's color; base and teacher are ink, not a hue."""
        if name in self.by_id:
            return f"@arm{self.by_id[name].color}"
        return "@teacher" if name == "teacher" else "@base"

    def scored(self) -> list[dict[str, Any]]:
        """Rows of the accuracy table: base, teacher, then runs in the order of the study."""
        order = {name: i for i, name in enumerate(("base", "teacher", *(run.id for run in self.runs)))}
        arms = self.results.comparison.get("arms", [])
        return sorted(arms, key=lambda arm: (order.get(arm["name"], len(order)), arm["name"]))

    def accuracy(self, name: str) -> float:
        """Share of problems right, NaN where it was not scored."""
        return next((number(arm["value"]) for arm in self.scored() if arm["name"] == name), math.nan)

    def pair(self, a: str, b: str) -> Pair | None:
        """The comparison of two entries, seen from ``a``."""
        return self._pairs.get((a, b))

    def over_seeds(self, a: str, b: str) -> Pair | None:
        """The comparison of two arms over problems and seeds, a minus b; None where the study made none."""
        return self._arm_pairs.get((a, b))

    def against(self, other: str) -> list[tuple[Run, Pair]]:
        """Every contender beside the base or a lead run: over problems and seeds where that was tested, else over problems."""
        arm = self.by_id[other].arm if other in self.by_id else other
        found = ((run, self.over_seeds(run.arm, arm) or self.pair(run.id, other)) for run in self.contenders)
        return [(run, pair) for run, pair in found if pair is not None and run.id != other]

    def get(
        self, metric: str, arm: str, other: str = "", *, aggregation: str = "stacked", side: str = "", k: int = 0,
        layer: int = -1,
    ) -> Measurement:  # fmt: skip
        """One measurement, whichever of the two arms was named first; NaN with ``not_measured`` if there is none."""
        keys = ((metric, aggregation, side, k, layer, *who) for who in ((arm, other), (other, arm)))
        return next((self._rows[key] for key in keys if key in self._rows), NOT_MEASURED)

    def directed(self, metric: str, arm: str, other: str) -> Measurement:
        """A stacked measurement whose order matters (orthogonal fractions)."""
        return self._rows.get((metric, "stacked", "", 0, -1, arm, other), NOT_MEASURED)

    def layers(self, metric: str) -> list[int]:
        """The layers at which a metric was measured."""
        return sorted({key[4] for key in self._rows if key[0] == metric and key[1] == "layer"})

    def lead_pairs(self) -> list[tuple[Run, Run]]:
        """All pairs of lead runs, in the order of the study."""
        return list(combinations(self.leads, 2))

    def is_null(self, path: dict[str, Any]) -> bool:
        """Whether a path joins two seeds of one recipe."""
        ends = {path["a"], path["b"]}
        return bool(path.get("null")) or any({a.id, b.id} == ends for a, b in self.seed_pairs)

    def seed_values(self, metric: str, **where: Any) -> list[float]:
        """A metric over the pairs that differ in their seed alone; what chance gives, where any was measured."""
        values = (self.get(metric, a.id, b.id, **where).value for a, b in self.seed_pairs)
        return [value for value in values if math.isfinite(value)]

    def seeds_per_arm(self) -> dict[str, int]:
        """How many seeds each contender was run with, by label; repeats by a null arm are not counted."""
        return {lead.label: len({run.seed for run in self.runs if run.arm == lead.arm}) for lead in self.contenders}

    def _angle_k(self) -> int:
        rows = [key for key in self._rows if key[0] == "principal_angle_smallest" and key[1] == "module-median"]
        return max((key[3] for key in rows if math.isfinite(self._rows[key].value)), default=10)


def _runs(results: Results) -> tuple[Run, ...]:
    arms = [arm for arm in results.study["arms"] or [] if isinstance(arm, dict) and "name" in arm]
    named = {arm["name"]: arm for arm in arms}
    order = list(dict.fromkeys([*named, *(run["arm"] for run in results.arms)]))
    seen: set[str] = set()
    runs = []
    for facts in sorted(results.arms, key=lambda run: order.index(run["arm"])):
        arm = named.get(facts["arm"], {})
        lead = facts["arm"] not in seen
        seen.add(facts["arm"])
        label = str(arm.get("label") or facts["arm"])
        place = order.index(facts["arm"])
        runs.append(
            Run(
                id=facts["run"],
                arm=facts["arm"],
                label=label if lead else f"{label}, seed {facts['seed']}",
                seed=facts["seed"],
                role=str(facts["role"] or arm.get("role") or "method"),
                note=str(arm.get("note") or ""),
                lead=lead,
                color=place % NUM_COLORS,
                shape=(place + place // NUM_COLORS) % NUM_COLORS,
                facts=facts,
            )
        )
    return tuple(_as_repeat(run, runs) for run in runs)


def _as_repeat(run: Run, runs: Sequence[Run]) -> Run:
    """A null arm that repeats another arm's recipe takes its color and no longer leads: it is one more seed of it."""
    twin = next((other for other in runs if other.arm != run.arm and other.lead and _repeats(other, run)), None)
    return (
        replace(run, lead=False, color=twin.color, shape=twin.shape) if twin is not None and run.role == "null" else run
    )


def _seed_pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of one arm at two seeds, and runs of a null arm that repeats another arm's recipe at another seed."""
    return [(a, b) for a, b in combinations(runs, 2) if a.seed != b.seed and (a.arm == b.arm or _repeats(a, b))]


def _repeats(a: Run, b: Run) -> bool:
    if a.seed == b.seed:
        return False
    return "null" in (a.role, b.role) and _recipe(a) == _recipe(b)


def _recipe(run: Run) -> str:
    """All that two seeds of one recipe share; where a norm stops training, the number of steps is an outcome."""
    keys = _RECIPE if run.facts["stop_norm"] is not None else (*_RECIPE, "steps")
    return json.dumps([run.facts[key] for key in keys], sort_keys=True)


def _pairs(comparison: dict[str, Any]) -> dict[tuple[str, str], Pair]:
    pairs = {}
    for row in comparison.get("pairs", []):
        numbers = {name: number(row.get(name)) for name in Pair._fields if name not in ("a", "b", "n")}
        if row.get("smallest_callable_holm", 0.0) is None:
            numbers["smallest_callable_holm"] = math.inf
        pair = Pair(a=row["a"], b=row["b"], n=int(row.get("n") or comparison.get("n") or 0), **numbers)
        pairs[pair.a, pair.b] = pair
        pairs[pair.b, pair.a] = pair.swapped()
    return pairs


_Key = tuple[str, str, str, int, int, str, str]


def _index(rows: Sequence[Measurement]) -> dict[_Key, Measurement]:
    """Rows over all kinds of matrices, of exact updates, at the end of training; no figure mixes kinds of update."""
    return dict(_entries(rows))


def _entries(rows: Sequence[Measurement]) -> Iterator[tuple[_Key, Measurement]]:
    last = sorted(rows, key=lambda row: math.inf if row.step < 0 else row.step)
    for row in last:
        if not row.kind and row.delta_kind != "bf16_visible":
            yield (row.metric, row.aggregation, row.side, row.k, row.layer, row.arm, row.other), row


def band(null: Null) -> tuple[float, float]:
    """The 5-95 % band of a null, NaN where it has none."""
    return null.q05, null.q95
