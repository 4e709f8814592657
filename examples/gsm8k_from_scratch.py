"""Real text through every stage: a tokenizer, a small Qwen3 and rollouts made from GSM8K files, ready for a study.

    python examples/gsm8k_from_scratch.py --train gsm8k_train.jsonl --test gsm8k_test.jsonl --out runs/gsm8k
    limbeck study run runs/gsm8k/study.toml --out runs/gsm8k/study

Writes ``model/`` (a byte-level BPE tokenizer and a Qwen3 of a few million parameters, trained for minutes on half of the
training problems), ``rollouts.jsonl`` (the other half: the human solution as a right rollout, the same with a corrupted
answer as a wrong one) and ``study.toml``. A model this small solves next to none of GSM8K: what this shows is that real
text, real formats and a model that limbeck never saw pass through every stage.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from limbeck.problems.prompts import prompt_ids, response_ids
from limbeck.problems.sources import gsm8k

PAD, EOS, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
TEMPLATE = (
    (
        "{% for m in messages %}{{ (USER if m['role'] == 'user' else ASSISTANT) + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ ASSISTANT }}{% endif %}"
    )
    .replace("USER", f"'{USER}'")
    .replace("ASSISTANT", f"'{ASSISTANT}'")
)

STUDY = """\
name = "gsm8k-from-scratch"
question = "Do six offline objectives run on real text, a real file format and a model made elsewhere?"
student = "model"

[rollouts]
path = "rollouts.jsonl"

[train]
learning_rate = 1e-3
batch_size = 16
num_steps = 60
lora = { rank = 16, alpha = 32.0 }

[eval]
max_new_tokens = 160
batch_size = 128
problems = { path = "TEST", format = "gsm8k", num = EVAL_PROBLEMS }

[geometry]
cka_problems = 100

[paths]
pairs = [["sft", "rft"], ["sft", "dpo"], ["sft", "sft-seed"]]
accuracy = false
problems = 100

[[arms]]
name = "sft"
[[arms]]
name = "rft"
train = { selection = "correct" }
[[arms]]
name = "dft"
train = { objective = "dft" }
[[arms]]
name = "rift"
train = { objective = "rift:reward-weighted" }
[[arms]]
name = "grpo"
train = { objective = "offline_grpo:advantage-nll" }
[[arms]]
name = "dpo"
train = { objective = "dpo", learning_rate = 1e-4 }
[[arms]]
name = "sft-seed"
role = "null"
seeds = [1]
"""


def make_tokenizer(texts: list[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Byte-level BPE, numbers digit by digit, with a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    special = [PAD, EOS, USER, ASSISTANT]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=TEMPLATE,
    )


def make_model(
    tokenizer: PreTrainedTokenizerFast, rows: list[tuple[str, str]], *, steps: int, seed: int
) -> Qwen3ForCausalLM:
    """A few minutes of next-token training on (question, solution) rows."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.06,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    ids = [(prompt_ids(tokenizer, q), response_ids(tokenizer, s)) for q, s in rows]
    ids = [row for row in ids if len(row[0]) + len(row[1]) <= 400]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    rng, begin = random.Random(seed), time.monotonic()
    for step in range(1, steps + 1):
        batch = rng.sample(ids, 16)
        width = max(len(p) + len(r) for p, r in batch)
        tokens = torch.full((len(batch), width), config.pad_token_id)
        labels = torch.full_like(tokens, -100)
        for i, (prompt, response) in enumerate(batch):
            row = torch.tensor([*prompt, *response])
            tokens[i, : len(row)] = row
            labels[i, : len(row)] = row
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            left = (time.monotonic() - begin) / step * (steps - step)
            print(f"step {step} of {steps}, loss {loss.item():.3f}, about {left:.0f} s left", flush=True)
    return model


def corrupt(solution: str, answer: str, rng: random.Random) -> str:
    """The same solution with another final answer."""
    wrong = str(int(float(answer.replace(",", ""))) + rng.choice([-3, -2, -1, 1, 2, 3, 10]))
    reasoning, marker, _ = solution.rpartition("#### ")
    return f"{reasoning}{marker}{wrong}"


def main() -> None:
    """Write model, rollouts and study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rollout-problems", type=int, default=1000)
    parser.add_argument("--eval-problems", type=int, default=500)
    args = parser.parse_args()
    solved = gsm8k(args.train)
    half = len(solved) // 2
    rows = [(problem.prompt, solution) for problem, solution in solved[:half]]
    tokenizer = make_tokenizer([text for row in rows for text in row])
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(args.out / "model")
    model = make_model(tokenizer, rows, steps=args.steps, seed=0)
    model.save_pretrained(args.out / "model")
    rng = random.Random(0)
    with (args.out / "rollouts.jsonl").open("w", encoding="utf-8") as file:
        for problem, solution in solved[half : half + args.rollout_problems]:
            for response, reward in ((solution, 1.0), (corrupt(solution, problem.answer, rng), 0.0)):
                line = {"problem_id": problem.id, "prompt": problem.prompt, "response": response, "reward": reward}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    study = STUDY.replace("TEST", str(args.test.resolve())).replace("EVAL_PROBLEMS", str(args.eval_problems))
    (args.out / "study.toml").write_text(study, encoding="utf-8")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {args.out / 'model'}")
    print(args.out / "study.toml")


if __name__ == "__main__":
    main()
