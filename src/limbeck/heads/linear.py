"""Objectives linear in the log-probs: the whole gradient in the forward pass, so that logits are computed once.

Where the weight of each token is known beforehand (supervised losses, policy gradients on fresh rollouts), nothing
that backward will say can change the gradient but one common factor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.errors import ShapeError
from limbeck.heads.blocks import (
    CHUNK_BYTES,
    Grads,
    Head,
    Plan,
    Softmax,
    backpropagate,
    block_logits,
    check,
    finite,
    plan_blocks,
    plan_rows,
    slopes,
    steepen,
    wide,
)
from limbeck.heads.logprobs import scan, score_cotangent


class LinearTotal(NamedTuple):
    """``total = sum(weights * logprobs)`` with gradient; ``logprobs`` in nats without, for metrics."""

    total: Float[Tensor, ""]
    logprobs: Float[Tensor, " tokens"]


def linear_total(
    hidden: Float[Tensor, "tokens hidden"],
    head: Head,
    targets: Int[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> LinearTotal:
    """Weighted sum of log-probs whose backward only scales: two matrix products, three for a trainable head.

    Against ``score_tokens``: the same for a frozen head, and one product less for a trainable one.

    Args:
        hidden: final hidden states at the predicting positions.
        head: the output head; its weight and bias get a gradient only if they require one.
        targets: token ids to score.
        weights: what multiplies each log-prob; constants, so they must not require a gradient.
        chunk_bytes: how much fp32 logits to hold at most (at least one token's).

    >>> head = Head(weight=torch.zeros(4, 2))
    >>> round(linear_total(torch.ones(1, 2), head, torch.tensor([3]), torch.tensor([2.0])).total.exp().item(), 4)
    0.0625
    """
    check(hidden, head, targets)
    if weights.requires_grad:
        raise ShapeError(
            "weights must be constants, received a tensor that requires a gradient. Detach it, or use score_tokens."
        )
    needs = hidden.requires_grad, head.weight.requires_grad, head.bias is not None and head.bias.requires_grad
    live = needs if torch.is_grad_enabled() else (False, False, False)
    settings = head.scale, head.softcap, chunk_bytes, live
    return LinearTotal(*_Linear.apply(hidden, head.weight, head.bias, targets, weights, settings))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden, weight, bias, targets, weights, (scale, softcap, chunk_bytes, needs) = inputs
        head = finite(Head(weight, bias, scale, softcap))
        if needs[1] or needs[2]:
            logprobs, grads = _by_rows(hidden, head, targets, weights, needs, plan_rows(hidden, head, chunk_bytes))
        else:
            found = scan(hidden, head, targets, plan_blocks(hidden, head, chunk_bytes), ahead=needs[0])
            ready = None if found.slopes is None else (weights[:, None] * found.slopes).to(hidden.dtype)
            logprobs, grads = found.logprobs[:, 0], Grads(ready, None, None)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(logprobs)
        return (weights * logprobs).sum(), logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        ready = (None if grad is None else (grads[0] * grad).to(grad.dtype) for grad in ctx.saved_tensors)
        return *ready, None, None, None


def _by_rows(
    hidden: Tensor, head: Head, targets: Tensor, weights: Tensor, needs: tuple[bool, bool, bool], plan: Plan
) -> tuple[Tensor, Grads]:
    """A few tokens after another, each with its whole row of logits; their sums of gradients are shared and wide."""
    sums = Grads.zeros(hidden, head, needs)
    sums = Grads(*(None if total is None else wide(total) for total in sums))
    logprobs = [weights.new_zeros(0)]
    for part in plan.parts():
        own = sums._replace(hidden=None if sums.hidden is None else sums.hidden[part])
        logprobs.append(_rows(hidden[part], head, targets[part], weights[part, None], own))
    grads = Grads(*(None if total is None else total.to(hidden.dtype) for total in sums))
    return torch.cat(logprobs), grads


def _rows(hidden: Tensor, head: Head, targets: Tensor, weights: Tensor, sums: Grads) -> Tensor:
    """Logits are kept until their normalizer is known, then used up block by block."""
    plan = plan_blocks(hidden, head, CHUNK_BYTES)._replace(rows=len(hidden))
    kept, softmax = wide(hidden.new_empty((len(hidden), plan.vocab))), Softmax(hidden)
    for words in plan.columns():
        kept[:, words] = block_logits(hidden, head, words)
        softmax.absorb(slice(None), kept[:, words].clone())
    logsumexp = softmax.logsumexp
    logprobs = kept.gather(1, targets[:, None]) - logsumexp

    def cotangent(_: slice, words: slice) -> Tensor:
        logits = kept[:, words]
        slope = slopes(logits, head)
        return steepen(score_cotangent(logits, logsumexp, weights, targets, words), slope)

    backpropagate(hidden, head, sums, plan, cotangent)
    return logprobs[:, 0]
