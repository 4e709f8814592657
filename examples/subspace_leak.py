"""A regression held to 16 of 128 input directions: how much of its update is outside all the same.

    python examples/subspace_leak.py

Projecting the gradient is not projecting the update: Adam divides entry by entry, decay pulls on all of the weight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from limbeck.train.subspace import Frame, Subspace, confine, leak, project_gradients

ROWS, COLUMNS, K, STEPS = 96, 128, 16, 300


class Outside(NamedTuple):
    """Shares of the update outside of the directions, and its numerical rank (values above 1e-4 of the largest)."""

    leak: dict[str, float]
    rank: int


def walk(optimizer: str, *, decay: float = 0.0, exact: bool = False, steps: int = STEPS) -> Outside:
    """Train, with the gradient projected before each step or, exactly, the update after it."""
    torch.manual_seed(0)
    model = nn.Linear(COLUMNS, ROWS, bias=False)
    inputs, targets = torch.randn(256, COLUMNS), torch.randn(256, ROWS)
    start = {"weight": model.weight.detach().clone()}
    subspace = Subspace({"weight": Frame(None, frame(COLUMNS, K, seed=1))}, exact)
    walker: torch.optim.Optimizer
    if optimizer == "sgd":
        walker = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=decay)
    else:
        walker = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=decay)
    for _ in range(steps):
        walker.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        if not exact:
            project_gradients(subspace, model)
        walker.step()
        if exact:
            confine(subspace, model, start)
    values = torch.linalg.svdvals((model.weight.detach() - start["weight"]).double())
    return Outside(leak(subspace, model, start), int((values > 1e-4 * values[0]).sum()))


def frame(size: int, k: int, *, seed: int) -> Tensor:
    """Random orthonormal directions."""
    draw = torch.randn(size, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(draw).Q.float()


def main() -> None:
    """Print the table."""
    print("optimizer decay projected  norm outside  energy outside  fp32 floor  norm outside in bf16  rank")
    for exact in (False, True):
        for optimizer, decay in (("sgd", 0.0), ("sgd", 0.001), ("adam", 0.0), ("adam", 0.1)):
            found, rank = walk(optimizer, decay=decay, exact=exact)
            what = "update" if exact else "gradient"
            numbers = "  ".join(f"{found[name]:12.2g}" for name in ("leak", "leak_energy", "leak_floor", "leak_bf16"))
            print(f"{optimizer:9} {decay:5} {what:9} {numbers}  {rank:4}")


if __name__ == "__main__":
    main()
