"""What must not change without being noticed: loss curves of a toy run per objective, and every resolved default.

After a change that is meant: ``LIMBECK_GOLDEN=write python -m pytest tests/golden``, then read the diff.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from limbeck.config import LoraConfig, TrainConfig
from limbeck.objectives import OBJECTIVES, knobs
from limbeck.rollouts.store import write_rollouts
from limbeck.studies.config import StudyConfig
from limbeck.train.record import read_metrics
from limbeck.train.run import RunConfig, train
from limbeck.types import Finish, Rollout, RolloutSet

HERE = Path(__file__).parent
CURVES = (
    "sft",
    "dft",
    "rift:reward-weighted",
    "rift:source",
    "offline_grpo:advantage-nll",
    "offline_grpo:krafton",
    "dpo",
)
STEPS = 40


def golden(name: str, found: object) -> object:
    """The kept value; written first when asked to."""
    path = HERE / f"{name}.json"
    if os.environ.get("LIMBECK_GOLDEN") == "write":
        path.write_text(json.dumps(found, indent=1) + "\n")
    return json.loads(path.read_text())


def toy(tmp_path: Path) -> tuple[str, str]:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.15,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    rollouts = []
    for group in range(10):
        for sample in range(4):
            # a right answer repeats the prompt's token, a wrong one counts up from it
            first, right = 2 + 3 * group, (group + sample) % 3 > 0
            body = [first] * (2 + sample) if right else [2 + (first + i) % 38 for i in range(2 + sample)]
            rollouts.append(
                Rollout(
                    problem_id=f"p{group}",
                    sample=sample,
                    prompt_ids=(first, 2 + group),
                    response_ids=(*body, 1),
                    behavior_logprobs=(-1.0,) * (len(body) + 1),
                    reward=float(right),
                    finish=Finish.STOP,
                    response="",
                )
            )
    return str(tmp_path / "model"), str(
        write_rollouts(RolloutSet(rollouts=tuple(rollouts), provenance={}), tmp_path / "data")
    )


@pytest.mark.parametrize("name", CURVES)
def test_loss_curves_stay(tmp_path, name):
    base, rollouts = toy(tmp_path)
    settings = TrainConfig(
        objective=name, learning_rate=1e-2, batch_size=8, num_steps=STEPS, lora=LoraConfig(rank=4, alpha=8.0)
    )
    out = train(RunConfig(base=base, rollouts=rollouts, train=settings), tmp_path / "run")
    found = [round(line["loss"], 6) for line in read_metrics(out / "metrics.jsonl")][::5]
    assert found == pytest.approx(golden(f"curve-{name.replace(':', '-')}", found), rel=2e-3, abs=2e-4)


def test_resolved_defaults_stay():
    study = StudyConfig.model_validate({"name": "x", "question": "?", "student": "m", "arms": [{"name": "a"}]})
    defaults = {"study": study.model_dump(mode="json"), "train": TrainConfig().model_dump(mode="json")}
    assert defaults == golden("defaults", defaults)


def test_knobs_of_every_objective_stay():
    found = {
        name: {knob: None if k.required else k.default for knob, k in knobs(row).items()}
        for name, row in OBJECTIVES.items()
    }
    assert found == golden("knobs", found)
