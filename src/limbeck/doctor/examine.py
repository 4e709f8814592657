"""The whole examination in order: machine, model, tokenizer, rollouts, objectives, and the memory that the run will need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from limbeck.batches.collate import TrainingData
from limbeck.batches.forward import check_head
from limbeck.config import RunConfig, TrainConfig
from limbeck.doctor.data import Reader, examine_rollouts, read_any
from limbeck.doctor.finding import SECTIONS, Finding, size
from limbeck.doctor.forecast import OF_ROWS, Forecast, Passes, forecast, full_passes, least, loaded_as, passes_of
from limbeck.doctor.machine import Room, device_room, examine_machine, process_bytes, room
from limbeck.doctor.stored import Stored, stored
from limbeck.doctor.table import asked, examine_objectives, usable
from limbeck.doctor.tokens import config_of, examine_tokenizer, generation_of, rows_of, thinks
from limbeck.errors import LimbeckError
from limbeck.objectives import find
from limbeck.problems.prompts import stop_ids
from limbeck.storage import local
from limbeck.train.checks import check
from limbeck.train.engine import make_engine, trainable
from limbeck.train.models import add_adapter, load_model, model_context, model_folder, unfreeze

in_model, in_memory = (partial(Finding, about=section) for section in ("model", "memory"))
PARTS = ("model", "rollouts", "memory")
TIGHT = 0.9  # of what is free, from which on it is worth a note


def examine(
    config: RunConfig, teacher: str | None = None, *, advance: Callable[[float], None] = lambda amount: None
) -> list[Finding]:
    """Look at a model, and at rollouts where there are any, as a run with these settings would use them.

    Args:
        config: base, rollouts (a folder or a file; may be empty) and settings of the run.
        teacher: a model that the student is to learn from.
        advance: called with 1 after each of ``PARTS``.

    Raises:
        ConfigError: settings that no run can have.
    """
    check(config.train)
    free = device_room() or room()  # before anything is loaded
    findings = examine_machine()
    try:
        shape = stored(model_folder(config.base))
        findings.append(_model(config, shape))
    except (LimbeckError, OSError, ValueError) as error:
        remedy = "Give a local Hugging Face folder with config.json and safetensors weights."
        return [*findings, in_model(name="folder", level="problem", says=str(error), remedy=remedy)]
    about_tokens, tokenizer = examine_tokenizer(config.base, teacher)
    advance(1)
    about_rollouts, data = _rollouts(config, tokenizer) if config.rollouts else ([], None)
    advance(1)
    about_memory = _memory(_Run(config, shape, data, free, process_bytes(), teacher))
    advance(1)
    findings += about_tokens + about_rollouts + about_memory
    return sorted(findings, key=lambda finding: SECTIONS.index(finding.about))


class _Run(NamedTuple):
    """What decides a run's memory, and what there is of it; ``process`` is what this process took before a model."""

    config: RunConfig
    shape: Stored
    data: TrainingData | None
    free: Room
    process: int
    teacher: str | None


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
    config: RunConfig, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[list[Finding], TrainingData | None]:
    """Findings of rollouts and objectives, and what the run would train on."""
    read = partial(Finding, about="rollouts", name="read", level="problem")
    if tokenizer is None:
        return [read(says="not looked at without a tokenizer", remedy="See to the tokenizer first.")], None
    try:
        rollout_set = read_any(local(config.rollouts), tokenizer)
        stops = stop_ids(tokenizer, generation_of(config.base))
    except (LimbeckError, OSError) as error:
        remedy = "Mend the file as it says, or give the folder that `limbeck import` or `limbeck sample` wrote."
        return [read(says=str(error), remedy=remedy)], None
    if not rollout_set.rollouts:
        return [read(says=f"{config.rollouts} holds no rollout", remedy="Sample or import some.")], None
    context = model_context(config.base)
    reader = Reader(tokenizer, stops, rows_of(config_of(config.base)), context, thinks(tokenizer))
    about = asked(config, rollout_set, context)
    chosen = usable(about, find(config.train.objective)).prepared
    findings = examine_rollouts(rollout_set, reader, config.train) + examine_objectives(about)
    return findings, chosen.data if chosen else None


def _memory(run: _Run) -> list[Finding]:
    """The run's peak against what is free; the model is loaded for it only where it fits."""
    train, floor = run.config.train, least(run.shape, run.config.train)
    if floor > run.free.available:
        says = f"at least {size(floor)} for weights and what trains them, {size(run.free.available)} are free"
        facts = {"least": floor, **run.free._asdict()}
        return [in_memory(name="run", level="problem", says=says, remedy=_less(train, {"weights": floor}), facts=facts)]
    try:
        model = load_model(run.config.base, dtype=loaded_as(train))
        check_head(model, torch.arange(16) % 13)
        lora = train.method == "lora"
        engine = make_engine(add_adapter(model, train.lora, init_seed=0) if lora else unfreeze(model), train)
    except LimbeckError as error:
        remedy = "Set what the message names (--set train.key=value), or take another model."
        return [in_model(name="trains", level="problem", says=str(error), remedy=remedy)]
    trained = sum(p.numel() for p in trainable(engine))
    says = f"{train.method} trains {trained:,} parameters; log-probs from its head are the model's own"
    found = [in_model(name="trains", says=says, facts={"method": train.method, "trained": trained})]
    passes = passes_of(run.data, train, engine) if run.data else full_passes(train, engine)
    head = _head_bytes(run.teacher) if run.teacher else 0
    needed = forecast(engine, find(train.objective), passes, stored=run.shape, teacher_head=head)
    found += [_peak(run, needed), _largest(run, passes, needed, engine.config.pass_tokens)]
    return found + ([_teacher(run.teacher, run.free)] if run.teacher else [])


def _peak(run: _Run, needed: Forecast) -> Finding:
    process = 0 if torch.cuda.is_available() else run.process  # a device holds no libraries of ours
    total = process + needed.peak
    parts = ", ".join(f"{part} {size(n)}" for part, n in sorted(needed.largest.items(), key=lambda part: -part[1]))
    says = (
        f"{size(total)} at its peak, {size(run.free.available)} are free. The largest stage is {needed.stage}: {parts}"
    )
    says += f"; beside the process with its libraries, {size(process)}" if process else ""
    tight = "problem" if total > run.free.available else "note" if total > TIGHT * run.free.available else "ok"
    return in_memory(
        name="run",
        level=tight,
        says=says,
        remedy="" if tight == "ok" else _less(run.config.train, needed.largest),
        facts={
            "peak": needed.peak, "process": process, "stage": needed.stage, "stages": needed.stages, **run.free._asdict(),
        },
    )  # fmt: skip


def _largest(run: _Run, passes: Passes, needed: Forecast, budget: int) -> Finding:
    says = f"{passes.cells} tokens with padding, {size(needed.kept_per_token)} each until backward; {budget} are the limit "
    says += "of all but single rows"
    says += "" if run.data else ", and without rollouts the limit is what was taken"
    facts = {**passes._asdict(), "token_budget": budget, "kept_per_token": needed.kept_per_token}
    return in_memory(name="largest micro-batch", says=says, facts=facts)


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


def _less(train: TrainConfig, parts: Mapping[str, int]) -> str:
    """What to set so that the run's largest part becomes smaller."""
    found = []
    if sum(parts.get(name, 0) for name in OF_ROWS) > sum(parts.values()) / 3:
        found += [] if train.gradient_checkpointing else ["train.gradient_checkpointing=true"]
        found += ["a smaller train.token_budget, or a smaller train.max_length where single rows are that long"]
    if train.method == "full":
        found += ["train.method=lora"] + ([] if train.optimizer == "adafactor" else ["train.optimizer=adafactor"])
    return f"Set {'; or '.join(found)}." if found else "Use a machine with more memory, or a smaller model."


def _head_bytes(teacher: str) -> int:
    """Of a teacher's output head as scores keep it, fp32; 0 where there is no such model."""
    try:
        own = config_of(teacher).get_text_config()
    except (LimbeckError, OSError, ValueError):
        return 0  # a finding of its own
    return 4 * int(own.vocab_size) * int(own.hidden_size)
