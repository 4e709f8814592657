"""AdamW and a cosine with warm-up, from torch and transformers; only trainable tensors, fp32."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup

from limbeck.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """The optimizer over what is trainable, and its schedule over ``config.num_steps``."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
    warmup = round(config.warmup_fraction * config.num_steps)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, config.num_steps)
