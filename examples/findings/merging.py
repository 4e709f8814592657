"""Do near-orthogonal updates add? Registered in docs/results/merging.md."""

from __future__ import annotations

import math

from contrast import OPEN, Row, corrected, over_problems, over_runs
from measured import Data

from limbeck.report.load import load
from limbeck.report.merges import FORETOLD, Merge, merges, order_by_seed
from limbeck.report.view import View
from limbeck.stats.factors import mean_of_runs

PRIMARY = ("cosine of the parts", "over the sum of gains")
NAMED = (("sft+dpo", "sft"), ("opd+grpo", "opd"), ("sft-then-dpo", "sft+dpo"), ("opd-then-grpo", "opd+grpo"))


def merging(data: Data) -> tuple[list[Row], str]:
    """Does what is known of two parents order what becomes of their sum; and four sums and chains beside their parts."""
    known = sums_and_means(data)
    rows = []
    for kind in dict.fromkeys(merge.kind for merge in known):
        alike = [merge for merge in known if merge.kind == kind]
        for told, becomes, read, outcome in FORETOLD:
            orders = order_by_seed([read(m) for m in alike], [outcome(m) for m in alike])
            if orders:
                family = "primary" if (kind, told, becomes) == ("sum", *PRIMARY) else ""
                rows.append(
                    over_runs(f"{kind}: rank correlation of {told} with {becomes}", mean_of_runs(orders), family)
                )
    rows += [over_problems(f"{a} less {b}: accuracy", data.grid(a), data.grid(b), "named") for a, b in NAMED]
    rows = corrected(rows)
    first = next((row for row in rows if row.family == "primary"), None)
    if first is None or math.isnan(first.p):
        return rows, f"that near-orthogonal updates add better {OPEN}"
    if first.estimate.high < 0:
        return rows, "that near-orthogonal updates add better held"
    worse = first.estimate.low > 0
    return rows, f"that near-orthogonal updates add better {'did not hold: they add worse' if worse else OPEN}"


def sums_and_means(data: Data) -> list[Merge]:
    """Merges of two parents, in the order of the study."""
    return [merge for merge in merges(View(load(data.folder))) if len(merge.parts) == 2]
