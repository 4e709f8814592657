"""The verb: tables for people, JSON for programs, an exit code for scripts."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from limbeck import cli
from limbeck.doctor import examine as module
from limbeck.doctor.finding import SECTIONS
from limbeck.doctor.machine import Room
from limbeck.errors import ConfigError
from limbeck.rollouts.store import write_rollouts

from .parts import edit


def call(*arguments: str):
    return CliRunner().invoke(cli.app, ["doctor", *arguments])


@pytest.fixture(scope="module")
def folder(rollout_set, tmp_path_factory) -> str:
    return str(write_rollouts(rollout_set, tmp_path_factory.mktemp("data") / "rollouts"))


def test_a_sound_model_with_sound_rollouts(folder):
    found = call(
        "abacus:base", "--rollouts", folder, "--teacher", "abacus:teacher", "--set", "train.objective=dpo", "--json"
    )
    assert found.exit_code == 0
    record = json.loads(found.stdout)
    assert record["problems"] == 0
    assert [f["about"] for f in record["findings"]] == sorted(
        (f["about"] for f in record["findings"]), key=SECTIONS.index
    )
    assert {f["about"] for f in record["findings"]} == set(SECTIONS)
    run = next(f for f in record["findings"] if f["name"] == "run")
    assert run["facts"]["peak"] == max(sum(stage.values()) for stage in run["facts"]["stages"].values())
    assert "scoring the reference" in run["facts"]["stages"]
    assert all(f["remedy"] for f in record["findings"] if f["level"] != "ok")


def test_problems_are_shown_with_their_remedies_and_end_in_1(student, tmp_path):
    edit(student / "generation_config.json", eos_token_id=5)
    (tmp_path / "r.jsonl").write_text('{"prompt": "A box", "response": "Start 3."}\n')
    found = call(str(student), "--rollouts", str(tmp_path / "r.jsonl"))
    assert found.exit_code == 1
    assert '"eos_token_id": [1, 5]' in found.stdout
    assert "Add one of the columns" in " ".join(found.stdout.replace("│", " ").split())
    assert "problems: 2;" in found.stdout


def test_what_is_no_model_is_a_finding_too(tmp_path):
    found = call(str(tmp_path), "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["findings"][-1]["level"] == "problem"


def test_a_model_that_does_not_fit_is_not_loaded(monkeypatch):
    monkeypatch.setattr(module, "room", lambda: Room(total=10**7, available=10**6))
    monkeypatch.setattr(module, "load_model", None)
    found = call("abacus:base", "--method", "full", "--json")
    assert found.exit_code == 1
    run = next(f for f in json.loads(found.stdout)["findings"] if f["name"] == "run")
    assert (run["level"], run["facts"]["available"]) == ("problem", 10**6)
    assert "train.method=lora" in run["remedy"]


def test_settings_that_no_run_can_have_are_a_usage_error():
    for setting in ("train.learning_rat=1", "train.objective=dpoo", 'train.lora.targets=["x"]'):
        found = call("abacus:base", "--set", setting)
        assert isinstance(found.exception, ConfigError) or found.exit_code == 1
