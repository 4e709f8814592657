"""Arms of several studies that answered the same problems, in one table and tested in pairs across studies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.errors import LimbeckError
from limbeck.report.figures import forest
from limbeck.report.load import RUN_KEYS, Results
from limbeck.report.outcomes import score_tables
from limbeck.report.parts import Cell, Section, Sheet, Table
from limbeck.report.tables import name_cell
from limbeck.report.view import View
from limbeck.report.words import bounds, count, fixed, listed, number, p_value, percent
from limbeck.stats.compare import Arm, compare
from limbeck.stats.multiplicity import holm
from limbeck.types import ScoreTable

SHOWN = 20  # pairs that are not folded away
UNTRAINED = ("base", "teacher")
NEEDED = (
    "Give the study folder with its steps, where the score tables are; a results folder alone has the answers to every problem "
    "only where each run gave one"
)


class Together(NamedTuple):
    """What can be said of all studies at once: sentences for the first screen, and a section for each set of problems."""

    sentences: list[str]
    sections: list[Section]


class Entry(NamedTuple):
    """One arm of one study, over its seeds."""

    study: str
    label: str
    arm: Arm
    trained: bool


Given = tuple[str, Path, View]


def arm_name(study: str, arm: str) -> str:
    """An arm among those of all studies."""
    return f"{study}: {arm}"


def together(studies: Sequence[Given]) -> Together:
    """Studies by the problems that they asked; arms of those that share theirs are compared."""
    groups: dict[str, list[Given]] = {}
    for study in studies:
        groups.setdefault(str(study[2].results.comparison.get("problems_digest") or ""), []).append(study)
    out = Together([], [])
    for digest, members in groups.items():
        if digest and len(members) > 1:
            _compare(members, out)
        else:
            out.sentences.extend(_alone(name, digest) for name, *_ in members)
    return out


def _alone(name: str, digest: str) -> str:
    if not digest:
        return (
            f"The results of {name} do not say which problems were asked: nothing of it is held against another study."
        )
    return f"{name} was asked problems of its own: none of its accuracies is held against another study's."


def _compare(members: Sequence[Given], out: Together) -> None:
    """Add what the answers of these studies allow to say."""
    found: list[Entry] = []
    for name, results, view in members:
        entries, lacking = _entries(name, view, score_tables(results, view))
        found += entries
        if lacking:
            who = "all entries" if not entries else listed(lacking)
            out.sentences.append(
                f"{name}: the answers of {who} to single problems were not found, so nothing is said of them beside another "
                f"study. {NEEDED}."
            )
    kept, same = _without_copies(found)
    if len({entry.study for entry in kept if entry.trained}) < 2:
        return
    try:
        joint = _tested(kept, min(view.alpha for *_, view in members))
    except LimbeckError as error:
        out.sentences.append(f"The studies {listed([name for name, *_ in members])} cannot be tested together: {error}")
        return
    number = len(out.sections) + 1
    out.sentences.append(_said(kept, joint))
    if same:
        copies, firsts = (listed(list(labels)) for labels in zip(*same, strict=True))
        out.sentences.append(f"The same weights and answers stand there once: {copies}, as {firsts}.")
    out.sections.append(_section(number, _view(kept, joint), joint))


def _entries(study: str, view: View, tables: dict[str, ScoreTable]) -> tuple[list[Entry], list[str]]:
    """Base, teacher and arms of which every scored run has its table, and the labels of those that lack one."""
    scored = {str(arm["name"]) for arm in view.scored()}
    runs: dict[str, list[str]] = {name: [name] for name in UNTRAINED if name in scored}
    for run in view.runs:
        if run.id in scored:
            runs.setdefault(run.arm, []).append(run.id)
    entries, lacking = [], []
    for arm, ids in runs.items():
        label = view.label(ids[0])
        if all(id_ in tables for id_ in ids):
            named = Arm(arm_name(study, arm), tuple(tables[id_] for id_ in ids))
            entries.append(Entry(study, f"{study}: {label}", named, arm not in UNTRAINED))
        else:
            lacking.append(label)
    return entries, lacking


def _without_copies(entries: Sequence[Entry]) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Entries whose weights and answers were not met before, and the labels of those that were, with the first one's."""
    first: dict[tuple[Any, ...], Entry] = {}
    copies = []
    for place, entry in enumerate(entries):
        key = tuple((t.model_digest, t.adapter_digest, t.correct.numpy().tobytes()) for t in entry.arm.tables)
        known = all(t.model_digest and t.adapter_digest for t in entry.arm.tables)
        found = first.setdefault(key if known else (place,), entry)
        if found is not entry:
            copies.append((entry.label, found.label))
    return list(first.values()), copies


def _tested(entries: Sequence[Entry], alpha: float) -> dict[str, Any]:
    """Every entry's accuracy, and the trained arms of different studies in pairs, corrected for all of these pairs."""
    joint = compare([e.arm for e in entries], alpha=alpha, among=[e.arm.name for e in entries if e.trained])
    study = {entry.arm.name: entry.study for entry in entries}
    pairs = [pair for pair in joint["pairs"] if study[pair["a"]] != study[pair["b"]]]
    for pair, p_holm in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["p_holm"] = p_holm
    return joint | {"pairs": pairs}


def _view(entries: Sequence[Entry], joint: dict[str, Any]) -> View:
    """The entries as arms of one study."""
    study = {"name": "joint", "arms": [{"name": entry.arm.name, "label": entry.label} for entry in entries]}
    runs = [dict.fromkeys(RUN_KEYS) | {"run": e.arm.name, "arm": e.arm.name, "seed": 0} for e in entries]
    return View(Results(
        study=study, arms=runs, comparison=joint, measurements=[], modules=[], paths=[], training={}, rollouts={}, samples=[],
        provenance={}, live={}, frontier={}, missing=(),
    ))  # fmt: skip


def _section(place: int, view: View, joint: dict[str, Any]) -> Section:
    tail = "" if place == 1 else f"_{place}"
    figure = forest(view, limit=40)
    caption = (
        "Share of answers right, over the seeds of each arm, on the same problems. Overlapping intervals do not mean that two "
        "arms are equal: the paired tests below decide."
    )
    figure = replace(figure, title="All arms", caption=caption, sheet=figure.sheet._replace(name=f"joint_forest{tail}"))
    return Section(
        id=f"together-{place}", title="Together" if place == 1 else f"Together, problem set {place}",
        parts=[figure, _accuracies(view, tail), _pairs(view, joint, tail)],
    )  # fmt: skip


def _accuracies(view: View, tail: str) -> Table:
    rows, raw = [], []
    for arm in view.scored():
        value, low, high = (number(arm[key]) for key in ("value", "low", "high"))
        answers = arm["n"] * arm["samples"] * arm["seeds"]
        rows.append([
            name_cell(view, arm["name"]), Cell(str(arm["seeds"]), arm["seeds"]), Cell(percent(value), value, tone="strong"),
            Cell(bounds(low, high, scale=100.0), low), Cell(f"{arm['correct']} / {answers}", value),
        ])  # fmt: skip
        raw.append([arm["name"], arm["seeds"], value, low, high, arm["correct"], answers, arm["n"], arm["method"]])
    level = f"{100 * (1 - view.alpha):g}"
    return Table(
        title="Accuracy of all arms",
        caption=(
            "Mean over seeds. With several seeds the interval speaks of new problems and new training runs, with one of new "
            "problems alone. Base and teacher are tested in their own studies."
        ),
        head=["study: arm", "seeds", "right, %", f"{level} % interval", "count"],
        rows=rows,
        sheet=Sheet(
            f"joint_accuracy{tail}", ["arm", "seeds", "value", "low", "high", "correct", "answers", "n", "method"], raw
        ),
    )


TESTS = {
    "mcnemar_exact": "McNemar's exact test",
    "sign_flip_exact": "the exact sign-flip test over problems",
    "crossed_t": "Student's t with problems and seeds crossed",
}


def _pairs(view: View, joint: dict[str, Any], tail: str) -> Table:
    pairs = sorted(joint["pairs"], key=lambda pair: (pair["p_holm"], -abs(pair["difference"])))
    rows = [[*_named(view, pair), *_numbers(pair, view.alpha)] for pair in pairs]
    keys = ("a", "b", "n", "difference", "low", "high", "p", "p_holm", "smallest_callable", "test", "method")
    tests = listed([TESTS[test] for test in dict.fromkeys(pair["test"] for pair in pairs)])
    return Table(
        title="Arms of one study against those of another",
        caption=(
            f"A minus b in points, paired by problem: {tests}. Holm's correction holds for all {count(len(pairs), 'pair')} "
            "across studies; pairs within a study are tested in its own part. Studies may differ in more than their arms, in "
            "rollouts and budget for instance: a called difference is one of two trained students, not of two objectives. The "
            "last column is the smallest difference that the test alone could have called."
        ),
        head=["a", "b", "seeds", "points", f"{100 * (1 - view.alpha):g} % interval", "Holm p", "callable, points"],
        rows=rows,
        sheet=Sheet(f"joint_pairs{tail}", keys, [[pair.get(key) for key in keys] for pair in pairs]),
        words=2,
        first=SHOWN,
    )


def _named(view: View, pair: dict[str, Any]) -> Iterator[Cell]:
    return (Cell(view.label(pair[end]), view.label(pair[end]), arms=(pair[end],)) for end in "ab")


def _numbers(pair: dict[str, Any], alpha: float) -> list[Cell]:
    called, difference = pair["p_holm"] < alpha, pair["difference"]
    tone = "" if not called else "up" if difference > 0 else "down"
    sign = "+" if round(100 * difference, 1) > 0 else ""
    smallest = number(pair["smallest_callable"])
    return [
        Cell(" and ".join(map(str, pair["seeds"]))),
        Cell(f"{sign}{fixed(100 * difference, 1)}", difference, tone=tone),
        Cell(bounds(number(pair["low"]), number(pair["high"]), scale=100.0), number(pair["low"])),
        Cell(p_value(pair["p_holm"]).removeprefix("p ").removeprefix("= "), pair["p_holm"]),
        Cell(fixed(100 * smallest, 1), smallest),
    ]


def _said(entries: Sequence[Entry], joint: dict[str, Any]) -> str:
    studies = listed(list(dict.fromkeys(entry.study for entry in entries)))
    called = sum(pair["p_holm"] < joint["alpha"] for pair in joint["pairs"])
    pairs = count(len(joint["pairs"]), "pair")
    return (
        f"{studies} were asked the same {count(joint['n'], 'problem')}, and their answers are paired: of {pairs} of trained arms "
        f"across studies, {called} differ (Holm, {joint['alpha']:g})."
    )
