"""Tables of the report: each returns rounded cells for the eye and the same numbers unrounded for its CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.geometry import REASONS
from limbeck.report.parts import Cell, Sheet, Table
from limbeck.report.view import NOT_MEASURED, Run, View, band
from limbeck.report.words import NONE, bounds, compact, fixed, number, percent, short
from limbeck.types import Measurement

RANKS = ("stable_rank", "participation", "erank_energy", "erank")


def name_cell(view: View, name: str) -> Cell:
    """A run with the swatch of its arm's color; base and teacher in ink."""
    run = view.by_id.get(name)
    role = run.role if run is not None and run.role != "method" else ""
    return Cell(view.label(name), view.label(name), note=role, tone=swatch(view, name), arms=view.arms(name))


def swatch(view: View, name: str) -> str:
    """The style class that sets a run's mark before its name: hue and shape by arm, open for further seeds."""
    run = view.by_id.get(name)
    if run is None:
        return "swatch-teacher" if name == "teacher" else "swatch-base"
    return f"swatch-{run.color} shape-{run.shape}" + ("" if run.lead else " later")


def _left_out(facts: Mapping[str, Any]) -> str:
    """How pairs were made and what gave none, and rows that did not fit: nothing is dropped in silence."""
    notes = []
    if facts["pair_rule"]:
        barren = f"{facts['all_right_groups']} all right and {facts['all_wrong_groups']} all wrong gave none"
        notes.append(f"{facts['pair_rule']}: pairs from {facts['mixed_groups']} mixed groups; {barren}")
    if facts["rows_too_long"]:
        notes.append(f"{facts['rows_too_long']} rows were too long")
    return "; ".join(notes)


def recipes(view: View) -> Table:
    """What each run was trained on and how; where arms differ besides their objective, it shows here."""
    numbers = ("learning_rate", "steps", "items", "rows", "epochs", "right_share", "final_nll", "seconds")
    texts = ("objective", "normalizer", "credit", "selection", "pair_rule")
    rows, raw = [], []
    for run in view.runs:
        f = run.facts
        cells = [
            Cell(str(f["objective"] or NONE), str(f["objective"]), note=_how(f)),
            Cell(str(f["selection"] or NONE), str(f["selection"]), note=_left_out(f)),
        ]
        for key in numbers:
            value = number(f[key])
            cells.append(Cell(percent(value, 0) if key == "right_share" else compact(value), value))
        name = name_cell(view, run.id)
        rows.append([name._replace(note="; ".join(t for t in (name.note, run.note) if t)), *cells])
        raw.append([run.id, run.seed, run.role, *(f[key] for key in (*texts, *numbers, "stop_norm"))])
    return Table(
        title="What each arm was given",
        caption=(
            "All arms share the rollouts, the base and the initial factors unless a row says otherwise. An arm with "
            "another learning rate, number of rows or of passes differs by more than its objective."
        ),
        head=[
            "arm", "objective", "rows used", "learning rate", "steps", "items", "rows", "epochs", "right",
            "last NLL, nats", "seconds",
        ],
        rows=rows,
        sheet=Sheet("arms", ["run", "seed", "role", *texts, *numbers, "stop_norm"], raw),
        words=3,
    )  # fmt: skip


def _how(facts: dict[str, Any]) -> str:
    """Divisor, credit, knobs and stopping rule in one line."""
    knobs = facts["knobs"] if isinstance(facts["knobs"], dict) else {}
    words = [
        f"per {facts['normalizer']}" if facts["normalizer"] else "",
        f"credit {facts['credit']}" if facts["credit"] else "",
        *(f"{key} {value}" for key, value in sorted(knobs.items())),
        _stop(facts),
    ]
    return ", ".join(word for word in words if word)


def _stop(facts: Mapping[str, Any]) -> str:
    """Whether a run that was to stop at a norm came to it."""
    stop, reached = number(facts["stop_norm"]), number(facts["update_norm"])
    if not math.isfinite(stop):
        return ""
    if reached < stop:
        return f"did not reach norm {short(stop)} in {compact(number(facts['steps']))} steps"
    return f"stopped at norm {short(stop)}" if reached >= stop else f"to stop at norm {short(stop)}"


def _measured(row: Measurement, digits: int, *, null_digits: int | None = None) -> Cell:
    """Value above, chance below."""
    note = _why(row) if not math.isfinite(row.value) else ""
    if math.isfinite(row.null.mean):
        note = f"chance {fixed(row.null.mean, digits if null_digits is None else null_digits)}"
    return Cell(fixed(row.value, digits), row.value, note=note)


def pairs_for_tables(view: View) -> list[tuple[Run, Run, bool]]:
    """Pairs with the reference, then the seed pairs, which are marked, then all other lead pairs; those that were measured."""
    seeds = {frozenset((a.id, b.id)) for a, b in view.seed_pairs}
    met = [(a, b) for a, b in view.lead_pairs() if view.get("cosine", a.id, b.id) is not NOT_MEASURED]
    plain = [(a, b, False) for a, b in met if frozenset((a.id, b.id)) not in seeds]
    near = [pair for pair in plain if view.reference in pair]
    return [*near, *((a, b, True) for a, b in view.seed_pairs), *(pair for pair in plain if pair not in near)]


def _num_first(view: View) -> int:
    """Pairs to show before the rest is asked for: those with the reference and those of two seeds."""
    pairs = pairs_for_tables(view)
    near = sum(seed or view.reference in (a, b) for a, b, seed in pairs)
    return near if len(pairs) > near + 4 else 0


def pair_cell(a: Run, b: Run, seed: bool) -> Cell:
    """Both names, and whether the pair is there to show what a seed alone does."""
    text = f"{a.label} · {b.label}"
    return Cell(
        text, text, note="two seeds of one recipe" if seed else "", tone="null" if seed else "", arms=(a.arm, b.arm)
    )


def cosines(view: View) -> Table:
    """Stacked cosine and orthogonal fractions of every pair."""
    rows, raw = [], []
    for a, b, seed in pairs_for_tables(view):
        cosine = view.get("cosine", a.id, b.id)
        norms = [view.directed("orthogonal_norm_fraction", *who) for who in ((a.id, b.id), (b.id, a.id))]
        energies = [view.directed("orthogonal_energy_fraction", *who) for who in ((a.id, b.id), (b.id, a.id))]
        low, high = band(cosine.null)
        rows.append(
            [
                pair_cell(a, b, seed),
                Cell(fixed(cosine.value, 3), cosine.value, note=_why(cosine)),
                Cell(bounds(low, high, 3), high),
                *(Cell(fixed(row.value, 2), row.value) for row in (*norms, *energies)),
            ]
        )
        values = [row.value for row in (cosine, *norms, *energies)]
        raw.append([a.id, b.id, seed, *values, cosine.null.id, low, high, cosine.reason])
    return Table(
        title="Pair by pair",
        caption=(
            "Cosine of two whole updates, the band in which randomly turned ones (N-ROT) fall, and the share of each "
            "update that is orthogonal to the other, as norm and as energy. A cosine mixes the objective with the "
            "learning rate and the seed: only rows beyond the marked seed pairs speak of the objective."
        ),
        head=[
            "pair", "cosine", "N-ROT 5–95 %", "orthogonal, norm, 1st", "norm, 2nd", "energy, 1st", "energy, 2nd",
        ],
        rows=rows,
        sheet=Sheet(
            "cosines",
            ["a", "b", "seed_pair", "cosine", "orthogonal_norm_a_to_b", "orthogonal_norm_b_to_a",
             "orthogonal_energy_a_to_b", "orthogonal_energy_b_to_a", "null_id", "null_q05", "null_q95", "reason"],
            raw,
        ),
        first=_num_first(view),
    )  # fmt: skip


def _why(row: Measurement) -> str:
    """The reason that holds for the whole number; counts over modules only where there is no other."""
    words = row.reason.split(";")
    return "; ".join([word for word in words if ":" not in word] or words).replace("_", " ")


def _flags(rows: Sequence[Measurement]) -> str:
    """What the measurement flagged in some modules, with the largest count over all pairs of a table."""
    worst: dict[str, tuple[int, int]] = {}
    for word in (word for row in rows for word in row.reason.split(";")):
        name, _, share = word.partition(":")
        some, _, total = share.partition("/")
        if name in REASONS and some.isdigit() and total.isdigit():
            worst[name] = max(worst.get(name, (0, 0)), (int(some), int(total)))
    texts = [
        f" In up to {some} of {total} modules {REASONS[name].removeprefix('caveat: ')}."
        for name, (some, total) in sorted(worst.items())
    ]
    return "".join(texts)


def angles(view: View) -> Table:
    """Principal angles of both sides and overlap of the leading directions, chance under each number."""
    k = view.angle_k
    rows, raw, seen = [], [], []
    for a, b, seed in pairs_for_tables(view):
        found = [
            view.get(f"principal_angle_{which}", a.id, b.id, aggregation="module-median", side=side, k=k)
            for side in ("left", "right")
            for which in ("smallest", "median", "largest")
        ]
        leading = [
            view.get("leading_overlap", a.id, b.id, aggregation="module-mean", side=side, k=1)
            for side in ("left", "right")
        ]
        seen += found
        cells = [_measured(row, 1) for row in found] + [_measured(row, 2) for row in leading]
        rows.append([pair_cell(a, b, seed), *cells])
        raw.append([a.id, b.id, seed, *(x for row in (*found, *leading) for x in (row.value, row.null.mean))])
    which = [f"{side}_{what}" for side in ("left", "right") for what in ("smallest", "median", "largest")]
    columns = [text for name in (*which, "u1", "v1") for text in (name, f"{name}_null")]
    return Table(
        title=f"Principal angles of the {k} leading directions, degrees",
        caption=(
            f"Median over modules of the angles between the {k}-dimensional leading subspaces, output (left) and input "
            "(right) side, and mean overlap of the first directions u1 and v1. The largest angle is near 90 for any "
            "unrelated pair, so it cannot show that two arms are apart; the smallest can. On the input side arms share "
            "their initial factors, so chance is what is printed under the number, not 90." + _flags(seen)
        ),
        head=["pair", "left smallest", "left median", "left largest", "right smallest", "right median",
              "right largest", "u1 overlap", "v1 overlap"],
        rows=rows,
        sheet=Sheet("angles", ["a", "b", "seed_pair", *columns], raw),
        first=_num_first(view),
    )  # fmt: skip


def spectra(view: View) -> Table:
    """Length of each update and over how many directions it spreads, by four definitions."""
    rows, raw = [], []
    for run in view.runs:
        norm = view.get("frobenius_norm", run.id).value
        ranks = [view.get(metric, run.id, aggregation="module-mean") for metric in RANKS]
        cells = [_measured(row, 1) for row in ranks]
        rows.append([name_cell(view, run.id), Cell(short(norm), norm), *cells])
        raw.append([run.id, norm, *(x for row in ranks for x in (row.value, row.null.mean))])
    return Table(
        title="Norm and four ranks",
        caption=(
            "Frobenius norm of the whole update and the mean over modules of four ranks. Chance is that of random "
            "factors of the same shapes. A rank is read beside the norm: short updates, as from a small learning rate "
            "or few steps, have other ranks without any help of the objective."
        ),
        head=["arm", "norm", "stable rank", "participation", "exp entropy of energy", "exp entropy of values"],
        rows=rows,
        sheet=Sheet("spectra", ["run", "norm", *(t for m in RANKS for t in (m, f"{m}_null"))], raw),
    )


def barriers(view: View) -> Table:
    """Mid-point excess over the chord and the largest excess, by path and loss."""
    rows, raw = [], []
    for path in view.results.paths:
        middle, most = path.get("excess_midpoint") or {}, path.get("barrier") or {}
        low, high = number(middle.get("low")), number(middle.get("high"))
        text = f"{view.label(path['a'])} → {view.label(path['b'])}"
        above = low > 0
        rows.append(
            [
                Cell(text, text, note="two seeds of one recipe" if view.is_null(path) else "",
                     tone="null" if view.is_null(path) else "", arms=view.arms(path["a"], path["b"])),
                Cell(SHORT_LOSSES.get(path["loss"], str(path["loss"])), path["loss"]),
                Cell(fixed(number(middle.get("value")), 3), number(middle.get("value")), tone="down" if above else "",
                     note=str(middle.get("reason") or "").replace("_", " ")),
                Cell(bounds(low, high, 3), low),
                Cell(fixed(number(most.get("value")), 3), number(most.get("value"))),
                Cell(bounds(number(most.get("low")), number(most.get("high")), 3), number(most.get("low"))),
                Cell("yes" if path.get("worse_than_ends") else "no", str(bool(path.get("worse_than_ends")))),
            ]
        )  # fmt: skip
        numbers = [part.get(key) for part in (middle, most) for key in ("value", "low", "high")]
        extra = [path.get("unit"), *numbers, middle.get("method"), middle.get("n"), bool(path.get("worse_than_ends"))]
        raw.append([path["a"], path["b"], path["loss"], *extra, view.is_null(path)])
    columns = [f"{part}{end}" for part in ("midpoint", "barrier") for end in ("", "_low", "_high")]
    return Table(
        title="Excess over the chord",
        caption=(
            "Excess of the loss over the straight line between its ends; positive is worse, for accuracy too. The "
            "mid-point is fixed in advance and is the number to read; the largest excess is biased upwards because it "
            "is picked. Intervals are of one path at a time; a path can be monotone and still lie above its chord."
        ),
        head=["path", "loss", "mid-point", "interval", "largest", "interval", "worse than both ends"],
        rows=rows,
        sheet=Sheet(
            "barriers", ["a", "b", "loss", "unit", *columns, "method", "n", "worse_than_ends", "seed_pair"], raw
        ),
        words=2,
    )


LOSSES = {
    "ce_bare": "cross-entropy of the bare answer",
    "ce_cot": "cross-entropy of the answer after a fixed solution",
    "ce_solution": "cross-entropy of a fixed solution",
    "accuracy": "accuracy",
}


SHORT_LOSSES = {
    "ce_bare": "bare answer",
    "ce_cot": "answer after solution",
    "ce_solution": "solution",
    "accuracy": "accuracy",
}


def column(values: Sequence[object]) -> list[float | None]:
    """Numbers for plotly: what is not finite becomes null, which it leaves out.

    >>> column([1, None, float("nan")])
    [1.0, None, None]
    """
    found = [number(value) for value in values]
    return [value if math.isfinite(value) else None for value in found]
