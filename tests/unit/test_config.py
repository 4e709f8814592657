"""Settings from files and from the command line: applied where they belong, refused in a sentence elsewhere."""

from __future__ import annotations

import ast
import datetime
import tomllib
from pathlib import Path

import pytest

import limbeck
from limbeck.config import LiveConfig, LoraConfig, RunConfig, StageConfig, TrainConfig, load, override, parse
from limbeck.errors import ConfigError

VALUES = {"student": "abacus:base", "arms": [{"name": "sft"}, {"name": "dpo", "train": {"seed": 1}}], "none": []}


def test_settings_reach_sections_and_entries_and_leave_the_original():
    out = override(VALUES, ["arms.1.train.seed=3", "arms.0=7", "train.knobs.beta=0.1", "student=[1, 2]"])
    assert out["arms"] == [7, {"name": "dpo", "train": {"seed": 3}}]
    assert (out["train"], out["student"]) == ({"knobs": {"beta": 0.1}}, [1, 2])
    assert VALUES["arms"][1] == {"name": "dpo", "train": {"seed": 1}}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("arms.sft.x=1", r'after arms must come the place of one of its 2 entries, .* received "sft"\. Write arms\.0'),
        ("arms.x=1", r'after arms must come the place of one of its 2 entries, .* received "x"'),
        ("arms.4.x=1", r'one of its 2 entries, counted from 0, received "4"'),
        ("arms.-1=1", r'received "-1"'),
        ("none.0=1", r"one of its 0 entries, .* or add entries in the file"),
        ("student.x=1", r"student must be a section, received 'abacus:base'\. Set student itself"),
        ("student.x.y=1", r"--set student\.x\.y=1: student must be a section"),
        ("arms.1.train.seed.z=1", r"arms\.1\.train\.seed must be a section, received 1"),
        ("train.seed", r"must look like section\.key=value, received 'train\.seed'"),
        ("=1", r"must look like section\.key=value"),
        ("train..seed=1", r"must look like section\.key=value"),
    ],
)
def test_settings_that_lead_nowhere(setting, words):
    with pytest.raises(ConfigError, match=words):
        override(VALUES, [setting])


def test_dates_and_brackets_without_end():
    values = tomllib.loads("made = 2026-01-02")
    assert override(values, ["a.b=2026-01-03"]) == {
        "made": datetime.date(2026, 1, 2),
        "a": {"b": datetime.date(2026, 1, 3)},
    }
    assert override({}, ["a=" + "[" * 10_000]) == {"a": "[" * 10_000}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.json", b"[1, 2]", r"list\.json must hold a table of keys, received \[1, 2\]"),
        ("bad.json", b"{", r"bad\.json must be JSON"),
        ("deep.json", b"[" * 100_000, r"deep\.json must be JSON: maximum recursion depth"),
        ("deep.toml", b"x = " + b"[" * 10_000, r"deep\.toml must be TOML"),
        ("latin.toml", b"x = '\xe9'", r"latin\.toml must be TOML: .*decode"),
    ],
)
def test_files_that_are_no_config(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load(tmp_path / name)
    with pytest.raises(ConfigError, match="existing TOML or JSON file"):
        load(tmp_path / "absent.toml")


SECTIONS = [RunConfig, TrainConfig, LiveConfig, StageConfig, LoraConfig]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_a_key_with_a_letter_dropped_is_refused_with_its_name(section):
    for name in section.model_fields:
        typo = name[0] + name[2:]
        with pytest.raises(ConfigError, match=f'"{typo}".*Did you mean "{name}"'):
            parse(section, {typo: 1}, where="section")


def test_every_setting_is_read_somewhere():
    """A setting that nothing reads is a promise that nothing keeps."""
    package = Path(limbeck.__file__).parent
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in package.rglob("*.py"))
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for section in SECTIONS:
        assert set(section.model_fields) <= read, section.__name__
    assert "token_budgets" not in read  # one that is not there would be found missing
