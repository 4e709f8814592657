"""What the report says of arms that learned from their own rollouts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from tests.drawings import check_figures

from limbeck.records import read_json, write_json
from limbeck.report import build
from limbeck.report.accuracies import entries, over_seeds
from limbeck.report.answer import sentences
from limbeck.report.figures import forest
from limbeck.report.load import load
from limbeck.report.markdown import markdown
from limbeck.report.onpolicy import accuracy, arms, claims, key_of, over_training, setup, times
from limbeck.report.view import View
from limbeck.report.words import MINUS, p_value
from limbeck.stats.compare import Arm, compare
from limbeck.stats.multiplicity import holm
from limbeck.stats.passk import pass_at_k
from limbeck.types import Finish, Score, ScoreTable

ARMS = {  # name: (objective, knobs, chance of a right answer, seconds of a teacher)
    "grpo": ("grpo", {}, 0.50, 0.0),
    "trrd-25": ("trrd", {"alpha": 0.25}, 0.62, 6.0),
    "trrd-50": ("trrd", {"alpha": 0.5}, 0.70, 6.0),
    "kdrl": ("kdrl", {"beta": 0.02}, 0.70, 6.0),
    "opd": ("opd", {}, 0.45, 6.0),
    "sft": ("sft", {}, 0.55, 0.0),
}
SEEDS, PROBLEMS, SAMPLES = (0, 1, 2), 150, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("onpolicy")
    rng = np.random.default_rng(3)
    ease = rng.normal(size=PROBLEMS)
    tables = {"base": table("base", ease, 0.4, rng), "teacher": table("teacher", ease, 0.95, rng)}
    for arm, (_, _, chance, _) in ARMS.items():
        tables |= {f"{arm}-s{seed}": table(f"{arm}-s{seed}", ease, chance, rng) for seed in SEEDS}
    live = [arm for arm in ARMS if arm != "sft"]
    grouped = [Arm(name, (tables[name],)) for name in ("base", "teacher")]
    grouped += [Arm(arm, tuple(tables[f"{arm}-s{seed}"] for seed in SEEDS)) for arm in ARMS]
    firsts = [arm.tables[0].name for arm in grouped]
    comparison = compare(list(tables.values()), among=firsts) | {"over_seeds": compare(grouped)}
    assert len(comparison["pairs"]) == len(comparison["over_seeds"]["pairs"]) == 28
    named = [{"name": arm, "label": arm.upper(), "role": "method"} for arm in ARMS]
    write_json(out / "study.json", {"name": "live", "question": "Which?", "arms": named, "reference_arm": "grpo"})
    write_json(out / "arms.json", [run(arm, seed) for arm in ARMS for seed in SEEDS])
    write_json(out / "comparison.json", comparison)
    write_json(out / "training.json", {f"{arm}-s{seed}": curve(ARMS[arm][2], seed) for arm in live for seed in SEEDS})
    rates = {n: {f"pass@{k}": asdict(pass_at_k(t, k)) for k in (1, 8)} for n, t in tables.items()}
    spent = {f"{arm}-s{seed}": seconds(ARMS[arm][3]) for arm in live for seed in SEEDS}
    grid = [{"value": 0.02, "accuracy": 0.7}, {"value": 0.2, "accuracy": 0.6}]
    write_json(
        out / "live.json",
        {"pass": rates, "runs": spent, "tuning": {"kdrl": {"knob": "beta", "chosen": 0.02, "grid": grid}}},
    )
    return out


def table(name, ease, chance, rng):
    right = ease[:, None] + rng.normal(size=(PROBLEMS, SAMPLES)) > np.quantile(1.4 * ease, 1 - chance)
    scores = tuple(
        Score(problem_id=f"p{i:04d}", sample=s, correct=bool(right[i, s]), answer="1", finish=Finish.STOP,
              extracted="1" if right[i, s] else "2", response_tokens=9)
        for i in range(PROBLEMS) for s in range(SAMPLES)
    )  # fmt: skip
    return ScoreTable(name=name, scores=scores, problems_digest="be" * 32, grader="g-1", decoding="temperature 1")


def run(arm, seed):
    objective, knobs, *_ = ARMS[arm]
    return {"run": f"{arm}-s{seed}", "arm": arm, "seed": seed, "objective": objective, "knobs": knobs, "role": "method"}


def curve(chance, seed):
    return [{"step": step, "reward": 0.3 + (chance - 0.3) * step / 30 + 0.01 * seed} for step in range(1, 31)]


def seconds(teacher):
    last = {"kl_student_reference_k3": 0.2, "kl_student_teacher_k3": 0.3, "teacher_agreement": 0.8}
    return {"rollouts": 640, "seconds_sample": 10.0, "seconds_score": teacher, "seconds_update": 20.0, "last": last}


def test_every_figure_can_be_drawn_for_print(folder):
    assert check_figures(folder, {"reward"}) == len(ARMS) - 1


def test_curves_are_means_in_a_band_of_the_seeds(folder):
    figure = over_training(View(load(folder)))
    assert figure is not None
    by_arm: dict[Any, Any] = {row[0]: row for row in figure.sheet.rows}
    assert set(by_arm) == set(ARMS) - {"sft"}
    _, step, mean, low, high, seeds = by_arm["kdrl"]
    assert (step, seeds) == (29.5, 3)
    assert high - low == pytest.approx(2.0)
    assert mean == pytest.approx((low + high) / 2)


def test_arms_are_averaged_over_seeds_and_their_time_is_held_against_grpo(folder):
    view = View(load(folder))
    part = arms(view)
    assert part is not None
    rows = {row[0]: dict(zip(part.sheet.columns, row, strict=True)) for row in part.sheet.rows}
    assert set(rows) == {"base", "teacher", *ARMS}
    values = [view.results.live["pass"][f"opd-s{seed}"]["pass@8"]["value"] for seed in SEEDS]
    assert rows["opd"]["pass@8"] == pytest.approx(sum(values) / 3)
    spent = times(view)
    assert spent is not None
    rows = {row[0]: dict(zip(spent.sheet.columns, row, strict=True)) for row in spent.sheet.rows}
    assert set(rows) == set(ARMS) - {"sft"}
    assert rows["opd"]["over_grpo"] == pytest.approx(0.2)
    assert rows["grpo"]["over_grpo"] == 0
    assert rows["opd"]["scoring_share"] == pytest.approx(6 / (10 + 20))  # by hand: teacher over sampling and updating
    assert (rows["opd"]["rollouts"], rows["opd"]["seconds_update"]) == (640, 20)


def test_verdicts_follow_the_tests_over_seeds(folder):
    found = {claim.claim: claim for claim in claims(View(load(folder)))}
    assert found["TRRD answers more problems right than GRPO"].verdict == "reproduced"
    assert found["TRRD answers more problems right than KDRL"].verdict == "undecided"
    assert found["OPD answers more problems right than GRPO"].verdict == "not reproduced"
    assert "RL after OPD adds to OPD" not in found  # no such arm ran
    over = {frozenset((p["a"], p["b"])): p for p in read_json(folder / "comparison.json")["over_seeds"]["pairs"]}
    asked = [over[frozenset(pair)]["p"] for pair in (("trrd-50", "grpo"), ("trrd-50", "kdrl"), ("opd", "grpo"))]
    for claim, p in zip(
        found.values(), holm(asked), strict=True
    ):  # corrected for the claims, which came before the runs
        assert f"Holm {p_value(p)} of 3" in claim.ours
    points = 100 * abs(over[frozenset(("trrd-50", "grpo"))]["difference"])
    assert f"+{points:.1f} points" in found["TRRD answers more problems right than GRPO"].ours


def test_arms_stand_over_their_seeds_and_every_answer_is_counted(folder):
    view = View(load(folder))
    over, first = over_seeds(view), entries(view)
    assert over is not None
    rows = {row[0].text: [cell.text for cell in row] for row in over.rows}
    found = {arm["name"]: arm for arm in view.results.comparison["over_seeds"]["arms"]}
    assert rows["OPD"][3] == f"{found['opd']['correct']} / {PROBLEMS * SAMPLES * len(SEEDS)}"
    assert rows["base"][3].endswith(f"/ {PROBLEMS * SAMPLES}")
    pair = view.over_seeds("opd", "base")
    assert pair is not None
    assert rows["OPD"][4] == f"{100 * pair.difference:+.1f}".replace("-", MINUS)
    assert {row[3].text.split("/")[1] for row in first.rows} == {f" {PROBLEMS * SAMPLES}"}
    said = " ".join(sentence.text for sentence in sentences(view))
    assert "Student's t over problems and seeds is below 0.05 after Holm's correction over all 28 pairs" in said
    assert f"OPD {rows['OPD'][4]}" in said


def test_only_the_published_mixture_stands_in_the_published_column(folder):
    view = View(load(folder))
    assert [key_of(view.by_id[name]) for name in ("trrd-25-s0", "trrd-50-s0", "grpo-s0")] == ["", "trrd", "grpo"]
    rows = {row[0]: row for row in accuracy(view).sheet.rows}
    assert rows["trrd"][1:5] == ["58.6", "30.1", "95.6", "58.9"]
    part = arms(view)
    assert part is not None
    assert rows["trrd"][5] == pytest.approx(part.sheet.rows[4][2])
    here: dict[Any, Any] = {row[0]: row[2] for row in setup(view).sheet.rows}
    assert here["KDRL's coefficient"] == "kdrl: beta 0.02 of 0.02 (70.0 %), 0.2 (60.0 %)"
    assert "TRRD, alpha 0.5 +20 % (its scoring alone +20 %)" in here["time over GRPO"]


def test_page_and_markdown_hold_the_section(folder, tmp_path):
    page = build(folder, tmp_path).read_text()
    assert "On their own rollouts" in page
    assert "2609.04108" in page
    assert "2606.23740" not in page
    assert "| TRRD answers more problems right than GRPO |" in markdown(folder)


def test_the_figure_of_accuracy_has_a_row_an_arm_with_its_mean_and_every_seed_beside_it(folder):
    view = View(load(folder))
    figure = forest(view)
    comparison = view.results.comparison
    means = {arm["name"]: arm["value"] for arm in comparison["over_seeds"]["arms"]}
    single = {arm["name"]: arm["value"] for arm in comparison["arms"]}
    (panel,) = figure.panels
    assert panel.layout["yaxis"]["names"] == ["base", "teacher", *(arm.upper() for arm in ARMS)][::-1]
    dots = [trace for trace in panel.data if "error_x" in trace]
    seeds = {trace["meta"]: trace for trace in panel.data if "error_x" not in trace}
    assert [trace["x"][0] for trace in dots[::-1]] == pytest.approx([100 * value for value in means.values()])
    assert set(seeds) == set(ARMS)
    for arm, trace in seeds.items():
        assert trace["x"] == pytest.approx([100 * single[f"{arm}-s{seed}"] for seed in SEEDS])
        assert trace["marker"]["symbol"].endswith("-open")
        assert [text.split(": ")[0] for text in trace["text"]] == [f"{arm.upper()}, seed {seed}" for seed in SEEDS]
    assert {row[0]: row[1] for row in figure.sheet.rows} == means | single
    assert "open: the seeds" in figure.caption
