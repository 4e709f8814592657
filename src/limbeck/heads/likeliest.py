"""A distribution kept in little room: its likeliest ids, their log-probs, and the log of everything else's mass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.heads.blocks import Head, block_logits, check, plan_rows, working


class Likeliest(NamedTuple):
    """Ids from the likeliest on; their log-probs and, as the last column, the tail's, nats; -inf where nothing is left."""

    ids: Int[Tensor, "tokens k"]
    logprobs: Float[Tensor, "tokens cells"]


@torch.no_grad()
def likeliest(
    hidden: Float[Tensor, "tokens hidden"], head: Head, k: int, *, chunk_bytes: int | None = None
) -> Likeliest:
    """The ``k`` likeliest ids of every token (all ids if there are fewer) and one cell for the rest.

    The tail is summed from its own logits: 1 - sum would be lost to rounding where the student has learned something.

    >>> found = likeliest(torch.ones(1, 1), Head(weight=torch.tensor([[1.0], [3.0], [2.0]])), 2)
    >>> found.ids.tolist(), round(found.logprobs.exp().sum().item(), 4)
    ([[1, 2]], 1.0)
    """
    check(hidden, head)
    ready, k = working(head, hidden), min(k, len(head.weight))
    ids, logprobs = [hidden.new_empty(0, k, dtype=torch.long)], []
    for part in plan_rows(hidden, head, chunk_bytes).parts() if len(hidden) else [slice(None)]:
        logits = block_logits(hidden[part], ready, slice(None))
        logits -= logits.logsumexp(1, keepdim=True)
        top = logits.topk(k)
        tail = logits.scatter_(1, top.indices, -torch.inf).logsumexp(1, keepdim=True)
        ids.append(top.indices)
        logprobs.append(torch.cat([top.values, tail], 1))
    return Likeliest(torch.cat(ids), torch.cat(logprobs))
