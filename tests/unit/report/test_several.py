"""Several studies on one page: told apart, paired where they can be, in folders of their own, quiet in a browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.browser import CHROMIUM, opened
from tests.unit.report.test_page import Skeleton, changed, text_of
from typer.testing import CliRunner

from limbeck import cli
from limbeck.errors import ConfigError
from limbeck.evals.tables import write_table
from limbeck.folders import manifest_bytes
from limbeck.records import write_json
from limbeck.report import several
from limbeck.report.load import load
from limbeck.report.outcomes import score_tables
from limbeck.report.view import View
from limbeck.stats.compare import Arm, compare
from limbeck.stats.multiplicity import holm
from limbeck.types import Finish, Score, ScoreTable

PROBLEMS, SAMPLES = 120, 2
CHANCES = {"left": {"a": 0.3, "b": 0.5}, "right": {"c": 0.8}}
EASE = np.random.default_rng(11).normal(size=PROBLEMS)


def table(name: str, chance: float, seed: int, *, digest: str = "ab" * 32, weights: str = "") -> ScoreTable:
    rng = np.random.default_rng(seed)
    right = EASE[:, None] + rng.normal(size=(PROBLEMS, SAMPLES)) > np.quantile(1.4 * EASE, 1 - chance)
    scores = tuple(
        Score(problem_id=f"p{i:03d}", sample=s, correct=bool(right[i, s]), answer="1", extracted="", finish=Finish.STOP,
              response_tokens=4)
        for i in range(PROBLEMS) for s in range(SAMPLES)
    )  # fmt: skip
    return ScoreTable(
        name=name, scores=scores, problems_digest=digest, grader="g-1", decoding="T=1", model_digest="base",
        adapter_digest=weights or "none",
    )  # fmt: skip


def tables_of(study: str) -> dict[str, ScoreTable]:
    runs = {f"{arm}-s{s}": table(f"{arm}-s{s}", p, 7 + s, weights=f"{study}-{arm}-{s}")
            for arm, p in CHANCES[study].items() for s in (0, 1)}  # fmt: skip
    return {"base": table("base", 0.4, 1), **runs}


def write_study(folder: Path, name: str) -> Path:
    """A study of two seeds an arm, with several samples a problem, as one is left on disk."""
    tables, results = tables_of(name), folder / "results"
    results.mkdir(parents=True)
    arms = [{"name": arm, "label": arm.upper()} for arm in CHANCES[name]]
    runs = [
        {"run": f"{arm}-s{s}", "arm": arm, "seed": s, "adapter_digest": f"{name}-{arm}-{s}"}
        for arm in CHANCES[name] for s in (0, 1)
    ]  # fmt: skip
    write_json(results / "study.json", {"name": name, "question": f"Does {name} win?", "arms": arms})
    write_json(results / "arms.json", runs)
    write_json(results / "comparison.json", compare(list(tables.values())))
    write_json(results / "training.json", {run["run"]: [{"step": s, "nll": 1 / s} for s in (1, 2, 3)] for run in runs})
    for run, scored in tables.items():
        write_table(scored, folder / "steps" / f"eval-{run}-0123456789ab")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("pair")
    return [write_study(root / name, name) for name in CHANCES]


@pytest.fixture(scope="module")
def page(pair: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return several.build(pair, tmp_path_factory.mktemp("several"))


def rows(page: Path, name: str) -> list[dict[str, str]]:
    with (page.parent / "figures" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def said(page: Path) -> str:
    return text_of(Skeleton(page.read_text(encoding="utf-8")))


def test_arms_of_two_studies_are_paired_problem_by_problem(page: Path):
    """Against the tests of the same two arms alone, corrected for the two pairs that there are."""
    arms = {
        (study, arm): Arm(f"{study}: {arm}", tuple(tables_of(study)[f"{arm}-s{s}"] for s in (0, 1)))
        for study, of in CHANCES.items() for arm in of
    }  # fmt: skip
    alone = [compare([arms["left", arm], arms["right", "c"]])["pairs"][0] for arm in "ab"]
    found = {row["a"]: row for row in rows(page, "joint_pairs")}
    assert set(found) == {"left: a", "left: b"}
    for own, p in zip(alone, holm([pair["p"] for pair in alone]), strict=True):
        row = found[own["a"]]
        assert float(row["difference"]) == own["difference"] < -0.2
        assert float(row["low"]) == own["low"]
        assert float(row["p_holm"]) == p
        assert row["test"] == "crossed_t"
    assert "left and right were asked the same 120 problems" in said(page)
    called = sum(p < 0.05 for p in holm([pair["p"] for pair in alone]))
    assert f"of 2 pairs of trained arms across studies, {called} differ" in said(page)


def test_what_both_studies_have_stands_once(page: Path):
    names = [row["arm"] for row in rows(page, "joint_accuracy")]
    assert names == ["left: base", "left: a", "left: b", "right: c"]
    assert "The same weights and answers stand there once: right: base, as left: base." in said(page)


def test_each_study_has_its_question_its_answer_and_a_folder(page: Path):
    text = said(page)
    assert text.index("Does left win?") < text.index("Does right win?") < text.index("Arms of one study against")
    links = {dict(a)["href"] for t, a in Skeleton(page.read_text(encoding="utf-8")).elements if "download" in dict(a)}
    figures = page.parent / "figures"
    assert links == {f"figures/{p.relative_to(figures)}" for p in figures.rglob("*.csv")}
    assert {p.parent.name for p in figures.glob("*/accuracy.csv")} == {"left", "right"}


def test_ids_are_distinct_and_anchors_lead_somewhere(page: Path):
    elements = Skeleton(page.read_text(encoding="utf-8")).elements
    ids = [dict(a)["id"] for _, a in elements if "id" in dict(a)]
    assert len(set(ids)) == len(ids)
    anchors = {(dict(a)["href"] or "").removeprefix("#") for t, a in elements if t == "a" and "download" not in dict(a)}
    assert anchors <= set(ids)
    assert sum(t == "script" for t, _ in elements) == 4  # the panels, no widget, plotly and the page's own


def test_without_the_answers_a_sentence_says_what_is_needed(pair: list[Path], tmp_path: Path):
    shutil.copytree(pair[1] / "results", tmp_path / "results")
    page = several.build([pair[0], tmp_path], tmp_path / "out")
    assert "right: the answers of all entries to single problems were not found" in said(page)
    assert "score tables" in said(page)
    assert not list((page.parent / "figures").glob("joint*"))


def test_tables_of_other_settings_are_not_taken(pair: list[Path], tmp_path: Path):
    study = shutil.copytree(pair[0], tmp_path / "left")
    view = View(load(study / "results"))
    write_table(table("a-s0", 0.9, 99, weights="left-a-0"), study / "steps" / "eval-a-s0-ffffffffffff")
    write_table(table("b-s0", 0.5, 7, weights="elsewhere"), study / "steps" / "eval-b-s0-eeeeeeeeeeee")
    found = score_tables(study / "results", view)
    assert found == tables_of("left")
    shutil.rmtree(study / "steps" / "eval-a-s0-0123456789ab")
    assert set(score_tables(study / "results", view)) == set(found) - {"a-s0"}


def test_samples_of_every_problem_stand_in_for_score_tables(results: Path, tmp_path: Path):
    """The fixture has one answer a problem; a study whose samples are a selection has nothing to pair."""
    view = View(load(results))
    found = score_tables(results, view)
    comparison = view.results.comparison
    assert {name: int(table.correct.sum()) for name, table in found.items()} == {
        arm["name"]: arm["correct"] for arm in comparison["arms"]
    }
    part = changed(results, tmp_path / "part", samples=lambda samples: samples[:100])
    assert score_tables(part, View(load(part))) == {}


def test_other_problems_and_other_decodings_are_not_held_against_each_other(pair: list[Path], tmp_path: Path):
    def copy(name: str, **told: Any) -> Path:
        folder = shutil.copytree(pair[1], tmp_path / name)
        path = folder / "results" / "comparison.json"
        write_json(path, json.loads(path.read_text()) | told)
        for manifest in folder.glob("steps/*/manifest.json"):
            manifest.write_bytes(manifest_bytes(json.loads(manifest.read_text()) | told))
        return folder

    other = several.build([pair[0], copy("problems", problems_digest="cd" * 32)], tmp_path / "out1")
    assert "right was asked problems of its own" in said(other)
    greedy = several.build([pair[0], copy("greedy", decoding="greedy")], tmp_path / "out2")
    assert "left and right cannot be tested together" in said(greedy)
    assert "must share one decoding" in said(greedy)
    for page in (other, greedy):
        assert not list((page.parent / "figures").glob("joint*"))


def test_a_study_given_twice_is_refused_and_two_of_one_name_are_told_apart(pair: list[Path], tmp_path: Path):
    with pytest.raises(ConfigError, match="takes each once"):
        several.build([pair[0], pair[0] / "results"], tmp_path / "out")
    with pytest.raises(ConfigError, match="none of the studies"):
        several.build(pair, pair[1])
    again = shutil.copytree(pair[0], tmp_path / "again")
    studies = several.read([pair[0], again])
    assert [study.name for study in studies] == ["left (left)", "left (again)"]
    assert [study.folder for study in studies] == ["left-left", "left-again"]


def test_a_name_is_text_on_the_page_and_plain_letters_in_a_path(pair: list[Path], tmp_path: Path):
    evil = '</title><script>window.owned=1</script>/../.."'
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in pair]
    for folder, name in zip(folders, (evil, "→"), strict=True):
        path = folder / "results" / "study.json"
        write_json(path, json.loads(path.read_text()) | {"name": name})
    page = several.build(folders, tmp_path / "out")
    skeleton = Skeleton(page.read_text(encoding="utf-8"))
    assert evil in re.sub(r"\s+", " ", " ".join(skeleton.words))
    assert sum(tag == "script" for tag, _ in skeleton.elements) == 4
    assert sorted(p.name for p in (page.parent / "figures").iterdir() if p.is_dir()) == [
        "study", "title-script-window-owned-1-script",
    ]  # fmt: skip


def test_the_command_takes_several_studies(pair: list[Path], page: Path, tmp_path: Path):
    asked = ["report", *map(str, pair)]
    done = CliRunner().invoke(cli.app, [*asked, "--out", str(tmp_path)])
    assert done.stdout == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_bytes() == page.read_bytes()
    assert isinstance(CliRunner().invoke(cli.app, [*asked, "--markdown"]).exception, ConfigError)
    drawn = CliRunner().invoke(cli.app, [*asked, "--figures", str(tmp_path / "print")])
    assert drawn.stdout == f"{tmp_path / 'print'}\n"
    assert {str(p.relative_to(tmp_path / "print")) for p in (tmp_path / "print").rglob("*.pdf")} == {
        "joint_forest.pdf", *(f"{study}/{name}.pdf" for study in CHANCES for name in ("forest", "training")),
    }  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine, so the page is not opened in a browser")
def test_a_browser_draws_both_studies_without_a_word(page: Path, tmp_path: Path):
    with opened(page, tmp_path / "profile") as tab:
        tab.wait("document.readyState === 'complete' && document.querySelector('.js-plotly-plot') !== null")
        closed = "document.querySelectorAll('details:not([open]) .plot')"
        assert tab.evaluate(f"{closed}.length") == 2
        assert tab.evaluate(f"[...{closed}].some((plot) => plot.matches('.js-plotly-plot'))") is False
        tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        left = "const left = document.querySelector('.plot:not(.js-plotly-plot)')"
        tab.wait(f"(() => {{ {left}; left?.scrollIntoView(); return left === null; }})()")
        assert tab.evaluate("document.querySelectorAll('.plot').length") == 5
        assert not tab.said
        assert tab.evaluate("performance.getEntriesByType('resource').length") == 0
