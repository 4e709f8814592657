"""The two interactive parts: the matrix of paired tests and the browser of samples, as data for their templates."""

from __future__ import annotations

from typing import Any

from limbeck.report.parts import Sheet, Widget
from limbeck.report.tables import swatch
from limbeck.report.view import Pair, View
from limbeck.report.words import bounds, compact, count, fixed, number, p_value, percent, points

TEXT_LIMIT = 1600  # characters of one response on the page; the results folder keeps the rest
BUDGET = 1_500_000  # characters of all samples together, so that the page opens on a phone


def matrix(view: View) -> Widget:
    """All paired tests as a square: row minus column in points, with the four counts behind each cell."""
    names = [arm["name"] for arm in view.scored()]
    paired = [a for a in names if any(view.pair(a, b) for b in names)]
    rows = [
        {
            "index": i,
            "name": view.label(a),
            "cells": [_cell(view.pair(a, b), view.alpha, i, j) for j, b in enumerate(paired)],
        }
        for i, a in enumerate(paired)
    ]
    pairs = [view.pair(a, b) for i, a in enumerate(paired) for b in paired[i + 1 :]]
    sheet = Sheet("pairs", Pair._fields, [list(pair) for pair in pairs if pair is not None])
    n = view.results.comparison.get("n")
    gaps = view.results.comparison.get("smallest_callable") or []
    several = bool(view.results.comparison.get("over_seeds"))
    tests = {pair.get("test") for pair in view.results.comparison.get("pairs", ())}
    test = "exact McNemar test" if tests <= {"mcnemar_exact", None} else "exact sign-flip test"
    return Widget(
        kind="matrix",
        title="Every pair at its first seed, paired by problem" if several else "Every pair, paired by problem",
        caption=(
            f"Row minus column in points; the {test} uses only problems on which the two disagree, and Holm's "
            f"correction holds for all {len(sheet.rows)} pairs together. Filled cells are called at {view.alpha:g}. An "
            "empty cell is not evidence that two arms are equal. Choose a cell to read the problems behind it."
        ),
        data={"rows": rows, "heads": [{"index": j, "name": view.label(b)} for j, b in enumerate(paired)],
              "power": _power(gaps, n), "names": paired},
        sheets=(sheet,),
    )  # fmt: skip


def _cell(pair: Pair | None, alpha: float, row: int, col: int) -> dict[str, Any]:
    if pair is None:
        return {"text": "", "tone": "void", "row": row, "col": col, "counts": ""}
    called = pair.p_holm < alpha
    size = min(3, 1 + int(abs(pair.difference) / 0.05)) if called else 0
    tone = "open" if not called else f"{'up' if pair.difference > 0 else 'down'}-{size}"
    plus = "+" if round(100 * pair.difference, 1) > 0 else ""
    return {
        "text": f"{plus}{fixed(100 * pair.difference, 1)}",
        "p": p_value(pair.p_holm),
        "tone": tone,
        "row": row,
        "col": col,
        "counts": {
            "both": _count(pair.both_right), "a": _count(pair.a_only), "b": _count(pair.b_only),
            "none": _count(pair.both_wrong),
            "difference": points(pair.difference), "interval": bounds(pair.low, pair.high, scale=100.0),
            "p": p_value(pair.p), "holm": p_value(pair.p_holm), "smallest": points(pair.smallest_callable, signed=False),
            "smallestHolm": points(pair.smallest_callable_holm, signed=False),
        },
    }  # fmt: skip


def _count(value: float) -> str:
    return fixed(value, 0 if value == round(value) else 1) if value == value else "?"


def _power(gaps: list[dict[str, Any]], n: object) -> str:
    parts = [
        f"{points(g['difference'], signed=False)} if {100 * g['discordant_share']:g} % of the problems are discordant"
        for g in gaps
        if isinstance(g, dict) and g.get("difference") is not None
    ]
    if not parts:
        return ""
    return f"What a single test of {n} problems can call before correction: {'; '.join(parts)}."


def browser(view: View) -> Widget:
    """The same problem answered by every arm, side by side; long texts are cut and the cut is said."""
    order = ["base", "teacher", *(run.id for run in view.runs)]
    present = {name for sample in view.results.samples for name in sample["responses"]}
    names = [name for name in order if name in present] + sorted(present - set(order))
    problems, spent, cut = [], 0, 0
    for sample in view.results.samples:
        answers = []
        for name in names:
            entry = sample["responses"].get(name)
            if entry is None:
                answers.append(None)
                continue
            text, trimmed = _trim(str(entry.get("text") or ""))
            cut += trimmed
            answers.append(
                [text, str(entry.get("extracted") or ""), bool(entry.get("correct")), str(entry.get("finish") or "")]
            )
        prompt, trimmed = _trim(str(sample["prompt"]))
        problem = [str(sample["problem_id"]), prompt, str(sample["answer"]), answers]
        spent += sum(len(a[0]) + 40 for a in answers if a) + len(prompt)
        if spent > BUDGET:
            break
        problems.append(problem)
    left = len(view.results.samples) - len(problems)
    asked = view.results.comparison.get("n") or 0
    chosen = len(view.results.samples)
    notes = (
        [f"{chosen} of {asked} problems, as the study chose them: no share among them is an accuracy."]
        if asked > chosen
        else []
    )
    notes += [f"Cut at {TEXT_LIMIT} characters: {count(cut, 'text')}."] if cut else []
    notes += [f"Only in samples.json: {count(left, 'problem')}."] if left else []
    columns = ["problem_id", "run", "correct", "extracted", "answer", "finish"]
    rows = [
        [s["problem_id"], name, bool(r.get("correct")), r.get("extracted"), s["answer"], r.get("finish")]
        for s in view.results.samples
        for name, r in s["responses"].items()
    ]
    return Widget(
        kind="browser",
        title="One problem, every answer",
        caption=(
            "The first sample of each arm on the test problems. Reading a few answers shows how arms fail, not how "
            "often: the counts are in the tables above. " + " ".join(notes)
        ).strip(),
        data={"names": names, "labels": [view.label(n) for n in names],
              "swatches": [swatch(view, n) for n in names], "problems": problems, "start": _start(view, names),
              "arms": [next(iter(view.arms(n)), "") for n in names]},
        sheets=(Sheet("samples", columns, rows),),
    )  # fmt: skip


def _start(view: View, names: list[str]) -> list[int]:
    """Which two to put first: the reference and the base, else the first two."""
    wanted = [name for name in (view.reference.id if view.reference else "", "base") if name in names]
    first = list(dict.fromkeys([*wanted, *names]))
    return [names.index(name) for name in (first * 2)[:2]]


def rollouts(view: View) -> Widget:
    """What the arms were trained on: shares over the rollout set and a few examples."""
    r = view.results.rollouts
    examples = []
    for example in r.get("examples") or []:
        answers = [
            {
                "text": _trim(str(x.get("text") or ""))[0],
                "reward": x.get("reward"),
                "finish": str(x.get("finish") or ""),
            }
            for x in example.get("responses") or []
        ]
        examples.append(
            {"id": str(example.get("problem_id")), "prompt": _trim(str(example.get("prompt") or ""))[0],
             "answer": str(example.get("answer") or ""), "answers": answers}
        )  # fmt: skip
    keys = [
        "digest", "source", "rows", "problems", "right_share", "mixed_share", "all_right_share", "all_wrong_share",
        "truncated_share", "mean_response_tokens",
    ]  # fmt: skip
    sampling = _flat(r.get("sampling") or {})
    rows = [[key, r.get(key)] for key in keys] + [[f"sampling.{k}", v] for k, v in sorted(sampling.items())]
    facts = [(key.replace("_", " ").replace(".", ", "), _fact(key, value)) for key, value in rows if value is not None]
    return Widget(
        kind="rollouts",
        title="The rollouts that all arms were given",
        caption=(
            "Losses that differ only on wrong rollouts can differ only as far as there are any: the share right and the "
            "share of problems with both kinds bound what the arms can show."
        ),
        data={"facts": facts, "examples": examples[:12]},
        sheets=(Sheet("rollouts", ["what", "value"], rows),),
    )


def _flat(sampling: dict[str, Any]) -> dict[str, Any]:
    """Names to values; what is said of a server one by one, its counts as text, without those of nothing."""
    server = sampling.get("server")
    if not isinstance(server, dict):
        return sampling
    counts = {
        k: ", ".join(f"{name}: {num}" for name, num in v.items()) for k, v in server.items() if isinstance(v, dict)
    }
    told = {f"server.{k}": v for k, v in (server | counts).items() if v != ""}
    return {k: v for k, v in sampling.items() if k != "server"} | told


def _fact(key: str, value: object) -> str:
    if key.endswith("_share"):
        return percent(number(value))
    if key.endswith("digest"):
        return f"{str(value)[:16]}…" if value else "not known"
    return compact(number(value)) if isinstance(value, (int, float)) else str(value)


def _trim(text: str) -> tuple[str, int]:
    return (text, 0) if len(text) <= TEXT_LIMIT else (f"{text[:TEXT_LIMIT]} […]", 1)
