"""Hidden states to token log-probs and entropy, a block of the vocabulary at a time.

With a frozen head the forward pass also takes the gradient of every log-prob by its hidden state. Each token has one
log-prob and one hidden state, so that gradient is a vector per token, backward only scales it, and two matrix
products do the work of three, whatever the objective. A trainable head, or an objective that uses the entropy,
computes the logits again in backward; objectives linear in the log-probs spare a trainable head that (``linear``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.heads.blocks import (
    Grads,
    Head,
    Plan,
    Softmax,
    Step,
    accumulate,
    backpropagate,
    block_logits,
    check,
    finite,
    own_precision,
    places,
    plan_blocks,
    slopes,
    steepen,
    wide,
    working,
)


class TokenScores(NamedTuple):
    """Log-prob of each target and entropy of each distribution, nats, both with gradient."""

    logprobs: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]


def score_tokens(
    hidden: Float[Tensor, "tokens hidden"],
    head: Head,
    targets: Int[Tensor, " tokens"],
    *,
    chunk_bytes: int | None = None,
) -> TokenScores:
    """Log p(target) and entropy at every token without a (tokens, vocabulary) tensor.

    Computed in fp32 or wider: logits are cast up before the softmax. Laws: equals the naive head in value and gradient.

    Args:
        hidden: final hidden states at the predicting positions.
        head: the output head; its weight gets a gradient only if it requires one.
        targets: token ids to score.
        chunk_bytes: how much fp32 logits to hold at most, by default what suits the device; a CPU holds no more than its cache
            does.

    >>> head = Head(weight=torch.zeros(4, 2))
    >>> score_tokens(torch.ones(1, 2), head, torch.tensor([3])).entropy.exp().round().tolist()
    [4.0]
    """
    check(hidden, head, targets)
    trainable = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    ahead = torch.is_grad_enabled() and hidden.requires_grad and not trainable
    plan = plan_blocks(hidden, head, chunk_bytes)
    found = _Scores.apply(hidden, head.weight, head.bias, targets, head.scale, head.softcap, plan, ahead)
    return TokenScores(*found)


class Scores:
    """Log-prob of each target and entropy of each distribution, block by block; exact after the last block."""

    def __init__(self, hidden: Float[Tensor, "tokens hidden"], targets: Int[Tensor, " tokens"]) -> None:
        self.softmax, self.targets = Softmax(hidden), targets
        self.picked, self.spread = torch.zeros_like(self.softmax.top), torch.zeros_like(self.softmax.top)

    def absorb(self, part: slice, words: slice, logits: Float[Tensor, "rows words"]) -> Step:
        """Add a block; ``logits`` is used up."""
        at = places(self.targets[part], words)
        self.picked[part] = torch.where(at.inside, logits.gather(1, at.column), self.picked[part])
        step = self.softmax.absorb(part, logits)
        drifted = step.shrink * (self.spread[part] + step.mass * step.shift)
        self.spread[part] = drifted + logits.mul_(step.weights).sum(1, keepdim=True)
        return step

    @property
    def logprobs(self) -> Float[Tensor, "tokens 1"]:
        return self.picked - self.softmax.logsumexp

    @property
    def entropy(self) -> Float[Tensor, "tokens 1"]:
        return self.softmax.mass.log() - self.spread / self.softmax.mass


class Scan(NamedTuple):
    """One pass over the vocabulary: scores, log of the normalizer, and d logprob / d hidden where it was asked for."""

    logprobs: Float[Tensor, "tokens 1"]
    entropy: Float[Tensor, "tokens 1"]
    logsumexp: Float[Tensor, "tokens 1"]
    slopes: Float[Tensor, "tokens hidden"] | None


def scan(hidden: Tensor, head: Head, targets: Tensor, plan: Plan, *, ahead: bool) -> Scan:
    """Scores of all targets, one product; with ``ahead`` the gradient of each by its hidden state, a second one.

    The target's own word is left out of that second sum: (1 - p) is then no difference of two rounded sums, which
    would drown the gradient of a confident token in bf16.
    """
    scores = Scores(hidden, targets)
    others = wide(torch.zeros_like(hidden)) if ahead else None
    for words in plan.columns():
        for part in plan.parts():
            logits = block_logits(hidden[part], head, words)
            slope = slopes(logits, head) if ahead else 1.0
            step = scores.absorb(part, words, logits)
            if others is not None:
                at = places(targets[part], words)
                kept = step.weights.gather(1, at.column).masked_fill_(at.inside, 0)
                weights = steepen(step.weights.scatter_(1, at.column, kept), slope)
                accumulate(others[part].mul_(step.shrink), weights, head.weight[words])
    logprobs = scores.logprobs
    if others is not None:
        own = -torch.expm1(logprobs) * slopes(scores.picked, head)
        others = own * head.weight[targets] - others.div_(scores.softmax.mass)
    return Scan(logprobs, scores.entropy, scores.softmax.logsumexp, others)


def score_cotangent(logits: Tensor, logsumexp: Tensor, grad_logprobs: Tensor, targets: Tensor, words: slice) -> Tensor:
    """Gradient of the targets' log-probs by a block of logits, which is overwritten."""
    at = places(targets, words)
    grad = logits.sub_(logsumexp).exp_().mul_(-grad_logprobs)
    own = grad.gather(1, at.column) + grad_logprobs * at.inside
    return grad.scatter_(1, at.column, own)


class _Scores(torch.autograd.Function):
    @staticmethod
    @own_precision
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden, weight, bias, targets, scale, softcap, plan, ahead = inputs
        found = scan(hidden, finite(working(Head(weight, bias, scale, softcap), hidden)), targets, plan, ahead=ahead)
        ctx.save_for_backward(hidden, weight, bias, targets, found.entropy, found.logsumexp, found.slopes)
        ctx.settings = scale, softcap, plan
        ctx.set_materialize_grads(False)
        return found.logprobs[:, 0], found.entropy[:, 0]

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, *grads: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, targets, entropy, logsumexp, ready = ctx.saved_tensors
        scale, softcap, plan = ctx.settings
        grad_logprobs, grad_entropy = (None if g is None else g[:, None] for g in grads)
        grad_hidden = None
        if ready is not None and grad_logprobs is not None:
            grad_hidden = (grad_logprobs * ready).to(hidden.dtype)
            grad_logprobs = None
        if grad_logprobs is None and grad_entropy is None:
            return grad_hidden, None, None, None, None, None, None, None
        master = Head(weight, bias, scale, softcap)
        head = finite(working(master, hidden))

        def cotangent(part: slice, words: slice) -> Tensor:
            logits = block_logits(hidden[part], head, words)
            slope = slopes(logits, head)
            grad = torch.zeros_like(logits)
            if grad_entropy is not None:
                logp = logits - logsumexp[part]
                grad = logp.exp().mul_(logp.add_(entropy[part])).mul_(-grad_entropy[part])
            if grad_logprobs is not None:
                grad += score_cotangent(logits, logsumexp[part], grad_logprobs[part], targets[part], words)
            return steepen(grad, slope)

        sums = Grads.zeros(hidden, master, ctx.needs_input_grad[:3])
        backpropagate(hidden, head, sums, plan, cotangent)
        if sums.hidden is not None and grad_hidden is not None:
            grad_hidden = grad_hidden + sums.hidden.to(hidden.dtype)
        elif sums.hidden is not None:
            grad_hidden = sums.hidden.to(hidden.dtype)
        return grad_hidden, sums.weight, sums.bias, None, None, None, None, None
