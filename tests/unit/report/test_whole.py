"""What the report says of arms that train every weight: beside chance, at matched norm, locked or not, controlled or not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.drawings import check_figures, figures_of

from limbeck.geometry.table import write_measurements
from limbeck.records import read_json, write_json
from limbeck.report import build, controls, dense, inside, locking, weights
from limbeck.report.answer import sentences
from limbeck.report.load import load
from limbeck.report.markdown import markdown
from limbeck.report.view import View
from limbeck.report.whole import QUANTITIES, Whole
from limbeck.stats.compare import Arm, compare
from limbeck.stats.seeds import next_run
from limbeck.types import Finish, Measurement, Null, Score, ScoreTable

ARMS = {  # name: (objective, role, settings, chance of a right answer, sparsity, norm)
    "sft": ("sft", "method", {}, 0.50, 0.10, 4.0),
    "opd": ("opd", "method", {}, 0.70, 0.50, 1.0),
    "rlvr": ("grpo", "method", {}, 0.60, 0.80, 0.5),
    "sft-norm": ("sft", "control", {"match_norm": "rlvr"}, 0.45, 0.80, 0.5),
    "opd-norm": ("opd", "control", {"match_norm": "rlvr"}, 0.60, 0.80, 0.5),
    "opd-half": ("opd", "control", {"train": {"sparsify": {"rule": "random"}}}, 0.70, 0.50, 1.0),
    "opd-teacher": ("opd", "control", {"live": {"writer": "teacher"}}, 0.70, 0.95, 0.1),
    "opd-inside": ("opd", "control", {"subspace": {"of": "opd@5", "k": 8}, "start": "opd@5"}, 0.70, 0.50, 1.0),
    "opd-random": ("opd", "control", {"subspace": {"of": "random", "k": 8}, "start": "opd@5"}, 0.40, 0.50, 1.0),
    "opd-again": ("opd", "control", {"start": "opd@5"}, 0.70, 0.50, 1.0),
}
SEEDS, PROBLEMS, SAMPLES, STEPS = (0, 1, 2), 150, 4, (4, 8, 12, 16, 20)
NOISE = {0: 0.98, 1: 1.0, 2: 1.02}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(5)
    ease = rng.normal(size=PROBLEMS)
    tables = {"base": table("base", ease, 0.4, rng), "teacher": table("teacher", ease, 0.95, rng)}
    for arm, spec in ARMS.items():
        tables |= {f"{arm}-s{seed}": table(f"{arm}-s{seed}", ease, spec[3], rng) for seed in SEEDS}
    grouped = [Arm(arm, tuple(tables[f"{arm}-s{seed}"] for seed in SEEDS)) for arm in ARMS]
    named = [{"name": arm, "label": arm.upper(), "role": spec[1]} for arm, spec in ARMS.items()]
    config = {"arms": [{"name": arm, **spec[2]} for arm, spec in ARMS.items()], "train": {"learning_rate": 3e-4}}
    study = {
        "name": "whole",
        "question": "Locked?",
        "arms": named,
        "reference_arm": "opd",
        "config": config,
        "seeds": [0, 1, 2],
    }
    write_json(out / "study.json", study)
    write_json(out / "arms.json", [run(arm, seed) for arm in ARMS for seed in SEEDS])
    write_json(out / "comparison.json", compare(list(tables.values())) | {"over_seeds": compare(grouped)})
    write_measurements(out / "measurements.parquet", [*ends(), *between(), *trajectories()])
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
    objective, role, *_ = ARMS[arm]
    leak = {"leak": 0.25, "leak_bf16": 0.5} if arm == "opd-inside" else None
    facts = {"objective": objective, "role": role, "steps": 20, "knobs": {}, "subspace": leak}
    return {"run": f"{arm}-s{seed}", "arm": arm, "seed": seed, **facts}


def row(metric, arm, value, null=math.nan, *, kind="dense_fp32", null_id="N-ISO", width=0.0, **where: Any):
    where = {"aggregation": "module-mean", "unit": "none"} | where
    band = {"q05": null - width, "q95": null + width}
    return Measurement(
        metric=metric, arm=arm, value=value, null=Null(id=null_id, mean=null, **band), delta_kind=kind, **where
    )


def ends():
    """Low-magnitude overlap at what rounding gives for every arm; principal energy at twice chance for OPD alone."""
    for arm, (*_, sparsity, norm) in ARMS.items():
        for seed in SEEDS:
            name, noise = f"{arm}-s{seed}", NOISE[seed]
            seen: dict[str, Any] = {"kind": "bf16_visible", "null_id": "N-ROUND"}
            over: dict[str, Any] = {"aggregation": "parameter-weighted"}
            yield row("frobenius_norm", name, norm * noise, null_id="", aggregation="stacked")
            yield row("relative_norm", name, 0.01 * norm, null_id="")
            yield row("sparsity_visible", name, sparsity * noise, sparsity, **seen, **over)
            yield row("mask_overlap_low", name, (0.3 + 0.4 * sparsity) * noise, 0.3 + 0.4 * sparsity, **seen, **over)
            yield row("mask_overlap_principal", name, 0.3, 0.3, **seen, **over)
            yield row("nss", name, 1e-3 * norm * noise, 1e-3 * norm)
            yield row("base_angle_largest", name, 2 * norm * noise, 2.0, aggregation="module-median", side="right", k=8)
            yield row("principal_energy", name, 0.02 if arm == "opd" else 0.01, 0.01, side="PP", k=8)
            yield row("stable_rank", name, 8.0 * noise, 30.0)
            for kind, share in (("q_proj", 0.75), ("up_proj", 0.25)):
                yield Measurement(
                    metric="energy_share", arm=name, value=share, null=Null(id="N-ISO", mean=0.5), delta_kind="dense_fp32",
                    aggregation="stacked", unit="fraction", kind=kind,
                )  # fmt: skip


def between():
    for seed in SEEDS:
        for a, b, value in (("sft", "opd", 0.1), ("opd", "rlvr", 0.3), ("sft", "rlvr", 0.05)):
            yield row(
                "cosine", f"{a}-s{seed}", value, 0.0, null_id="N-ROT", aggregation="stacked", other=f"{b}-s{seed}"
            )
    for arm, value in (("sft", 0.6), ("opd", 0.5), ("rlvr", 0.2)):
        for a, b in ((0, 1), (0, 2), (1, 2)):
            yield row("cosine", f"{arm}-s{a}", value, 0.0, null_id="N-ROT", aggregation="stacked", other=f"{arm}-s{b}")


def trajectories():
    """SFT drifts, OPD locks, RLVR walks: each beside a walk of 0.3 and orders of 0.5 at the first snapshot."""
    early = {"sft": (0.6, 0.5), "opd": (0.8, 0.9), "rlvr": (0.3, 0.5)}
    for arm, (value, ordered) in early.items():
        for seed in SEEDS:
            name = f"{arm}-s{seed}"
            for place, step in enumerate(STEPS):
                share = place / (len(STEPS) - 1)
                for null, start, chance in (
                    ("N-WALK", value, 0.3),
                    ("N-EXCH-NORM", ordered, 0.5),
                    ("N-EXCH", 0.99, 0.1),
                ):
                    at = {"null_id": null, "width": 0.05, "step": step}
                    for side in ("left", "right"):
                        if step < STEPS[-1]:
                            now, level = start + (1 - start) * share, chance + (1 - chance) * share
                            yield row("sim_k", name, now, level, side=side, k=8, other="end", **at)
                    yield row("stable_rank", name, 6 + (6 * share if arm == "sft" else 0.1 * seed), 10.0, **at)
                walk = {"null_id": "N-WALK", "aggregation": "stacked", "step": step}
                yield row("frobenius_norm", name, ARMS[arm][5] * step / 20, 1.0, **walk)


def test_every_figure_can_be_drawn_for_print(folder):
    drawn = {"over_chance", "localisation", "locking_left", "locking_right", "rank_dynamics", "controls_runs"}
    assert {figure.sheet.name for figure in figures_of(folder, drawn)} == drawn
    assert check_figures(folder, drawn) > 20


@pytest.fixture(scope="module")
def whole(folder):
    return Whole(View(load(folder)))


def lines(part) -> list[dict[str, Any]]:
    return [dict(zip(part.sheet.columns, values, strict=True)) for values in part.sheet.rows]


def test_numbers_stand_over_their_chance_seed_by_seed(whole):
    found = [r for r in lines(weights.overview(whole)) if (r["arm"], r["quantity"]) == ("opd", "sparsity")]
    assert [r["over_chance"] for r in found] == pytest.approx(list(NOISE.values()))
    ratios = {(r["arm"], r["quantity"]): r["over_chance"] for r in lines(weights.over_chance(whole))}
    assert ratios["opd", "leading"] == pytest.approx(2.0)
    assert ratios["rlvr", "leading"] == pytest.approx(1.0)
    assert {r["energy_over_entries"] for r in lines(weights.localisation(whole)) if r["place"] == "q_proj"} == {1.5}


def test_a_trajectory_is_not_taken_for_the_end(whole):
    level = whole.level(next(q for q in QUANTITIES if q.name == "stable_rank"), "sft")
    assert level.values == pytest.approx([8.0 * noise for noise in NOISE.values()])
    assert level.null == pytest.approx(30.0)


def test_an_order_of_length_is_told_from_one_of_the_paradigm(whole):
    assert {key: r.arm for key, r in whole.matched.items()} == {"sft": "sft-norm", "opd": "opd-norm", "rlvr": "rlvr"}
    found = {c.claim: c for c in dense.claims(whole)}
    sparse = found["RLVR leaves most weights unchanged in bf16, SFT fewest"]
    assert sparse.verdict == "reproduced"
    assert "same norm SFT" not in sparse.ours
    assert "(undecided)" in sparse.ours  # at a matched norm the seeds overlap
    assert "over chance: undecided" in sparse.ours
    assert found["SFT's changes lie most among principal weights, RLVR's least"].verdict == "undecided"
    texts = " ".join(s.text for s in sentences(whole.view))
    assert "hold at matched steps and not at a matched norm: unchanged in bf16" in texts


def test_locking_needs_both_nulls(whole):
    found = {(r["arm"], r["side"], r["share"]): r for r in lines(locking.locking(whole))}
    assert found["opd", "right", 0.2]["step"] == 4
    readings = {arm: locking.reading(whole, lead) for arm, lead in whole.main.items()}
    assert readings == {"sft": "drift", "opd": "locking", "rlvr": "no more than a walk"}
    claims = {c.claim: c for c in dense.claims(whole)}
    assert claims[dense.printed()["locking"]["claim"]].verdict == "reproduced"
    assert claims[dense.printed()["rank"]["claim"]].verdict == "reproduced"
    figure, ranks = locking.curves(whole, "right"), locking.ranks(whole)
    assert figure is not None
    assert ranks is not None
    assert [panel.title for panel in figure.panels][:2] == ["SFT, beside a random walk", "SFT, beside another order"]
    assert len(ranks.panels) == 2


def test_controls_are_held_against_one_more_seed_of_their_baseline(whole):
    found = {(r["arm"], r["quantity"]): r for r in lines(controls.table(whole))}
    assert (found["opd-half", "sparsity"]["low"], found["opd-half", "sparsity"]["high"]) == pytest.approx(
        next_run([0.49, 0.5, 0.51])
    )
    assert found["opd-half", "sparsity"]["inside"] is True
    assert found["opd-teacher", "sparsity"]["inside"] is False
    assert not [key for key in found if key[0] in ("opd-inside", "opd-norm", "opd-again", "opd")]
    claim = next(c for c in dense.claims(whole) if c.claim == dense.printed()["controls"]["claim"])
    assert claim.verdict == "not reproduced"
    assert "OPD-TEACHER" in claim.ours
    assert "OPD-HALF" not in claim.ours


def test_a_subspace_is_held_against_free_training_and_a_random_one(whole, folder):
    found = {r["arm"]: r for r in lines(inside.table(whole))}
    assert [item.free and item.free.arm for item in inside.constrained(whole)] == ["opd-again", "opd-again"]
    pairs = {frozenset((p["a"], p["b"])): p for p in read_json(folder / "comparison.json")["over_seeds"]["pairs"]}
    expected = pairs[frozenset(("opd-inside", "opd-random"))]
    assert abs(found["opd-inside"]["difference_random"]) == pytest.approx(abs(expected["difference"]))
    assert found["opd-inside"]["low_random"] > 0.1
    assert found["opd-inside"]["leak"] == pytest.approx(0.25)
    assert math.isnan(found["opd-random"]["difference_random"])
    claim = next(c for c in dense.claims(whole) if c.claim == dense.printed()["sufficient"]["claim"])
    assert claim.verdict == "reproduced"


def test_published_numbers_keep_their_status_and_their_column(whole):
    part = dense.beside(whole)
    rows = {r["quantity"]: r for r in lines(part)}
    assert (rows["sparsity"]["rlvr"], rows["sparsity"]["status"]) == ("77.2 %", "pub")
    assert (rows["norm"]["opd"], rows["norm"]["status"]) == ("0.452", "unv")
    assert rows["sparsity"]["here: rlvr"] == "80.0 %"
    grey = [cell for line in part.rows for cell in line[1:5]]
    assert all(cell.tone == "published" for cell in grey)
    assert all(cell.tone != "published" for line in part.rows for cell in line[5:])


def test_page_and_markdown_hold_the_sections(folder, tmp_path):
    page = build(folder, tmp_path).read_text()
    for text in (
        "Every weight, beside chance",
        "Subspaces and ranks on the way",
        "Training inside a subspace",
        "2606.07082",
    ):
        assert text in page
    assert "2606.23740" not in page
    assert "| SFT turns the leading directions most, RLVR least |" in markdown(folder)
    assert (tmp_path / "figures" / "locking_right.csv").is_file()
