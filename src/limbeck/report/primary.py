"""The comparisons that a study named before it ran, corrected for their own number and no other."""

from __future__ import annotations

from limbeck.report.parts import Cell, Sheet, Table
from limbeck.report.view import Pair, View
from limbeck.report.words import bounds, fixed, gain, p_value
from limbeck.stats.multiplicity import holm


def named(view: View) -> list[Pair]:
    """Pairs that the study names under ``primary`` and has tested, first minus second, Holm's p over these alone."""
    given = (view.results.study.get("config") or {}).get("primary") or []
    leads = {run.arm: run.id for run in view.leads}
    found = [view.over_seeds(a, b) or view.pair(str(leads.get(a, a)), str(leads.get(b, b))) for a, b in given]
    tested = [pair for pair in found if pair is not None]
    return [pair._replace(p_holm=p) for pair, p in zip(tested, holm([pair.p for pair in tested]), strict=True)]


def table(view: View) -> Table | None:
    """The named pairs, before all others."""
    pairs = named(view)
    if not pairs:
        return None
    labels = {run.arm: run.label for run in view.runs if run.lead}
    rows = []
    for pair in pairs:
        called = pair.p_holm < view.alpha
        tone = "" if not called else "up" if pair.difference > 0 else "down"
        rows.append([
            *(Cell(labels.get(name, view.label(name)), name) for name in (pair.a, pair.b)),
            Cell(gain(pair.difference), pair.difference, tone=tone),
            Cell(bounds(pair.low, pair.high, scale=100.0), pair.low),
            *(Cell(p_value(p).removeprefix("p ").removeprefix("= "), p) for p in (pair.p, pair.p_holm)),
            Cell(fixed(100 * pair.smallest_callable, 1), pair.smallest_callable),
        ])  # fmt: skip
    keys = ("a", "b", "n", "difference", "low", "high", "p", "p_holm", "smallest_callable")
    return Table(
        title="Named before the run",
        caption=(
            "The study's primary comparisons, a minus b in points, by the test of all pairs below; Holm's correction is over the "
            f"{len(pairs)} of this table alone, because they were named in the study's file. The last column is the smallest "
            "difference that the test alone could have called."
        ),
        head=["a", "b", "points", f"{100 * (1 - view.alpha):g} % interval", "p", "Holm p", "callable, points"],
        rows=rows,
        sheet=Sheet("primary", list(keys), [[getattr(pair, key) for key in keys] for pair in pairs]),
        words=2,
    )  # fmt: skip
