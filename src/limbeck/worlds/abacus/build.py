"""Train abacus' base and teacher from nothing and write them where the package ships them.

One network shape, two seeds, two stopping rules on validation problems: the base stops when it is half good,
the teacher when it is nearly perfect. Plain next-token training on the generator's worked solutions; the loop is
thirty lines because nothing of limbeck may be needed to make the world that limbeck is tested on.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from limbeck.problems.prompts import prompt_ids, response_ids, stop_ids, text_of
from limbeck.rollouts.sample import Decoding, complete
from limbeck.types import Problem
from limbeck.worlds.abacus.generator import generate
from limbeck.worlds.abacus.tokenizer import PAD, build_tokenizer

MAX_NEW_TOKENS = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one model of the world is made. Accuracies are fractions, rates per step."""

    name: str
    seed: int
    stop_at: float
    max_steps: int
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup: int = 20
    check_every: int = 20
    check_problems: int = 300


BASE = Recipe(name="base", seed=11, stop_at=0.46, max_steps=500, check_every=10)
TEACHER = Recipe(name="teacher", seed=7, stop_at=2.0, max_steps=800, check_every=40)


def network(tokenizer: PreTrainedTokenizerBase) -> Qwen3Config:
    """The architecture that base and teacher share: 0.8 million parameters, tied head."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),  # type: ignore[arg-type]
        eos_token_id=stop_ids(tokenizer)[0],
        bos_token_id=None,
        use_cache=True,
        initializer_range=0.08,  # about 1 / sqrt(hidden_size); the library default starts a net this narrow very slowly
    )


def batches(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, labels) of fresh training problems, labels -100 on prompt and padding."""
    chunk = 0
    while True:
        rows = []
        for problem, text in generate("train", 64 * recipe.batch_size, seed=1000 * recipe.seed + chunk):
            rows.append((prompt_ids(tokenizer, problem.prompt), response_ids(tokenizer, text)))
        rows.sort(key=lambda r: len(r[0]) + len(r[1]))
        starts = list(range(0, len(rows), recipe.batch_size))
        random.Random(chunk).shuffle(starts)  # noqa: S311
        for start in starts:
            picked = rows[start : start + recipe.batch_size]
            width = max(len(p) + len(r) for p, r in picked)
            ids = torch.zeros(len(picked), width, dtype=torch.long)
            labels = torch.full_like(ids, -100)
            for i, (prompt, response) in enumerate(picked):
                row = torch.tensor([*prompt, *response])
                ids[i, : len(row)] = row
                labels[i, len(prompt) : len(row)] = row[len(prompt) :]
            yield ids, labels
        chunk += 1


def accuracy(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, problems: list[Problem], *, temperature: float = 0.0
) -> float:
    """Share of problems answered correctly by one completion each."""
    model.eval()
    done = complete(
        model,
        [prompt_ids(tokenizer, p.prompt) for p in problems],
        [p.id for p in problems],
        Decoding(sampling_temperature=temperature, max_new_tokens=MAX_NEW_TOKENS, batch_size=512),
        stop_ids=stop_ids(tokenizer),
    )
    texts = [text_of(tokenizer, c.ids) for c in done]
    right = sum(t.rsplit("#### ", 1)[-1].strip() == p.answer for t, p in zip(texts, problems, strict=True))
    return right / len(problems)


def train_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, log: Callable[[dict], None]) -> Qwen3ForCausalLM:
    """Train one model until its validation accuracy reaches the recipe's mark or its steps are used up."""
    torch.manual_seed(recipe.seed)
    model = Qwen3ForCausalLM(network(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)

    def rate(step: int) -> float:
        return min((step + 1) / recipe.warmup, max(0.02, 1 - step / recipe.max_steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    validation = [p for p, _ in generate("validation", recipe.check_problems, seed=0)]
    begin = time.monotonic()
    for step, (ids, labels) in enumerate(batches(tokenizer, recipe), start=1):
        model.train()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % recipe.check_every == 0 or step == recipe.max_steps:
            share = accuracy(model, tokenizer, validation)
            seconds = round(time.monotonic() - begin, 1)
            log(
                {
                    "model": recipe.name,
                    "step": step,
                    "loss": round(loss.item(), 4),
                    "accuracy": share,
                    "seconds": seconds,
                }
            )
            if share >= recipe.stop_at or step == recipe.max_steps:
                return model
    raise AssertionError("the stream of batches is endless")


def build(out: Path, log: Callable[[dict], None], recipes: Sequence[Recipe] = (BASE, TEACHER)) -> None:
    """Write each model as a folder of ``out`` (bfloat16 safetensors, tokenizer, and ``build.json``, its training log)."""
    tokenizer = build_tokenizer()
    for recipe in recipes:
        records: list[dict] = []

        def keep(record: dict, records: list[dict] = records) -> None:
            records.append(record)
            log(record)

        model = train_model(recipe, tokenizer, keep)
        folder = out / recipe.name
        model.bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "build.json").write_text(json.dumps({"recipe": asdict(recipe), "log": records}, indent=1) + "\n")
