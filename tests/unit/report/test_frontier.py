"""What the report says of accuracy against KL: numbers found again, every token shown, nothing of the data is markup."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.drawings import check_figures

from limbeck.records import read_json, write_json
from limbeck.report import build, contrasts
from limbeck.report import frontier as parts
from limbeck.report.answer import sentences
from limbeck.report.load import load
from limbeck.report.markdown import markdown
from limbeck.report.view import View

EVIL = '</span><script>window.owned=1</script><img src=x onerror="alert(1)">{{ 7*7 }}'
# sft stands for stage 1 with kept steps, rft for stage 2 read out of it, dpo for a rival that never gets there
ACCURACY = {("sft", 4): 0.50, ("sft", 8): 0.60, ("sft", None): 0.45, ("rft", None): 0.58, ("dpo", None): 0.40}
KL = {("sft", 4): 0.2, ("sft", 8): 0.6, ("sft", None): 2.0, ("rft", None): 0.05, ("dpo", None): 0.01}


def record(value: float, estimator: str, unit: str, direction: str) -> dict[str, Any]:
    scale = 40 if unit == "nats/sequence" else 1
    low, mid, high = (scale * x for x in (0.9 * value, value, 1.2 * value))
    return {
        "direction": direction, "sampler": direction.partition("_")[0], "estimator": estimator, "unit": unit, "value": mid,
        "low": low, "high": high, "level": 0.95, "method": "ratio_bootstrap", "n": 150, "problems": 150, "rollouts": 300,
        "tokens": 9000, "truncated_share": 0.02, "max_new_tokens": 96, "dtype": "fp32", "sampling_temperature": 1.0,
    }  # fmt: skip


def point(arm: str, seed: int | None, step: int | None, accuracy: float, kl: float) -> dict[str, Any]:
    both = ("student_reference", "reference_student")
    units = ("nats/token", "nats/sequence")
    records = [record(kl, e, u, d) for d in both for u in units for e in ("exact", "k1", "k3")]
    return {
        "name": arm, "run": f"{arm}-s{seed}", "arm": arm, "seed": seed, "step": step, "steps": step or 12,
        "epochs": (step or 12) / 4, "accuracy": {"value": accuracy, "low": accuracy - 0.04, "high": accuracy + 0.04},
        "records": records, "entropy": {"value": 0.3}, "drift": {"token_k3": 0.1, "right": 2.5, "wrong": -3.5},
    }  # fmt: skip


def content(word: str = "beads ") -> dict[str, Any]:
    points = [point("base", None, None, 0.44, 0.0)]
    for (arm, step), accuracy in ACCURACY.items():
        points += [point(arm, seed, step, accuracy + 0.01 * seed, KL[arm, step] * (1 + seed)) for seed in (0, 1)]
    told = {
        "name": "sft-s0@8", "contrast": word.strip(), "drift": 0.2, "contrast_drifts": {word.strip(): 0.1}, "floored": 1,
        "contrast_floored": 2, "scale_nats": 0.7, "mean": 0.01, "std": 0.9, "clamped_share": 0.03,
    }  # fmt: skip
    view = {
        "problem_id": "p", "prompt": f"How many {word}?", "right": True, "tokens": ["There ", "are ", word, "12"],
        "signals": {"rft-s0": [0.0, -0.4, 1.0, 2.0], "dpo-s0": [0.0, 0.0, 0.0, 0.0]},
    }  # fmt: skip
    equal = {"a": "sft@8", "b": "rft", "reached": True, "factor": between("value", 12.0, 9.0, 16.0)}
    held = {"a": "sft@8", "b": "dpo", "which": "best of both", "factor": between("value", 60.0, 50.0, 70.0)}
    rise = [
        {"arm": "sft", "step": 8, "steps": 8, "over_base": between("difference", 0.16, 0.1, 0.22, 0.002),
         "to_end": between("difference", -0.15, -0.2, -0.1, 0.004)},
        {"arm": "sft", "step": None, "steps": 12, "over_base": between("difference", 0.01, -0.05, 0.07, 1.0), "to_end": None},
    ]  # fmt: skip
    held_apart = {
        "rise": rise, "equal": [{**equal, "difference": between("difference", 0.01, -0.02, 0.04)}],
        "beside": [{**held, "difference": between("difference", 0.2, 0.1, 0.3)}],
    }  # fmt: skip
    return {
        "points": points,
        **held_apart,
        "signals": {"rft-s0": {"agreement": 0.8, "teachers": [told]}},
        "views": [view],
    }


def between(name: str, value: float, low: float, high: float, p: float = 0.5) -> dict[str, float]:
    return {name: value, "low": low, "high": high, "p": p, "p_holm": p}


@pytest.fixture(scope="module")
def folder(results: Path, tmp_path_factory) -> Path:
    return prepared(results, tmp_path_factory.mktemp("frontier") / "results", content())


def prepared(results: Path, out: Path, frontier: dict[str, Any]) -> Path:
    shutil.copytree(results, out)
    study = read_json(out / "study.json")
    arms = [{"name": "rft", "signal": {"teachers": ["sft@8"]}}, {"name": "sft", "signal": None}]
    write_json(out / "study.json", {**study, "config": {**study["config"], "arms": arms}})
    write_json(out / "frontier.json", frontier)
    return out


@pytest.fixture(scope="module")
def view(folder) -> View:
    return View(load(folder))


class Page(HTMLParser):
    """Elements with their attributes, and the text inside each class of the token view."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple]] = []
        self.toned: list[tuple[str, str]] = []
        self._tone: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(attrs)))
        self._tone = dict(attrs).get("class") if tag == "span" else None

    def handle_data(self, data):
        if self._tone is not None:
            self.toned.append((self._tone, data))

    def handle_endtag(self, tag):
        self._tone = None


def test_the_first_screen_begins_with_how_far_named_arms_are_from_the_base(view):
    first = sentences(view)[0]
    assert first.about == "named"
    assert first.text.endswith("most accurate: SFT, step 8 over DPO is 60.00 (50.00 to 70.00).")


def test_the_frontier_can_be_drawn_for_print(folder):
    assert check_figures(folder, {"frontier"}) == 1


def test_the_figure_has_a_point_for_every_arm_and_step_with_bars_that_hold_the_seeds(view):
    figure = parts.figure(view)
    trace = next(t for t in figure.panels[0].data if len(t["x"]) == 3)
    assert trace["x"] == pytest.approx([0.3, 0.9, 3.0])  # means over seeds of KL and of twice KL
    assert trace["y"] == pytest.approx([50.5, 60.5, 45.5])
    assert trace["error_x"]["array"] == pytest.approx([2.4 * 0.2 - 0.3, 2.4 * 0.6 - 0.9, 2.4 * 2.0 - 3.0])
    assert trace["error_y"]["arrayminus"] == pytest.approx([4.5, 4.5, 4.5])
    assert trace["marker"]["size"] == [6, 6, 11]
    assert figure.panels[0].layout["xaxis"]["type"] == "log"
    assert len(figure.sheet.rows) == 6  # the base too


def test_factors_and_differences_stand_with_their_intervals(view):
    table = contrasts.equal(view)
    assert [cell.text for cell in table.rows[0][1:]] == [
        "SFT", "step 8", "12.00 (9.00 to 16.00)", "+1.0 points (−2.0 to 4.0)", "yes",
    ]  # fmt: skip
    assert table.sheet.rows[0] == ["rft", "sft@8", True, 12.0, 9.0, 16.0, 0.01, -0.02, 0.04]
    rise, end = contrasts.rise(view).sheet.rows
    assert rise == ["sft", 8, 0.16, 0.1, 0.22, 0.002, -0.15, -0.2, -0.1, 0.004]
    assert end[:3] == ["sft", 12, 0.01]
    assert all(math.isnan(x) for x in end[6:])
    table = contrasts.beside(view)
    assert table.folded == 0  # one row of at most 24, which asks for no button
    assert replace(table, rows=list(table.rows) * 30).folded == 6
    (beside,) = table.sheet.rows
    assert beside[:4] == ["sft@8", "dpo", "best of both", 0.2]


def test_stage_1_is_told_step_by_step(view):
    table = parts.epochs(view)
    assert [row[0] for row in table.sheet.rows] == ["sft"] * 3
    assert [row[2] for row in table.sheet.rows] == [1, 2, 3]
    assert [cell.text for cell in table.rows[1]][1:4] == ["8", "2.0", "60.5 %"]
    assert table.rows[1][-1].text == "−3.5"


def test_every_estimator_and_direction_stands_at_the_end_of_every_arm(view):
    table = parts.ends(view)
    columns = dict(zip(table.sheet.columns, table.sheet.rows[-1], strict=True))
    assert columns["arm"] == "dpo"
    assert columns["kl_exact"] == columns["k3"] == columns["k1"] == pytest.approx(0.015)
    assert columns["kl_sequence"] == pytest.approx(0.6)
    assert "300 answers a seed to 150 problems held out, temperature 1, at most 96 tokens, fp32" in table.caption


def test_what_is_left_of_stage_1_is_the_cosine_with_its_chance(view):
    (row,) = contrasts.survival(view).sheet.rows
    cosine = view.get("cosine", "rft-s0", "sft-s0").value
    found = dict(zip(contrasts.survival(view).sheet.columns, row, strict=True))
    assert (found["arm"], found["teacher"], found["seeds"], found["cosine"]) == ("rft", "sft", 1, cosine)
    assert found["share"] == pytest.approx(cosine * found["length"])
    place = {"aggregation": "module-mean", "side": "left", "k": view.angle_k}
    assert 0 < found["overlap"] == view.get("mean_cos2", "rft-s0", "sft-s0", **place).value
    assert found["null_q05"] < found["null_q95"] < cosine


def test_tokens_are_coloured_by_their_signal_and_named_in_words(folder, tmp_path):
    text = build(folder, tmp_path).read_text(encoding="utf-8")
    toned = [pair for pair in Page(text).toned if pair[0] in ("", "up-2", "up-3", "down-1") and pair[1].strip()]
    assert [p for p in toned if p[0]][:3] == [("down-1", "are "), ("up-2", "beads "), ("up-3", "12")]
    assert "Strongest: “12” +2.00, “beads” +1.00, “are” −0.40." in text
    assert "The signal is 0 on every token." in text
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    for theme in (":root {", ':root[data-theme="dark"] {'):  # both themes give the classes their colors
        block = style.split(theme)[1].split("}")[0]
        assert all(f"--{name}:" in block for name in ("up-1", "up-3", "down-1", "down-3"))
    csv = (tmp_path / "figures" / "token_signals.csv").read_text(encoding="utf-8").splitlines()
    assert len(csv) == 1 + 8


def test_published_statements_stand_with_their_status_and_nothing_is_subtracted(folder):
    text = markdown(folder)
    for words in ("What is known of ERPD", "HMMT Feb 26", "83.8", "our reading", "No independent reproduction"):
        assert words in text


def test_data_never_becomes_markup(results, tmp_path):
    pages = []
    for i, word in enumerate(("beads ", EVIL)):
        folder = prepared(results, tmp_path / str(i), content(word))
        pages.append(Page(build(folder, tmp_path / f"{i}-out").read_text(encoding="utf-8")))
    assert pages[0].elements == pages[1].elements


def test_a_study_without_kl_has_no_such_section(results, tmp_path):
    assert 'id="frontier"' not in build(results, tmp_path).read_text(encoding="utf-8")
