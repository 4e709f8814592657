"""Hidden states of every layer on fixed text: what representations are compared on. Padding and prompts stay out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.batches import align
from limbeck.batches.collate import TrainingData, collate, micro_batches
from limbeck.batches.forward import layer_states
from limbeck.geometry.representation import mean_by_row
from limbeck.types import Rollout


@torch.no_grad()
def response_means(
    model: nn.Module, rows: Sequence[Rollout], *, token_budget: int = 8192
) -> list[Float[Tensor, "items hidden"]]:
    """One matrix per layer, embeddings first: for each row the mean state over the positions that predict its response.

    Every model given the same rows reads the same text; items are in the order of the rows, fp64.
    """
    data = TrainingData(rollouts=rows, items=[(i,) for i in range(len(rows))], weights=[1.0] * len(rows))
    parts: dict[int, list[Tensor]] = {}
    for items in micro_batches(data, range(len(rows)), token_budget=token_budget):
        batch = collate(data, items, ()).to(next(model.parameters()).device)
        layers = layer_states(model, batch.ids, batch.lengths)
        means = [mean_by_row(align.predictors(layer), batch.mask).cpu() for layer in layers]
        parts.update({item: [mean[j] for mean in means] for j, item in enumerate(items)})
    return [torch.stack([parts[i][layer] for i in range(len(rows))]) for layer in range(len(parts[0]))]
