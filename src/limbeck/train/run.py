"""One run: rollouts, base and objective in, a folder with an fp32 adapter and its whole record out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from peft import PeftModel
from pydantic import Field
from transformers import PreTrainedModel

from limbeck.batches.collate import BEHAVIOR, PER_TOKEN_INPUTS
from limbeck.batches.forward import check_head
from limbeck.batches.score import read_scores, score_rollouts
from limbeck.config import Config, TrainConfig, parse
from limbeck.errors import ConfigError, FolderError, ProvenanceError, nearest
from limbeck.folders import claim, file_digest, plain, read_json, read_manifest, refuse_existing, seal, write_json
from limbeck.geometry.delta import init_digest
from limbeck.objectives import check_knobs, find, inputs
from limbeck.rollouts.store import read_rollouts
from limbeck.train.data import prepare
from limbeck.train.loop import run_steps
from limbeck.train.models import adapter_tensors, add_adapter, initial_factors, load_model, model_digest
from limbeck.train.record import read_metrics, update_norm
from limbeck.types import Objective, RolloutSet

LOGITS = {"logits", "teacher_logits", "reference_logits"}


class RunConfig(Config):
    """Everything that `limbeck train` needs; a run folder's `config.json` is one."""

    base: str
    """The student: a local Hugging Face folder, or a world's model such as `abacus:base`."""
    rollouts: str
    """A rollouts folder."""
    scores: dict[str, str] = Field(default_factory=dict)
    """Per-token input (`reference_logprobs`, `teacher_logprobs`) to its scores folder."""
    train: TrainConfig = TrainConfig()


def check(config: TrainConfig) -> Objective:
    """Refuse, before any model is loaded, what cannot be trained.

    Raises:
        ConfigError: an unknown objective or knob, or one outside its domain.
    """
    objective = find(config.objective)
    check_knobs(objective, config.knobs)
    distributions = sorted(LOGITS & set(inputs(objective)))
    if distributions:
        raise ConfigError(
            f"limbeck train reads log-probs of the rollouts' tokens; {objective.name} reads {', '.join(distributions)}, whole "
            "distributions, and can be called from Python only. opd is its sampled-token form."
        )
    if objective.unit == "pair" and (config.normalizer or objective.normalizer) == "token":
        raise ConfigError(
            f'{objective.name} has one value per pair: train.normalizer must be "sequence" or "constant", received "token".'
        )
    return objective


def train(
    config: RunConfig, out: Path, *, overwrite: bool = False, advance: Callable[[int], None] = lambda num: None
) -> Path:
    """Train one adapter; an interrupted run in ``out`` is continued from its newest checkpoint.

    Args:
        config: base, rollouts, scores and settings.
        out: the run folder.
        overwrite: replace a complete run.
        advance: called with the number of steps just done.

    Raises:
        FolderError: ``out`` is complete, or was started with other settings.
    """
    begin = time.monotonic()
    refuse_existing(out, overwrite=overwrite)
    objective = check(config.train)
    rollout_set = read_rollouts(Path(config.rollouts))
    _check_scores(config, objective, rollout_set)
    model = load_model(config.base)
    first = rollout_set.rollouts[0]
    check_head(model, torch.tensor([*first.prompt_ids, *first.response_ids][:16]))
    scores = _scores(config, objective, rollout_set, model)
    context = getattr(model.config, "max_position_embeddings", None)
    data, facts, selection = prepare(config.train, objective, rollout_set, scores, context=context)
    tuned = add_adapter(model, config.train.lora, init_seed=config.train.init_seed)
    base_digest = model_digest(config.base)
    out = claim(out, overwrite=overwrite)  # only now: nothing that was there is touched by a run that cannot start
    _same_settings(out, config, {"rollouts": rollout_set.digest, "base": base_digest, "scores": _score_digests(config)})
    write_json(out / "selection.json", selection)
    start = init_digest(initial_factors(tuned))
    steps = run_steps(tuned, data, objective, config.train, out, advance=advance)
    _save_adapter(tuned, out / "adapter", config, {"init_digest": start, "base_digest": base_digest})
    facts |= {
        "objective": objective.name,
        "normalizer": config.train.normalizer or objective.normalizer,
        "rollouts_digest": rollout_set.digest,
        "base_digest": base_digest,
        "init_digest": start,
        "adapter_digest": file_digest(out / "adapter" / "adapter_model.safetensors"),
        "steps": steps,
        "epochs": round(steps * config.train.batch_size / len(data.items), 3),
        "update_norm": update_norm(adapter_tensors(tuned), config.train.lora.alpha / config.train.lora.rank),
        "seconds": round(sum(line["seconds"] for line in read_metrics(out / "metrics.jsonl")), 2),
        "wall_seconds": round(time.monotonic() - begin, 2),
    }
    seal(out, kind="run", facts=facts)
    return out


def load_run_config(path: Path) -> RunConfig:
    """The resolved configuration of a finished run."""
    return parse(RunConfig, read_json(path / "config.json"), where="run")


def _same_settings(out: Path, config: RunConfig, identity: dict[str, object]) -> None:
    """Settings and the identities of what is read; paths may differ, a moved folder is the same folder."""
    path, own = out / "identity.json", plain({**identity, "train": config.train.model_dump(mode="json")})
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


def _check_scores(config: RunConfig, objective: Objective, rollout_set: RolloutSet) -> None:
    """Refuse, before a model is loaded, scores that are missing, unknown or of another temperature."""
    names = inputs(objective)
    for name in config.scores:
        if name not in names or name not in PER_TOKEN_INPUTS:
            known = [n for n in names if n in PER_TOKEN_INPUTS]
            raise ConfigError(f'{objective.name} reads no scores "{name}". {nearest(name, known)}')
    for name in names:
        if name in ("teacher_logprobs", "signal") and name not in config.scores:
            raise ConfigError(
                f"{objective.name} reads {name}: give a scores folder, made by "
                f"`limbeck score --model MODEL --rollouts ROLLOUTS --out DIR`, as scores.{name}."
            )
        if name not in BEHAVIOR or name in config.scores:
            continue
        unknown = sum(any(math.isnan(x) for x in r.behavior_logprobs) for r in rollout_set.rollouts)
        temperature = rollout_set.provenance.get("sampling_temperature", 1.0)
        if unknown or temperature != 1.0:
            raise ConfigError(
                f"{objective.name} reads {name}: the rollouts must carry their sampler's log-probs at temperature 1, received "
                f"{unknown} rollouts without and temperature {temperature}. Score them with the policy that wrote them "
                f"(`limbeck score`) and give the folder as scores.{name}."
            )


def _scores(
    config: RunConfig, objective: Objective, rollout_set: RolloutSet, model: PreTrainedModel
) -> dict[str, list[list[float]]]:
    """Per-token columns that the objective reads: stored ones where given; the base is its own reference.

    Raises:
        ProvenanceError: stored reference scores that another model than the base gave.
    """
    out: dict[str, list[list[float]]] = {}
    for name in inputs(objective):
        if name in config.scores:
            path = Path(config.scores[name])
            if name == "reference_logprobs" and read_manifest(path)["model_digest"] != model_digest(config.base):
                raise ProvenanceError(
                    f"reference_logprobs must be the untouched base's, received scores that another model than {config.base} "
                    f"gave ({path}). Score the rollouts with the base, or leave them out: they are made on the way."
                )
            out[name] = read_scores(path, rollout_set)
        elif name == "reference_logprobs":
            out[name] = score_rollouts(model, rollout_set.rollouts, token_budget=config.train.token_budget)
    return out


def _score_digests(config: RunConfig) -> dict[str, str]:
    return {name: read_manifest(Path(path))["files"]["logprobs.parquet"] for name, path in config.scores.items()}


def _save_adapter(model: PeftModel, folder: Path, config: RunConfig, identity: dict[str, str]) -> None:
    for peft_config in model.peft_config.values():
        peft_config.base_model_name_or_path = config.base
        # peft keeps a set, which is written in another order by every process
        peft_config.target_modules = sorted(config.train.lora.targets)  # type: ignore[attr-defined]
    model.save_pretrained(str(folder), save_embedding_layers=False)  # an adapter on projections touches none
    write_json(folder / "limbeck.json", identity)
