"""A study whose arms stand on arms, from stage 1 to a second round: it runs and its numbers hold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from limbeck.batches.score import read_scores, score_rollouts
from limbeck.evals.apply import applied
from limbeck.folders import read_manifest
from limbeck.geometry.adapters import read_adapter
from limbeck.geometry.table import read_measurements
from limbeck.records import read_json
from limbeck.report import build
from limbeck.report.load import load
from limbeck.rollouts.store import read_rollouts
from limbeck.studies.config import load_study
from limbeck.studies.study import run_study
from limbeck.train.models import load_model

STUDY = str(Path(__file__).parent / "erpd-mini.toml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("chained") / "mini"
    build(run_study(load_study(STUDY, ("workers=1",)), out), out)
    return out


def step(out: Path, name: str) -> Path:
    (found,) = [p for p in (out / "steps").glob(f"{name.replace('/', '-')}-*") if len(p.name) == len(name) + 13]
    return found


def test_every_result_is_a_point_of_accuracy_against_kl(finished):
    found = read_json(finished / "results" / "frontier.json")
    points = {point["name"]: point for point in found["points"]}
    assert {"base", "grpo-s0", "extreme-s0", "extreme-s0@4", "weak-2-s0", "fresh-s0", "strong-2-r2-s0"} <= set(points)
    kl = {name: {(r["direction"], r["estimator"], r["unit"]): r for r in p["records"]} for name, p in points.items()}
    key = ("student_reference", "exact", "nats/token")
    assert kl["base"][key]["value"] == pytest.approx(0, abs=1e-6)
    assert all(kl[name][key]["value"] > 0 for name in points if name != "base")
    assert kl["extreme-s0"][key]["value"] > kl["extreme-s0@4"][key]["value"]
    exact, k3 = (kl["extreme-s0"][("student_reference", e, "nats/token")] for e in ("exact", "k3"))
    assert exact["low"] < k3["high"]
    assert k3["low"] < exact["high"]
    assert points["extreme-s0"]["drift"]["right"] > points["extreme-s0"]["drift"]["wrong"]
    assert points["unlearned-s0"]["drift"]["right"] < points["unlearned-s0"]["drift"]["wrong"]
    assert points["extreme-s0@4"]["epochs"] == pytest.approx(4 * 16 / 96)


def test_kept_steps_have_answers_by_problem_and_hidden_states_beside_the_base(finished):
    results = finished / "results"
    points = {point["name"]: point for point in read_json(results / "frontier.json")["points"]}
    scores = load(results).scores
    assert set(points) <= set(scores)
    for name in ("base", "extreme-s0@4", "extreme-s0"):
        assert sum(scores[name].values()) / 16 == pytest.approx(points[name]["accuracy"]["value"])
    rows = [
        r for r in read_measurements(results / "measurements.parquet") if r.metric == "cka_debiased" and r.layer == 1
    ]
    values = {(r.arm, r.step): r.value for r in rows if r.other == "base"}
    assert {("extreme-s0", -1), ("extreme-s0", 4), ("weak-s0", 4)} <= set(values)
    assert values["extreme-s0", -1] < values["extreme-s0", 4] < 1


def test_places_are_held_against_each_other(finished):
    found = read_json(finished / "results" / "frontier.json")
    assert {(row["arm"], row["step"]) for row in found["rise"]} == {
        (arm, step) for arm in ("extreme", "weak", "unlearned") for step in (4, None)
    }
    assert {(row["b"], row["a"].partition("@")[0]) for row in found["equal"]} >= {
        ("strong-2", "extreme"),
        ("both", "grpo"),
    }
    assert all(row["factor"]["low"] <= row["factor"]["value"] <= row["factor"]["high"] for row in found["equal"])
    assert found["beside"][0]["a"].partition("@")[0] == "weak"


def test_the_tuned_value_is_the_one_whose_run_answers_most(finished):
    tuned = read_json(step(finished, "tune/both") / "tuning.json")
    assert [row["value"] for row in tuned["grid"]] == [0.5, 4.0]
    assert tuned["chosen"] == max(tuned["grid"], key=lambda row: row["accuracy"])["value"]
    assert read_json(step(finished, "train/both-s0") / "config.json")["train"]["knobs"]["beta"] == tuned["chosen"]
    asked = [Path(p).name for p in (finished / "steps").glob("tuning-both-*")]
    assert len(asked) == 2


def test_a_signal_is_the_log_ratio_of_the_runs_that_it_names(finished):
    rollouts = read_rollouts(step(finished, "rollouts"))
    few = rollouts.rollouts[:4]
    with applied(load_model("abacus:base"), read_adapter(step(finished, "train/extreme-s0"))) as stage_1:
        ours = score_rollouts(stage_1, few)
    base = score_rollouts(load_model("abacus:base"), few)
    stored = read_scores(step(finished, "signal/strong-2-s0"), rollouts, kind="signal")
    for got, a, b in zip(stored, ours, base, strict=False):
        expected = (torch.tensor(a) - torch.tensor(b)).clamp(-5, 5)
        torch.testing.assert_close(torch.tensor(got), expected, rtol=1e-3, atol=1e-4)
    told = read_json(step(finished, "signal/weak-2-s0") / "signal.json")["teachers"][0]
    assert told["name"] == "weak-s0@4"
    assert set(told["contrast_drifts"]) == {"unlearned-s0", "unlearned-s0@4"}
    assert told["scale_nats"] != 1


def test_a_second_round_starts_where_the_first_one_ended(finished):
    merged = step(finished, "merge/strong-2-s0")
    probe = read_rollouts(step(finished, "rollouts")).rollouts[:3]
    with applied(load_model("abacus:base"), read_adapter(step(finished, "train/strong-2-s0"))) as first:
        expected = score_rollouts(first, probe)
    got = score_rollouts(load_model(str(merged)), probe)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-3, atol=1e-3)
    fresh = read_rollouts(step(finished, "rollouts/strong-2-s0"))
    assert not set(fresh.groups) & set(read_rollouts(step(finished, "rollouts")).groups)
    written = score_rollouts(load_model(str(merged)), fresh.rollouts[:3])
    for a, rollout in zip(written, fresh.rollouts, strict=False):
        torch.testing.assert_close(
            torch.tensor(a), torch.tensor(rollout.behavior_logprobs), rtol=1e-3, atol=1e-3, check_dtype=False
        )
    manifest = read_manifest(step(finished, "train/extreme-r2-s0"))
    assert manifest["rollouts_digest"] == fresh.digest
    assert manifest["base_digest"] != read_manifest(step(finished, "train/strong-2-s0"))["base_digest"]
    anchored = read_json(step(finished, "train/strong-2-r2-s0") / "config.json")
    assert anchored["anchor"] == "abacus:base"


def test_token_views_show_every_token_with_what_each_arm_says_of_it(finished):
    views = read_json(finished / "results" / "frontier.json")["views"]
    assert {view["right"] for view in views} == {True, False}
    for view in views:
        assert all(len(values) == len(view["tokens"]) for values in view["signals"].values())
    assert {frozenset(view["signals"]) for view in views} >= {frozenset(("strong-2-s0", "weak-2-s0", "both-s0"))}
    assert all(math.isfinite(x) for view in views for values in view["signals"].values() for x in values)
