"""A toy student and rollouts that train in seconds."""

from __future__ import annotations

import math
import random

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from limbeck.types import Finish, Rollout, RolloutSet

VOCAB = 48


def tiny_model(seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).eval()


def tiny_rollouts(groups: int = 6, samples: int = 4, seed: int = 0) -> RolloutSet:
    rng = random.Random(seed)
    rollouts = []
    for group in range(groups):
        prompt = tuple(rng.randrange(2, VOCAB) for _ in range(rng.randint(2, 9)))
        for sample in range(samples):
            length = rng.choice([1, 2, 3, 5, 8, 13])
            rollouts.append(
                Rollout(
                    problem_id=f"p{group}",
                    sample=sample,
                    prompt_ids=prompt,
                    response_ids=(*(rng.randrange(2, VOCAB) for _ in range(length - 1)), 1),
                    behavior_logprobs=tuple(-rng.random() * math.log(VOCAB) for _ in range(length)),
                    reward=float(sample % 2 == group % 2),
                    finish=Finish.STOP,
                    response="",
                )
            )
    return RolloutSet(rollouts=tuple(rollouts), provenance={"made": "by a test"})
