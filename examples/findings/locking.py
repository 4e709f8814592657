"""Does OPD lock into a subspace, or does any training from that start? Registered in docs/results/locking.md."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from contrast import HELD, NOT, OPEN, Row, corrected, over_problems, over_runs
from measured import Data

from limbeck.stats.factors import mean_of_runs

EARLY, K = 0.25, 8
SMALL, LOST = 0.05, 0.03  # of an overlap; of accuracy


def locking(data: Data) -> tuple[list[Row], str]:
    """Early overlap with the end and final rank beside walks, at one norm; accuracy inside subspaces."""
    arms = ("opd", "rlvr", "sft", "rlvr-shuffled", "opd-norm", "sft-norm")
    early = {arm: [_early(data, f"{arm}-s{s}") for s in data.seeds] for arm in arms}
    ranks = {arm: [_over_walk(data, f"{arm}-s{s}") for s in data.seeds] for arm in arms}
    rows = []
    for other in ("rlvr", "sft-norm"):
        apart = np.subtract([e.excess for e in early["opd-norm"]], [e.excess for e in early[other]])
        rows.append(
            over_runs(f"opd-norm less {other}: overlap over the walk's", mean_of_runs(apart.tolist()), "locking")
        )
    for other in ("rlvr", "sft-norm"):
        apart = np.log(np.divide(ranks["opd-norm"], ranks[other]))
        rows.append(
            over_runs(
                f"opd-norm over {other}: stable rank over the walk's, log", mean_of_runs(apart.tolist()), "locking"
            )
        )
    for arm in ("opd", "rlvr", "sft"):
        for other in ("chance", "free"):
            a, b = f"{arm}-own", f"{arm}-{other}"
            rows.append(over_problems(f"{a} less {b}: accuracy", data.grid(a), data.grid(b), "subspace"))
    for arm, found in early.items():
        rows.append(over_runs(f"{arm}: overlap over the walk's mean", mean_of_runs([e.excess for e in found])))
        counts = [sum(e.above_walk for e in found), sum(e.above_order for e in found)]
        rows.append(
            Row(f"{arm}: seeds above 95 % of walks {counts[0]}, of orders {counts[1]}", mean_of_runs([]), math.nan)
        )
    rows = corrected(rows)
    return rows, f"{_locks(data, rows, early)}; that its early subspace is enough {_enough(rows)}"


def _locks(data: Data, rows: list[Row], early: dict[str, list[Early]]) -> str:
    matched = all(data.matched(twin, "rlvr") for twin in ("opd-norm", "sft-norm"))
    if not matched or any(math.isnan(e.excess) for arm in ("opd", "opd-norm", "rlvr") for e in early[arm]):
        return OPEN
    overlaps = rows[:2]  # of OPD less RLVR and less SFT, at one norm
    locked = [all(e.above_walk and e.above_order for e in early[arm]) for arm in ("opd", "opd-norm")]
    if all(locked) and all(row.above for row in overlaps):
        return HELD
    alike = all(row.inside(SMALL) for row in overlaps) and all(e.above_walk for e in early["rlvr"])
    return NOT if alike or not any(locked) else OPEN


def _enough(rows: list[Row]) -> str:
    chance, free = (next(r for r in rows if r.what.startswith(f"opd-own less opd-{x}")) for x in ("chance", "free"))
    if free.estimate.low > -LOST and chance.above:
        return HELD
    return NOT if free.below or chance.inside(LOST) else OPEN


class Early(NamedTuple):
    """Overlap with the end a quarter of the way, over the mean of its walks, and whether it passes 95 % of both nulls."""

    excess: float
    above_walk: bool
    above_order: bool


def steps_of(data: Data, run: str) -> list[int]:
    """The steps at which a run was measured."""
    return sorted({key[7] for key in data.of("increment_norm") if key[5] == run})


def _early(data: Data, run: str) -> Early:
    steps = steps_of(data, run)
    step = min(steps, key=lambda s: abs(s - EARLY * steps[-1]))
    where = {"aggregation": "module-mean", "side": "right", "k": K, "step": step}
    walk, order = (data.number("sim_k", run, "end", null=null, **where) for null in ("N-WALK", "N-EXCH-NORM"))
    return Early(walk.value - walk.null.mean, walk.value > walk.null.q95, order.value > order.null.q95)


def _over_walk(data: Data, run: str) -> float:
    """Stable rank at the end over that of walks of the same increments."""
    row = data.number("stable_rank", run, aggregation="module-mean", step=steps_of(data, run)[-1], null="N-WALK")
    return row.value / row.null.mean
