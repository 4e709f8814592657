"""What accuracy varies with: the number of problems whose sampling error is that of one training run."""

from __future__ import annotations

import math

import pytest

from limbeck.report.components import table
from limbeck.report.load import RUN_KEYS, Results
from limbeck.report.view import View


def arm(name: str, value: float, spread: float | None, seeds: int = 3) -> dict:
    told = {"low": 0.0, "high": 1.0, "seeds": seeds, "seed_sd": spread}
    return {"name": name, "value": value, **told, "disagreement": {"samples": None, "seeds": 0.25}}


def test_problems_are_those_of_the_same_sampling_error():
    arms = [arm("a", 0.5, 0.05), arm("b", 0.2, 1e-9), arm("c", 0.2, None, seeds=1)]
    runs = [dict.fromkeys(RUN_KEYS) | {"run": f"{n}-s0", "arm": n, "seed": 0} for n in "abc"]
    scored = [one | {"name": f"{one['name']}-s0"} for one in arms]
    found = table(View(Results(
        study={"name": "x", "arms": [{"name": n} for n in "abc"], "config": {"arms": []}}, arms=runs,
        comparison={"arms": scored, "over_seeds": {"arms": arms, "pairs": []}}, measurements=[], modules=[], paths=[],
        training={}, rollouts={}, samples=[], provenance={}, live={}, frontier={}, missing=(),
    )))  # fmt: skip
    assert found is not None
    one, still = found.sheet.rows  # one seed tells nothing of others: no row
    assert one[:4] == ["a", 3, 0.5, 0.05]
    assert one[6] == pytest.approx(100)  # 0.5 * 0.5 / 0.05**2
    assert math.isnan(still[6])  # seeds that differ by rounding: no number of problems is too many
