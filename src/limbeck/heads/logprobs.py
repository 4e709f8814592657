"""Hidden states to token log-probs and entropy, a chunk of tokens at a time.

The logits of a chunk are computed, read, and dropped; backward computes them again. What is held is one chunk,
so memory does not grow with tokens x vocabulary. The weight's gradient is skipped when the head is frozen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import ModelError

CHUNK_BYTES = 64 << 20  # of fp32 logits held at a time


class Head(NamedTuple):
    """An output head: ``logits = softcap(scale * (hidden @ weight.T + bias))``; softcap 0 is off."""

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float = 0.0


class TokenScores(NamedTuple):
    """Log-prob of each target and entropy of each distribution, nats, both with gradient."""

    logprobs: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]


def score_tokens(
    hidden: Float[Tensor, "tokens hidden"],
    head: Head,
    targets: Int[Tensor, " tokens"],
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> TokenScores:
    """Log p(target) and entropy at every token without a (tokens, vocabulary) tensor.

    Computed in fp32 or wider: logits are cast up before the softmax.

    Args:
        hidden: final hidden states at the predicting positions.
        head: the output head; its weight gets a gradient only if it requires one.
        targets: token ids to score.
        chunk_bytes: how much fp32 logits to hold at once.

    >>> head = Head(weight=torch.zeros(4, 2))
    >>> score_tokens(torch.ones(1, 2), head, torch.tensor([3])).entropy.exp().round().tolist()
    [4.0]
    """
    if head.weight.shape[1] != hidden.shape[1]:
        raise ModelError(
            f"the head must read hidden states of size {head.weight.shape[1]}, received {hidden.shape[1]}. "
            "A projection between decoder and head is not supported."
        )
    chunk = max(1, chunk_bytes // (4 * head.weight.shape[0]))
    logprobs, entropy = _ChunkedScores.apply(hidden, head.weight, head.bias, targets, head.scale, head.softcap, chunk)
    return TokenScores(logprobs=logprobs, entropy=entropy)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float) -> Tensor:
    logits = hidden @ weight.T
    logits = logits.double() if logits.dtype == torch.float64 else logits.float()
    if bias is not None:
        logits = logits + bias
    if scale != 1.0:
        logits = logits * scale
    return softcap * torch.tanh(logits / softcap) if softcap else logits


class _ChunkedScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden, weight, bias, targets, scale, softcap, chunk = inputs
        logprobs, entropies = [], []
        for begin in range(0, max(len(targets), 1), chunk):
            part = slice(begin, begin + chunk)
            logp = _logits(hidden[part], weight, bias, scale, softcap).log_softmax(-1)
            logprobs.append(logp.gather(1, targets[part, None])[:, 0])
            entropies.append(-(logp.exp() * logp).sum(-1))
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.settings = scale, softcap, chunk
        return torch.cat(logprobs), torch.cat(entropies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, weight, bias, targets = ctx.saved_tensors
        scale, softcap, chunk = ctx.settings
        grad_logprobs, grad_entropy = grads
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        for begin in range(0, len(targets), chunk):
            part = slice(begin, begin + chunk)
            logits = _logits(hidden[part], weight, bias, scale, softcap)
            logp = logits.log_softmax(-1)
            p = logp.exp()
            entropy = -(p * logp).sum(-1, keepdim=True)
            grad = p * (-grad_logprobs[part, None] - grad_entropy[part, None] * (logp + entropy))
            grad.scatter_add_(1, targets[part, None], grad_logprobs[part, None].to(grad.dtype))
            if softcap:
                grad = grad * (1 - (logits / softcap).square())
            grad = (grad * scale).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ weight
            if grad_weight is not None:
                grad_weight += grad.T @ hidden[part]
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None
