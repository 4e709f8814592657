"""ERPD's frontier. Registered in docs/results/erpd-frontier.md."""

from __future__ import annotations

import math
from typing import Any

from contrast import HELD, NOT, OPEN, Row, corrected, over_problems, over_runs
from measured import Data

from limbeck.records import read_json
from limbeck.report.frontier import EXACT, record
from limbeck.stats.factors import factor_over_seeds, mean_of_runs
from limbeck.types import Estimate

LOST = 0.03  # of accuracy: about what GRPO gains here
TAUGHT = {"from-strong": "sapo", "from-early": "sapo", "from-weak": "mse", "from-shuffled": "shuffled"}


def erpd_frontier(data: Data) -> tuple[list[Row], str]:
    """KL and accuracy of what was distilled beside those of GRPO, and how much of its teacher's update it holds."""
    points = read_json(data.folder / "frontier.json")["points"]
    closer = factor_over_seeds(*(_kl(data, points, arm) for arm in ("grpo", "from-weak")))
    weak = over_problems("from-weak less grpo: accuracy", data.grid("from-weak"), data.grid("grpo"), "named")
    strong = over_problems("from-strong less sapo: accuracy", data.grid("from-strong"), data.grid("sapo"), "named")
    rows = [Row("grpo over from-weak: KL to the base", closer, math.nan), weak, strong]
    rows += [
        _found_again(data, arm, teacher) for arm, teacher in TAUGHT.items() if f"{arm}-s{data.seeds[0]}" in data.runs
    ]
    rows = corrected(rows)
    if closer.low > 1 and weak.estimate.low > -LOST:
        return rows, HELD
    return rows, NOT if closer.high < 1 or weak.estimate.high < 0 else OPEN


def _kl(data: Data, points: list[dict[str, Any]], arm: str) -> list[Estimate]:
    """Exact KL(student||base) at the end, nats a token, of every seed."""
    ends = {p["seed"]: record(p, *EXACT) for p in points if p["arm"] == arm and p["step"] is None}
    return [
        Estimate(**{key: ends[s][key] for key in ("value", "low", "high", "level", "method", "n")}) for s in data.seeds
    ]


def _found_again(data: Data, arm: str, teacher: str) -> Row:
    """The share of a teacher's update that is found again: cosine times length."""
    shares = []
    for seed in data.seeds:
        one, other = f"{arm}-s{seed}", f"{teacher}-s{seed}"
        length = data.number("frobenius_norm", one).value / data.number("frobenius_norm", other).value
        shares.append(data.number("cosine", one, other).value * length)
    return over_runs(f"{arm}: share of {teacher}'s update found again", mean_of_runs(shares))
