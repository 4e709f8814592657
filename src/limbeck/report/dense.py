"""What arXiv 2606.07082 printed about the geometry of on-policy distillation, beside ours, and which of its orders hold here.

An order is judged within our own runs, by whether the seeds of one paradigm lie apart from those of the next, at matched
steps and again at a matched norm; no published number is subtracted from one of ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import pairwise
from statistics import fmean
from typing import Any

from limbeck.report import controls as checks
from limbeck.report import inside
from limbeck.report.claims import Claim
from limbeck.report.locking import EARLY, early, followed, verdict
from limbeck.report.parts import Cell, Sentence, Sheet, Table
from limbeck.report.view import Run
from limbeck.report.whole import NORM, PARADIGMS, QUANTITIES, Quantity, Whole
from limbeck.report.words import NONE, bounds, compact, fixed, listed, number, points, span

BY_NAME = {quantity.name: quantity for quantity in (NORM, *QUANTITIES)}


@cache
def printed() -> dict[str, Any]:
    """The published numbers, each with its status."""
    return json.loads(resources.files("limbeck.report").joinpath("dense.json").read_text(encoding="utf-8"))


def apart(groups: Sequence[Sequence[float]]) -> str:
    """Whether several seeds of each arm stand in this order, largest first.

    Reproduced where every seed of an arm is above every seed of the next, not reproduced where some arm lies wholly below
    the next one; undecided where seeds overlap, or an arm has fewer than two.

    >>> apart([[3.0, 2.9], [2.0, 2.1]]), apart([[1.0, 1.1], [2.0, 2.1]]), apart([[3.0, 2.0], [2.5, 2.1]]), apart([[3.0], [2.0]])
    ('reproduced', 'not reproduced', 'undecided', 'undecided')
    """
    if any(len(group) < 2 for group in groups):
        return "undecided"
    if any(max(high) < min(low) for high, low in pairwise(groups)):
        return "not reproduced"
    return "reproduced" if all(min(high) > max(low) for high, low in pairwise(groups)) else "undecided"


def claims(whole: Whole) -> list[Claim]:
    """Every published statement that the study can test."""
    found = [_order(whole, spec) for spec in printed()["orders"]]
    found += [_locking(whole), _band(whole), _sufficient(whole), _controls(whole)]
    return [claim for claim in found if claim is not None]


def order(whole: Whole, spec: Mapping[str, Any], runs: Mapping[str, Run], *, over_chance: bool = False) -> str:
    """The verdict on one published order among some runs; empty where a paradigm is missing."""
    if not set(spec["order"]) <= runs.keys():
        return ""
    levels = [whole.level(BY_NAME[spec["quantity"]], runs[key].arm) for key in spec["order"]]
    return apart([level.ratios if over_chance else level.values for level in levels])


def _order(whole: Whole, spec: Mapping[str, Any]) -> Claim | None:
    held = order(whole, spec, whole.main)
    if not held:
        return None
    quantity = BY_NAME[spec["quantity"]]
    text = f"same steps {_values(whole, quantity, whole.main, spec['order'])}"
    if set(spec["order"]) <= whole.matched.keys() and quantity is not NORM:
        again = order(whole, spec, whole.matched)
        text += f"; same norm {_values(whole, quantity, whole.matched, spec['order'])} ({again})"
    if (beyond := order(whole, spec, whole.main, over_chance=True)) and quantity is not NORM:
        text += f"; over chance: {beyond}"
    return Claim(spec["claim"], spec["published"], spec["status"], text, held)


def _values(whole: Whole, quantity: Quantity, runs: Mapping[str, Run], keys: Sequence[str]) -> str:
    return ", ".join(f"{PARADIGMS[key]} {quantity.text(whole.level(quantity, runs[key].arm).mean)}" for key in keys)


def _locking(whole: Whole) -> Claim | None:
    opd = whole.main.get("opd")
    found = [e for e in (early(whole, run, "right", EARLY[0]) for run in whole.seeds(opd.arm)) if e] if opd else []
    if not found:
        return None
    others = {
        run.label: verdict([e for e in (early(whole, seed, "right", EARLY[0]) for seed in whole.seeds(run.arm)) if e])
        for run in followed(whole) if opd and run.arm != opd.arm
    }  # fmt: skip
    here = verdict(found)
    values = [e.value for e in found]
    text = f"overlap {span(values)} at 20 % against {fixed(fmean(e.walk for e in found))} of walks: {here}"
    text += "".join(f"; {label}: {word}" for label, word in others.items())
    held = {"locking": "reproduced", "no more than a walk": "not reproduced", "drift": "not reproduced"}.get(
        here, "undecided"
    )
    spec = printed()["locking"]
    return Claim(spec["claim"], spec["published"], spec["status"], text, held if len(found) > 1 else "undecided")


def _band(whole: Whole) -> Claim | None:
    """Growth of the stable rank from a fifth of the run to its end."""
    growth = {}
    for key in ("opd", "sft"):
        runs = whole.seeds(whole.main[key].arm) if key in whole.main else []
        lines = [[r.value for r in whole.curve("stable_rank", run.id) if math.isfinite(r.value)] for run in runs]
        growth[key] = [line[-1] / line[len(line) // 5] for line in lines if len(line) >= 5]
    if not all(growth.values()):
        return None
    spec = printed()["rank"]
    text = "; ".join(f"{PARADIGMS[key]} {span(found)} times its early value" for key, found in growth.items())
    return Claim(spec["claim"], spec["published"], spec["status"], text, apart([growth["sft"], growth["opd"]]))


def _sufficient(whole: Whole) -> Claim | None:
    """Own early subspace against free training and against a random subspace."""
    opd = whole.main.get("opd")
    found = [
        item for item in inside.constrained(whole)
        if opd and item.run.facts["objective"] == opd.facts["objective"] and item.free and item.random
        and str(inside.subspace(whole, item.run)["of"]).partition("@")[0] == opd.arm
        and inside.subspace(whole, item.run)["how"] == "update"
    ]  # fmt: skip
    if not found:
        return None
    item = found[0]
    free = whole.view.over_seeds(item.run.arm, item.free.arm) if item.free else None
    random = whole.view.over_seeds(item.run.arm, item.random.arm) if item.random else None
    if free is None or random is None:
        return None
    spec = printed()["sufficient"]
    texts = [
        f"{points(pair.difference)} ({bounds(pair.low, pair.high, scale=100.0)}) to {name}"
        for pair, name in ((free, "free training"), (random, "a random subspace"))
    ]
    return Claim(spec["claim"], spec["published"], spec["status"], "; ".join(texts), sufficient(free.high, random.low))


def sufficient(free_high: float, random_low: float) -> str:
    """Sufficient if nothing is shown to be lost to free training and a random subspace is shown to be worse.

    Both are ends of an interval of the subspace's accuracy minus the other's.

    >>> sufficient(0.01, 0.02), sufficient(-0.01, 0.02)
    ('reproduced', 'not reproduced')
    """
    if free_high < 0:
        return "not reproduced"
    return "reproduced" if random_low > 0 else "undecided"


def _controls(whole: Whole) -> Claim | None:
    """Sparsified tokens and the teacher's rollouts: is accuracy or geometry outside of the baseline's seeds?"""
    chosen = [
        (run, base) for run, base in checks.controls(whole)
        if (whole.setting(run, "train") or {}).get("sparsify") or (whole.setting(run, "live") or {}).get("writer") == "teacher"
    ]  # fmt: skip
    readings = {
        run.label: [(q.title, checks.read(whole, q, run.arm, base.arm).inside) for q in checks.COMPARED]
        for run, base in chosen
    }
    known = {label: [title for title, within in found if within is False] for label, found in readings.items()
             if any(within is not None for _, within in found)}  # fmt: skip
    if not known:
        return None
    leaving = [f"{label} ({', '.join(titles)})" for label, titles in known.items() if titles]
    spec = printed()["controls"]
    text = (
        f"outside of the baseline's seeds: {listed(leaving)}"
        if leaving
        else "all inside of what one more seed would give"
    )
    return Claim(spec["claim"], spec["published"], spec["status"], text, "not reproduced" if leaving else "undecided")


def beside(whole: Whole) -> Table:
    """Published columns in grey, ours at matched steps and at a matched norm."""
    spec = printed()
    groups = [("here", whole.main)] + ([("here, same norm", whole.matched)] if whole.matched else [])
    columns = [(title, key, run) for title, runs in groups for key, run in runs.items()]
    rows, raw = [], []
    for row in spec["rows"]:
        ours = [_ours(whole, row["quantity"], run) for _, _, run in columns]
        grey = [Cell(row[key], row[key], tone="published") for key in PARADIGMS]
        rows.append(
            [
                Cell(row["title"], row["title"]),
                *grey,
                Cell(row["status"], tone="published"),
                *(Cell(t, t) for t in ours),
            ]
        )
        raw.append([row["quantity"], *(row[key] for key in PARADIGMS), row["status"], *ours])
    statuses = "; ".join(f"{key}: {text}" for key, text in spec["status"].items())
    return Table(
        title="Geometry, published and here",
        caption=(
            f"{spec['source']}, one seed, attention matrices of an 8B model; here every matrix of a small one. Sizes depend on "
            f"width, learning rate and steps and may not be compared; orders may. Status of a number: {statuses}."
        ),
        head=["quantity", *(f"{PARADIGMS[key]}, published" for key in PARADIGMS), "status",
              *(f"{PARADIGMS[key]}, {title}" for title, key, _ in columns)],
        rows=rows,
        sheet=Sheet("dense_published", ["quantity", *PARADIGMS, "status", *(f"{t}: {k}" for t, k, _ in columns)], raw),
    )  # fmt: skip


def _ours(whole: Whole, name: str, run: Run) -> str:
    plain = name.removesuffix("_null")
    if name == "density":
        return BY_NAME["sparsity"].text(1 - whole.level(BY_NAME["sparsity"], run.arm).mean)
    if plain not in BY_NAME:
        return NONE
    level = whole.level(BY_NAME[plain], run.arm)
    return BY_NAME[plain].text(level.null if name != plain else level.mean)


def setup(whole: Whole) -> Table:
    """What differs between their set-up and this one."""
    ours, spec = _setup(whole), printed()
    rows = [[row["item"], row["value"], row["status"], ours.get(row["item"], NONE)] for row in spec["setup"]]
    return Table(
        title="What differs in the set-up",
        caption="Any of these rows can explain a difference. Their three paradigms differ in start, data, rate, batch and steps.",
        head=["item", spec["source"], "status", "here"],
        rows=[[Cell(a, a), Cell(b, b, tone="published"), Cell(s, tone="published"), Cell(c, c)] for a, b, s, c in rows],
        sheet=Sheet("dense_setup", ["item", "published", "status", "ours"], rows),
        words=4,
    )


def _setup(whole: Whole) -> dict[str, str]:
    study = whole.view.results.study
    config = study.get("config") or {}
    train, live, rollouts = config.get("train") or {}, config.get("live") or {}, config.get("rollouts") or {}
    steps = sorted({compact(number(run.facts["steps"])) for run in whole.main.values()})
    rows_a_step = number(live.get("prompts_per_step")) * number(live.get("samples"))
    return {
        "start": f"{study.get('student')}, for every arm",
        "data": str((rollouts.get("problems") or {}).get("world") or rollouts.get("path") or NONE),
        "optimizer": f"{train.get('optimizer', NONE)}, decay {compact(number(train.get('weight_decay')))}",
        "learning rate": f"{compact(number(train.get('learning_rate')))} {train.get('schedule', '')}, for every arm",
        "batch and steps": f"{compact(rows_a_step)} x {' to '.join(steps)}, for every arm",
        "rollouts": f"{live.get('samples', '?')} a prompt, temperature 1; teacher {study.get('teacher') or NONE}",
        "matrices": f"{len(whole.layers())} blocks, all kinds: {', '.join(whole.kinds())}",
        "seeds": ", ".join(map(str, study.get("seeds") or [])) or NONE,
    }


# -------------------------------------------------------------------------------------------------- the first screen


def sentences(whole: Whole) -> list[Sentence]:
    """What the numbers show and what they do not, from the numbers."""
    if len(whole.main) < 2:
        return []
    out = [_lengths(whole)]
    specs = [spec for spec in printed()["orders"] if spec["quantity"] != "norm"]
    out += _by_norm(whole, specs) if whole.matched else [_no_norm()]
    return out + _beyond_chance(whole) + _directions(whole) + _locks(whole)


def _lengths(whole: Whole) -> Sentence:
    each = ", ".join(f"{run.label} {NORM.text(whole.level(NORM, run.arm).mean)}" for run in whole.main.values())
    return Sentence("geometry", f"At equal steps and learning rate the updates are of length {each}.")


def _no_norm() -> Sentence:
    text = "No arm was run at a matched norm: what differs between paradigms may be their length alone."
    return Sentence("limit", text)


def _by_norm(whole: Whole, specs: Sequence[Mapping[str, Any]]) -> list[Sentence]:
    """Published orders at matched steps that a matched norm takes away, and those that it leaves."""
    kept, lost = [], []
    for spec in specs:
        if order(whole, spec, whole.main) == "reproduced" and (again := order(whole, spec, whole.matched)):
            (kept if again == "reproduced" else lost).append(BY_NAME[spec["quantity"]].title)
    texts = [
        f"Published orders that hold at matched steps and {where}: {listed(names)}."
        for where, names in (("not at a matched norm", lost), ("at a matched norm too", kept))
        if names
    ]
    nothing = "No published order of the three paradigms holds in every seed at matched steps."
    return [Sentence("geometry", text) for text in texts or [nothing]]


def _beyond_chance(whole: Whole) -> list[Sentence]:
    """Overlaps with the two masks over what rounding alone gives."""
    parts = []
    for name in ("low", "principal"):
        ratios = [(run.label, whole.level(BY_NAME[name], run.arm).ratio) for run in whole.main.values()]
        each = ", ".join(f"{label} {fixed(ratio)}" for label, ratio in ratios if math.isfinite(ratio))
        if each:
            parts.append(f"{'small' if name == 'low' else 'principal'} weights {each}")
    what = "Changed weights over what rounding alone gives at the same density"
    return [Sentence("geometry", f"{what}: {'; '.join(parts)}.")] if parts else []


def _directions(whole: Whole) -> list[Sentence]:
    runs = list(whole.main.values())
    pairs = [
        (f"{a.label} and {b.label}", whole.between("cosine", whole.same_seed(a.arm, b.arm), aggregation="stacked").mean)
        for i, a in enumerate(runs) for b in runs[i + 1 :]
    ]  # fmt: skip
    seeds = [(run.label, whole.between("cosine", whole.two_seeds(run.arm), aggregation="stacked").mean) for run in runs]
    known = [f"{who} {fixed(value)}" for who, value in pairs if math.isfinite(value)]
    own = [f"{who} {fixed(value)}" for who, value in seeds if math.isfinite(value)]
    text = f"Cosine of updates: {', '.join(known)}; two seeds of one arm: {', '.join(own) or 'not run'}."
    return [Sentence("geometry", text)] if known else []


def _locks(whole: Whole) -> list[Sentence]:
    out = []
    for run in followed(whole):
        found = [e for e in (early(whole, seed, "right", EARLY[0]) for seed in whole.seeds(run.arm)) if e is not None]
        if found:
            word = verdict(found)
            chance = fixed(fmean(e.walk for e in found))
            out.append(f"{run.label} {fixed(fmean(e.value for e in found))} (95 % of walks below {chance}: {word})")
    text = f"Overlap of the leading input directions at a fifth of the run with those of the end: {'; '.join(out)}."
    return [Sentence("geometry", text)] if out else []
