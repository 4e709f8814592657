"""Some tokens of each rollout in place of all of them: a weight a token, T / n on the n that are kept and 0 on the others.

A weight belongs to its rollout alone, so neither the batch nor its order changes it. ``random`` leaves the sum over a rollout
unbiased (law: ``test_random_is_unbiased_by_enumeration``); the others are a choice of tokens, and their sums are of those.
Published for on-policy distillation (arXiv 2606.07082): ``random`` and ``top``; ``top_abs`` and ``bottom``, rounding up, ties
by position and the seed are OUR CHOICE.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.config import SparsifyConfig


def token_weights(
    config: SparsifyConfig,
    mask: Bool[Tensor, "batch time"],
    names: Sequence[str],
    log_ratio: Float[Tensor, "batch time"] | None,
) -> Float[Tensor, "batch time"]:
    """Weights of a batch's tokens, 0 outside the mask.

    Args:
        config: rule and share.
        mask: true where a token is scored.
        names: what each row's random choice is drawn by, the step among it.
        log_ratio: student minus teacher log-prob of each sampled token, nats; read by every rule but ``random``.
    """
    weights = torch.zeros(mask.shape)
    rows, scores = mask.cpu(), None if log_ratio is None else log_ratio.detach().cpu()
    for row, name in enumerate(names):
        places = rows[row].nonzero().squeeze(1)
        if num := len(places):
            kept = max(1, math.ceil(config.share * num - 1e-9))  # 0.1 * 30 is three, whatever its last bit says
            order = _order(config.rule, name, num, None if scores is None else scores[row, places])
            weights[row, places[order[:kept]]] = num / kept
    return weights.to(mask.device)


def _order(rule: str, name: str, num: int, scores: Tensor | None) -> Tensor:
    """The tokens of one rollout, those to keep first."""
    if rule == "random":
        seed = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:7], "big")
        return torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    assert scores is not None  # checked before the run began
    ranked = {"top": scores, "top_abs": scores.abs(), "bottom": -scores}[rule]
    return ranked.argsort(descending=True, stable=True)
