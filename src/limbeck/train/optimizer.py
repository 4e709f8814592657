"""Optimizers and schedules as axes of an arm, from torch and transformers; over what is trainable, fp32."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from limbeck.config import TrainConfig
from limbeck.errors import ConfigError

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}


class Walker(NamedTuple):
    """An optimizer with its schedule. A run has one, or two where Muon leaves what is no matrix to AdamW."""

    optimizer: Optimizer
    schedule: LambdaLR


def make_walkers(model: nn.Module, config: TrainConfig) -> list[Walker]:
    """Optimizers over everything trainable in ``model``, each with the schedule over ``config.num_steps``.

    Raises:
        ConfigError: Muon, of a torch that does not have it yet.
    """
    if config.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f'train.optimizer = "muon" needs torch 2.9 or newer, received torch {torch.__version__}. Update torch, or take '
            "adamw."
        )
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.optimizer != "muon":
        return [_walker(_optimizer([p for _, p in named], config), config)]
    outer = outer_parameters(model)
    hidden = [p for _, p in named if p.dim() == 2 and id(p) not in outer]
    rest = [p for _, p in named if p.dim() != 2 or id(p) in outer]
    found = [_walker(_optimizer(hidden, config), config)]
    return (
        [*found, _walker(_optimizer(rest, config.model_copy(update={"optimizer": "adamw"})), config)] if rest else found
    )


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)
        case "adafactor":
            return torch.optim.Adafactor(parameters, lr=rate, weight_decay=decay)
        case "muon":
            return torch.optim.Muon(
                parameters, lr=rate, weight_decay=decay, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"
            )


def _walker(optimizer: Optimizer, config: TrainConfig) -> Walker:
    own = {"num_decay_steps": max(1, round(config.decay_fraction * config.num_steps))}
    schedule = get_scheduler(
        SCHEDULES[config.schedule],
        optimizer,
        num_warmup_steps=round(config.warmup_fraction * config.num_steps),
        num_training_steps=config.num_steps,
        scheduler_specific_kwargs=own if config.schedule == "wsd" else None,
    )
    return Walker(optimizer, schedule)  # type: ignore[arg-type]


def outer_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters of embeddings and head: matrices, but of tokens by features and no hidden ones."""
    ends = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {id(p) for module in [*ends, *([head] if head is not None else [])] for p in module.parameters()}
