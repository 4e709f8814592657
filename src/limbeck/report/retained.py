"""What became of the problems that the base solved: forgetting and learning, which a gain in accuracy adds up."""

from __future__ import annotations

import numpy as np

from limbeck.report.parts import Cell, Sheet, Table
from limbeck.report.tables import name_cell
from limbeck.report.view import View
from limbeck.report.words import bounds, percent
from limbeck.stats.retention import retention, solved


def table(view: View) -> Table | None:
    """Every arm over its seeds; None where answers by problem are not known."""
    scores = view.results.scores
    base = scores.get("base", {})
    problems = sorted(base)
    start = np.array([base[name] for name in problems])
    rows, raw = [], []
    for lead in view.contenders:
        runs = [scores[run.id] for run in view.runs if run.arm == lead.arm and run.id in scores]
        if not runs or any(run.keys() != base.keys() for run in runs):
            continue
        grid = np.array([[run[name] for run in runs] for name in problems])
        found = retention(start, grid, level=1 - view.alpha)
        cells = [
            cell
            for part in found
            for cell in (
                Cell(percent(part.value), part.value),
                Cell(bounds(part.low, part.high, scale=100.0), part.low),
            )
        ]
        rows.append([name_cell(view, lead.id), *cells])
        raw.append([lead.arm, len(runs), *(x for part in found for x in (part.value, part.low, part.high, part.n))])
    if not rows:
        return None
    level, num = f"{100 * (1 - view.alpha):g}", int(solved(start).sum())
    columns = [f"{side}{end}" for side in ("kept", "gained") for end in ("", "_low", "_high", "_problems")]
    return Table(
        title="What the base solved",
        caption=(
            f"Of the {num} problems that the base solves, how many the arm still does (what it lacks of 100 % is forgotten), and "
            f"of the other {len(problems) - num}, how many it newly does; means over seeds. An update that learns nothing moves "
            "both: two seeds, or arms of equal gain, are what to hold a number against."
        ),
        head=["arm", "still right, %", f"{level} % interval", "newly right, %", f"{level} % interval"],
        rows=rows,
        sheet=Sheet("retained", ["arm", "seeds", *columns], raw),
    )
