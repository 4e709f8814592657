"""A head's logits a block at a time: some tokens by some words, small enough to stay in cache, then forgotten.

What every function of this package shares: the head, the plan of blocks, running softmax statistics that see each
block once, and the matrix products of backward. Vocabulary is the outer loop, so the weight is read once per pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import ModelError, ShapeError

# of fp32 logits held at a time: on an accelerator, which waits for its next kernel where blocks are smaller, and on a CPU
# in every pass that needs whole rows
ACCELERATOR_BYTES, CHUNK_BYTES = 256 << 20, 64 << 20
CACHE_BYTES = 768 << 10  # of fp32 logits held at a time on a CPU: a block and what is made of it stay in cache
CPU_WORDS, ACCELERATOR_WORDS = 768, 16384
NEVER = -1e30  # stands for a logit of -inf: exp gives 0, and 0 times it is 0


class Head(NamedTuple):
    """An output head: ``logits = softcap(scale * (hidden @ weight.T + bias))``; softcap 0 is off."""

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float = 0.0


def cut(head: Head, num_ids: int) -> Head:
    """The head without its padding rows: the first ``num_ids`` ids, which is what -inf logits on the others mean.

    Two models of one vocabulary often pad their heads to different widths; divergences need them cut to one.

    >>> cut(Head(weight=torch.zeros(8, 2)), 5).weight.shape
    torch.Size([5, 2])
    """
    if not 0 < num_ids <= len(head.weight):
        raise ShapeError(
            f"num_ids must be between 1 and the head's {len(head.weight)} ids, received {num_ids}. Give one more than "
            "the largest id of the common token map."
        )
    return head._replace(weight=head.weight[:num_ids], bias=None if head.bias is None else head.bias[:num_ids])


def working(head: Head, hidden: Tensor) -> Head:
    """The head as the matrix products read it: the weight in the hidden states' type, cast once a pass, not per block.

    So fp32 masters beside bf16 hidden states make bf16 products. All else is wide, the masters' gradient too.
    """
    return head._replace(weight=head.weight.to(hidden.dtype))


def own_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """A forward or backward that runs outside autocast: here every type is chosen by hand."""

    @wraps(function)
    def outside(ctx: Any, *args: Any) -> Any:
        device = next((t.device.type for t in args if isinstance(t, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return function(ctx, *args)

    return outside


def check(hidden: Float[Tensor, "tokens hidden"], head: Head, targets: Int[Tensor, " tokens"] | None = None) -> None:
    """Refuse hidden states of another size and targets that the head has no row for."""
    if head.weight.shape[1] != hidden.shape[1]:
        raise ModelError(
            f"the head must read hidden states of size {head.weight.shape[1]}, received {hidden.shape[1]}. "
            "A projection between decoder and head is not supported."
        )
    if targets is not None and targets.numel():
        low, high = (int(t) for t in targets.aminmax())
        if low < 0 or high >= len(head.weight):
            raise ShapeError(
                f"targets must be ids from 0 to {len(head.weight) - 1}, received {low} to {high}. Score only cells "
                "inside the mask, and check that tokenizer and model belong together."
            )


class Plan(NamedTuple):
    """How a (tokens, vocab) matrix is cut: at most ``rows`` tokens by ``words`` ids at a time."""

    tokens: int
    vocab: int
    rows: int
    words: int

    def columns(self) -> Iterator[slice]:
        return (slice(a, min(a + self.words, self.vocab)) for a in range(0, self.vocab, self.words))

    def parts(self) -> Iterator[slice]:
        return (slice(a, min(a + self.rows, self.tokens)) for a in range(0, self.tokens, self.rows))


def held(device: torch.device) -> int:
    """Bytes of fp32 logits that a pass holds at a time where nobody said."""
    return CHUNK_BYTES if device.type == "cpu" else ACCELERATOR_BYTES


def plan_blocks(hidden: Tensor, head: Head, chunk_bytes: int | None = None, *, sides: int = 1) -> Plan:
    """Blocks of at most ``chunk_bytes`` of fp32 logits of all sides; on a CPU each of no more than the cache holds."""
    on_cpu = hidden.device.type == "cpu"
    each = (chunk_bytes or held(hidden.device)) // sides
    cells = max(1, (min(each, CACHE_BYTES) if on_cpu else each) // 4)
    words = min(len(head.weight), CPU_WORDS if on_cpu else ACCELERATOR_WORDS, cells)
    return Plan(tokens=len(hidden), vocab=len(head.weight), rows=cells // words, words=words)


def plan_rows(hidden: Tensor, head: Head, chunk_bytes: int | None = None) -> Plan:
    """Blocks of whole rows, at least one: for functions that need every id of a token together."""
    vocab, cells = len(head.weight), (chunk_bytes or held(hidden.device)) // 4
    return Plan(tokens=len(hidden), vocab=vocab, rows=max(1, cells // vocab), words=vocab)


def block_logits(hidden: Tensor, head: Head, words: slice) -> Float[Tensor, "rows words"]:
    """Logits of some tokens over some ids in float32 or wider; a new tensor, the caller's to overwrite."""
    out = wide(hidden @ head.weight[words].T)
    if head.bias is not None:
        out += head.bias[words]
    if head.scale != 1.0:
        out *= head.scale
    return out.div_(head.softcap).tanh_().mul_(head.softcap) if head.softcap else out


def slopes(logits: Tensor, head: Head) -> Tensor | float:
    """Derivative of the logits by ``hidden @ weight.T``."""
    return (logits / head.softcap).square_().neg_().add_(1).mul_(head.scale) if head.softcap else head.scale


def steepen(grad: Tensor, slope: Tensor | float) -> Tensor:
    """``grad`` times ``slope`` in place; nothing to do for a plain head."""
    return grad if isinstance(slope, float) and slope == 1.0 else grad.mul_(slope)


def wide(tensor: Tensor) -> Tensor:
    """In float32, or float64 where it was."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def finite(head: Head) -> Head:
    """The head with a bias of -inf replaced, so that running sums meet no 0 * inf."""
    return head if head.bias is None else head._replace(bias=head.bias.clamp(min=NEVER))


class Step(NamedTuple):
    """What one block did to a running softmax: its unnormalized weights, and what rescales the sums so far."""

    weights: Float[Tensor, "rows words"]
    shrink: Float[Tensor, "rows 1"]
    mass: Float[Tensor, "rows 1"]  # before the block
    shift: Float[Tensor, "rows 1"]  # of the maximum: before minus after


class Softmax:
    """Maximum and sum of exponentials of every token, block by block. ``logsumexp`` is exact after the last."""

    def __init__(self, like: Float[Tensor, "tokens hidden"]) -> None:
        kind = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.top = like.new_full((len(like), 1), NEVER, dtype=kind)
        self.mass = like.new_zeros((len(like), 1), dtype=kind)

    def absorb(self, part: slice, logits: Float[Tensor, "rows words"]) -> Step:
        """Add a block; ``logits`` is left with the new maximum subtracted."""
        before, mass = self.top[part].clone(), self.mass[part].clone()
        after = torch.maximum(before, logits.amax(1, keepdim=True))
        shift = before - after
        shrink = shift.exp()
        weights = logits.sub_(after).exp()
        self.mass[part] = mass * shrink + weights.sum(1, keepdim=True)
        self.top[part] = after
        return Step(weights=weights, shrink=shrink, mass=mass, shift=shift)

    @property
    def logsumexp(self) -> Float[Tensor, "tokens 1"]:
        return self.top + self.mass.log()


class Places(NamedTuple):
    """Where the targets of some tokens lie in a block: a column for each, and whether it is really there."""

    column: Int[Tensor, "rows 1"]
    inside: Tensor


def places(targets: Int[Tensor, " rows"], words: slice) -> Places:
    """Columns are clamped into the block, so that a gather is always allowed."""
    column = targets[:, None] - words.start
    return Places(column.clamp(0, words.stop - words.start - 1), (column >= 0) & (column < words.stop - words.start))


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``; the product in ``right``'s type, the sum in ``total``'s, which is wide."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total += left.to(right.dtype) @ right


class Grads(NamedTuple):
    """Gradients of a head's inputs; ``None`` where nobody asked."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def zeros(cls, hidden: Tensor, head: Head, needs: tuple[bool, bool, bool]) -> Grads:
        """Sums to add to. The hidden states' is wide, the others have the type of their (master) parameter."""
        return cls(
            wide(torch.zeros_like(hidden)) if needs[0] else None,
            torch.zeros_like(head.weight) if needs[1] else None,
            torch.zeros_like(head.bias) if needs[2] and head.bias is not None else None,
        )


def backpropagate(
    hidden: Tensor,
    head: Head,
    sums: Grads,
    plan: Plan,
    cotangent: Callable[[slice, slice], Float[Tensor, "rows words"]],
) -> None:
    """Add to ``sums`` what ``cotangent(part, words)``, the gradient of a block of ``hidden @ weight.T``, implies.

    One product per block and gradient that is asked for; sums over a whole pass are wide whatever the weights are.
    """
    for words in plan.columns():
        weight = head.weight[words]
        over_tokens = None if sums.weight is None else wide(sums.weight[words])  # fp32: the sum itself, else a copy
        for part in plan.parts():
            grad = cotangent(part, words)
            if sums.hidden is not None:
                accumulate(sums.hidden[part], grad, weight)
            if over_tokens is not None:
                accumulate(over_tokens, grad.T, hidden[part])
            if sums.bias is not None:
                sums.bias[words] += grad.sum(0)
        if sums.weight is not None and over_tokens is not None and sums.weight.dtype != over_tokens.dtype:
            sums.weight[words] = over_tokens.to(sums.weight.dtype)
