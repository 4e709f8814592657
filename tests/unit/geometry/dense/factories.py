"""Small models on disk in the layouts that people have: one file or shards, three types, tied or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from limbeck.geometry.dense.checkpoints import INDEX, SINGLE

CONFIG = {"model_type": "qwen3", "tie_word_embeddings": True, "vocab_size": 96}
SHAPES = {"model.embed_tokens.weight": (96, 48), "model.norm.weight": (48,)} | {
    f"model.layers.{layer}.{kind}.weight": shape
    for layer in range(2)
    for kind, shape in {
        "self_attn.q_proj": (64, 48), "self_attn.k_proj": (32, 48), "mlp.down_proj": (48, 120), "input_layernorm": (48,),
    }.items()
}  # fmt: skip


def weights(seed: int = 0, shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
    """Random bf16 values in fp32, as a released model has them."""
    generator = torch.Generator().manual_seed(seed)
    chosen = shapes or SHAPES
    return {name: (torch.randn(shape, generator=generator) * 0.02).bfloat16().float() for name, shape in chosen.items()}


def moved(base: Mapping[str, Tensor], seed: int, *, rank: int = 6, scale: float = 1e-4) -> dict[str, Tensor]:
    """The base plus a graded update of low rank (vectors: random), fp32."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, weight in base.items():
        step = torch.randn(weight.shape, generator=generator)
        if weight.ndim == 2:
            grade = 0.6 ** torch.arange(rank)
            left = torch.randn(weight.shape[0], rank, generator=generator) * grade
            step = left @ torch.randn(rank, weight.shape[1], generator=generator)
        out[name] = weight + scale * step
    return out


def save(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.bfloat16,
    shards: int = 1,
    **config: object,
) -> Path:
    """A Hugging Face folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(stored, folder / SINGLE)
        return folder
    names, index = sorted(stored), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: stored[name] for name in names[number::shards]}
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return folder
