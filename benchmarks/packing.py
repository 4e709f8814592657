"""Packed rows against padded ones: a forward and backward pass of a student, on batches of more and less even lengths.

    python benchmarks/packing.py

A Qwen3-shaped student (hidden 256, 4 layers, 2,048 words), 16 rows of at most 512 tokens, fp32, sdpa attention, one
thread. Padded and packed turn by turn; medians of processor seconds, which a neighbor's load moves less. Before timing
the two are compared: log-probs must agree to 1e-4 nats.
"""

from __future__ import annotations

import math
import random
import statistics
import time

import torch
from common import Results, machine
from transformers import Qwen3Config, Qwen3ForCausalLM

from limbeck.batches.collate import TrainingData, collate
from limbeck.batches.forward import Student
from limbeck.types import Finish, Rollout, TokenBatch

ROWS, SHORTEST, LONGEST, REPEATS, VOCAB = 16, 32, 512, 5, 2048


def student() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=True, attn_implementation="sdpa",
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def batch_of(lengths: list[int]) -> TokenBatch:
    draw = random.Random(0)
    rows = [
        Rollout(
            problem_id=f"p{i}", sample=0, prompt_ids=(2,), reward=1.0, finish=Finish.STOP, response="",
            response_ids=tuple(draw.randrange(2, VOCAB) for _ in range(length - 1)),
            behavior_logprobs=(math.nan,) * (length - 1),
        )
        for i, length in enumerate(lengths)
    ]  # fmt: skip
    data = TrainingData(rollouts=rows, items=[(i,) for i in range(len(rows))], weights=[1.0] * len(rows))
    return collate(data, range(len(rows)), ())


def timed(student: Student, batch: TokenBatch) -> float:
    begin = time.process_time()
    student(batch).logprobs.sum().backward()
    return time.process_time() - begin


def main() -> None:
    torch.set_num_threads(1)
    model, draw = student(), random.Random(1)
    ways = [Student(model), Student(model, packing=True)]
    drawn = [round(math.exp(draw.uniform(math.log(SHORTEST), math.log(LONGEST)))) for _ in range(ROWS)]
    cases = {
        "lengths drawn log-uniformly from 32 to 512": drawn,
        "one row of 512, fifteen of 64": [LONGEST] + [64] * (ROWS - 1),
        "neighbors in length, 448 to 512": [LONGEST - 4 * i for i in range(ROWS)],
    }
    results = Results("packing", command="python benchmarks/packing.py", machine=machine(1))
    for what, lengths in cases.items():
        batch = batch_of(lengths)
        with torch.no_grad():
            padded, packed = (way(batch).logprobs for way in ways)
        torch.testing.assert_close(packed, padded, rtol=0, atol=1e-4)
        turns = [[timed(way, batch) for way in ways] for _ in range(REPEATS + 1)][1:]
        theirs, ours = (statistics.median(column) for column in zip(*turns, strict=True))
        waste = 1 - sum(lengths) / (ROWS * max(lengths))
        results.add((f"{what}: {waste:.0%} padding", ours, theirs, "padded rows", theirs / ours, None, "s"))
    results.show()


if __name__ == "__main__":
    main()
