"""compare and power from the command line: real folders in, real tables out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.errors import ConfigError
from limbeck.evals.arms import read_arms
from limbeck.evals.tables import write_table
from limbeck.studies.steps import compare_tables
from limbeck.types import Finish, Score, ScoreTable


def write(folder, name, outcomes):
    scores = tuple(
        Score(problem_id=f"p{i:03d}", sample=j, correct=bool(right), answer="4", extracted="4" if right else "3",
              finish=Finish.STOP, response_tokens=1)
        for i, row in enumerate(outcomes) for j, right in enumerate(row)
    )  # fmt: skip
    return str(
        write_table(ScoreTable(name=name, scores=scores, problems_digest="d", grader="g", decoding="greedy"), folder)
    )


@pytest.fixture
def tables(tmp_path):
    rng, problem = np.random.default_rng(0), np.random.default_rng(1).beta(2, 2, (80, 1))
    names = ("base", "sft-s0", "sft-s1", "dpo-s0", "dpo-s1")
    gains = {"base": 0.0, "sft": 0.1, "dpo": 0.3}
    return {n: write(tmp_path / n, n, rng.random((80, 1)) < problem + gains[n.partition("-")[0]]) for n in names}


def test_compare_reads_seeds_and_says_first_what_could_be_called(tables, tmp_path):
    out = tmp_path / "comparison"
    arms = [tables["base"], f"sft={tables['sft-s0']},{tables['sft-s1']}", f"dpo={tables['dpo-s0']},{tables['dpo-s1']}"]
    done = CliRunner().invoke(app, ["compare", *arms, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(out)
    said = done.stderr.splitlines()
    assert said[0].startswith("Smallest difference that 80 problems could have called: ")
    assert said[1] == "Base: one seed: no claim about training variance (an untrained model has none)."
    result = json.loads((out / "comparison.json").read_text())
    assert [(arm["name"], arm["seeds"]) for arm in result["arms"]] == [("base", 1), ("sft", 2), ("dpo", 2)]
    assert {pair["test"] for pair in result["pairs"]} == {"crossed_t"}


def test_plain_tables_are_arms_of_one_seed(tables, tmp_path):
    out = tmp_path / "comparison"
    done = CliRunner().invoke(app, ["compare", tables["base"], tables["dpo-s0"], "--alpha", "0.1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "90 % interval" in done.stderr
    assert "mcnemar_exact" in done.stderr


def test_arms_are_read_as_written(tables, tmp_path):
    odd = write(tmp_path / "a=b", "odd", [[1], [0]])
    assert [arm.name for arm in read_arms([odd])] == ["odd"]  # a folder that exists is a folder
    with pytest.raises(ConfigError, match="given once"):
        read_arms([f"x={odd},{odd}"])
    for text in ("=a,b", "x=", "x=,"):
        with pytest.raises(ConfigError, match="NAME=TABLE"):
            read_arms([text])


def test_power_prints_needs_and_what_is_at_hand():
    call = ["power", "--accuracy", "0.6", "--discordance", "0.2"]
    needs = CliRunner().invoke(app, [*call, "--difference", "0.02"])
    assert needs.exit_code == 0, needs.output
    assert "4,016" in needs.stdout
    finds = CliRunner().invoke(app, [*call, "--items", "30"])
    assert "not even 20.0 points" in finds.stdout
    assert "0.200" in finds.stdout  # the smallest callable difference of 30 problems
    assert "no claim about its variance" in finds.stdout


def test_a_study_of_several_seeds_compares_its_arms_over_them(tables, tmp_path):
    arms = {"base": ["base"], "sft": ["sft-s0", "sft-s1"], "dpo": ["dpo-s0", "dpo-s1"]}
    inputs = {name: Path(path) for name, path in tables.items()}
    params = {"alpha": 0.05, "arms": arms, "among": ["base", "sft-s0", "dpo-s0"]}
    compare_tables(params, inputs, tmp_path / "out", lambda share: None)
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {pair["test"] for pair in result["pairs"]} == {"mcnemar_exact"}  # run by run, first seeds alone
    firsts = {("base", "sft-s0"), ("base", "dpo-s0"), ("sft-s0", "dpo-s0")}
    assert {(pair["a"], pair["b"]) for pair in result["pairs"]} == firsts
    assert len(result["arms"]) == len(tables)
    assert [(arm["name"], arm["seeds"]) for arm in result["over_seeds"]["arms"]] == [
        ("base", 1),
        ("sft", 2),
        ("dpo", 2),
    ]
