"""The Markdown page says what the HTML page says, and data cannot break its tables."""

from __future__ import annotations

import re

from limbeck.records import read_json, write_json
from limbeck.report import answer, markdown
from limbeck.report.load import load
from limbeck.report.view import View


def test_every_sentence_and_arm_of_the_report_is_there(results):
    page = markdown(results)
    plain = page.replace("&lt;", "<").replace("&amp;", "&")
    view = View(load(results))
    for sentence in answer.sentences(view):
        assert sentence.text in plain
    for run in view.runs:
        assert run.label in plain


def test_tables_are_rectangular(results):
    for block in re.findall(r"(?:^\|.*\|\n)+", markdown(results), re.MULTILINE):
        rows = block.strip().splitlines()
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(widths) == 1, rows[0]


def test_the_same_folder_gives_the_same_page(results):
    assert markdown(results) == markdown(results)


def test_answers_that_were_cut_are_on_the_first_screen(results, write_results, tmp_path):
    assert "Cut by the length limit" not in markdown(results)
    folder = write_results(tmp_path / "cut")
    samples = read_json(folder / "samples.json")
    for sample in samples[: len(samples) // 2]:
        sample["responses"]["base"]["finish"] = "length"
    write_json(folder / "samples.json", samples)
    said = f"of {len(samples)} answers each on this page: base {len(samples) // 2}. "
    assert said in markdown(folder)


def test_a_study_that_could_call_nothing_reproduces_nothing(write_results, tmp_path):
    folder = write_results(tmp_path / "blunt")
    comparison = read_json(folder / "comparison.json")
    comparison["pairs"] = [{**pair, "p_holm": 1.0, "smallest_callable": None} for pair in comparison["pairs"]]
    write_json(folder / "comparison.json", comparison)
    reproduced = [line for line in markdown(folder).splitlines() if "and reproduced here" in line]
    assert not any("told apart" in line for line in reproduced)
