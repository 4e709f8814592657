"""A new study: written for a model and its data, explained key by key, loaded and planned as it stands."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limbeck import cli
from limbeck.errors import LimbeckError
from limbeck.rollouts.importing import import_rollouts
from limbeck.studies.config import load_study
from limbeck.studies.new import SCHEMA_FILE
from limbeck.studies.plan import make_plan
from limbeck.train.models import load_tokenizer
from limbeck.worlds import resolve
from limbeck.worlds.abacus.generator import generate


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, list(arguments))
    if isinstance(result.exception, LimbeckError):
        return result.exception.exit_code, result.stdout, str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A folder to work in: graded rollouts, two of each problem right and one wrong; demonstrations; a test file."""
    monkeypatch.chdir(tmp_path)
    solved = generate("train", 8, seed=3)
    graded = [
        {"problem_id": p.id, "prompt": p.prompt, "response": f"{'' if right else 'No. '}{s}", "reward": right}
        for p, s in solved
        for right in (1, 0, 1)
    ]
    (tmp_path / "rollouts.jsonl").write_text(lines(graded))
    shown = [
        {"messages": [{"role": "user", "content": p.prompt}, {"role": "assistant", "content": s}]} for p, s in solved
    ]
    (tmp_path / "demonstrations.jsonl").write_text(lines(shown))
    (tmp_path / "test.jsonl").write_text(lines([{"question": p.prompt, "answer": f"{s}"} for p, s in solved]))
    return tmp_path


def test_a_new_study_plans_as_it_stands(data):
    code, out, _ = call(
        "study", "new", "--student", "abacus:base", "--rollouts", "rollouts.jsonl", "--test", "test.jsonl"
    )
    assert (code, out.strip()) == (0, "study.toml")
    study = load_study("study.toml")
    assert study.name == "abacus-base"
    assert study.rollouts.path == str(data / "rollouts.jsonl")
    assert (study.eval.problems.path, study.eval.problems.format) == (str(data / "test.jsonl"), "gsm8k")
    assert [arm.name for arm in study.arms] == ["sft", "rft", "dft", "dpo", "sft-seed"]
    assert study.training(study.arm("dpo"), 0).learning_rate == pytest.approx(study.train.learning_rate / 10)
    assert study.arm("sft-seed").role == "null"
    code, out, _ = call("study", "plan", "study.toml", "--no-probe")
    assert code == 0
    for step in ("rollouts", "train/dpo-s0", "train/sft-seed-s1", "eval/rft-s0", "compare", "measure", "cka"):
        assert f"\n{step} " in f"\n{out}"


def test_values_come_from_the_data_and_every_key_is_explained(data):
    call("study", "new", "--student", "abacus:base", "--rollouts", "rollouts.jsonl", "--out", "sub/study.toml")
    text = Path("sub/study.toml").read_text()
    study = load_study("sub/study.toml")
    assert study.rollouts.path == str(data / "rollouts.jsonl")
    [longest] = {int(n) for n in re.findall(r"longest response that was seen has (\d+)", text)}
    rows = import_rollouts(data / "rollouts.jsonl", load_tokenizer(study.student)).rollouts
    assert longest == max(len(row.response_ids) for row in rows) < study.eval.max_new_tokens
    assert "Needs right rollouts: 16 of 24 are." in text
    assert "8 of 8 have both" in text
    assert study.eval.problems.world == "abacus"  # no --test: the split of the world that the student comes from
    first, *rest = text.splitlines()
    assert first == f"#:schema ./{SCHEMA_FILE}"
    explained = set()
    for above, line in pairwise(rest):
        if key := re.match(r"(\w+) = ", line):
            assert above.startswith("# ") or key[1] in explained, line
            explained.add(key[1])
    assert len(explained) > 12
    schema = json.loads((data / "sub" / SCHEMA_FILE).read_text())
    pytest.importorskip("jsonschema").validate(tomllib.loads(text), schema)


def test_a_teacher_s_study_samples_and_objectives_of_own_answers_are_live(data):
    arguments = [
        "--teacher",
        "abacus:teacher",
        "--problems",
        "abacus:train",
        "--arms",
        "sft,opd,grpo",
        "--out",
        "live.toml",
    ]
    assert call("study", "new", "--student", "abacus:base", *arguments)[0] == 0
    study = load_study("live.toml")
    assert [arm.live is not None for arm in study.arms] == [False, True, True]
    steps = {step.name: step for step in make_plan(study)}
    assert steps["rollouts"].params["problems"]["split"] == "train"
    assert steps["train/opd-s0"].params["live"]["teacher"] == "abacus:teacher"
    longest = 256 - study.rollouts.max_new_tokens  # what the student's context leaves
    assert 40 < longest < 130


def test_what_cannot_run_on_demonstrations_is_left_out_with_a_word(data):
    shutil.copytree(resolve("abacus:base"), data / "model")
    given = ["study", "new", "--student", "model", "--rollouts", "demonstrations.jsonl"]
    code, _, err = call(*given)
    assert code == 0
    study = load_study("study.toml")
    assert (study.name, study.student) == ("model", str(data / "model"))
    assert [arm.name for arm in study.arms] == ["sft", "dft", "sft-seed"]
    assert study.eval.problems.path == "TEST.jsonl"
    assert "Set eval.problems.path in study.toml: no --test was given." in err
    assert "rft was left out: rft trains on right rollouts alone, received 8 right of 8" in err
    assert "dpo was left out: dpo needs a problem with a right and a wrong rollout" in err
    code, _, said = call(*given, "--arms", "dpo", "--out", "asked.toml")
    assert code == 2
    assert "received none" in said
    assert not Path("asked.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "received neither"),
        (("--rollouts", "rollouts.jsonl", "--teacher", "abacus:teacher"), "received both"),
        (("--teacher", "abacus:teacher"), "Pass --problems"),
        (("--rollouts", "rollouts.jsonl", "--arms", "sft,dpoo"), 'Did you mean "dpo"?'),
        (("--rollouts", "rollouts.jsonl", "--arms", "seed-null,sft"), "received no arm before it"),
        (("--rollouts", "rollouts.jsonl", "--arms", "opd"), "Pass --teacher"),
        (("--rollouts", "rollouts.jsonl", "--arms", "grpo"), "Pass --problems"),
        (("--rollouts", "rollouts.jsonl", "--arms", "erpd_clip"), "erpd"),
        (("--rollouts", "rollouts.jsonl", "--arms", "rift:paper-printed"), "lam"),
        (("--rollouts", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_a_study_is_refused_and_nothing_is_written(data, arguments, message):
    code, _, said = call("study", "new", "--student", "abacus:base", *arguments)
    assert code in (1, 2)
    assert message in said
    assert not Path("study.toml").exists()


def test_nothing_is_overwritten_unasked(data):
    given = ["study", "new", "--student", "abacus:base", "--rollouts", "rollouts.jsonl", "--arms", "sft"]
    Path("study.toml").write_text("mine")
    Path(SCHEMA_FILE).write_text("{}")
    assert "--overwrite" in call(*given)[2]
    assert "Move it elsewhere" in call(*given, "--overwrite")[2]
    assert (Path("study.toml").read_text(), Path(SCHEMA_FILE).read_text()) == ("mine", "{}")
    Path(SCHEMA_FILE).unlink()
    assert call(*given, "--overwrite")[0] == 0
    assert load_study("study.toml").arm("sft").train == {}
