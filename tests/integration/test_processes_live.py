"""Two processes share the problems, the scoring and the micro-batches of a live run, and end where one does."""

from __future__ import annotations

from limbeck.config import LiveConfig, LoraConfig, RunConfig, TrainConfig
from limbeck.train.record import read_metrics
from limbeck.train.run import train

from .test_processes import gap, launch_runs


def config(objective: str, **knobs: float) -> RunConfig:
    return RunConfig(
        base="abacus:base",
        train=TrainConfig(
            objective=objective,
            knobs=knobs,
            num_steps=2,
            token_budget=400,
            save_visible=False,
            lora=LoraConfig(rank=2, alpha=4.0),
        ),
        live=LiveConfig(
            problems="abacus:train",
            num_problems=20,
            teacher="abacus:teacher",
            prompts_per_step=3,  # not a multiple of the processes
            samples=3,
            max_new_tokens=48,
            reference_every=1,
        ),
    )


def test_two_processes_live(tmp_path):
    configs = {"kdrl": config("kdrl", beta=0.5), "opd_full": config("opd_full")}
    launch_runs(configs, tmp_path / "two")
    for name, one in configs.items():
        train(one, tmp_path / "one" / name)
        lines = [read_metrics(tmp_path / folder / name / "metrics.jsonl") for folder in ("two", "one")]
        for two, alone in zip(*lines, strict=True):
            assert two["reward"] == alone["reward"]
            assert two["tokens"] == alone["tokens"]
            for key in ("loss", "grad_norm", "ratio_max", "kl_student_reference_k3", "entropy"):
                assert abs(two[key] - alone[key]) <= 1e-4 * max(1.0, abs(alone[key])), (name, key)
        assert gap(tmp_path / "two" / name, tmp_path / "one" / name) < 1e-4
