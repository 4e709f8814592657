"""What frozen models say of one fixed rollout set: stored scores where a run names them, the reference's where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from limbeck.batches.collate import BEHAVIOR, PER_TOKEN_INPUTS
from limbeck.batches.distributions import read_frozen
from limbeck.batches.score import floored, read_scores, score_rollouts
from limbeck.batches.whole import FROZEN_LOGITS, Top
from limbeck.config import RunConfig
from limbeck.errors import ConfigError, ProvenanceError, nearest
from limbeck.folders import read_manifest
from limbeck.heads import Head
from limbeck.objectives import inputs
from limbeck.records import digest_of
from limbeck.storage import local
from limbeck.train.models import load_tokenizer, model_digest
from limbeck.train.processes import gathered
from limbeck.types import Objective, RolloutSet


def check_scores(config: RunConfig, objective: Objective, rollout_set: RolloutSet) -> None:
    """Refuse, before a model is loaded, scores that are missing, unknown or of another temperature.

    Raises:
        ConfigError: the sentence names the folder to make and the command that makes it.
    """
    names = inputs(objective)
    for name in config.scores:
        known = [n for n in names if n in (*PER_TOKEN_INPUTS, *FROZEN_LOGITS)]
        if name not in known:
            raise ConfigError(f'{objective.name} reads no scores "{name}". {nearest(name, known)}')
    for name in names:
        if name in ("teacher_logprobs", "signal", *FROZEN_LOGITS) and name not in config.scores:
            raise ConfigError(
                f"{objective.name} reads {name}: give a scores folder, made by {_maker(name)}, as scores.{name}."
            )
        if name not in BEHAVIOR or name in config.scores:
            continue
        unknown = int((~rollout_set.outline.known).sum())
        temperature = rollout_set.provenance.get("sampling_temperature", 1.0)
        if unknown or temperature != 1.0:
            raise ConfigError(
                f"{objective.name} reads {name}: the rollouts must carry their sampler's log-probs at temperature 1, received "
                f"{unknown} rollouts without and temperature {temperature}. Score them with the policy that wrote them "
                f"(`limbeck score`) and give the folder as scores.{name}."
            )


def _maker(name: str) -> str:
    if name == "signal":
        return "`limbeck signal --rollouts ROLLOUTS --teacher SCORES --contrast SCORES --out DIR`"
    keep = " --keep hidden" if name in FROZEN_LOGITS else ""
    return f"`limbeck score --model MODEL --rollouts ROLLOUTS{keep} --out DIR`"


class Scores(NamedTuple):
    """What frozen models say of the rollouts: columns by input name, and the heads of those read whole.

    ``floored`` says how many reference scores were minus infinity and are -20 nats now; empty where none was.
    """

    columns: dict[str, Sequence]
    frozen: dict[str, Head | Top]
    floored: dict[str, int]


def read_all(
    config: RunConfig, objective: Objective, rollout_set: RolloutSet, reference: PreTrainedModel, processes: Accelerator
) -> Scores:
    """Per-token inputs that the objective reads: stored ones where given; the reference is the base or the anchor.

    Raises:
        ProvenanceError: stored reference scores that another model than the reference gave, or distributions over other
            tokens.
    """
    found = Scores({}, {}, {})
    anchor = config.anchor or config.base
    for name in inputs(objective):
        path = local(config.scores[name]) if name in config.scores else None
        if path and name.startswith("reference") and read_manifest(path)["model_digest"] != model_digest(anchor):
            raise ProvenanceError(
                f"{name} must be the untouched base's, received scores that another model than {anchor} "
                f"gave ({path}). Score the rollouts with it, or leave them out: they are made on the way."
            )
        if path and name in FROZEN_LOGITS:
            _same_tokens(path, name, config.base)
            columns, model_of = read_frozen(path, rollout_set, name)
            found.columns.update(columns)
            found.frozen[name] = on_device(model_of, processes.device)
        elif path:
            found.columns[name] = read_scores(path, rollout_set, kind="signal" if name == "signal" else "logprobs")
        elif name == "reference_logprobs":
            found.columns[name] = _reference(config, rollout_set, reference, processes)
    if "reference_logprobs" in found.columns:
        found.columns["reference_logprobs"], count = floored(found.columns["reference_logprobs"])
        found.floored.update({"reference_floored": count} if count else {})
    return found


def _same_tokens(path: Path, name: str, base: str) -> None:
    """Refuse distributions over another token map, where the folder says which one they are over."""
    stored = read_manifest(path).get("token_map_digest")
    if stored is None:
        return
    own = digest_of(load_tokenizer(base).get_vocab())
    if stored != own:
        raise ProvenanceError(
            f"{name} must be over the student's token map {own[:8]}... ({base}), received distributions over {stored[:8]}... "
            f"({path}): one id would mean two words. Choose a teacher with the student's tokenizer."
        )


def on_device(frozen: Head | Top, device: torch.device) -> Head | Top:
    """What a frozen model's distributions are made from, where it is read."""
    if isinstance(frozen, Top):
        return frozen
    bias = None if frozen.bias is None else frozen.bias.to(device)
    return frozen._replace(weight=frozen.weight.to(device), bias=bias)


def _reference(
    config: RunConfig, rollout_set: RolloutSet, model: PreTrainedModel, processes: Accelerator
) -> list[list[float]]:
    """The untouched base's own log-probs, each process scoring its share."""
    mine = rollout_set.rollouts[processes.process_index :: processes.num_processes]
    own = score_rollouts(model, mine, token_budget=config.train.pass_tokens) if mine else []
    return gathered(processes, own, len(rollout_set))


def score_digests(config: RunConfig) -> dict[str, str]:
    """What identifies each stored score that a run reads, by input name."""
    return {name: digest_of(read_manifest(local(path))["files"]) for name, path in config.scores.items()}
