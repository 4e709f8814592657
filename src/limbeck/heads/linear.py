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
    Grads,
    Head,
    Plan,
    Softmax,
    backpropagate,
    block_logits,
    check,
    finite,
    own_precision,
    places,
    plan_blocks,
    plan_rows,
    slopes,
    steepen,
    wide,
    working,
)
from limbeck.heads.logprobs import scan, score_cotangent

HELD_BYTES = (
    256 << 20
)  # of fp32 logits held for a trainable head: each chunk reads and writes the weight's gradient once


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
    chunk_bytes: int = HELD_BYTES,
) -> LinearTotal:
    """Weighted sum of log-probs whose backward only scales: two matrix products, three for a trainable head.

    Against ``score_tokens``: the same for a frozen head, and one product less for a trainable one.

    Args:
        hidden: final hidden states at the predicting positions.
        head: the output head; its weight and bias get a gradient only if they require one.
        targets: token ids to score.
        weights: what multiplies each log-prob; constants, so they must not require a gradient.
        chunk_bytes: how much fp32 logits to hold at most (at least one token's); a frozen head on a CPU holds no more
            than its cache does.

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
    @own_precision
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden, weight, bias, targets, weights, (scale, softcap, chunk_bytes, needs) = inputs
        head = finite(working(Head(weight, bias, scale, softcap), hidden))
        if needs[1] or needs[2]:
            logprobs, sums = _by_rows(hidden, head, targets, weights, needs, plan_rows(hidden, head, chunk_bytes))
            masters = hidden, weight, bias
            grads = Grads(*(None if s is None else s.to(m.dtype) for s, m in zip(sums, masters, strict=True)))
        else:
            found = scan(hidden, head, targets, plan_blocks(hidden, head, chunk_bytes), ahead=needs[0])
            ready = None if found.slopes is None else (weights[:, None] * found.slopes).to(hidden.dtype)
            logprobs, grads = found.logprobs[:, 0], Grads(ready, None, None)
        ctx.ready = grads
        ctx.mark_non_differentiable(logprobs)
        return (weights * logprobs).sum(), logprobs

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        ready, ctx.ready = ctx.ready, None  # given away, not copied: a weight's gradient is as large as the weight
        if ready is None:
            raise RuntimeError(
                "linear_total goes backward once, received a second call. Call it again, or use score_tokens."
            )
        return *(None if grad is None else grad.mul_(grads[0]) for grad in ready), None, None, None


def _by_rows(
    hidden: Tensor, head: Head, targets: Tensor, weights: Tensor, needs: tuple[bool, bool, bool], plan: Plan
) -> tuple[Tensor, Grads]:
    """A few tokens after another, each with its whole row of logits; their sums of gradients are shared and wide."""
    sums = Grads.zeros(hidden, head, needs)
    sums = Grads(*(None if total is None else wide(total) for total in sums))
    logprobs = [weights.new_zeros(0)]
    held = wide(hidden.new_empty(min(plan.rows, plan.tokens) * plan.vocab))
    for part in plan.parts():
        own = sums._replace(hidden=None if sums.hidden is None else sums.hidden[part])
        logprobs.append(_rows(hidden[part], head, targets[part], weights[part, None], own, held))
    return torch.cat(logprobs), sums


def _rows(hidden: Tensor, head: Head, targets: Tensor, weights: Tensor, sums: Grads, held: Tensor) -> Tensor:
    """Logits are held, each block in one piece, until their normalizer is known, and then used up."""
    rows = len(hidden)
    plan = plan_blocks(hidden, head)._replace(rows=rows)
    blocks = {w.start: held[rows * w.start : rows * w.stop].view(rows, -1) for w in plan.columns()}
    softmax = Softmax(hidden)
    picked = torch.zeros_like(softmax.top)
    for words in plan.columns():
        logits = block_logits(hidden, head, words)
        blocks[words.start].copy_(logits)
        at = places(targets, words)
        picked = torch.where(at.inside, logits.gather(1, at.column), picked)
        softmax.absorb(slice(None), logits)
    logsumexp = softmax.logsumexp

    def cotangent(_: slice, words: slice) -> Tensor:
        logits = blocks[words.start]
        slope = slopes(logits, head)
        return steepen(score_cotangent(logits, logsumexp, weights, targets, words), slope)

    backpropagate(hidden, head, sums, plan, cotangent)
    return (picked - logsumexp)[:, 0]
