"""Which steps measure arms that train every weight, and what they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.studies.config import StudyConfig, load_study, packaged
from limbeck.studies.plan import make_plan

MINI = str(Path(__file__).parents[2] / "integration" / "opd-mini.toml")


def steps(*settings: str):
    return {step.name: step for step in make_plan(load_study(MINI, settings))}


def test_each_arm_is_measured_by_a_step_of_its_own_with_its_kept_steps():
    found = steps()
    opd = found["measure/opd"]
    assert opd.params["points"] == [["opd-s0", 2], ["opd-s0", None], ["opd-s1", 2], ["opd-s1", None]]
    assert set(opd.inputs) == {"opd-s0", "opd-s1"}
    assert opd.params["base_digest"] == found["train/opd-s0"].params["base_digest"]
    assert "measure" not in found  # nobody has an adapter


def test_a_change_of_one_arm_leaves_the_others_measured():
    one, other = steps(), steps("arms.3.train.learning_rate=1e-4")
    assert one["measure/opd"].digest == other["measure/opd"].digest
    assert one["measure/opd-half"].digest != other["measure/opd-half"].digest
    assert one["measure/pairs"].digest != other["measure/pairs"].digest


@pytest.mark.parametrize(
    ("settings", "count"), [((), 8), (('geometry.pairs="all"',), 15), (('geometry.seeds="first"',), 7)]
)
def test_pairs_are_all_or_the_near_ones(settings, count):
    assert len(steps(*settings)["measure/pairs"].params["pairs"]) == count


def test_one_run_alone_has_no_pairs():
    config = load_study(MINI)
    lone = StudyConfig.model_validate(
        {**config.model_dump(), "arms": [config.arms[0].model_dump()], "reference_arm": "sft"}
    )
    assert "measure/pairs" not in {step.name for step in make_plan(lone)}


def test_snapshots_are_followed_arm_by_arm():
    found = steps("arms.1.train.trajectory=2")
    assert set(found["trajectory/opd"].inputs) == {"opd-s0", "opd-s1"}
    assert [name for name in found if name.startswith("trajectory/")] == ["trajectory/opd"]


def test_the_packaged_study_plans_every_arm_once():
    if "opd-geometry" not in packaged():
        pytest.skip("not packaged yet")
    config = load_study("opd-geometry")
    found = {step.name for step in make_plan(config)}
    assert {f"measure/{arm.name}" for arm in config.arms} <= found
    assert {f"trajectory/{arm.name}" for arm in config.arms} <= found
    assert max(config.geometry.ks) * 8 <= 64  # the narrowest matrix of the embedded world
