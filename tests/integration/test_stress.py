"""Whole verbs at their ends: a run that diverges, answers that are empty, rewards that say nothing or far too much."""

from __future__ import annotations

import json
import math

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from limbeck import cli
from limbeck.config import LiveConfig, LoraConfig, RunConfig, TrainConfig
from limbeck.errors import LimbeckError
from limbeck.evals.tables import read_table
from limbeck.rollouts.store import read_rollouts, write_rollouts
from limbeck.train import live_run
from limbeck.train.record import read_metrics
from limbeck.train.rewards import Rewarded
from limbeck.train.run import train

from ..unit.train.live_toy import toy_model
from ..unit.train.toy import tiny_model, tiny_rollouts


def call(*arguments: object) -> tuple[int, str]:
    """Exit code, and the last line of stdout or the sentence."""
    result = CliRunner().invoke(cli.app, list(map(str, arguments)))
    if isinstance(result.exception, LimbeckError):
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout.strip().splitlines()[-1] if result.stdout.strip() else ""


@pytest.fixture(scope="module")
def silent(tmp_path_factory) -> str:
    """A model every one of whose words ends its answer."""
    return toy_model(tmp_path_factory.mktemp("models") / "silent", seed=0, eos=list(range(168)))


def test_a_run_that_diverges_keeps_what_it_read(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    write_rollouts(tiny_rollouts(2, 2), tmp_path / "rollouts")
    train = {"method": "full", "learning_rate": 1e9, "schedule": "constant", "warmup_fraction": 0, "num_steps": 9}
    config = {"base": str(tmp_path / "base"), "rollouts": str(tmp_path / "rollouts"), "train": train}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for _ in range(2):  # and again where it stopped
        code, said = call("train", "--config", tmp_path / "config.json", "--out", tmp_path / "run")
        assert code == 1
        assert "must be finite" in said
        assert "lower train.learning_rate" in said
    (kept,) = (tmp_path / "run" / "diverged").iterdir()
    assert str(kept) in said
    with safe_open(kept, framework="pt") as file:
        assert {"ids", "mask", "row_index"} <= set(file.keys())
        assert json.loads(file.metadata()["rows"])
    assert not (tmp_path / "run" / "manifest.json").exists()
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines
    assert all(math.isfinite(line["update_norm"]) for line in lines)


def test_empty_answers_are_wrong_answers_from_eval_to_compare(tmp_path, silent):
    for name in ("a", "b"):
        arguments = ("--base", silent, "--problems", "abacus:test", "--num", 5, "--name", name, "--max-new-tokens", 8)
        code, said = call("eval", *arguments, "--out", tmp_path / name)
        assert code == 0, said
    table = read_table(tmp_path / "a")
    assert [score.correct for score in table.scores] == [False] * 5
    assert {score.response_tokens for score in table.scores} == {1}
    code, said = call("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "comparison")
    assert code == 0, said
    (pair,) = json.loads((tmp_path / "comparison" / "comparison.json").read_text())["pairs"]
    assert (pair["p"], pair["difference"]) == (1, 0)
    assert pair["low"] < 0 < pair["high"]


def test_rollouts_of_one_token_go_through_every_verb(tmp_path, silent):
    arguments = ("--model", silent, "--problems", "abacus:train", "--num", 3, "--samples", 2, "--max-new-tokens", 8)
    code, said = call("sample", *arguments, "--out", tmp_path / "drawn")
    assert code == 0, said
    assert {len(rollout.response_ids) for rollout in read_rollouts(tmp_path / "drawn").rollouts} == {1}
    code, said = call("score", "--rollouts", tmp_path / "drawn", "--model", silent, "--out", tmp_path / "scores")
    assert code == 0, said
    run = tmp_path / "run"
    arguments = ("--base", silent, "--rollouts", tmp_path / "drawn", "--out", run, "--set", "train.num_steps=2")
    code, said = call("train", *arguments)
    assert code == 0, said
    code, said = call("measure", run, "--out", tmp_path / "geometry")
    assert code == 0, said


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "", "response": "5", "reward": 1}, "a prompt must not be empty"),
        ({"prompt": "2 + 3", "response": " ", "reward": 1}, "a response must not be empty"),
        ({"prompt": "2 + 3", "response": "5", "reward": 1e999}, '"reward" must be a finite number'),
        ({"prompt": "2 + 3", "response": "5", "reward": -1e30}, ""),
    ],
)
def test_imports(tmp_path, row, sentence):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    code, said = call("import", tmp_path / "rows.jsonl", "--model", "abacus:base", "--out", tmp_path / "out")
    assert code == (1 if sentence else 0), said
    assert sentence in said


class Said:
    """The same rewards, in turn, for the answers of every problem."""

    def __init__(self, *rewards: float) -> None:
        self._rewards = rewards

    def __call__(self, groups):
        turns = len(self._rewards)
        return [Rewarded(tuple(self._rewards[i % turns] for i in range(len(texts)))) for _, texts in groups]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.mark.parametrize(
    ("objective", "rewards", "learns"),
    [
        ("grpo", (0.0,), False),
        ("grpo", (1.0,), False),
        ("grpo", (1e30, -1e30), True),
        ("dpo", (1.0,), False),
        ("dpo", (1e30, -1e30), True),
        ("kdrl", (0.0,), False),  # the teacher does not know these ends, so it judges none
    ],
)
def test_live_rewards(tmp_path, silent, monkeypatch, objective, rewards, learns):
    """Whatever the rewards say, the run ends, finite; a step with nothing to learn is counted and moves nothing."""
    monkeypatch.setattr(live_run, "rewards_of", lambda function, limit_seconds: Said(*rewards))
    config = RunConfig(
        base=silent,
        train=TrainConfig(objective=objective, num_steps=2, learning_rate=1e-2, lora=LoraConfig(rank=2, alpha=4.0)),
        live=LiveConfig(
            problems="abacus:train", num_problems=4, teacher="abacus:teacher" if objective == "kdrl" else None,
            prompts_per_step=2, samples=2, max_new_tokens=4,
        ),
    )  # fmt: skip
    out = train(config, tmp_path / "run")
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["update_norm"]) for line in lines)
    assert (lines[-1]["update_norm"] > 0) == learns
    assert (sum(line["skipped"] for line in lines) == 2) != learns
