"""Arms held against each other: rise and fall, KL at no less accuracy, one beside another, what is left of a teacher."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from limbeck.report.frontier import lead_of
from limbeck.report.parts import Cell, Sheet, Table
from limbeck.report.tables import name_cell
from limbeck.report.view import View
from limbeck.report.words import NONE, bounds, compact, fixed, number, p_value, points
from limbeck.stats.factors import mean_of_runs

LEVELS = (
    "Differences are over problems and training seeds, in brackets their 95 % interval; a factor is the geometric mean over "
    "seeds with its interval over seeds and problems. Steps were chosen on the mean accuracies shown, which intervals do not "
    "know of."
)


def rise(view: View) -> Table | None:
    """Whether an arm rises above the base, and whether its end is below a step that it passed."""
    rows, raw = [], []
    for row in view.results.frontier.get("rise", []):
        gain, later = row["over_base"], row["to_end"]
        step = number(row["steps"])
        rows.append([_name(view, row["arm"]), Cell(compact(step), step), *_difference(gain), *_difference(later)])
        raw.append([row["arm"], step, *_numbers(gain), *_numbers(later)])
    if not rows:
        return None
    keys = ("difference", "low", "high", "p_holm")
    return Table(
        title="Rise and fall",
        caption=(
            "Accuracy of a step minus that of the base, and of the run's end minus that of the step: a rise and then a fall is "
            "a first difference above 0 and a second one below it. Over problems and training seeds, in brackets the 95 % "
            "interval; p by Holm over all rows of a column."
        ),
        head=["arm", "step", "over the base", "p", "from here to the end", "p"],
        rows=rows,
        sheet=Sheet("rise", ["arm", "step", *(f"over_base_{k}" for k in keys), *(f"to_end_{k}" for k in keys)], raw),
    )


def equal(view: View) -> Table | None:
    """By what factor the KL of an arm is below that of others which are at least as accurate."""
    rows, raw = [], []
    for row in view.results.frontier.get("equal", []):
        rival, _, step = str(row["a"]).partition("@")
        reached = bool(row["reached"])
        rows.append([
            _name(view, row["b"]), Cell(place_label(view, rival), rival), Cell(f"step {step}" if step else "end", step or "end"),
            _factor(row["factor"], reached), _difference(row["difference"])[0],
            Cell("yes" if reached else "no", float(reached)),
        ])  # fmt: skip
        raw.append(
            [row["b"], row["a"], reached, *_ends(row["factor"], "value"), *_ends(row["difference"], "difference")]
        )
    if not rows:
        return None
    return Table(
        title="KL at no less accuracy",
        caption=(
            "The other arm where it is at least as accurate as the arm at its end and nearest to the base; its KL over the "
            "arm's: above 1 the arm is nearer. Where it never gets there, its most accurate step stands in and the factor is "
            f"none of equal accuracy. {LEVELS}"
        ),
        head=["arm", "against", "at", "its KL over the arm's", "its accuracy minus the arm's", "gets there"],
        rows=rows,
        sheet=Sheet(
            "kl_factors",
            ["arm", "against", "reached", "factor", "factor_low", "factor_high", "difference", "difference_low",
             "difference_high"],
            raw,
        ),
        words=3,
        first=24,
    )  # fmt: skip


def beside(view: View) -> Table | None:
    """Pairs of arms that the study names: does the first only lower the ceiling of the second?"""
    rows, raw = [], []
    for row in view.results.frontier.get("beside", []):
        rows.append([
            *(Cell(place_label(view, row[side]), row[side]) for side in "ab"), Cell(row["which"], row["which"]),
            _difference(row["difference"])[0], _factor(row["factor"], True),
        ])  # fmt: skip
        raw.append(
            [row["a"], row["b"], row["which"], *_ends(row["difference"], "difference"), *_ends(row["factor"], "value")]
        )
    if not rows:
        return None
    return Table(
        title="Side by side",
        caption=(
            "Each arm where it is most accurate; and the first there against the second's most accurate step at no more KL: "
            f"below 0 in the first line and not above 0 in the second, the first arm only lowers the ceiling. {LEVELS}"
        ),
        head=["arm", "against", "where", "accuracy minus the other's", "KL over the other's"],
        rows=rows,
        sheet=Sheet(
            "beside",
            ["arm", "against", "where", "difference", "difference_low", "difference_high", "factor", "factor_low",
             "factor_high"],
            raw,
        ),
        words=3,
        first=24,
    )  # fmt: skip


class Kept(NamedTuple):
    """One stage-2 update beside the stage-1 update that taught it, at one seed."""

    cosine: float
    overlap: float
    length: float
    chance: tuple[float, float]

    @property
    def share(self) -> float:
        """How much of the teacher's update is in it: the length of its projection onto that update, over its length."""
        return self.cosine * self.length


def survival(view: View) -> Table | None:
    """What of a stage-1 update is found again in the stage-2 update that was made from it."""
    rows, raw = [], []
    for arm, teachers in _students(view).items():
        for teacher in dict.fromkeys(teachers):
            lead, other, found = lead_of(view, arm), lead_of(view, teacher), _kept(view, arm, teacher)
            if lead is None or other is None or not found:
                continue
            measured = [mean_of_runs([getattr(kept, name) for kept in found]) for name in KEPT]
            chance = found[0].chance
            rows.append([
                name_cell(view, lead.id), Cell(other.label, other.label), Cell(str(len(found)), len(found)),
                *(Cell(fixed(m.value, 3), m.value, note=bounds(m.low, m.high, 3) if len(found) > 1 else "") for m in measured),
                Cell(f"{fixed(chance[0], 3)} to {fixed(chance[1], 3)}", chance[0]),
            ])  # fmt: skip
            raw.append([arm, teacher, len(found), *(x for m in measured for x in (m.value, m.low, m.high)), *chance])
    if not rows:
        return None
    return Table(
        title="What of stage 1 is left in stage 2",
        caption=(
            "Means over seeds, under them the 95 % interval over seeds (Student's). Cosine of all matrices together, chance: its "
            f"null at the first seed; overlap: mean squared cosine of the {view.angle_k} leading output directions (sim_K), mean "
            "over matrices; length of the stage-2 update over its teacher's; kept: cosine times length, the share of the "
            "teacher's update that is found again. A teacher at a step that it keeps stands here by its end. Cosines and angles "
            "to other arms, on-policy GRPO among them, stand under direction and subspaces."
        ),
        head=["stage 2", "stage 1", "seeds", "cosine", "leading overlap", "length", "kept", "chance"],
        rows=rows,
        sheet=Sheet(
            "survival",
            ["arm", "teacher", "seeds", *(f"{n}{end}" for n in KEPT for end in ("", "_low", "_high")), "null_q05", "null_q95"],
            raw,
        ),
        words=2,
    )  # fmt: skip


KEPT = ("cosine", "overlap", "length", "share")


def _kept(view: View, arm: str, teacher: str) -> list[Kept]:
    """The seeds at which both updates were measured."""
    out = []
    for run in (run for run in view.runs if run.arm == arm):
        other = next((r for r in view.runs if r.arm == teacher and r.seed == run.seed), None)
        cosine = view.get("cosine", run.id, other.id) if other else None
        if other is None or cosine is None or not math.isfinite(cosine.value):
            continue
        overlap = view.get("mean_cos2", run.id, other.id, aggregation="module-mean", side="left", k=view.angle_k).value
        own, theirs = (view.get("frobenius_norm", r.id).value for r in (run, other))
        out.append(Kept(cosine.value, overlap, own / theirs, (cosine.null.q05, cosine.null.q95)))
    return out


def _students(view: View) -> dict[str, list[str]]:
    """Arms with a signal, and the arms that it was read out of."""
    arms = (view.results.study.get("config") or {}).get("arms") or []
    return {
        arm["name"]: [name.partition("@")[0] for name in arm["signal"]["teachers"]] for arm in arms if arm.get("signal")
    }


def _name(view: View, arm: str) -> Cell:
    lead = lead_of(view, arm)
    return name_cell(view, lead.id if lead else arm)


def place_label(view: View, place: str) -> str:
    """How a place is called: the arm's label, and its step if it is not the end."""
    arm, _, step = place.partition("@")
    lead = lead_of(view, arm)
    return (lead.label if lead else arm) + (f", step {step}" if step else "")


def _difference(found: dict[str, Any] | None) -> list[Cell]:
    if not found:
        return [Cell(), Cell()]
    value, low, high, p = _numbers(found)
    return [Cell(f"{points(value)} ({bounds(low, high, scale=100.0)})", value), Cell(p_value(p), p)]


def _factor(found: dict[str, Any], known: bool) -> Cell:
    value, low, high = _ends(found, "value")
    text = f"{fixed(value, 2)} ({fixed(low, 2)} to {fixed(high, 2)})" if value == value else NONE
    return Cell(text, value, tone="strong" if known else "")


def _numbers(found: dict[str, Any] | None) -> list[float]:
    return [*_ends(found or {}, "difference"), number((found or {}).get("p_holm", (found or {}).get("p")))]


def _ends(found: dict[str, Any], name: str) -> list[float]:
    return [number(found.get(key)) for key in (name, "low", "high")]
