"""One run: rollouts, base and objective in, a folder with an fp32 adapter and its whole record out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.batches.collate import TrainingData
from limbeck.batches.forward import check_head
from limbeck.config import RunConfig, TrainConfig, parse, settings_of
from limbeck.digests import file_digest
from limbeck.errors import ConfigError, DegenerateError, FolderError
from limbeck.folders import claim, publish, refuse_existing, seal
from limbeck.geometry.delta import init_digest
from limbeck.objectives import inputs
from limbeck.records import plain, read_json, write_json
from limbeck.rollouts.store import read_rollouts
from limbeck.stopped import forget_sentence
from limbeck.storage import local
from limbeck.train.checkpoint import trained_weights
from limbeck.train.checks import check, check_sharded
from limbeck.train.data import fewer, prepare
from limbeck.train.engine import Engine, make_engine, outside, precision, update_norm
from limbeck.train.frames import facts as subspace_facts
from limbeck.train.frames import identity as identity_of_subspace
from limbeck.train.frames import keep_frames, read_subspace
from limbeck.train.job import Job
from limbeck.train.liger import fuse_layers
from limbeck.train.live import stages_of
from limbeck.train.live_run import live_job
from limbeck.train.loop import run_steps
from limbeck.train.models import add_adapter, initial_factors, load_model, model_digest, placed, unfreeze
from limbeck.train.processes import make_accelerator
from limbeck.train.record import read_metrics
from limbeck.train.rewards import RewardFunction
from limbeck.train.save import save_adapter, save_model, save_visible
from limbeck.train.scores import check_scores, on_device, read_all, score_digests
from limbeck.train.subspace import Subspace, hidden_matrices
from limbeck.train.trackers import check_tracker, followed
from limbeck.train.trajectory import Recorder
from limbeck.train.trust import make_probe
from limbeck.types import Objective, RolloutSet


def train(
    config: RunConfig,
    out: Path,
    *,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda num: None,
    observe: Callable[[Mapping[str, Any]], None] = lambda line: None,
    reward: RewardFunction | None = None,
) -> Path:
    """Train one student; an interrupted run in ``out`` is continued from its newest checkpoint.

    Under ``accelerate launch`` every process calls this; the main one writes.

    Args:
        config: base, rollouts or where live ones come from, scores and settings.
        out: the run folder.
        overwrite: replace a complete run.
        advance: called with the number of steps just done.
        observe: told the line of every live step.
        reward: of a live run; by default 1 for what the grader takes for right, else 0.

    Raises:
        FolderError: ``out`` is complete, or was started with other settings.
    """
    begin = time.monotonic()
    processes = make_accelerator()
    if processes.is_main_process:
        refuse_existing(out, overwrite=overwrite)
    check_tracker(config.train.tracker)
    objectives = [check(stage) for stage in _stage_configs(config)]
    sharded = processes.distributed_type == DistributedType.FSDP
    if sharded:
        check_sharded(config.train, second=processes.is_fsdp2)
    rollout_set = None if config.live else _read_rollouts(config, objectives[0])
    # sharded weights go to their devices part by part: whole ones may not fit there
    home = torch.device("cpu") if sharded else processes.device
    model = _load(config, config.base, _dtype(config.train, processes.device), home)
    if rollout_set is None:

        def tick(line: Mapping[str, Any]) -> None:
            advance(1)
            observe(line)

        job = live_job(config, model, processes, reward=reward, tick=tick)
    else:
        job = _offline_job(config, objectives[0], rollout_set, model, processes, advance)
    tuned = (
        add_adapter(model, config.train.lora, init_seed=config.train.init_seed) if _lora(config) else unfreeze(model)
    )
    subspace_of = identity_of_subspace(config.train.subspace)
    base_digest = model_digest(config.base)
    if processes.is_main_process:  # only now: nothing that was there is touched by a run that cannot start
        out = claim(out, overwrite=overwrite)
        forget_sentence(out)
        _same_settings(out, config, {"base": base_digest, **job.identity}, subspace_of)
        for name, value in job.record.items():
            write_json(out / name, value)
        if config.train.subspace:
            keep_frames(config, model, out)
    processes.wait_for_everyone()
    subspace = _restricted(config, model, out)
    start = init_digest(initial_factors(tuned)) if _lora(config) else base_digest
    engine = make_engine(tuned, job.config, job.frozen)._replace(subspace=subspace)
    identity = {"init_digest": start, "base_digest": base_digest}

    recorder = Recorder(engine, config.train, out)

    def after(step: int) -> None:
        if step in config.train.keep:
            _keep(engine, config, out / "kept" / f"step-{step:06d}", identity)
        recorder.after(step)

    tracker = config.train.tracker if processes.is_main_process else None
    with followed(tracker, out, config.model_dump(mode="json")):
        steps = job.walk(engine, out, after)
    facts = {
        **job.facts(steps),
        "method": config.train.method,
        "precision": precision(config.train, processes.device),
        "processes": processes.num_processes,
        "base_digest": base_digest,
        "init_digest": start,
        "steps": steps,
        "update_norm": update_norm(engine),
        **recorder.finish(steps),
        **({"subspace": {**subspace_of, **subspace_facts(subspace, model), **outside(engine)}} if subspace else {}),
        **_save(engine, config, out, identity),
    }
    if processes.is_main_process:
        facts["seconds"] = round(sum(line["seconds"] for line in read_metrics(out / "metrics.jsonl")), 2)
        facts["wall_seconds"] = round(time.monotonic() - begin, 2)
        seal(out, kind="run", facts=facts)
    processes.wait_for_everyone()
    return out


def _restricted(config: RunConfig, model: PreTrainedModel, out: Path) -> Subspace | None:
    """The subspace of the run; what none constrains stops being trained where the settings say so."""
    if config.train.subspace is None:
        return None
    if config.train.subspace.rest == "frozen":
        model.requires_grad_(False)
        for weight in hidden_matrices(model).values():
            weight.requires_grad_(True)
    return read_subspace(config.train.subspace, model, out)


def _stage_configs(config: RunConfig) -> list[TrainConfig]:
    return [stage.config for stage in stages_of(config.live, config.train)] if config.live else [config.train]


def _read_rollouts(config: RunConfig, objective: Objective) -> RolloutSet:
    if not config.rollouts:
        raise ConfigError(
            "a run learns from rollouts, received none. Give a rollouts folder (--rollouts), or problems that the student "
            "answers as it goes (--problems)."
        )
    rollout_set = read_rollouts(local(config.rollouts))
    if not rollout_set.rollouts:
        raise DegenerateError(
            f"a run learns from at least one rollout, received none in {config.rollouts}. Sample some."
        )
    check_scores(config, objective, rollout_set)
    return rollout_set


def _offline_job(
    config: RunConfig,
    objective: Objective,
    rollout_set: RolloutSet,
    model: PreTrainedModel,
    processes: Accelerator,
    tick: Callable[[int], None],
) -> Job:
    """A run on one fixed rollout set."""
    first = rollout_set.rollouts[0]
    check_head(model, torch.tensor([*first.prompt_ids, *first.response_ids][:16]))
    reference = _load(config, config.anchor, model.dtype, model.device) if _anchored(config) else model
    watched = config.train.kl_budget is not None or config.train.kl_every
    asked = watched or ("reference_logprobs" in inputs(objective) and "reference_logprobs" not in config.scores)
    context = getattr(model.config, "max_position_embeddings", None)
    with placed(reference, processes.device) if asked else nullcontext():
        columns, frozen, floored = read_all(config, objective, rollout_set, reference, processes)
        data, facts, selection = prepare(config.train, objective, rollout_set, columns, context=context)
        probe = make_probe(reference, _probed(data, config.train), config.train) if watched else None
    if probe is not None:  # its head may have gone with the model
        head = on_device(probe.whole.frozen, processes.device)
        probe = probe._replace(whole=replace(probe.whole, frozen=head))
    anchor = {"anchor": model_digest(config.anchor)} if _anchored(config) else {}
    return Job(
        config=config.train,
        frozen=frozen,
        identity={"rollouts": rollout_set.digest, "scores": score_digests(config), **anchor},
        record={"selection.json": selection},
        walk=lambda engine, out, after: run_steps(engine, data, objective, out, probe=probe, after=after, tick=tick),
        facts=lambda steps: {
            **facts,
            **floored,
            "objective": objective.name,
            "normalizer": config.train.normalizer or objective.normalizer,
            "rollouts_digest": rollout_set.digest,
            "epochs": round(steps * config.train.batch_size / len(data.items), 3),
        },
    )


def _anchored(config: RunConfig) -> bool:
    """Whether the reference is another model than the base."""
    return bool(config.anchor) and model_digest(config.anchor) != model_digest(config.base)


def _probed(data: TrainingData, config: TrainConfig) -> TrainingData:
    """A few of the rows that are trained on, each an item of its own."""
    rows = data.used_rows
    whole = TrainingData(rollouts=data.rollouts, items=rows[:, None], weights=np.ones(len(rows)))
    few = fewer(whole, config.kl_rows, seed=config.data_seed) if config.kl_rows < len(rows) else whole
    picked = [data.rollouts[row] for row in few.used_rows]
    return TrainingData(rollouts=picked, items=[(i,) for i in range(len(picked))], weights=[1.0] * len(picked))


def _load(config: RunConfig, name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    model = load_model(name, dtype=dtype, device=device)
    return fuse_layers(model) if config.train.liger else model


def _lora(config: RunConfig) -> bool:
    return config.train.method == "lora"


def _dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """What is trained is fp32; a frozen base under bf16 products may as well lie in bf16."""
    frozen = config.method == "lora" and precision(config, device) == "bf16"
    return torch.bfloat16 if frozen else torch.float32


def _save(engine: Engine, config: RunConfig, out: Path, identity: dict[str, str]) -> dict[str, object]:
    """Write the result; what the record says of it. Every process must call it."""
    weights = trained_weights(engine)
    return _written(engine, weights, config, out, identity) if engine.accelerator.is_main_process else {}


def _keep(engine: Engine, config: RunConfig, out: Path, identity: dict[str, str]) -> None:
    """The result so far, as a checkpoint of its own. Every process must call it."""
    weights, norm = trained_weights(engine), update_norm(engine)
    if engine.accelerator.is_main_process:
        with publish(out, kind="kept", facts={"update_norm": norm, **identity}, overwrite=True) as folder:
            _written(engine, weights, config, folder, identity)
    engine.accelerator.wait_for_everyone()


def _written(
    engine: Engine, weights: Mapping[str, Tensor], config: RunConfig, out: Path, identity: dict[str, str]
) -> dict[str, object]:
    facts: dict[str, object] = {}
    if _lora(config):
        save_adapter(engine.model, weights, out / "adapter", config.base, config.train.lora, identity)  # type: ignore[arg-type]
        facts["adapter_digest"] = file_digest(out / "adapter" / "adapter_model.safetensors")
    else:
        frozen = {name: p.detach() for name, p in engine.model.named_parameters() if not p.requires_grad}
        save_model(engine.model, {**frozen, **weights}, out / "model", config.base, identity)  # type: ignore[arg-type]
        facts["model_digest"] = model_digest(str(out / "model"))
    if config.train.save_visible:
        seen = save_visible(config.base, out)
        facts |= {"visible_share": seen.share, "visible_norm": seen.norm}
    return facts


def load_run_config(path: Path) -> RunConfig:
    """The resolved configuration of a finished run."""
    return parse(RunConfig, read_json(path / "config.json"), where="run")


def _same_settings(out: Path, config: RunConfig, identity: dict[str, object], subspace: Mapping[str, object]) -> None:
    """Settings and the identities of what is read; paths may differ, a moved folder is the same folder."""
    settings = {**settings_of(config.train, "train"), **({"subspace": subspace} if subspace else {})}
    settings.pop("tracker")
    path, own = out / "identity.json", plain({**identity, "train": settings})
    if path.is_file():
        old = read_json(path)
        keys = sorted(k for k in {*_flat(old), *_flat(own)} if _flat(old).get(k) != _flat(own).get(k))
        if keys:
            raise FolderError(
                f"{out} holds an unfinished run with other settings; these differ: {', '.join(keys)}. "
                "Give the same settings to continue it, or another --out."
            )
    write_json(path, own)
    write_json(out / "config.json", config.model_dump(mode="json"))


def _flat(value: Mapping, prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            out |= _flat(item, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = item
    return out
