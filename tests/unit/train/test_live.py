"""The on-policy loop on a toy: every objective, resumption, stages, what is skipped, what is measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.config import LiveConfig, LoraConfig, RunConfig, StageConfig, TrainConfig
from limbeck.errors import ConfigError, ModelError
from limbeck.folders import read_manifest
from limbeck.rollouts.sample import Decoding
from limbeck.rollouts.store import write_rollouts
from limbeck.studies.sampling import sample_rollouts
from limbeck.train import live, live_draw, live_run
from limbeck.train.models import load_model, load_tokenizer
from limbeck.train.record import read_metrics
from limbeck.train.run import train
from limbeck.worlds.abacus.generator import generate

from .live_toy import Parity, toy_model

LIVE = [
    ("grpo", {}),
    ("grpo:kl", {"beta_kl": 0.1}),
    ("ppo", {}),
    ("dapo", {}),
    ("dr_grpo", {}),
    ("gspo", {"clip_low": 3e-4, "clip_high": 4e-4}),
    ("sapo", {}),
    ("opd", {}),
    ("opd_full", {}),
    ("gopd", {}),
    ("minillm", {}),
    ("kdrl", {"beta": 0.1}),
    ("kdrl_mask", {"beta": 0.1}),
    ("kdrl_annealing", {}),
    ("srpo", {}),
    ("hdpo", {"beta": 0.1}),
    ("rlsd", {}),
    ("trrd", {}),
    ("opd_then_rl", {"switch_step": 1}),
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {"beta": 0.5}),
    ("sft", {}),
    ("dpo", {}),
]
TIMES = ("seconds", "tokens_per_second")


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> str:
    return toy_model(tmp_path_factory.mktemp("live") / "student", seed=0)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> str:
    return toy_model(tmp_path_factory.mktemp("live") / "teacher", seed=1)


@pytest.fixture
def parity(monkeypatch) -> None:
    monkeypatch.setattr(live_run, "rewards_of", lambda function, limit_seconds: Parity())


@pytest.fixture
def config(student, teacher) -> RunConfig:
    return RunConfig(
        base=student,
        train=TrainConfig(
            objective="grpo",
            num_steps=2,
            learning_rate=1e-2,
            save_visible=False,
            lora=LoraConfig(rank=2, alpha=4.0),
            checkpoint_every=2,
        ),
        live=LiveConfig(
            problems="abacus:train",
            num_problems=20,
            teacher=teacher,
            prompts_per_step=3,
            samples=4,
            max_new_tokens=10,
            reference_every=0,
        ),
    )


def changed(config: RunConfig, *, train: dict | None = None, live: dict | None = None, **own) -> RunConfig:
    parts = {
        "train": config.train.model_copy(update=train or {}),
        "live": config.live.model_copy(update=live or {}),
    }
    return config.model_copy(update={**parts, **own})


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def lines_of(out: Path) -> list[dict]:
    """The log without clocks."""
    return [
        {name: value for name, value in line.items() if not name.startswith(TIMES)}
        for line in read_metrics(out / "metrics.jsonl")
    ]


def same(one: Path, other: Path) -> bool:
    a, b = adapter(one), adapter(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("name", "knobs"), LIVE)
def test_every_objective_learns_live(config, parity, tmp_path, name, knobs):
    normalizer = "sequence" if name == "dpo" else None
    train(changed(config, train={"objective": name, "knobs": knobs, "normalizer": normalizer}), tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    assert read_manifest(tmp_path / "run", "run")["update_norm"] > 0
    for line in lines:
        assert line["grad_norm"] > 0
        assert line["kl_sampler_student_k3"] < 1e-9  # the sampler wrote what the trainer scores
        assert line["ratio_q05"] <= line["ratio_q50"] <= line["ratio_q95"] <= line["ratio_max"]
        assert 0 <= line["truncated_share"] <= 1


def test_arms_with_one_seed_are_asked_the_same(config, parity, tmp_path):
    for name in ("grpo", "opd"):
        train(changed(config, train={"objective": name}), tmp_path / name)
    first, other = (lines_of(tmp_path / name)[0] for name in ("grpo", "opd"))
    assert first["rollouts_digest"] == other["rollouts_digest"]
    train(changed(config, train={"seed": 1}), tmp_path / "seed")
    assert lines_of(tmp_path / "seed")[0]["rollouts_digest"] != first["rollouts_digest"]


@pytest.mark.parametrize("changes", [{}, {"inner_epochs": 2, "minibatches": 2, "dynamic_sampling": 2}])
def test_a_run_cut_short_ends_bit_identical_sampling_included(config, parity, tmp_path, monkeypatch, changes):
    settings = {"num_steps": 5, "lora": LoraConfig(rank=2, alpha=4.0, dropout=0.1), "objective": "kdrl_annealing"}
    whole = changed(config, train=settings, live={"reference_every": 3, **changes})
    train(whole, tmp_path / "whole")
    real = live.draw

    def dies(engine, source, step):
        if step == 4:
            raise KeyboardInterrupt
        return real(engine, source, step)

    monkeypatch.setattr(live, "draw", dies)
    with pytest.raises(KeyboardInterrupt):
        train(whole, tmp_path / "cut")
    monkeypatch.setattr(live, "draw", real)
    train(whole, tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert lines_of(tmp_path / "whole") == lines_of(tmp_path / "cut")


def test_two_stages_are_the_objective_that_switches(config, parity, tmp_path):
    common = {"num_steps": 4, "normalizer": "token"}
    train(changed(config, train={**common, "objective": "opd_then_rl", "knobs": {"switch_step": 2}}), tmp_path / "one")
    stages = (StageConfig(objective="opd:clipped", until=2), StageConfig(objective="grpo"))
    train(changed(config, train={**common, "objective": "sft"}, live={"stages": stages}), tmp_path / "two")
    assert same(tmp_path / "one", tmp_path / "two")
    assert [line["objective"] for line in lines_of(tmp_path / "two")] == ["opd:clipped"] * 2 + ["grpo"] * 2
    assert read_manifest(tmp_path / "two", "run")["objective"] == "opd:clipped > grpo"


def test_trrd_with_the_old_policy_alone_is_grpo(config, parity, tmp_path):
    for name, knobs in (("grpo", {"dual_clip": 3.0}), ("trrd", {"alpha": 1.0})):
        train(changed(config, train={"objective": name, "knobs": knobs, "normalizer": "token"}), tmp_path / name)
    assert same(tmp_path / "grpo", tmp_path / "trrd")


def test_several_updates_on_one_batch_leave_the_sampler_behind(config, parity, tmp_path):
    train(changed(config, live={"inner_epochs": 3, "minibatches": 2}, train={"learning_rate": 0.05}), tmp_path / "run")
    line = lines_of(tmp_path / "run")[1]
    assert line["kl_sampler_student_k3"] > 1e-6
    assert line["ratio_max"] > 1 > line["ratio_q05"]
    assert line["clipped_low"] + line["clipped_high"] == pytest.approx(line["clipped"], abs=0.02)
    assert line["rows"] == 3 * 12  # every pass sees every rollout


def test_without_signal_nothing_moves_and_a_sentence_is_said(config, tmp_path):
    # the grader takes no answer of a model with random weights for right
    with pytest.warns(RuntimeWarning, match="the last 10 steps had nothing to learn from"):
        train(changed(config, train={"num_steps": 10}), tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [1] * 10
    assert {line["signal_share"] for line in lines} == {0.0}
    assert read_manifest(tmp_path / "run", "run")["update_norm"] == 0
    assert lines[-1]["learning_rate"] < lines[2]["learning_rate"]  # the schedule goes on


def test_without_signal_a_teacher_still_teaches(config, tmp_path):
    train(changed(config, train={"objective": "kdrl", "knobs": {"beta": 0.5}}), tmp_path / "run")
    assert [line["skipped"] for line in lines_of(tmp_path / "run")] == [0, 0]


def test_dynamic_sampling_draws_until_groups_have_signal_and_counts(config, parity, tmp_path):
    train(
        changed(config, train={"objective": "dapo", "num_steps": 4}, live={"dynamic_sampling": 3, "samples": 2}),
        tmp_path / "run",
    )
    lines = lines_of(tmp_path / "run")
    assert any(line["turns"] > 1 for line in lines)
    for line in lines:
        assert line["turns"] <= 3
        assert line["groups"] == min(3, round(line["signal_share"] * line["groups_sampled"]))
        assert line["rollouts_sampled"] == 2 * line["groups_sampled"]
        assert line["rows"] == 2 * line["groups"]


def test_a_share_of_the_prompts_is_answered_by_others(config, parity, teacher, tmp_path):
    problems = [problem for problem, _ in generate("train", 8, seed=3)]
    others = sample_rollouts(
        load_model(teacher), load_tokenizer(teacher), problems, Decoding(sampling_temperature=1.0, max_new_tokens=6),
        samples=4, source={"model": "teacher"},
    )  # fmt: skip
    write_rollouts(others, tmp_path / "given")
    mixed = changed(
        config,
        train={"objective": "jsd", "knobs": {"beta": 0.5}},
        live={"student_fraction": 0.5},
        rollouts=str(tmp_path / "given"),
    )
    train(mixed, tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert [line["groups_given"] for line in lines] == [2, 1]
    assert all(line["groups"] == 3 and line["loss"] > 0 for line in lines)
    assert all(line["kl_sampler_student_k3"] < 1e-9 for line in lines)  # of the student's own answers alone
    assert read_manifest(tmp_path / "run", "run")["rollouts_digest"] == others.digest
    silent = [replace(r, behavior_logprobs=(math.nan,) * len(r.response_ids)) for r in others.rollouts]
    write_rollouts(replace(others, rollouts=tuple(silent)), tmp_path / "silent")
    ratio = changed(mixed, train={"objective": "opd", "knobs": {}}, rollouts=str(tmp_path / "silent"))
    with pytest.raises(ConfigError, match=r"opd compares the student with who wrote a rollout.*received 32 without"):
        train(ratio, tmp_path / "refused")


def test_a_sampler_that_misses_the_updates_stops_the_run(config, parity, tmp_path, monkeypatch):
    real = live_draw.complete

    def stale(model, *arguments, **settings):
        with model.disable_adapter():
            return real(model, *arguments, **settings)

    monkeypatch.setattr(live_draw, "complete", stale)
    with pytest.raises(ModelError, match=r"the sampler.s log-probs must be the trainer.s within 0\.1 nats"):
        train(changed(config, train={"learning_rate": 0.1}), tmp_path / "run")
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1]  # before the first update they were the same


def test_every_weight_can_be_trained_live(config, parity, tmp_path):
    whole = {"method": "full", "learning_rate": 1e-3, "objective": "grpo:kl", "knobs": {"beta_kl": 0.1}}
    train(changed(config, train=whole), tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert lines[0]["kl_student_reference_k3"] < 1e-9 < lines[1]["kl_student_reference_k3"]


def test_a_stopping_norm_stops(config, parity, tmp_path):
    train(changed(config, train={"num_steps": 9, "stop_norm": 0.3}), tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert len(lines) == read_manifest(tmp_path / "run", "run")["steps"] < 9
    assert lines[-1]["update_norm"] >= 0.3 > lines[-2]["update_norm"]
