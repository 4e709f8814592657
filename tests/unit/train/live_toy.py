"""A toy student that answers problems: random weights over the world's token map, and rewards that need no grader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from limbeck.train.rewards import Rewarded
from limbeck.types import Problem
from limbeck.worlds import resolve


def toy_model(folder: Path, *, seed: int, eos: list[int] | None = None) -> str:
    tokenizer = AutoTokenizer.from_pretrained(resolve("abacus:base"))
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=168,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=160,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    if eos:
        model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Parity:
    """1 for an answer whose text has an even number of letters e: some right and some wrong in most groups."""

    def __call__(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[Rewarded]:
        return [Rewarded(tuple(float(text.count("e") % 2 == 0) for text in texts)) for _, texts in groups]

    def __enter__(self) -> Parity:
        return self

    def __exit__(self, *error: object) -> None:
        return None
