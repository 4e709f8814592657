"""TRRD against KDRL, and OPD followed by GRPO. Registered in docs/results/trrd.md."""

from __future__ import annotations

from contrast import OPEN, Row, corrected, over_problems
from measured import Data

from limbeck.stats.seeds import Grid

LEAST = 0.01  # of accuracy: what would matter


def trrd(data: Data) -> tuple[list[Row], str]:
    """Accuracy of TRRD less that of either other way to use a teacher with a reward, and GRPO beside all three."""
    rows = [
        over_problems(f"trrd less {other}: accuracy", data.grid("trrd"), data.grid(other), "primary")
        for other in ("kdrl", "opd-then-grpo")
    ]
    rows += [
        over_problems(f"{arm} less grpo: accuracy", data.grid(arm), data.grid("grpo"))
        for arm in ("trrd", "kdrl", "opd-then-grpo")
    ]
    rows += [
        over_problems(f"trrd less {other}: pass@4", _any_right(data, "trrd"), _any_right(data, other))
        for other in ("kdrl", "opd-then-grpo")
    ]
    rows = corrected(rows)
    kdrl, chain = (_better(row) for row in rows[:2])
    return rows, f"that TRRD is better than KDRL: {kdrl}; than OPD followed by GRPO: {chain}"


def _any_right(data: Data, arm: str) -> Grid:
    """Whether one of a problem's four answers is right."""
    return (data.grid(arm) > 0).astype(float)


def _better(row: Row) -> str:
    if row.called:
        return "it is better" if row.above else "it is worse"
    return "no gain that matters" if row.estimate.high < LEAST else OPEN
