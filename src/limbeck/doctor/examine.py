"""The whole examination in order: machine, model, tokenizer, rollouts, objectives, and the memory that the run will need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from limbeck.batches.collate import TrainingData
from limbeck.batches.forward import check_head
from limbeck.config import RunConfig
from limbeck.doctor.data import Reader, examine_rollouts, read_any
from limbeck.doctor.finding import SECTIONS, Finding, size
from limbeck.doctor.forecast import forecast, full_passes, least, passes_of
from limbeck.doctor.machine import Room, device_room, examine_machine, process_bytes, room
from limbeck.doctor.stored import Stored, stored
from limbeck.doctor.table import chosen_data, examine_objectives
from limbeck.doctor.tokens import config_of, examine_tokenizer, generation_of, rows_of, thinks
from limbeck.errors import LimbeckError
from limbeck.objectives import find
from limbeck.problems.prompts import stop_ids
from limbeck.train.engine import Engine, make_engine
from limbeck.train.models import add_adapter, load_model, model_context, model_folder, unfreeze
from limbeck.train.run import check
from limbeck.types import RolloutSet

in_model, in_memory = (partial(Finding, about=section) for section in ("model", "memory"))
TIGHT = 0.9  # of what is free, from which on it is worth a note


def examine(
    config: RunConfig, teacher: str | None = None, *, tell: Callable[[str], None] = lambda what: None
) -> list[Finding]:
    """Look at a model, and at rollouts where there are any, as a run with these settings would use them.

    Args:
        config: base, rollouts (a folder or a file; may be empty) and settings of the run.
        teacher: a model that the student is to learn from.
        tell: told what is being looked at.

    Raises:
        ConfigError: settings that no run can have.
    """
    check(config.train)
    free = device_room() or room()  # before anything is loaded
    findings = examine_machine()
    tell("model")
    try:
        shape = stored(model_folder(config.base))
        findings.append(_model(config, shape))
    except (LimbeckError, OSError, ValueError) as error:
        remedy = "Give a local Hugging Face folder with config.json and safetensors weights."
        return [*findings, in_model(name="loads", level="problem", says=str(error), remedy=remedy)]
    about_tokens, tokenizer = examine_tokenizer(config.base, teacher)
    findings += about_tokens
    rollout_set = data = None
    if config.rollouts and tokenizer is not None:
        tell("rollouts")
        about_rollouts, rollout_set, data = _rollouts(config, tokenizer)
        findings += about_rollouts
    tell("memory")
    findings += _memory(config, shape, rollout_set, data, free, teacher)
    return sorted(findings, key=lambda finding: SECTIONS.index(finding.about))


def _model(config: RunConfig, shape: Stored) -> Finding:
    own, context = config_of(config.base), model_context(config.base)
    facts = {
        "architecture": (own.architectures or [own.model_type])[0],
        "entries": shape.entries,
        "bytes": shape.size,
        "dtypes": list(shape.dtypes),
        "context": context,
    }
    rows = "no longest row named" if context is None else f"rows of up to {context} tokens"
    says = f"{facts['architecture']}, {shape.entries:,} parameters stored as {' and '.join(shape.dtypes)}, {rows}"
    return in_model(name="folder", says=says, facts=facts)


def _rollouts(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Finding], RolloutSet | None, TrainingData | None]:
    base = config.base
    try:
        rollout_set = read_any(Path(config.rollouts), tokenizer)
        if not rollout_set.rollouts:
            raise LimbeckError(f"{config.rollouts} must hold at least one rollout, received none.")
        stops = stop_ids(tokenizer, generation_of(base))
    except (LimbeckError, OSError) as error:
        remedy = "Mend the file as it says, or give the folder that `limbeck import` or `limbeck sample` wrote."
        return [Finding(about="rollouts", name="read", level="problem", says=str(error), remedy=remedy)], None, None
    context = model_context(base)
    reader = Reader(tokenizer, stops, rows_of(config_of(base)), context, thinks(tokenizer))
    findings = examine_rollouts(rollout_set, reader, config.train) + examine_objectives(config, rollout_set, context)
    return findings, rollout_set, chosen_data(config, rollout_set, context)


def _memory(
    config: RunConfig,
    shape: Stored,
    rollout_set: RolloutSet | None,
    data: TrainingData | None,
    free: Room,
    teacher: str | None,
) -> list[Finding]:
    """The run's peak against what is free; the model is loaded for it only where it fits."""
    floor = least(shape, config.train)
    facts = {"least": floor, **free._asdict()}
    if floor > free.available:
        remedy = _less(config, {"weights": 4 * shape.entries})
        says = f"at least {size(floor)} for weights and what trains them, {size(free.available)} are free"
        return [in_memory(name="run", level="problem", says=says, remedy=remedy, facts=facts)]
    process = process_bytes()
    try:
        model = load_model(config.base)
        check_head(model, _few_ids(rollout_set))
        lora = config.train.method == "lora"
        tuned = add_adapter(model, config.train.lora, init_seed=config.train.init_seed) if lora else unfreeze(model)
        engine = make_engine(tuned, config.train)
    except LimbeckError as error:
        remedy = "Set what the message names (--set train.key=value), or take another model."
        return [in_model(name="trains", level="problem", says=str(error), remedy=remedy)]
    trained = sum(p.numel() for p in engine.student.parameters() if p.requires_grad)
    says = f"{config.train.method} trains {trained:,} of its weights; its head's log-probs are the model's own"
    heading = in_model(name="trains", says=says, facts={"method": config.train.method, "trained": trained})
    return [heading, *_forecast(config, engine, shape, data, free, process, teacher)]


def _forecast(
    config: RunConfig,
    engine: Engine,
    shape: Stored,
    data: TrainingData | None,
    free: Room,
    process: int,
    teacher: str | None,
) -> list[Finding]:
    passes = passes_of(data, engine.config, engine.model) if data else full_passes(engine.config)
    head = _head_bytes(teacher) if teacher else 0
    found = forecast(engine, find(config.train.objective), passes, stored=shape, teacher_head=head)
    own = 0 if torch.cuda.is_available() else process  # a device holds no libraries of ours
    needed = own + found.peak
    facts = {
        "peak": found.peak, "process": own, "stage": found.stage, "stages": found.stages, "kept_per_token": found.kept_per_token,
        "token_budget": engine.config.pass_tokens, "largest_micro_batch": passes.cells, **free._asdict(),
    }  # fmt: skip
    parts = ", ".join(f"{part} {size(n)}" for part, n in sorted(found.largest.items(), key=lambda part: -part[1]))
    says = f"{size(needed)} at its peak, in {found.stage}: {parts}" + (
        f"; process and libraries {size(own)}" if own else ""
    )
    level = "problem" if needed > free.available else "note" if needed > TIGHT * free.available else "ok"
    remedy = "" if level == "ok" else _less(config, found.largest)
    whose = "rows of the rollouts" if data else "micro-batches as large as allowed: give rollouts for their own sizes"
    tokens = (
        f"{passes.cells} tokens with padding, {size(found.kept_per_token)} each until backward, at most "
        f"{engine.config.pass_tokens} unless one row is longer; {whose}"
    )
    findings = [
        in_memory(name="run", level=level, says=f"{says}; {size(free.available)} are free", remedy=remedy, facts=facts),
        in_memory(name="largest micro-batch", says=tokens, facts=passes._asdict()),
    ]
    return findings + ([_teacher(teacher, free)] if teacher else [])


def _teacher(teacher: str, free: Room) -> Finding:
    """A teacher scores rollouts in a process of its own, before the run."""
    try:
        needed = 4 * stored(model_folder(teacher)).entries
    except (LimbeckError, OSError) as error:
        return in_memory(
            name="teacher", level="problem", says=str(error), remedy="Give the folder of the teacher's weights."
        )
    says = f"{size(needed)} for its weights while it scores; {size(free.available)} are free"
    facts = {"weights": needed, "available": free.available}
    if needed <= free.available:
        return in_memory(name="teacher", says=says, facts=facts)
    remedy = "Score on a larger machine, or sample from it behind a server (limbeck sample --server)."
    return in_memory(name="teacher", level="problem", says=says, remedy=remedy, facts=facts)


def _less(config: RunConfig, parts: Mapping[str, int]) -> str:
    """What to set so that the run's largest part becomes smaller."""
    train, rows = config.train, sum(parts.get(name, 0) for name in ("kept until backward", "made on the way", "heap"))
    found = []
    if rows > sum(parts.values()) / 3:
        found += [] if train.gradient_checkpointing else ["train.gradient_checkpointing=true"]
        found += ["a smaller train.token_budget, or a smaller train.max_length where single rows are that long"]
    if train.method == "full":
        found += ["train.method=lora"] + ([] if train.optimizer == "adafactor" else ["train.optimizer=adafactor"])
    return f"Set {'; or '.join(found)}." if found else "Use a machine with more memory, or a smaller model."


def _head_bytes(teacher: str) -> int:
    own = config_of(teacher).get_text_config()
    return 4 * int(own.vocab_size) * int(own.hidden_size)


def _few_ids(rollout_set: RolloutSet | None) -> torch.Tensor:
    """Tokens to probe the head with, as a run does."""
    if rollout_set is None:
        return torch.arange(16) % 13
    first = rollout_set.rollouts[0]
    return torch.tensor([*first.prompt_ids, *first.response_ids][:16])
