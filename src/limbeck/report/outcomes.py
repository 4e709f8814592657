"""Right or wrong, problem by problem, behind a study's accuracies: its score tables, or its samples where they hold everything.

A study folder keeps the score tables of all its runs, those of earlier settings too. A table is taken only where it agrees
with the comparison that the results hold, in problems, grader, decoding, weights and the number of right answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.digests import is_complete
from limbeck.evals.tables import read_table
from limbeck.folders import read_manifest
from limbeck.progress import bar
from limbeck.report.view import View
from limbeck.types import Finish, Score, ScoreTable

CONDITIONS = ("problems_digest", "grader", "decoding")


def score_tables(results: Path, view: View) -> dict[str, ScoreTable]:
    """The table of every entry of the comparison for which one was found, by the entry's name.

    Args:
        results: a results folder; the steps of its study are looked for beside it.
        view: what is in it.
    """
    entries = {str(arm["name"]): arm for arm in view.scored()}
    found: dict[str, list[ScoreTable]] = {}
    known = [f for f in sorted(results.resolve().parent.glob("steps/eval-*")) if is_complete(f)]
    chosen = [folder for folder in known if _agrees(view, entries, read_manifest(folder))]
    with bar(f"score tables of {view.results.study['name']}", len(chosen)) as advance:
        for folder in chosen:
            table = read_table(folder)
            advance(1)
            if int(table.correct.sum()) == entries[table.name].get("correct"):
                found.setdefault(table.name, []).append(table)
    alike = {name: of for name, of in found.items() if all(table.correct.equal(of[0].correct) for table in of)}
    return _from_samples(view, entries) | {name: of[0] for name, of in alike.items()}


def _agrees(view: View, entries: dict[str, Any], manifest: dict[str, Any]) -> bool:
    """Whether a table says of itself what the results say of the entry of its name."""
    if manifest["kind"] != "scores":
        return False
    name, comparison = manifest["name"], view.results.comparison
    run = view.by_id.get(name)
    weights = run.facts["adapter_digest"] if run else None
    same = all(manifest.get(key) == comparison.get(key) for key in CONDITIONS)
    return name in entries and same and (not weights or manifest["adapter_digest"] in (weights, "none"))


def _from_samples(view: View, entries: dict[str, Any]) -> dict[str, ScoreTable]:
    """Entries with one answer a problem, where the samples are those of all problems."""
    comparison, samples = view.results.comparison, view.results.samples
    if not samples or len(samples) != comparison.get("n"):
        return {}
    conditions = {key: str(comparison.get(key) or "") for key in (*CONDITIONS, "template_digest")}
    return {
        name: ScoreTable(name=name, scores=tuple(_score(sample, name) for sample in samples), **conditions)
        for name, arm in entries.items()
        if arm.get("samples", 1) == 1 and all(name in sample["responses"] for sample in samples)
    }


def _score(sample: dict[str, Any], name: str) -> Score:
    told = sample["responses"][name]
    return Score(
        problem_id=str(sample["problem_id"]), sample=0, correct=bool(told["correct"]), answer=str(sample["answer"]),
        extracted=str(told.get("extracted") or ""), finish=Finish(told["finish"]) if told.get("finish") else None,
        response_tokens=None,
    )  # fmt: skip
