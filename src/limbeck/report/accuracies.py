"""Tables of accuracy: every entry, every arm over its seeds, and the pairs of arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report.parts import Cell, Sheet, Table
from limbeck.report.tables import name_cell
from limbeck.report.view import Pair, View
from limbeck.report.words import NONE, bounds, fixed, gain, number, p_value, percent

_PAIR_COLUMNS = ("difference", "low", "high", "p", "p_holm")


def entries(view: View) -> Table:
    """Accuracy of every entry with its interval, and its paired difference to the base and to the reference."""
    held = ["base", *([view.reference.id] if view.reference else [])]
    several = bool(view.results.comparison.get("over_seeds"))
    return _table(
        view,
        "Every entry",
        "The interval of an arm speaks of other problems of this kind, not of another seed; two arms are told apart by the "
        "paired test, not by whether their intervals overlap."
        + (" Differences are those of first seeds." if several else ""),
        [(arm, arm["name"], [view.pair(arm["name"], other) for other in held]) for arm in view.scored()],
        [view.label(name) for name in held],
        Sheet("accuracy", ["run"], []),
    )


def over_seeds(view: View) -> Table | None:
    """The same of every arm over its seeds; None where no arm has several."""
    found = view.results.comparison.get("over_seeds")
    if not found:
        return None
    held = ["base", *([view.reference.arm] if view.reference else [])]
    leads = {run.arm: run.id for run in view.leads}
    arms = [
        (arm, leads.get(str(arm["name"]), str(arm["name"])), [view.over_seeds(arm["name"], other) for other in held])
        for arm in found.get("arms", ())
    ]
    return _table(
        view,
        "Every arm over its seeds",
        "The mean over seeds; intervals and differences speak of new problems and new training runs (Student's t with "
        "problems and seeds crossed).",
        arms,
        [view.label(leads.get(name, name)) for name in held],
        Sheet("accuracy_over_seeds", ["arm"], []),
    )


def _table(
    view: View, title: str, caption: str, arms: Sequence[tuple[Mapping[str, Any], str, list[Pair | None]]],
    held: Sequence[str], sheet: Sheet,
) -> Table:  # fmt: skip
    """One row an arm: the record of its accuracy, the run that names it, its pairs with what it is held against."""
    rows, raw = [], []
    for arm, run, pairs in arms:
        value, low, high = (number(arm[key]) for key in ("value", "low", "high"))
        n = int(arm.get("n") or view.results.comparison.get("n") or 0)
        answers = n * int(arm.get("samples") or 1) * int(arm.get("seeds") or 1)
        rows.append(
            [
                name_cell(view, run),
                Cell(percent(value), value, tone="strong"),
                Cell(bounds(low, high, scale=100.0), low),
                Cell(f"{int(number(arm['correct']))} / {answers}" if arm.get("correct") is not None else NONE, value),
                *(cell for pair in pairs for cell in _pair_cells(pair, view.alpha)),
            ]
        )
        numbers = [x for p in pairs for x in ((p.difference, p.low, p.high, p.p, p.p_holm) if p else (None,) * 5)]
        raw.append([arm["name"], value, low, high, arm.get("correct"), answers, n, arm.get("method"), *numbers])
    columns = [f"{what}_vs_{key}" for key in ("base", "reference")[: len(held)] for what in _PAIR_COLUMNS]
    level = f"{100 * (1 - view.alpha):g}"
    return Table(
        title=title,
        caption=(
            f"Share of answers right with its {level} % interval, and the paired difference in points to "
            f"{' and to '.join(held)}. {caption}"
        ),
        head=[
            "arm", "right, %", f"{level} % interval", "count",
            *(text for label in held for text in (f"to {label}, points", "interval", "Holm p")),
        ],
        rows=rows,
        sheet=sheet._replace(
            columns=[*sheet.columns, "value", "low", "high", "correct", "answers", "n", "method", *columns], rows=raw
        ),
    )  # fmt: skip


def _pair_cells(pair: Pair | None, alpha: float) -> list[Cell]:
    if pair is None:
        return [Cell(), Cell(), Cell()]
    called = pair.p_holm < alpha
    tone = "" if not called else "up" if pair.difference > 0 else "down"
    return [
        Cell(gain(pair.difference), pair.difference, tone=tone),
        Cell(bounds(pair.low, pair.high, scale=100.0), pair.low),
        Cell(p_value(pair.p_holm).removeprefix("p ").removeprefix("= "), pair.p_holm),
    ]


def pairs_over_seeds(view: View) -> Table | None:
    """Arms compared over new problems and new training runs, where the study ran several seeds; else None."""
    found = view.results.comparison.get("over_seeds")
    if not found:
        return None
    labels = {run.arm: run.label for run in view.runs if run.lead}
    rows = [
        [
            *(Cell(str(labels.get(p[side], p[side])), arms=[p[side]] if p[side] in labels else []) for side in "ab"),
            Cell(" and ".join(map(str, p["seeds"]))),
            Cell(gain(p["difference"]), p["difference"]),
            Cell(bounds(p["low"], p["high"], scale=100.0), p["low"]),
            Cell(p_value(p["p_holm"]).removeprefix("p ").removeprefix("= "), p["p_holm"]),
            Cell(fixed(100 * number(p["smallest_callable"]), 1), number(p["smallest_callable"])),
        ]
        for p in found["pairs"]
    ]
    keys = ("a", "b", "difference", "low", "high", "p", "p_holm", "p_bh", "smallest_callable", "test", "method")
    level = f"{100 * (1 - view.alpha):g}"
    return Table(
        title="Arms over their seeds",
        caption=(
            "A minus b in points, averaged over seeds. Intervals and tests speak of new problems and new training runs "
            "(Student's t with problems and seeds crossed); an arm of one seed, such as the base, adds no variance of "
            "training. The last column is the smallest difference that the test alone could have called."
            + "".join(f" {note[0].upper()}{note[1:]}." for note in found.get("notes", ()))
        ),
        head=["a", "b", "seeds", "points", f"{level} % interval", "Holm p", "callable, points"],
        rows=rows,
        sheet=Sheet("over_seeds", list(keys), [[p.get(key) for key in keys] for p in found["pairs"]]),
        words=2,
    )
