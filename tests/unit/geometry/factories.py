"""Small real updates for the tests: arms that share an initial A, as runs of one study do."""

from __future__ import annotations

import numpy as np
import torch

from limbeck.types import Delta, LowRank

SHAPES = {
    f"model.layers.{layer}.self_attn.{kind}": shape
    for layer in range(2)
    for kind, shape in (("q_proj", (64, 48)), ("k_proj", (32, 48)), ("o_proj", (48, 64)))
}


def arm(
    name: str, seed: int, *, rank: int = 12, init: str = "same", shapes: dict[str, tuple[int, int]] | None = None
) -> Delta:
    """B random with a graded spectrum; A the shared initial one plus a small step."""
    own, shared = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    modules = {}
    for module, (rows, columns) in (shapes or SHAPES).items():
        grade = 0.8 ** torch.arange(rank)
        left = torch.randn(rows, rank, generator=own) * grade * 1e-3
        right = torch.randn(rank, columns, generator=shared) + 0.1 * torch.randn(rank, columns, generator=own)
        modules[module] = LowRank(left, right)
    return Delta(name=name, base="toy", init_digest=init, modules=modules)


def dense(delta: Delta) -> dict[str, np.ndarray]:
    return {name: f.left.double().numpy() @ f.right.double().numpy() for name, f in delta.modules.items()}


def mapped(delta: Delta, function, name: str = "") -> Delta:
    """The delta with ``function(module, factors)`` in place of each pair of factors."""
    modules = {module: function(module, factors) for module, factors in delta.modules.items()}
    return Delta(name=name or delta.name, base=delta.base, init_digest=delta.init_digest, modules=modules)
