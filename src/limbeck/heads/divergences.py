"""Divergences between student and teacher over the whole vocabulary, from hidden states; gradients for the student.

``chunked`` evaluates any token-local function of both sides' logits a few rows at a time and again in backward, so
every divergence of the plain form is to be had in bounded memory. Those that need no choice of ids have a form of their
own that reads the vocabulary in blocks and knows its gradient: ``reverse_kl`` and ``forward_kl`` here, the others in
``mixtures``. Laws: each equals the plain form in value and gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.heads.blocks import (
    Grads,
    Head,
    Softmax,
    backpropagate,
    block_logits,
    check,
    own_precision,
    plan_blocks,
    plan_rows,
    slopes,
    steepen,
    working,
)
from limbeck.heads.logprobs import Scores
from limbeck.heads.sides import (
    NEGATIVE,
    STUDENT_SCORES,
    OtherRows,
    Rows,
    check_rows,
    check_sides,
    cooled,
    sides,
    working_sides,
)
from limbeck.types import Values


def chunked(
    function: Callable[..., Values], hidden: Rows, head: Head, *rows: Tensor, chunk_bytes: int | None = None
) -> Values:
    """``function(logits, *rows)`` for every token, with the student's logits of a few tokens at a time.

    One product forward, and backward once more and one for the gradient (two with a trainable head), beside what
    ``function`` does. A token's value must depend on its own row of every tensor alone.

    Args:
        function: (rows, vocab) logits, float32 or wider, and the same rows of every other tensor, to one value and
            metrics per row. Teacher's logits are made inside: ``logits_of(teacher_rows, teacher_head)``.
        hidden: the student's final hidden states; the only rows with gradient.
        head: the student's head; its weight gets a gradient only if it requires one.
        rows: tensors with one row a token; constants.
        chunk_bytes: how much fp32 logits to hold at most (at least one token's), by default what suits the device; ``function``
            itself makes several
            tensors of that size.

    >>> def squared(logits, wanted):
    ...     return Values(values=(logits - wanted).square().sum(-1))
    >>> chunked(squared, torch.ones(3, 2), Head(weight=torch.eye(2)), torch.ones(3, 2)).values
    tensor([0., 0., 0.])
    """
    check(hidden, head)
    for other in rows:
        check_rows(hidden, other)
    names: list[str] = []
    values, *metrics = _Chunked.apply(hidden, head.weight, head.bias, *rows, (head[2:], function, names, chunk_bytes))
    return Values(values=values, metrics=dict(zip(names, metrics, strict=True)))


def logits_of(hidden: Float[Tensor, "tokens size"], head: Head) -> Float[Tensor, "tokens vocab"]:
    """Whole logits of a few tokens, float32 or wider, for functions given to ``chunked``; no gradient of its own.

    >>> logits_of(torch.ones(1, 2), Head(weight=torch.eye(2), scale=3.0))
    tensor([[3., 3.]])
    """
    return block_logits(hidden, working(head, hidden), slice(None))


def reverse_kl(
    hidden: Rows,
    head: Head,
    teacher_hidden: OtherRows,
    teacher_head: Head,
    targets: Int[Tensor, " tokens"] | None = None,
    *,
    kd_temperature: float = 1.0,
    chunk_bytes: int | None = None,
) -> Values:
    """KL(student||teacher) at every token, nats: sum over v of P * (log P - log Q).

    Gradient by the student's logits: P * (log P - log Q - value). Against ``chunked``: the same, in blocks that fit a
    cache. Multiply by ``kd_temperature**2`` to undo the shrinking of the gradient. With ``targets`` two more metrics:
    ``student_logprobs`` of them and ``student_entropy``, nats at temperature 1, from the same products.

    >>> same = torch.ones(3, 2), Head(weight=torch.eye(2))
    >>> reverse_kl(*same, *same).values
    tensor([0., 0., 0.])
    """
    sides = hidden, head, teacher_hidden, teacher_head
    return _kl(*sides, targets, ("reverse", kd_temperature, chunk_bytes))


def forward_kl(
    hidden: Rows,
    head: Head,
    teacher_hidden: OtherRows,
    teacher_head: Head,
    targets: Int[Tensor, " tokens"] | None = None,
    *,
    kd_temperature: float = 1.0,
    chunk_bytes: int | None = None,
) -> Values:
    """KL(teacher||student) at every token, nats: sum over v of Q * (log Q - log P).

    Gradient by the student's logits: P - Q. The teacher's entropy is kept, so that equality gives 0; metrics
    ``cross_entropy`` and ``teacher_entropy`` (nats) have the value as their difference. ``targets`` as in ``reverse_kl``.
    """
    sides = hidden, head, teacher_hidden, teacher_head
    out = _kl(*sides, targets, ("forward", kd_temperature, chunk_bytes))
    entropy = out.metrics["teacher_entropy"]
    return Values(values=out.values, metrics={**out.metrics, "cross_entropy": out.values.detach() + entropy})


def _kl(
    hidden: Tensor,
    head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    targets: Tensor | None,
    how: tuple[str, float, int | None],
) -> Values:
    check_sides(hidden, head, teacher_hidden, teacher_head, targets)
    tensors = hidden, head.weight, head.bias, teacher_hidden, teacher_head.weight, teacher_head.bias
    values, entropy, *scores = _KL.apply(*tensors, targets, (head[2:], teacher_head[2:], *how))
    metrics = {"negative": (values.detach() < NEGATIVE).to(values.dtype)}
    if how[0] == "forward":
        metrics["teacher_entropy"] = entropy
    return Values(values=values, metrics={**metrics, **dict(zip(STUDENT_SCORES, scores, strict=bool(scores)))})


class _Chunked(torch.autograd.Function):
    @staticmethod
    @own_precision
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        hidden, weight, bias, *rows, (curve, function, names, chunk_bytes) = inputs
        head = working(Head(weight, bias, *curve), hidden)
        values, metrics = [], []
        for part in plan_rows(hidden, head, chunk_bytes).parts() if len(hidden) else [slice(None)]:
            out = function(block_logits(hidden[part], head, slice(None)), *(row[part] for row in rows))
            names[:] = out.metrics
            values.append(out.values)
            metrics.append([out.metrics[name] for name in names])
        ctx.save_for_backward(hidden, weight, bias, *rows)
        ctx.settings = curve, function, chunk_bytes
        found = tuple(torch.cat(pieces) for pieces in zip(*metrics, strict=True))
        ctx.mark_non_differentiable(*found)
        return torch.cat(values), *found

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, *rows = ctx.saved_tensors
        curve, function, chunk_bytes = ctx.settings
        master = Head(weight, bias, *curve)
        head = working(master, hidden)

        def cotangent(part: slice, words: slice) -> Tensor:
            logits = block_logits(hidden[part], head, words)
            slope = slopes(logits, head)
            with torch.enable_grad():
                values = function(logits.requires_grad_(), *(row[part] for row in rows)).values
            (grad,) = torch.autograd.grad(values, logits, grads[0][part])
            return steepen(grad, slope)

        sums = Grads.zeros(hidden, master, ctx.needs_input_grad[:3])
        backpropagate(hidden, head, sums, plan_rows(hidden, head, chunk_bytes), cotangent)
        student = None if sums.hidden is None else sums.hidden.to(hidden.dtype)
        return student, sums.weight, sums.bias, *(None for _ in rows), None


class _KL(torch.autograd.Function):
    @staticmethod
    @own_precision
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        *tensors, targets, settings = inputs
        direction, kd_temperature, _ = settings[2:]
        hidden, head, teacher_hidden, teacher_head = working_sides(tensors, settings)
        scores = None if targets is None else Scores(hidden, targets)
        first, second = Softmax(hidden), Softmax(hidden)  # first is the side that the expectation is under
        gap, spread = torch.zeros_like(first.top), torch.zeros_like(first.top)
        plan = plan_blocks(hidden, head, settings[-1], sides=2)
        for words in plan.columns():
            for part in plan.parts():
                student = block_logits(hidden[part], head, words)
                if scores is not None:
                    scores.absorb(part, words, student.clone())
                student = cooled(student, kd_temperature)
                teacher = cooled(block_logits(teacher_hidden[part], teacher_head, words), kd_temperature)
                x, y = (student, teacher) if direction == "reverse" else (teacher, student)
                step, other = first.absorb(part, x), second.absorb(part, y)
                drifted = step.shrink * (gap[part] + step.mass * (step.shift - other.shift))
                gap[part] = drifted + (x - y).mul_(step.weights).sum(1, keepdim=True)
                if direction == "forward":
                    drifted = step.shrink * (spread[part] + step.mass * step.shift)
                    spread[part] = drifted + x.mul_(step.weights).sum(1, keepdim=True)
        values = gap / first.mass - first.mass.log() + second.mass.log()
        entropy = (first.mass.log() - spread / first.mass)[:, 0]
        ctx.save_for_backward(*tensors, values, first.logsumexp, second.logsumexp)
        ctx.settings = settings
        found = entropy, *(() if scores is None else (scores.logprobs[:, 0], scores.entropy[:, 0]))
        ctx.mark_non_differentiable(*found)
        return values[:, 0], *found

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        *tensors, values, first, second = ctx.saved_tensors
        direction, kd_temperature, chunk_bytes = ctx.settings[2:]
        hidden, head, teacher_hidden, teacher_head = working_sides(tensors, ctx.settings)
        scaled = grads[0][:, None] / kd_temperature

        def cotangent(part: slice, words: slice) -> Tensor:
            logits = block_logits(hidden[part], head, words)
            slope = slopes(logits, head)
            student = cooled(logits, kd_temperature)
            teacher = cooled(block_logits(teacher_hidden[part], teacher_head, words), kd_temperature)
            if direction == "forward":
                grad = student.sub_(second[part]).exp_().sub_(teacher.sub_(first[part]).exp_())
                return steepen(grad.mul_(scaled[part]), slope)
            logp = student.sub_(first[part])
            lacking = teacher.sub_(second[part] - values[part]).sub_(logp)  # log Q - log P + value
            return steepen(logp.exp_().mul_(lacking).mul_(-scaled[part]), slope)

        sums = Grads.zeros(hidden, sides(tensors, ctx.settings)[1], ctx.needs_input_grad[:3])
        backpropagate(hidden, head, sums, plan_blocks(hidden, head, chunk_bytes, sides=2), cotangent)
        found = None if sums.hidden is None else sums.hidden.to(hidden.dtype)
        return found, sums.weight, sums.bias, None, None, None, None, None
