"""What walks: a student on its processes, its optimizers and schedules; and one optimizer step of it.

The divisor of a step is counted over all micro-batches of all processes before the first forward pass, so how a step is
cut changes memory and time and never the gradient. The offline and the on-policy loop share what is here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from limbeck.batches.collate import TrainingData, collate, count_items, live_tokens, micro_batches
from limbeck.batches.forward import Scored, Student, computed_cells, unwrapped
from limbeck.batches.sparsify import token_weights
from limbeck.batches.whole import FROZEN_LOGITS, Top, Whole
from limbeck.config import TrainConfig
from limbeck.errors import DivergedError, NotFiniteError
from limbeck.heads import Head
from limbeck.objectives import LOOP_KNOBS, evaluate, inputs, knobs
from limbeck.objectives.contract import TEACHER_FLOOR
from limbeck.objectives.reduce import divisor, total
from limbeck.train import record
from limbeck.train.memory import micro_batch_tokens
from limbeck.train.models import trained_tensors
from limbeck.train.optimizer import Walker, make_walkers
from limbeck.train.processes import make_accelerator, own_part, shares, summed, whole
from limbeck.train.replay import Read, diverged
from limbeck.train.subspace import Subspace, confine, leak, project_gradients
from limbeck.types import Normalizer, Objective, TokenBatch, Values

NOT_FINITE = "every {} must be finite, received NaN or infinity at step {}"


class Engine(NamedTuple):
    """A student that can take steps.

    Attributes:
        accelerator: this process among the others.
        student: as the processes hold it: plain, replicated or sharded.
        walkers: optimizers with their schedules.
        start: this process's part of the weights before the first step; empty for adapters, which start at no update.
        config: rates, sizes, seeds, precision; ``token_budget`` as it was decided.
        frozen: heads of the models whose whole distributions an objective reads, by input name (``teacher_logits``).
        subspace: where the update may go; None for everywhere.
        carried: tensors besides weights and optimizers that a resumed run needs, on the main process; filled as it goes.
    """

    accelerator: Accelerator
    student: nn.Module
    walkers: Sequence[Walker]
    start: Mapping[str, Tensor]
    config: TrainConfig
    frozen: Mapping[str, Head | Top]
    subspace: Subspace | None = None
    carried: dict[str, Tensor] = {}  # noqa: RUF012  every engine has its own, from make_engine

    @property
    def model(self) -> nn.Module:
        """The model inside, adapter included."""
        return self.accelerator.unwrap_model(self.student).model

    @property
    def sharded(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.FSDP


def make_engine(model: nn.Module, config: TrainConfig, frozen: Mapping[str, Head | Top] | None = None) -> Engine:
    """Put a model whose trainable tensors are marked onto its processes, ready for the first step.

    Args:
        model: a causal language model; what requires a gradient is trained.
        config: method, optimizer, schedule, memory and precision.
        frozen: input name (``teacher_logits``) to the head of the frozen model that it comes from.
    """
    accelerator = make_accelerator()
    student = _student(model, config)
    walkers = make_walkers(unwrapped(model), config)
    with torch.autocast(
        accelerator.device.type, torch.bfloat16, enabled=precision(config, accelerator.device) == "bf16"
    ):
        config = config.model_copy(update={"token_budget": micro_batch_tokens(model, config, accelerator)})
    start: dict[str, Tensor] = {}
    prepared, *optimizers = accelerator.prepare(student, *(walker.optimizer for walker in walkers))
    if config.method == "full":
        start = {name: _lean(own_part(p.detach())) for name, p in trained_tensors(student).items()}
    walkers = [Walker(o, w.schedule) for o, w in zip(optimizers, walkers, strict=True)]
    return Engine(accelerator, prepared, walkers, start, config, frozen or {}, carried={})


def _student(model: nn.Module, config: TrainConfig) -> Student:
    """Everything in eval mode but what has to know that it trains: the references were scored without dropout."""
    student = Student(model, packing=config.packing).eval()
    for name, module in model.named_modules():
        module.train(module.training or "lora_dropout" in name)
    if config.gradient_checkpointing:
        causal = unwrapped(model)
        causal.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        for module in causal.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True  # the layer alone: its children keep their mode
    # what sharding asks of a model: its layers, and to tie again what loading the parts has parted
    student._no_split_modules = getattr(unwrapped(model), "_no_split_modules", None)  # type: ignore[assignment]
    student.tie_weights = unwrapped(model).tie_weights  # type: ignore[assignment]
    return student


def _lean(tensor: Tensor) -> Tensor:
    """A copy, in bf16 where that loses nothing."""
    half = tensor.bfloat16()
    return half if bool((half.to(tensor.dtype) == tensor).all()) else tensor.clone()


def gradient(
    engine: Engine,
    data: TrainingData,
    items: Sequence[int],
    objective: Objective,
    *,
    step: int,
    out: Path,
    length: int | None = None,
    watch: Callable[[TokenBatch, Scored, Values], None] = lambda batch, scored, values: None,
) -> dict[str, Any]:
    """Add one optimizer step's gradient to the student's parameters and say what it was made of.

    Args:
        engine: the student.
        data: rows with the columns that the objective reads.
        items: of this step, over all processes.
        objective: the row of ``OBJECTIVES``.
        step: from 1; objectives that change over a run read it.
        out: where the inputs go if the step is not finite.
        length: tokens, for the ``constant`` normalizer; by default the longest response of ``data``.
        watch: told every micro-batch of this process with what came of it.

    Raises:
        DivergedError: a loss or gradient is not finite; the step's inputs are saved in ``out/diverged``.
        DegenerateError: no token of the step is trainable.
    """
    config, accelerator = engine.config, engine.accelerator
    cuts = [cut for cut in micro_batches(data, items, token_budget=config.pass_tokens) if _live(data, cut)]
    counted = count_items(data, items)
    normalizer: Normalizer = config.normalizer or objective.normalizer
    by = divisor(counted, objective.unit, normalizer, length=length or data.longest_response)
    settings = {**config.knobs, **_loop_knobs(objective, {"step": step - 1, "num_steps": config.num_steps})}
    mine = shares(cuts, accelerator.process_index, accelerator.num_processes)
    means, loss = record.Means(), 0.0

    def lost(batch: TokenBatch, scored: Scored | None, why: str) -> DivergedError:
        name = f"step-{step:06d}" + (f"-process-{accelerator.process_index}" if accelerator.process_index else "")
        read = Read(data, batch, scored, objective, settings)
        return diverged(out / "diverged", name, why, read)

    torch.manual_seed(_noise(config.seed, step, accelerator.process_index))
    for turn, share in enumerate(mine):
        batch = collate(data, share.items, inputs(objective)).to(accelerator.device)
        hold_back = turn + 1 < len(mine) and not engine.sharded
        with accelerator.no_sync(engine.student) if hold_back else nullcontext():
            try:
                scored, values = _forward(engine, batch, objective, settings)
            except NotFiniteError as error:
                raise lost(batch, None, f"step {step}: {error}") from error
            if config.sparsify:
                values = _sparsified(config, data, batch, scored, values, step)
            part = total(values.values, objective.unit, batch.mask, normalizer) / by
            if not math.isfinite(part.item()):
                raise lost(batch, scored, NOT_FINITE.format("loss", step))
            # processes average their gradients, and the divisor has already counted all of them
            accelerator.backward(part * (share.weight * accelerator.num_processes))
        loss += part.item() * share.weight
        if share.weight:
            watch(batch, scored, values)
        means.add(_detached(values), objective.unit, batch.mask, _diagnostics(scored), weight=share.weight)
    norm = float(accelerator.clip_grad_norm_(trainable(engine), config.max_grad_norm))  # type: ignore[arg-type]
    if not math.isfinite(norm):
        raise lost(collate(data, items, inputs(objective)), None, NOT_FINITE.format("gradient", step))
    sums = summed(accelerator, {"loss": loss, **means.flat()})
    sizes = [[size for item in cut for size in data.sizes(item)] for cut in cuts]
    computed = sum(computed_cells(engine.model, cut, packing=config.packing) for cut in sizes)
    return {
        "loss": sums.pop("loss"),
        **record.Means.of(sums),
        "grad_norm": norm,
        "tokens": counted.tokens,
        "rows": counted.rollouts,
        "padding": 1 - sum(map(sum, sizes)) / computed,
    }


def _sparsified(
    config: TrainConfig, data: TrainingData, batch: TokenBatch, scored: Scored, values: Values, step: int
) -> Values:
    """The values on the tokens that the settings choose, rescaled; the metrics stay those of all tokens."""
    assert config.sparsify is not None  # the caller asked
    keys = map(data.outline.key, batch.row_index.tolist())
    names = [f"{config.seed}/{step}/{problem_id}/{sample}" for problem_id, sample in keys]
    teacher = batch.inputs.get("teacher_logprobs")
    log_ratio = None if teacher is None else scored.logprobs.detach() - teacher.nan_to_num(neginf=TEACHER_FLOOR)
    weights = token_weights(config.sparsify, batch.mask, names, log_ratio)
    kept = {"kept_share": (weights > 0).to(values.values.dtype)}
    return Values(values=values.values * weights, metrics={**values.metrics, **kept})


def advance(engine: Engine) -> float:
    """Take the step that the gradients describe and forget them; the rate that it was taken at."""
    subspace = engine.subspace
    if subspace and not subspace.exact:
        project_gradients(subspace, engine.model)
    for walker in engine.walkers:
        walker.optimizer.step()
    if subspace and subspace.exact:
        confine(subspace, engine.model, _anchor(engine))
    rate = float(engine.walkers[0].schedule.get_last_lr()[0])
    for walker in engine.walkers:
        walker.schedule.step()
        walker.optimizer.zero_grad()
    return rate


def outside(engine: Engine) -> dict[str, float]:
    """What of the update so far lies outside of the run's subspace, where it has one: :func:`limbeck.train.subspace.leak`."""
    return leak(engine.subspace, engine.model, _anchor(engine)) if engine.subspace else {}


def outside_when_due(engine: Engine, step: int) -> dict[str, float]:
    """The same after the steps whose weights are kept, and the last; nothing after others."""
    return outside(engine) if _kept(engine.config, step) else {}


def _kept(config: TrainConfig, step: int) -> bool:
    return step % config.checkpoint_every == 0 or step in config.keep or step == config.num_steps


def _anchor(engine: Engine) -> dict[str, Tensor]:
    return {name.removeprefix("model."): start for name, start in engine.start.items()}


def trainable(engine: Engine) -> list[nn.Parameter]:
    """What the optimizers move."""
    return [p for p in engine.student.parameters() if p.requires_grad]


def finite_norm(engine: Engine, step: int, out: Path) -> float:
    """:func:`update_norm` after a step.

    Raises:
        DivergedError: a weight is NaN or infinite and the step would be kept; after another, the next step says which rows
            cannot be computed.
    """
    norm = update_norm(engine)
    if not math.isfinite(norm) and _kept(engine.config, step):
        raise DivergedError(
            f"{NOT_FINITE.format('weight', step)}. Nothing of that step is kept, checkpoints of earlier ones, if any, are in "
            f"{out / 'checkpoints'}; lower train.learning_rate = {engine.config.learning_rate:g}."
        )
    return norm


def update_norm(engine: Engine) -> float:
    """Frobenius norm of the whole update so far, fp32 weights, tied ones once."""
    config = engine.config
    if config.method == "lora":
        factors = {name: whole(p.detach()) for name, p in trained_tensors(engine.model).items()}
        return record.update_norm(factors, config.lora.alpha / config.lora.rank)
    named = trained_tensors(engine.accelerator.unwrap_model(engine.student))
    squares = (
        (own_part(p.detach()) - engine.start[name].to(own_part(p).dtype)).double().square().sum()
        for name, p in named.items()
    )
    own = float(torch.stack(list(squares)).sum())
    return math.sqrt(summed(engine.accelerator, {"square": own})["square"] if engine.sharded else own)


def _forward(
    engine: Engine, batch: TokenBatch, objective: Objective, settings: Mapping[str, Any]
) -> tuple[Scored, Values]:
    bf16 = precision(engine.config, engine.accelerator.device) == "bf16"
    logits = next((name for name in FROZEN_LOGITS if name in inputs(objective)), None)
    whole = Whole(objective, settings, engine.frozen[logits], logits) if logits else None
    # without a cache: it would hold a bf16 copy of every sharded weight until the pass ends, and each is read once
    casts = {"enabled": bf16, "cache_enabled": not engine.sharded}
    with torch.autocast(engine.accelerator.device.type, torch.bfloat16, **casts):
        scored: Scored = engine.student(batch, whole)
    if scored.values is not None:
        return scored, Values(values=scored.values, metrics=scored.metrics)
    given = {**batch.inputs, "logprobs": scored.logprobs, "entropy": scored.entropy, "mask": batch.mask}
    return scored, evaluate(objective, given, batch.mask, settings)


def precision(config: TrainConfig, device: torch.device) -> str:
    """Of the products: ``auto`` is bf16 on a GPU that has it; a CPU is slower with it."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def _loop_knobs(objective: Objective, known: dict[str, int]) -> dict[str, int]:
    """What the loop alone knows, for objectives that change over a run."""
    own = knobs(objective)
    return {name: known[name] for name in LOOP_KNOBS if name in own}


def _noise(seed: int, step: int, process: int) -> int:
    """Seed of a step's dropout: a resumed run draws what the undisturbed one drew."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{process}".encode()).digest()[:7], "big")


def _diagnostics(scored: Scored) -> dict[str, Tensor]:
    return {"nll": -scored.logprobs.detach(), "entropy": scored.entropy.detach()}


def _detached(values: Values) -> Values:
    return Values(values=values.values.detach(), metrics={k: v.detach() for k, v in values.metrics.items()})


def _live(data: TrainingData, items: Sequence[int]) -> bool:
    """Whether any token of these items is scored."""
    return any(live_tokens(data, row) for row in data.rows_of(items))
