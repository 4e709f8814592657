"""The only place that shifts by one: which hidden state predicts which token, and which tokens are scored.

A row is prompt then response, padded on the right. Target ``t`` is ``ids[:, t + 1]``, predicted from position ``t``.
Everything downstream of this module is indexed by the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from limbeck.errors import ProvenanceError


def targets(ids: Int[Tensor, "batch length"]) -> Int[Tensor, "batch time"]:
    """The token that each position has to predict."""
    return ids[:, 1:]


def predictors(hidden: Float[Tensor, "batch length hidden"]) -> Float[Tensor, "batch time hidden"]:
    """The hidden state that predicts each target."""
    return hidden[:, :-1]


def response_mask(
    prompt_lengths: Int[Tensor, " batch"], lengths: Int[Tensor, " batch"], *, width: int
) -> Bool[Tensor, "batch time"]:
    """True where the target is a response token; from lengths, never from ids.

    >>> response_mask(torch.tensor([3]), torch.tensor([4]), width=6).tolist()   # prompt of 3, answer of 1
    [[False, False, True, False, False]]
    """
    position = torch.arange(1, width, device=lengths.device)[None]
    return (position >= prompt_lengths[:, None]) & (position < lengths[:, None])


def per_token(
    responses: Sequence[Sequence[float]], mask: Bool[Tensor, "batch time"], *, fill: float = 0.0
) -> Float[Tensor, "batch time"]:
    """Place one value per response token at its targets.

    Raises:
        ProvenanceError: a row has another number of values than the mask has response tokens.

    >>> mask = response_mask(torch.tensor([1]), torch.tensor([3]), width=4)
    >>> per_token([[-0.5, -0.25]], mask).tolist()
    [[-0.5, -0.25, 0.0]]
    """
    _check_counts([len(row) for row in responses], mask)
    flat = np.fromiter(chain.from_iterable(responses), dtype=np.float32, count=int(mask.sum()))
    return torch.full(mask.shape, fill).masked_scatter(mask, torch.from_numpy(flat))


def per_token_rows(rows: Sequence[Tensor], mask: Bool[Tensor, "batch time"]) -> Shaped[Tensor, "batch time size"]:
    """Place one vector per response token at its targets, in the type it has; 0 elsewhere.

    Raises:
        ProvenanceError: a row has another number of vectors than the mask has response tokens.

    >>> mask = response_mask(torch.tensor([1]), torch.tensor([3]), width=4)
    >>> per_token_rows([torch.ones(2, 1)], mask)[0, :, 0]
    tensor([1., 1., 0.])
    """
    _check_counts([len(row) for row in rows], mask)
    flat = torch.cat(list(rows))
    out = flat.new_zeros(*mask.shape, flat.shape[1])
    out[mask] = flat
    return out


def _check_counts(received: list[int], mask: Tensor) -> None:
    counts = mask.sum(1).tolist()
    if counts != received:
        raise ProvenanceError(
            f"scores must have one value per response token = {counts}, received {received}. "
            "They were made for other rollouts: score this rollout set again."
        )
