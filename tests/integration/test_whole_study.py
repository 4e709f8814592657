"""A study whose arms train every weight: measured from one anchor, fp32 beside what bf16 shows, and reported beside chance."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.geometry.table import read_measurements
from limbeck.records import read_json
from limbeck.report import build
from limbeck.report.load import load
from limbeck.report.view import View
from limbeck.report.whole import Whole
from limbeck.studies.config import load_study
from limbeck.studies.study import run_study
from limbeck.train.models import model_folder

STUDY = str(Path(__file__).parent / "opd-mini.toml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "mini"
    build(run_study(load_study(STUDY, ("workers=1",)), out), out)
    return out


@pytest.fixture(scope="module")
def rows(finished):
    return read_measurements(finished / "results" / "measurements.parquet")


def pick(rows, metric, arm, **wanted):
    wanted = {"kind": "", "layer": -1, "step": -1, "other": ""} | wanted
    found = [
        r for r in rows if r.metric == metric and r.arm == arm and all(getattr(r, k) == v for k, v in wanted.items())
    ]
    assert len(found) == 1, (metric, arm, wanted, len(found))
    return found[0]


def step(out: Path, name: str) -> Path:
    (found,) = [p for p in (out / "steps").glob(f"{name.replace('/', '-')}-*") if len(p.name) == len(name) + 13]
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_norm_and_sparsity_are_those_of_the_saved_weights(finished, rows):
    base = weights(model_folder("abacus:base"))
    for name, run, kept in (
        ("opd-s0", "train/opd-s0", -1),
        ("opd-s0", "train/opd-s0", 2),
        ("sft-s0", "train/sft-s0", -1),
    ):
        place = step(finished, run) / ("model" if kept < 0 else f"kept/step-{kept:06d}/model")
        tuned = weights(place)
        square = sum((tuned[n].double() - w.double()).square().sum() for n, w in base.items())
        same = sum(int((tuned[n].bfloat16() == w.bfloat16()).sum()) for n, w in base.items())
        norm = pick(rows, "frobenius_norm", name, aggregation="stacked", step=kept)
        assert norm.value == pytest.approx(math.sqrt(square), rel=1e-6)
        assert norm.delta_kind == "dense_fp32"
        hidden = pick(rows, "sparsity_visible", name, aggregation="parameter-weighted", step=kept)
        assert hidden.value == pytest.approx(same / sum(w.numel() for w in base.values()), abs=1e-9)
        assert (hidden.delta_kind, hidden.null.id) == ("bf16_visible", "N-ROUND")


def test_what_a_run_saves_as_visible_is_what_is_called_visible(finished, rows):
    arms = {arm["run"]: arm for arm in read_json(finished / "results" / "arms.json")}
    for run in ("opd-s0", "rlvr-s0"):
        norm = pick(rows, "frobenius_norm", run, aggregation="stacked")
        assert norm.value == pytest.approx(arms[run]["update_norm"], rel=1e-5)
        base, shown = (
            weights(model_folder("abacus:base")),
            load_file(step(finished, f"train/{run}") / "visible.safetensors"),
        )
        changed = sum(int((shown[n] != base[n].bfloat16()).sum()) for n in shown)
        entries = sum(t.numel() for t in shown.values())
        hidden = pick(rows, "sparsity_visible", run, aggregation="parameter-weighted")
        assert hidden.value == pytest.approx(1 - changed / entries, abs=1e-9)


def test_near_pairs_are_measured_and_no_others(rows):
    pairs = {frozenset((r.arm, r.other)) for r in rows if r.metric == "cosine" and r.other}
    expected = [("opd-s0", "opd-s1"), ("sft-s0", "rlvr-s0"), ("sft-s0", "sft-norm-s0"), ("rlvr-s0", "sft-norm-s0")]
    expected += [(other, "opd-s0") for other in ("sft-s0", "rlvr-s0", "opd-half-s0", "sft-norm-s0")]
    assert pairs == {frozenset(pair) for pair in expected}
    for row in rows:
        if row.aggregation == "module" and row.metric == "base_angle_largest" and row.k == 8:
            assert "k_over_eighth" not in row.reason


def test_the_report_holds_them_beside_chance_and_the_published_column(finished):
    whole = Whole(View(load(finished / "results")))
    assert {key: run.arm for key, run in whole.main.items()} == {"sft": "sft", "opd": "opd", "rlvr": "rlvr"}
    assert {key: run.arm for key, run in whole.matched.items()} == {"sft": "sft-norm", "opd": "opd"}
    page = (finished / "report.html").read_text()
    for text in (
        "Every weight, beside chance",
        "At matched steps, and at a matched norm",
        "What two updates share",
        "2606.07082",
    ):
        assert text in page
    names = {path.stem for path in (finished / "figures").glob("*.csv")}
    assert {"weights", "over_chance", "matched", "localisation", "weight_pairs", "controls", "dense_published"} <= names
