"""What cannot be trained is refused before a model is loaded."""

from __future__ import annotations

from limbeck.config import TrainConfig
from limbeck.errors import ConfigError
from limbeck.objectives import check_knobs, find, inputs
from limbeck.train.shards import check_torch
from limbeck.types import Objective


def check(config: TrainConfig) -> Objective:
    """Refuse, before any model is loaded, what cannot be trained.

    Raises:
        ConfigError: an unknown objective or knob, or one outside its domain.
    """
    objective = find(config.objective)
    check_knobs(objective, config.knobs)
    if objective.unit == "pair" and (config.normalizer or objective.normalizer) == "token":
        raise ConfigError(
            f'{objective.name} has one value per pair: train.normalizer must be "sequence" or "constant", received "token".'
        )
    if objective.unit == "pair" and config.right_share is not None:
        raise ConfigError(
            f"train.right_share takes one rollout of each problem, received it with {objective.name}, which reads pairs. "
            "Leave it out."
        )
    _check_keep(config)
    _check_trajectory(config)
    _check_subspace(config)
    _check_sparsify(config, objective)
    return objective


def check_sharded(config: TrainConfig, *, second: bool) -> None:
    """Refuse what weights in parts cannot do.

    Args:
        config: the settings.
        second: whether the launcher's FSDP is FSDP2.

    Raises:
        ConfigError: a setting that needs whole matrices, the first FSDP, or a torch without what FSDP2 needs.
    """
    if config.subspace:
        raise ConfigError(
            "train.subspace projects whole matrices, received FSDP, which holds parts of them. Launch without it."
        )
    if config.optimizer not in ("adamw", "sgd"):
        raise ConfigError(
            "sharded weights need an optimizer that works entry by entry, received train.optimizer = "
            f'"{config.optimizer}", which reads whole rows or matrices. Use adamw or sgd, or launch without FSDP.'
        )
    if config.liger:
        raise ConfigError(
            "train.liger needs a student that lies on its GPU, received FSDP, under which it is read in the host's memory first. "
            "Leave it out, or launch without FSDP."
        )
    if not second:
        raise ConfigError("sharded weights need FSDP2, received its first version. Launch with --fsdp_version 2.")
    check_torch()


def _check_keep(config: TrainConfig) -> None:
    outside = [step for step in config.keep if not 1 <= step <= config.num_steps]
    if outside:
        raise ConfigError(
            f"train.keep must name steps from 1 to num_steps = {config.num_steps}, received {outside[0]}. Leave it out, or "
            "train for longer."
        )
    early = [name for name in ("stop_norm", "kl_budget") if getattr(config, name) is not None]
    if config.keep and early:
        raise ConfigError(
            f"train.keep needs a run that reaches its steps, received it beside {early[0]}, which may end the run before. "
            "Leave one of them out."
        )


def _check_trajectory(config: TrainConfig) -> None:
    if config.trajectory > config.num_steps:
        raise ConfigError(
            f"train.trajectory must be at most num_steps = {config.num_steps} snapshots, received {config.trajectory}. Take "
            "fewer, or train for longer."
        )


def _check_subspace(config: TrainConfig) -> None:
    if config.subspace and config.method != "full":
        raise ConfigError(
            "train.subspace is about the update of whole weights, received it beside an adapter, whose rank bounds its update "
            'already. Set train.method = "full".'
        )


def _check_sparsify(config: TrainConfig, objective: Objective) -> None:
    if config.sparsify is None:
        return
    if objective.unit != "token":
        raise ConfigError(
            f"train.sparsify weighs tokens, received it with {objective.name}, which has one value per {objective.unit}. Take an "
            "objective of one value a token, or leave it out."
        )
    if config.sparsify.rule != "random" and "teacher_logprobs" not in inputs(objective):
        raise ConfigError(
            f'train.sparsify.rule = "{config.sparsify.rule}" compares student and teacher on the sampled token, received '
            f'{objective.name}, which reads no teacher_logprobs. Use rule = "random", or an objective that reads them.'
        )
