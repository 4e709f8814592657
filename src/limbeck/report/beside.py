"""Published numbers beside ours: grey, with their status and what differs in the set-up. Nothing is subtracted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from limbeck.report.claims import Claim, named, published
from limbeck.report.parts import Cell, Sheet, Table
from limbeck.report.view import Run, View
from limbeck.report.words import NONE, bounds, compact, fixed, listed, number, percent, short

_NAMES = {
    "base": "base", "sft": "SFT", "rft": "RFT", "dft": "DFT", "rift": "RIFT", "offline_grpo": "offline GRPO",
    "dpo": "DPO", "online_grpo": "online GRPO", "online_dapo": "online DAPO",
}  # fmt: skip


def pattern(found: Sequence[Claim]) -> Table | None:
    """Every published claim that the runs can test, with its verdict."""
    if not found:
        return None
    tones = {"reproduced": "up", "not reproduced": "down", "undecided": ""}
    rows = [
        [Cell(c.claim, c.claim), Cell(c.published, c.published, tone="published"), Cell(c.status, tone="published"),
         Cell(c.ours, c.ours), Cell(c.verdict, c.verdict, tone=tones[c.verdict])]
        for c in found
    ]  # fmt: skip
    return Table(
        title="The published pattern, claim by claim",
        caption=(
            "Each verdict is a rule about order or sign within the runs of this study. A claim borne out here supports the "
            "pattern on this model and data; one that is not says that it does not carry over as it stands, not that the "
            "published measurement was wrong. That two arms are not told apart is borne out by any test too weak to tell them."
        ),
        head=["claim", "published", "status", "here", "verdict"],
        rows=rows,
        sheet=Sheet("published_claims", ["claim", "published", "status", "ours", "verdict"], [list(c) for c in found]),
        words=5,
    )


def accuracy(view: View) -> Table:
    """Published accuracies, one column a test, and ours on our own problems."""
    spec, runs = published()["accuracy"], named(view)
    ids = {"base": "base", **{name: run.id for name, run in runs.items()}}
    rows, raw = [], []
    for name, values in spec["rows"].items():
        ours = next((arm for arm in view.scored() if arm["name"] == ids.get(name)), None)
        shown = Cell()
        if ours is not None:
            value = number(ours["value"])
            shown = Cell(percent(value), value, note=bounds(number(ours["low"]), number(ours["high"]), scale=100.0))
        rows.append([Cell(_NAMES[name], _NAMES[name]), *(Cell(v, v, tone="published") for v in values), shown])
        raw.append([name, *values, ours["value"] if ours else None])
    heads = [f"{c['test']} ({c['status']}, n {c['n']})" for c in spec["columns"]]
    return Table(
        title="Accuracy, published and here",
        caption=(
            "Percent right. Their tests and ours are different problems answered by different models: no column may be "
            "subtracted from another. Their 30 items of AIME leave intervals of about 30 points."
        ),
        head=["arm", *heads, f"here, n {view.results.comparison.get('n') or '?'}"],
        rows=rows,
        sheet=Sheet("published_accuracy", ["arm", *heads, "ours"], raw),
    )


def quantities(view: View) -> Table:
    """Published geometry beside the same quantity here."""
    found = list(_quantities(view))
    rows = [
        [Cell(what, what), Cell(value, value, tone="published"), Cell(status, tone="published"), Cell(ours, ours)]
        for what, value, status, ours in found
    ]
    return Table(
        title="Geometry, published and here",
        caption=(
            "Norms and angles depend on the width of the matrices, the rank and the learning rate, so their sizes are not "
            "comparable across models; their order within each column is."
        ),
        head=["quantity", "published", "status", "here"],
        rows=rows,
        sheet=Sheet("published_geometry", ["quantity", "published", "status", "ours"], found),
        words=4,
    )


def _quantities(view: View) -> Iterator[tuple[str, str, str, str]]:
    numbers, runs = published(), named(view)

    def pair(row: dict[str, str]) -> tuple[str, Run | None, Run | None]:
        return f"{_NAMES[row['a']]} · {_NAMES[row['b']]}", runs.get(row["a"]), runs.get(row["b"])

    for row in numbers["cosines"]:
        who, a, b = pair(row)
        yield (
            f"cosine, {who}",
            row["value"],
            row["status"],
            fixed(view.get("cosine", a.id, b.id).value, 3) if a and b else NONE,
        )
    for row in numbers["seeds"]:
        seeds = view.seed_values("cosine")
        yield row["what"], row["value"], row["status"], ", ".join(fixed(x, 3) for x in seeds) or NONE
    for row in numbers["fractions"]:
        who, a, b = pair(row)
        value = view.directed("orthogonal_norm_fraction", a.id, b.id).value if a and b else math.nan
        yield f"orthogonal fraction (norm), {who}", row["value"], row["status"], fixed(value, 2)
    for row in numbers["angles"]:
        who, a, b = pair(row)
        yield (
            f"left angles smallest / largest, u1, v1, {who}",
            f"{row['smallest']}° / {row['largest']}°, {row['u1']}, {row['v1']}", row["status"], _angles(view, a, b),
        )  # fmt: skip
    for row in numbers["norms"]:
        run = runs.get(row["arm"])
        value = view.get("frobenius_norm", run.id).value if run else math.nan
        yield f"norm, {_NAMES[row['arm']]}", row["value"], row["status"], short(value)
    for row in numbers["ranks"]:
        yield f"effective rank, {_NAMES[row['arm']]}", row["value"], row["status"], _ranks(view, runs.get(row["arm"]))
    for row in numbers["cka"]:
        who, a, b = pair(row)
        yield f"CKA, {who}", row["value"], row["status"], _cka(view, a, b)
    for row in numbers["paths"]:
        who, a, b = pair(row)
        yield f"path, {who}", row["value"], row["status"], _path(view, a, b)


def _angles(view: View, a: Run | None, b: Run | None) -> str:
    if a is None or b is None:
        return NONE
    ends = [
        view.get(f"principal_angle_{w}", a.id, b.id, aggregation="module-median", side="left", k=view.angle_k).value
        for w in ("smallest", "largest")
    ]
    first = [
        view.get("leading_overlap", a.id, b.id, aggregation="module-mean", side=side, k=1).value
        for side in ("left", "right")
    ]
    if not any(math.isfinite(x) for x in (*ends, *first)):
        return NONE
    return f"{fixed(ends[0], 1)}° / {fixed(ends[1], 1)}°, {fixed(first[0])}, {fixed(first[1])}"


def _ranks(view: View, run: Run | None) -> str:
    if run is None:
        return NONE
    metrics = ("stable_rank", "participation", "erank_energy", "erank")
    values = [view.get(m, run.id, aggregation="module-mean").value for m in metrics]
    return f"{', '.join(fixed(v, 1) for v in values)} (four definitions)" if math.isfinite(values[0]) else NONE


def _cka(view: View, a: Run | None, b: Run | None) -> str:
    if a is None or b is None:
        return NONE
    layers = view.layers("cka_debiased")
    values = [view.get("cka_debiased", a.id, b.id, aggregation="layer", layer=n).value for n in layers]
    known = [v for v in values if math.isfinite(v)]
    return (
        f"{fixed(min(known), 3)} to {fixed(max(known), 3)} over {len(known)} layers, last {fixed(known[-1], 3)}"
        if known
        else NONE
    )


def _path(view: View, a: Run | None, b: Run | None) -> str:
    ids = {run.id for run in (a, b) if run is not None}
    found = [p for p in view.results.paths if {p["a"], p["b"]} == ids and p["loss"] == "ce_bare"]
    if len(ids) < 2 or not found:
        return NONE
    middle = found[0].get("excess_midpoint") or {}
    value, low, high = (number(middle.get(key)) for key in ("value", "low", "high"))
    return f"mid-point over the chord {fixed(value, 3)} ({bounds(low, high, 3)})"


def setup(view: View) -> Table:
    """What differs between their set-up and this one."""
    ours = _ours(view)
    rows, raw = [], []
    for row in published()["setup"]:
        here = ours.get(row["item"], NONE)
        rows.append(
            [
                Cell(row["item"], row["item"]),
                Cell(row["value"], row["value"], tone="published"),
                Cell(row["status"], tone="published"),
                Cell(here, here),
            ]
        )
        raw.append([row["item"], row["value"], row["status"], here])
    statuses = "; ".join(f"{key}: {text}" for key, text in published()["status"].items())
    return Table(
        title="What differs in the set-up",
        caption=f"Any of these rows can explain a difference between their column and ours. Status of a number – {statuses}.",
        head=["item", published()["source"], "status", "here"],
        rows=rows,
        sheet=Sheet("published_setup", ["item", "published", "status", "ours"], raw),
        words=4,
    )


def _ours(view: View) -> dict[str, str]:
    study, comparison, rollouts = view.results.study, view.results.comparison, view.results.rollouts
    rates = _spread(view, "learning_rate")
    shares = [number(run.facts["right_share"]) for run in view.contenders]
    sampled = f"{rollouts.get('problems', '?')} problems, {rollouts.get('rows', '?')} rows" if rollouts else NONE
    seeds = study.get("seeds") or sorted({str(run.seed) for run in view.runs})
    return {
        "student": str(study.get("student") or NONE),
        "adapters": _adapters(study.get("config")),
        "data": sampled,
        "teacher": str(study.get("teacher") or NONE),
        "learning rate": rates,
        "steps": _spread(view, "steps"),
        "passes": _spread(view, "epochs", " epochs"),
        "share right": f"{percent(min(shares), 0)} to {percent(max(shares), 0)} of each arm's rows"
        if shares and all(s == s for s in shares)
        else NONE,
        "seeds": listed([str(seed) for seed in seeds]) or NONE,
        "test": f"{comparison.get('n', '?')} problems" if comparison else NONE,
        "decoding": str(comparison.get("decoding") or NONE),
        "grader": str(comparison.get("grader") or NONE),
    }


def _adapters(config: Any) -> str:
    train = config.get("train") if isinstance(config, dict) else None
    lora = train.get("lora") if isinstance(train, dict) else None
    return ", ".join(f"{k} {v}" for k, v in sorted(lora.items())) if isinstance(lora, dict) else NONE


def _spread(view: View, key: str, unit: str = "") -> str:
    values = sorted(
        {number(run.facts[key]) for run in view.contenders if number(run.facts[key]) == number(run.facts[key])}
    )
    if not values:
        return NONE
    if len(values) == 1:
        return f"{compact(values[0])}{unit}"
    return f"{compact(values[0])} to {compact(values[-1])}{unit}, by arm"
