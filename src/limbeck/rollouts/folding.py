"""A LoRA adapter folded into copies of its matrices while a model samples, and taken out again without a trace.

Two products and an addition a matrix and step are what an unmerged adapter costs a decoder. The base's own tensors are not
written to: each adapted layer is exchanged for a plain one that holds ``W + scaling B A``, and put back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

M = TypeVar("M", bound=nn.Module)


@contextmanager
def folded(model: M) -> Iterator[M]:
    """The model with plain fp32 LoRA layers folded while the context is open; log-probs differ by fp32 rounding.

    Left as they are, and still right: weights and products narrower than fp32, in which a small update would be lost;
    variants of LoRA; layers with hooks; adapters that are switched off or merged already.
    """
    places: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, LoraLinear) and _is_plain(child):
                    places.append((parent, name, child))
                    setattr(parent, name, _fold(child))
        yield model
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


@torch.no_grad()
def _fold(layer: LoraLinear) -> nn.Linear:
    base = cast(nn.Linear, layer.base_layer)
    weight = base.weight.detach().clone()
    for adapter in _active(layer):
        weight += layer.get_delta_weight(adapter)
    plain = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), base.bias
    return plain


def _is_plain(layer: LoraLinear) -> bool:
    base = layer.base_layer
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in (layer, base))
    variant = any(layer.lora_variant.get(name) or layer.lora_bias.get(name) for name in _active(layer))
    off = layer.disable_adapters or layer.merged
    if type(base) is not nn.Linear or hooks or variant or off:
        return False
    return base.weight.dtype == torch.float32 and not torch.is_autocast_enabled(base.weight.device.type)


def _active(layer: LoraLinear) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]
