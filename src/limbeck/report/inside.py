"""Training that was kept inside a subspace: beside free training, beside a random subspace, and what of it got out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from limbeck.report.controls import teacher_kl
from limbeck.report.locking import SIDES
from limbeck.report.parts import Cell, Sheet, Table
from limbeck.report.tables import name_cell
from limbeck.report.view import Run
from limbeck.report.whole import Whole
from limbeck.report.words import NONE, bounds, fixed, number, p_value, percent, short
from limbeck.stats.multiplicity import holm


class Inside(NamedTuple):
    """A run that was kept in a subspace, the run that was free, and the one in a random subspace of the same size."""

    run: Run
    free: Run | None
    random: Run | None


def constrained(whole: Whole) -> list[Inside]:
    """Every arm with a subspace, and what it is held against."""
    arms = [run for run in whole.view.leads if whole.setting(run, "subspace")]
    return [Inside(run, _free(whole, run), _random(whole, run, arms)) for run in arms]


def _free(whole: Whole, run: Run) -> Run | None:
    """The same objective from the same start without a subspace; else the paradigm itself."""
    start, objective = whole.setting(run, "start"), run.facts["objective"]
    alike = [
        other for other in whole.view.leads
        if not whole.setting(other, "subspace") and not whole.setting(other, "match_norm")
        and whole.setting(other, "start") == start and other.facts["objective"] == objective and _plain(whole, other)
    ]  # fmt: skip
    return next(iter(alike), next((m for m in whole.main.values() if m.facts["objective"] == objective), None))


def _plain(whole: Whole, run: Run) -> bool:
    return run.role == "method" or bool(whole.setting(run, "start"))


def _random(whole: Whole, run: Run, arms: Sequence[Run]) -> Run | None:
    own = subspace(whole, run)
    if own["of"] == "random":
        return None
    same = ("k", "side", "how", "complement", "rest")
    return next(
        (
            other for other in arms
            if subspace(whole, other)["of"] == "random" and other.facts["objective"] == run.facts["objective"]
            and all(subspace(whole, other)[key] == own[key] for key in same)
            and whole.setting(other, "start") == whole.setting(run, "start")
        ),
        None,
    )  # fmt: skip


def subspace(whole: Whole, run: Run) -> dict[str, Any]:
    """An arm's subspace with every default."""
    defaults = {"of": "", "k": 16, "side": "right", "how": "update", "complement": False, "rest": "frozen"}
    return defaults | (whole.setting(run, "subspace") or {})


def table(whole: Whole) -> Table | None:
    """Accuracy of constrained training minus free training, and minus a random subspace of the same size; leak."""
    found = constrained(whole)
    if not found:
        return None
    to_free = _differences(whole, [(item.run, item.free) for item in found])
    to_random = _differences(whole, [(item.run, item.random) for item in found])
    rows, raw = [], []
    for item, free, random in zip(found, to_free, to_random, strict=True):
        space, run = subspace(whole, item.run), item.run
        accuracy, kl = _over_runs(whole, run, _accuracy), _over_runs(whole, run, teacher_kl)
        free_kl = _over_runs(whole, item.free, teacher_kl) if item.free else math.nan
        leaks = [fmean(_leaks(whole, run, name)) for name in ("leak", "leak_bf16")]
        what = f"{space['of'] or NONE}{', outside of it' if space['complement'] else ''}"
        rows.append([
            name_cell(whole.view, run.id), Cell(what, what), Cell(f"{space['k']}, {SIDES.get(space['side'], space['side'])}"),
            Cell(str(space["how"])), Cell(str(_num_runs(whole, run))), Cell(percent(accuracy), accuracy, tone="strong"),
            *_difference_cells(free, item.free, whole.view.alpha), *_difference_cells(random, item.random, whole.view.alpha),
            Cell(short(kl), kl, note=f"free {short(free_kl)}" if math.isfinite(free_kl) else ""),
            Cell(short(leaks[0]), leaks[0], note=f"bf16 {short(leaks[1])}" if math.isfinite(leaks[1]) else ""),
        ])  # fmt: skip
        raw.append(
            [
                run.arm,
                space["of"],
                space["k"],
                space["side"],
                space["how"],
                accuracy,
                *free,
                *random,
                kl,
                free_kl,
                *leaks,
            ]
        )
    ends = ("difference", "low", "high", "p_holm")
    columns = [f"{end}_{to}" for to in ("free", "random") for end in ends]
    columns += ["teacher_kl", "teacher_kl_free", "leak", "leak_bf16"]
    return Table(
        title="Training inside a subspace",
        caption=(
            "Points right: constrained minus the same training without a subspace, and minus a random subspace of the same "
            "size, over problems and seeds, with Holm's p over the rows of each column. A subspace is sufficient only if "
            "it loses nothing to free training and beats a random one; with k directions a matrix of m rows keeps m k free "
            "numbers. KL to teacher: of what was sampled in the last quarter of the steps, on the same problems as free training "
            "at that seed, nats a token; it moves before accuracy does. Leak: share of the update's norm outside of the "
            "subspace at the end, over all constrained matrices; under it the same of the update as bf16 storage shows it."
        ),
        head=["arm", "subspace of", "k, side", "what is projected", "seeds", "right", "minus free, points", "Holm p",
              "minus random, points", "Holm p", "KL to teacher", "leak"],
        rows=rows,
        sheet=Sheet("subspaces", ["arm", "of", "k", "side", "how", "accuracy", *columns], raw),
        words=4,
    )  # fmt: skip


def _num_runs(whole: Whole, run: Run) -> int:
    return sum(other.arm == run.arm for other in whole.view.runs)


def _accuracy(whole: Whole, run: Run) -> float:
    return whole.view.accuracy(run.id)


def _over_runs(whole: Whole, lead: Run, number_of: Callable[[Whole, Run], float]) -> float:
    """Mean over the runs of an arm."""
    return fmean(number_of(whole, run) for run in whole.view.runs if run.arm == lead.arm)


def _leaks(whole: Whole, run: Run, name: str) -> list[float]:
    """A leak of every run of an arm, as its record has it."""
    records = [other.facts["subspace"] for other in whole.view.runs if other.arm == run.arm]
    return [number((record or {}).get(name)) for record in records]


Difference = tuple[float, float, float, float]
NO_DIFFERENCE: Difference = (math.nan, math.nan, math.nan, math.nan)


def _differences(whole: Whole, pairs: Sequence[tuple[Run, Run | None]]) -> list[Difference]:
    """Paired differences with their intervals and p corrected over this family."""
    found = [whole.view.over_seeds(a.arm, b.arm) if b is not None else None for a, b in pairs]
    adjusted = iter(holm([pair.p for pair in found if pair is not None]))
    return [NO_DIFFERENCE if pair is None else (pair.difference, pair.low, pair.high, next(adjusted)) for pair in found]


def _difference_cells(found: Difference, other: Run | None, alpha: float) -> list[Cell]:
    value, low, high, p = found
    if other is None or not math.isfinite(value):
        return [Cell(), Cell()]
    tone = "" if not p < alpha else "up" if value > 0 else "down"
    text = f"{'+' if value > 0 else ''}{fixed(100 * value, 1)}"
    return [
        Cell(text, value, note=f"{bounds(low, high, scale=100.0)}, to {other.label}", tone=tone),
        Cell(p_value(p).removeprefix("p ").removeprefix("= "), p),
    ]
