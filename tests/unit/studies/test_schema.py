"""The schema of study files: it takes every study there is, refuses what `load_study` refuses, and explains every key."""

from __future__ import annotations

import copy
import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limbeck import cli
from limbeck.errors import ConfigError
from limbeck.studies.config import StudyConfig, load_study, packaged
from limbeck.studies.schema import study_schema

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).parents[3]
STUDIES = [*packaged().values(), *sorted((ROOT / "examples").rglob("*.toml"))]


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft202012Validator.check_schema(study_schema())
    return jsonschema.Draft202012Validator(study_schema())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_comes_with_limbeck_is_one(validator, path):
    assert [error.message for error in validator.iter_errors(tomllib.loads(path.read_text(encoding="utf-8")))] == []


BASIC = {
    "name": "x",
    "question": "?",
    "student": "abacus:base",
    "teacher": "abacus:teacher",
    "train": {"num_steps": 9},
    "arms": [{"name": "a", "train": {"objective": "dpo", "knobs": {"beta": 0.2}}, "rollouts": {"samples": 2}}],
}


def wrong(path: str, value: object) -> dict:
    """The basic study with one key set or added."""
    study = copy.deepcopy(BASIC)
    *parents, last = path.split("/")
    node = study
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
    node[last] = value
    return study


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("teecher", "abacus:teacher"),
        ("train/learning_rat", 1e-3),
        ("train/lora/rnk", 4),
        ("train/learning_rate", 0.0),
        ("eval/problems/splt", "test"),
        ("arms/0/labl", "A"),
        ("arms/0/train/num_step", 4),
        ("arms/0/train/objective", "dpoo"),
        ("arms/0/train/knobs/betta", 0.1),
        ("arms/0/train/knobs/beta", 0.0),
        ("arms/0/train/knobs/alpha", 0.5),  # trrd's
        ("arms/0/rollouts/sample", 2),
        ("arms/0/signal/scale", "none"),  # without teachers
    ],
)
def test_what_a_study_may_not_say_the_schema_refuses_too(validator, tmp_path, path, value):
    assert validator.is_valid(BASIC)
    study = wrong(path, value)
    assert not validator.is_valid(study)
    (tmp_path / "study.json").write_text(json.dumps(study))
    with pytest.raises(ConfigError):
        _in_full(load_study(str(tmp_path / "study.json")))


def _in_full(config: StudyConfig) -> None:
    from limbeck.studies.plan import make_plan

    make_plan(config)


def test_every_key_and_knob_has_a_description():
    schema = study_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, field in section["properties"].items():
            assert field["description"].strip(), name
    knob = schema["$defs"]["TrainConfig"]["properties"]["knobs"]["properties"]["beta_kl"]
    assert "grpo:kl" in knob["description"]


def test_the_command_prints_the_schema():
    result = CliRunner().invoke(cli.app, ["study", "schema"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(json.dumps(study_schema()))


def test_the_page_of_keys_is_generated_and_not_stale():
    page = CliRunner().invoke(cli.app, ["study", "schema", "--markdown"]).stdout
    assert (ROOT / "docs" / "study-keys.md").read_text(encoding="utf-8") == page
    schema = study_schema()
    for section in (schema, *schema["$defs"].values()):
        assert all(f"| `{name}` |" in page for name in section["properties"])
