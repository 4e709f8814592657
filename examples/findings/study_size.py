"""How large must a study be? Registered in docs/results/study-size.md."""

from __future__ import annotations

import math

import numpy as np
from contrast import OPEN, Row, corrected, over_problems
from measured import Data
from scipy.stats import chi2, norm

from limbeck.stats.seeds import Grid, spread
from limbeck.types import Estimate

POINTS = 0.02  # of accuracy: what single runs are asked to tell
ALPHA = 0.05
POOLS = {"opd and grpo": ("opd", "grpo"), "sft, dft and dpo": ("sft", "dft", "dpo")}


def study_size(data: Data) -> tuple[list[Row], str]:
    """What accuracy varies by between training runs of one recipe, and how often two of them differ by two points."""
    rows = [
        Row(f"{label}: sd over seeds, problems aside, points", pooled([data.grid(arm) for arm in arms]), math.nan)
        for label, arms in (POOLS | {arm: (arm,) for arms in POOLS.values() for arm in arms}).items()
    ]
    s = rows[0].estimate
    chance = Estimate(value=apart(s.value), low=apart(s.low), high=apart(s.high), level=s.level, method=s.method, n=s.n)
    rows.append(Row("opd and grpo: chance that two runs of one recipe differ by 2 points", chance, math.nan))
    rows += [
        over_problems(f"{a} less {b}: accuracy", data.grid(a), data.grid(b), "named")
        for a, b in (("sft", "dft"), ("opd", "grpo"))
    ]
    if chance.low > ALPHA:
        return corrected(rows), "that one seed is enough did not hold"
    return corrected(rows), f"that one seed is enough {'held' if chance.high < ALPHA else OPEN}"


def pooled(grids: list[Grid], level: float = 0.95) -> Estimate:
    """Standard deviation over seeds in points, arms pooled, with the interval of the chi-squared distribution.

    The interval is that of the deviation as seen; what problems alone would cause is then taken out of it and of both ends.
    """
    df = sum(grid.shape[1] - 1 for grid in grids)
    seen = sum((grid.shape[1] - 1) * grid.shape[1] * spread(grid).seen for grid in grids) / df
    of_problems = float(np.mean([grid.shape[1] * spread(grid).from_cells for grid in grids]))
    quantiles = chi2.ppf([(1 + level) / 2, (1 - level) / 2], df)
    ends = [100 * math.sqrt(max(variance - of_problems, 0.0)) for variance in (seen, *(df * seen / quantiles))]
    return Estimate(value=ends[0], low=ends[1], high=ends[2], level=level, method="chi2", n=df)


def apart(sd: float) -> float:
    """Chance that two runs differ by more than two points, of a standard deviation in points."""
    return 2 * float(norm.sf(100 * POINTS / (sd * math.sqrt(2)))) if sd > 0 else 0.0
