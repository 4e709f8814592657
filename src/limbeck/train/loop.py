"""The offline loop: plan, count, forward, objective, reduce, backward, clip, step, record.

The divisor of a step is counted over all of its micro-batches before the first forward pass, so how a step is cut
changes memory and time and never the gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from limbeck.batches.collate import TrainingData, collate, micro_batches, plan
from limbeck.batches.forward import Scored, Student
from limbeck.config import TrainConfig
from limbeck.errors import DivergedError
from limbeck.objectives import LOOP_KNOBS, evaluate, inputs, knobs
from limbeck.objectives.reduce import StepCount, count, divisor, total
from limbeck.train import checkpoint, record
from limbeck.train.models import adapter_tensors
from limbeck.train.optimizer import make_optimizer
from limbeck.types import Normalizer, Objective, TokenBatch, Values


def run_steps(
    model: nn.Module,
    data: TrainingData,
    objective: Objective,
    config: TrainConfig,
    out: Path,
    *,
    advance: Callable[[int], None] = lambda num: None,
) -> int:
    """Train the trainable tensors of ``model`` in place, from the newest checkpoint in ``out`` if there is one.

    Args:
        model: a causal language model whose adapter is trainable and everything else frozen.
        data: items with the columns that the objective reads.
        objective: the row of ``OBJECTIVES``.
        config: rates, sizes, seeds; its normalizer overrides the published one.
        out: gets ``metrics.jsonl`` and ``checkpoints/``.
        advance: called with 1 after every step.

    Returns:
        The last step taken; fewer than ``num_steps`` when ``stop_norm`` was reached.

    Raises:
        DivergedError: a loss or gradient is not finite; the step's inputs are saved in ``out/diverged``.
    """
    student = Student(model).eval()  # the base's own dropout stays off: references were scored without it
    for name, module in model.named_modules():
        module.train(module.training or "lora_dropout" in name)
    optimizer, schedule = make_optimizer(model, config)
    torch.manual_seed(config.seed)
    begin = checkpoint.resume(out / "checkpoints", model, optimizer, schedule)
    record.cut_back(out / "metrics.jsonl", begin)
    advance(begin)
    steps = plan(data.keys, batch_size=config.batch_size, num_steps=config.num_steps, seed=config.seed)
    for step, items in enumerate(steps, start=1):
        if step <= begin:
            continue
        clock = time.monotonic()
        line = _step(student, data, items, objective, config, step, out)
        optimizer.step()
        line["learning_rate"] = schedule.get_last_lr()[0]
        schedule.step()
        optimizer.zero_grad()
        line["update_norm"] = record.update_norm(adapter_tensors(model), config.lora.alpha / config.lora.rank)
        record.append(out / "metrics.jsonl", {"step": step, **line, "seconds": round(time.monotonic() - clock, 4)})
        stopping = config.stop_norm is not None and line["update_norm"] >= config.stop_norm
        if step % config.checkpoint_every == 0 and step < config.num_steps and not stopping:
            checkpoint.save(out / "checkpoints", step, model, optimizer, schedule)
        advance(1)
        if stopping:
            return step
    return config.num_steps


def _step(
    student: Student,
    data: TrainingData,
    items: Sequence[int],
    objective: Objective,
    config: TrainConfig,
    step: int,
    out: Path,
) -> dict[str, Any]:
    """Gradients of one optimizer step, and its record."""
    names = inputs(objective)
    device = next(student.parameters()).device
    cuts = micro_batches(data, items, token_budget=config.token_budget)
    batches = [collate(data, cut, names) for cut in cuts]
    counted = StepCount(0, 0)
    for cut, batch in zip(cuts, batches, strict=True):
        counted = counted.plus(count(batch.mask, pairs=sum(len(data.items[item]) == 2 for item in cut)))
    normalizer: Normalizer = config.normalizer or objective.normalizer
    by = divisor(counted, objective.unit, normalizer, length=data.longest_response)
    settings = {**config.knobs, **_loop_knobs(objective, {"step": step - 1, "num_steps": config.num_steps})}
    means, loss = record.Means(), 0.0
    for batch in batches:
        batch = batch.to(device)
        scored = student(batch)
        values = evaluate(objective, _inputs(batch, scored), batch.mask, settings)
        part = total(values.values, objective.unit, batch.mask, normalizer) / by
        if not math.isfinite(part.item()):
            _diverged(out, step, batch, scored, "loss")
        part.backward()
        loss += part.item()
        means.add(_detached(values), objective.unit, batch.mask, _diagnostics(scored))
    parameters = [p for p in student.parameters() if p.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm).item()
    if not math.isfinite(norm):
        _diverged(out, step, batches[-1], None, "gradient")
    padded = sum(batch.ids.numel() for batch in batches)
    used = sum(int(batch.lengths.sum()) for batch in batches)
    return {
        "loss": loss,
        **means.result(),
        "grad_norm": norm,
        "tokens": counted.tokens,
        "rows": counted.rollouts,
        "padding": 1 - used / padded,
    }


def _loop_knobs(objective: Objective, known: dict[str, int]) -> dict[str, int]:
    """What the loop alone knows, for objectives that change over a run."""
    own = knobs(objective)
    return {name: known[name] for name in LOOP_KNOBS if name in own}


def _inputs(batch: TokenBatch, scored: Scored) -> dict[str, torch.Tensor]:
    return {**batch.inputs, "logprobs": scored.logprobs, "entropy": scored.entropy, "mask": batch.mask}


def _diagnostics(scored: Scored) -> dict[str, torch.Tensor]:
    return {"nll": -scored.logprobs.detach(), "entropy": scored.entropy.detach()}


def _detached(values: Values) -> Values:
    return Values(values=values.values.detach(), metrics={k: v.detach() for k, v in values.metrics.items()})


def _diverged(out: Path, step: int, batch: TokenBatch, scored: Scored | None, what: str) -> None:
    tensors = {"ids": batch.ids, "mask": batch.mask, "row_index": batch.row_index, **batch.inputs}
    if scored is not None:
        tensors |= {"logprobs": scored.logprobs.detach(), "entropy": scored.entropy.detach()}
    folder = out / "diverged"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, folder / f"step-{step:06d}.safetensors")
    raise DivergedError(
        f"every {what} must be finite, received NaN or infinity at step {step}. The batch is in {folder}; lower "
        "train.learning_rate, or look there for the row that caused it."
    )
