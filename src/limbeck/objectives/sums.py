"""Sums and means over the live tokens of a row: the few lines that every sequence objective shares."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def row_sum(tokens: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
    """Sum over the live tokens of each row."""
    return torch.where(mask, tokens, 0.0).sum(-1)


def row_length(mask: Bool[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
    """Live tokens of each row, at least 1 so that a dead row divides by something."""
    return mask.sum(-1).clamp(min=1).to(torch.float32)


def row_mean(tokens: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
    """Mean over the live tokens of each row."""
    return row_sum(tokens, mask) / row_length(mask)


def per_token(rows: Float[Tensor, " batch"], like: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """One number per row on each of its tokens."""
    return rows[:, None].expand_as(like)
