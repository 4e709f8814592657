"""SFT and GRPO in one file, with nothing from ``limbeck.train``: what the training loop does, small enough to read.

    python examples/minimal_loop.py            # two minutes on a laptop

Objectives are pure functions of tensors; they return one value per token and divide nothing. So a loop of your own
needs four lines of limbeck: align, evaluate, total, divisor.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.batches.align import predictors, response_mask, targets
from limbeck.objectives import evaluate, find
from limbeck.objectives.reduce import count, divisor, total
from limbeck.problems.grading import Outcome, grade_all
from limbeck.problems.prompts import prompt_ids, response_ids, stop_ids, text_of
from limbeck.rollouts.credit import assign
from limbeck.rollouts.sample import Decoding, complete
from limbeck.worlds import resolve
from limbeck.worlds.abacus.generator import generate


def batch_of(rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids, lengths, and the mask of response tokens, from (prompt, response) ids."""
    prompts = torch.tensor([len(prompt) for prompt, _ in rows])
    lengths = torch.tensor([len(prompt) + len(response) for prompt, response in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, (prompt, response) in enumerate(rows):
        ids[i, : lengths[i]] = torch.tensor([*prompt, *response])
    return ids, lengths, response_mask(prompts, lengths, width=ids.shape[1])


def logprobs_of(model: torch.nn.Module, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Log p of every target, the plain way; ``limbeck.heads`` does it without the logits of all tokens at once."""
    attention = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    logits = predictors(model(input_ids=ids, attention_mask=attention).logits)
    return logits.log_softmax(-1).gather(2, targets(ids)[..., None])[..., 0]


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, name: str, rows: list, extra: dict) -> float:
    """One optimizer step of any token objective whose inputs are in ``extra``."""
    objective = find(name)
    ids, lengths, mask = batch_of(rows)
    logprobs = logprobs_of(model, ids, lengths)
    inputs = {**{key: make(mask) for key, make in extra.items()}, "logprobs": logprobs, "mask": mask}
    values = evaluate(objective, inputs, mask, {})
    loss = total(values.values, objective.unit, mask, objective.normalizer)
    loss = loss / divisor(count(mask), objective.unit, objective.normalizer)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def main(sft_steps: int = 10, grpo_steps: int = 5, batch: int = 16, samples: int = 8) -> list[float]:
    """Train the embedded base on worked solutions, then on its own graded answers; returns the rewards seen."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve("abacus:base"))
    model = AutoModelForCausalLM.from_pretrained(resolve("abacus:base"), dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    solved = generate("train", sft_steps * batch + grpo_steps * batch, seed=123)
    for number in range(sft_steps):
        picked = solved[number * batch : (number + 1) * batch]
        rows = [(prompt_ids(tokenizer, problem.prompt), response_ids(tokenizer, text)) for problem, text in picked]
        print(f"sft  step {number}: loss {step(model, optimizer, 'sft', rows, {}):.4f}")
    rewards_seen = []
    for number in range(grpo_steps):
        begin = (sft_steps + number) * batch
        problems = [problem for problem, _ in solved[begin : begin + batch] for _ in range(samples)]
        prompts = [prompt_ids(tokenizer, problem.prompt) for problem in problems]
        keys = [f"{number}/{i}" for i in range(len(problems))]
        decoding = Decoding(sampling_temperature=1.0, max_new_tokens=96)
        done = complete(model.eval(), prompts, keys, decoding, stop_ids=stop_ids(tokenizer))
        grades = grade_all([text_of(tokenizer, c.ids) for c in done], [problem.answer for problem in problems])
        rewards = torch.tensor([float(grade.outcome == Outcome.CORRECT) for grade in grades])
        advantages = assign("zscore", rewards, [problem.id for problem in problems])
        rows = [(prompt, c.ids) for prompt, c in zip(prompts, done, strict=True)]
        old = torch.tensor([x for c in done for x in c.logprobs])
        extra = {
            "advantages": lambda mask, a=advantages: torch.where(mask, a[:, None], 0.0),
            "old_logprobs": lambda mask, old=old: torch.zeros(mask.shape).masked_scatter(mask, old),
        }
        loss = step(model.train(), optimizer, "grpo", rows, extra)
        rewards_seen.append(rewards.mean().item())
        print(f"grpo step {number}: loss {loss:+.4f}, reward {rewards_seen[-1]:.3f}")
    return rewards_seen


if __name__ == "__main__":
    main()
