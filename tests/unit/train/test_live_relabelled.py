"""Rewards other than the grader's, in live runs."""

from __future__ import annotations

from limbeck.config import LiveConfig, RunConfig, TrainConfig
from limbeck.train.record import read_metrics
from limbeck.train.run import train

LIVE = LiveConfig(
    problems="abacus:train", num_problems=8, prompts_per_step=4, samples=4, max_new_tokens=48, reference_every=0
)


def test_shuffled_rewards_change_what_is_learned_and_nothing_that_was_sampled(tmp_path):
    found = {}
    for rewards in ("graded", "shuffled"):
        settings = TrainConfig(objective="grpo", num_steps=1, warmup_fraction=0.0, rewards=rewards, save_visible=False)
        config = RunConfig(base="abacus:base", train=settings, live=LIVE)
        (found[rewards],) = read_metrics(train(config, tmp_path / rewards) / "metrics.jsonl")
    graded, shuffled = found["graded"], found["shuffled"]
    assert graded["signal_share"] > 0
    assert [graded[key] for key in ("reward", "tokens_sampled")] == [
        shuffled[key] for key in ("reward", "tokens_sampled")
    ]
    assert abs(graded["grad_norm"] - shuffled["grad_norm"]) > 1e-3 * graded["grad_norm"]
