"""One factor at a time: who writes the rollouts and when, which tokens count, teacher and reward mixed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.config import LiveConfig, LoraConfig, RunConfig, SparsifyConfig, SubspaceConfig, TrainConfig
from limbeck.errors import ConfigError
from limbeck.folders import read_manifest
from limbeck.train import live, live_run
from limbeck.train.record import read_metrics
from limbeck.train.run import train

from .live_toy import Parity, toy_model

STILL = 1e-30  # a rate at which no weight moves


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    return [toy_model(tmp_path_factory.mktemp("controls") / f"model-{seed}", seed=seed) for seed in range(3)]


@pytest.fixture(autouse=True)
def parity(monkeypatch) -> None:
    monkeypatch.setattr(live_run, "rewards_of", lambda function, limit_seconds: Parity())


@pytest.fixture
def run(models, tmp_path):
    def go(name: str, *, base: int = 0, live: dict | None = None, **changes) -> Path:
        lora = LoraConfig(rank=2, alpha=4.0)
        settings = {"objective": "opd", "num_steps": 3, "learning_rate": 1e-2, "schedule": "constant", "lora": lora}
        settings |= {"save_visible": False, "checkpoint_every": 2, "warmup_fraction": 0.0}
        given = {"problems": "abacus:train", "num_problems": 20, "teacher": models[1], "prompts_per_step": 3}
        given |= {"samples": 3, "max_new_tokens": 8, "reference_every": 0}
        config = RunConfig(
            base=models[base], train=TrainConfig(**settings | changes), live=LiveConfig(**given | (live or {}))
        )
        return train(config, tmp_path / name)

    return go


def column(out: Path, name: str) -> list:
    return [line.get(name) for line in read_metrics(out / "metrics.jsonl")]


def weights(out: Path) -> dict[str, torch.Tensor]:
    adapter = out / "adapter" / "adapter_model.safetensors"
    return load_file(adapter if adapter.is_file() else out / "model" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_teacher_s_answers_are_the_teacher_s_whoever_learns(run):
    one, other = (run(f"of-{base}", base=base, live={"writer": "teacher"}) for base in (0, 2))
    assert column(one, "rollouts_digest") == column(other, "rollouts_digest")
    assert not same(one, other)
    line = read_metrics(one / "metrics.jsonl")[0]
    assert (line["ratio_q05"], line["ratio_max"]) == pytest.approx((1, 1), abs=1e-4)  # no importance weights by default
    assert line["writer_ratio_max"] > 1.1
    assert 0 < line["writer_effective_share"] < 1
    assert not any(name.startswith("kl_student") for name in line)  # no estimate from somebody else's samples
    facts = read_manifest(one, "run")
    assert (facts["writer"], facts["importance"]) == ("teacher", False)
    weighted = read_metrics(run("weighted", live={"writer": "teacher", "importance": True}) / "metrics.jsonl")[0]
    assert weighted["ratio_max"] == pytest.approx(weighted["writer_ratio_max"], rel=1e-4)


def test_stale_rollouts_are_written_by_the_student_as_it_was(run):
    still = column(run("still", learning_rate=STILL), "rollouts_digest")
    fresh = run("fresh")
    assert [a == b for a, b in zip(column(fresh, "rollouts_digest"), still, strict=True)] == [True, False, False]
    old = run("old", live={"staleness": 64})
    assert column(old, "rollouts_digest") == still  # all by the student before the first step
    assert column(old, "age") == [0, 1, 2]
    late = run("late", live={"staleness": 1})
    assert column(late, "age") == [0, 1, 1]
    assert [a == b for a, b in zip(column(late, "rollouts_digest"), still, strict=True)] == [True, True, False]
    assert column(late, "writer_log_ratio_std")[0] < 1e-4 < column(late, "writer_log_ratio_std")[1]
    assert column(fresh, "writer_log_ratio_std") == [None] * 3


def test_stale_rollouts_are_weighted_or_not(run):
    weighted, plain = (run(f"w-{on}", live={"staleness": 2, "importance": on}) for on in (True, False))
    assert column(weighted, "rollouts_digest")[:2] == column(plain, "rollouts_digest")[:2]
    assert column(weighted, "ratio_max") == pytest.approx(column(weighted, "writer_ratio_max"), rel=1e-4)
    assert column(plain, "ratio_max") == pytest.approx([1, 1, 1], abs=1e-4)
    assert column(plain, "writer_ratio_max")[2] > 1.001
    assert not same(weighted, plain)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_stale_run_goes_on_bit_for_bit(run, monkeypatch, method):
    settings = {"method": method, "num_steps": 6, "live": {"staleness": 2}}
    calm = run("calm", **settings)
    gradient = live.gradient

    def dies(*args, step, **kwargs):
        if step == 6:
            raise KeyboardInterrupt
        return gradient(*args, step=step, **kwargs)

    monkeypatch.setattr(live, "gradient", dies)
    with pytest.raises(KeyboardInterrupt):
        run("torn", **settings)
    monkeypatch.setattr(live, "gradient", gradient)
    torn = run("torn", **settings)
    assert same(torn, calm)
    assert column(torn, "rollouts_digest") == column(calm, "rollouts_digest")


def test_all_tokens_are_what_they_were_and_some_are_counted(run):
    plain, whole = run("plain"), run("whole", sparsify=SparsifyConfig(rule="top", share=1.0))
    assert same(plain, whole)
    step = run("step", num_steps=1)
    for rule in ("random", "top", "top_abs", "bottom"):
        out = run(rule, sparsify=SparsifyConfig(rule=rule, share=0.25), num_steps=1)
        assert 0.2 < column(out, "kept_share")[0] < 0.5
        assert not same(out, step)


@pytest.mark.parametrize("rule", ["random", "top"])
def test_which_tokens_are_kept_does_not_depend_on_the_cut(run, rule):
    sparse = SparsifyConfig(rule=rule, share=0.5)
    one, many = (run(f"cut-{budget}", sparsify=sparse, num_steps=1, token_budget=budget) for budget in (1 << 20, 1))
    a, b = weights(one), weights(many)
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_a_mixture_says_how_large_its_terms_are(run):
    out = run("mixed", objective="opd_rlvr", knobs={"alpha": 0.25})
    line = read_metrics(out / "metrics.jsonl")[0]
    assert line["teacher_term_rms"] > 0
    assert line["reward_term_rms"] > 0
    assert "teacher_term_square" not in line
    ends = run("teacher", objective="opd_rlvr", knobs={"alpha": 1.0})
    assert all(
        torch.allclose(a, b, atol=1e-7)
        for a, b in zip(weights(ends).values(), weights(run("opd")).values(), strict=True)
    )


def test_a_live_run_stays_in_its_subspace(run):
    out = run("inside", method="full", num_steps=2, subspace=SubspaceConfig(k=4, side="both"))
    assert column(out, "leak")[0] is None
    assert column(out, "leak")[1] < 1e-5
    assert column(out, "update_norm")[1] > 0
    assert read_manifest(out, "run")["subspace"]["leak"] < 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"live": {"writer": "teacher", "teacher": None}, "objective": "grpo"}, r"live\.teacher"),
        ({"live": {"writer": "teacher", "staleness": 1}}, "on one process"),
        ({"objective": "dpo", "normalizer": "sequence", "sparsify": SparsifyConfig()}, "one value per pair"),
        ({"objective": "grpo", "sparsify": SparsifyConfig(rule="top")}, "reads no teacher_logprobs"),
        ({"subspace": SubspaceConfig()}, "adapter"),
    ],
)
def test_what_cannot_be_is_refused(run, changes, words):
    with pytest.raises(ConfigError, match=words):
        run("refused", **changes)
