"""Divergences between student and teacher over the whole vocabulary, from hidden states; gradients for the student.

``chunked`` evaluates any token-local function of both sides' logits a few rows at a time and again in backward, so
every divergence of the plain form is to be had in bounded memory. The two that are used most have a form of their own
that reads the vocabulary in blocks and knows its gradient: ``reverse_kl`` and ``forward_kl``. Laws: each equals the
plain form in value and gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.errors import ShapeError
from limbeck.heads.blocks import (
    CHUNK_BYTES,
    Grads,
    Head,
    Softmax,
    backpropagate,
    block_logits,
    check,
    finite,
    plan_blocks,
    plan_rows,
    slopes,
    steepen,
)
from limbeck.types import Values

NEGATIVE = -1e-6  # nats; rounding stays above

Rows = Float[Tensor, "tokens hidden"]
OtherRows = Float[Tensor, "other_tokens other_hidden"]


def chunked(
    function: Callable[[Tensor, Tensor], Values],
    hidden: Rows,
    head: Head,
    other_hidden: OtherRows,
    other_head: Head,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Values:
    """``function(logits, other_logits)`` for every token, with the student's logits of a few tokens at a time.

    Two products forward, and backward both again and one more (two with a trainable head). A row's value must depend
    on that row alone. Heads padded to different widths are first ``cut`` to the ids of their common token map.

    Args:
        function: (rows, vocab) logits of both sides, float32 or wider, to one value and metrics per row.
        hidden: the student's final hidden states; the only side with gradient.
        head: the student's head; its weight gets a gradient only if it requires one.
        other_hidden: the teacher's final hidden states at the same positions; their size may differ.
        other_head: the teacher's head over the same ids.
        chunk_bytes: how much fp32 logits of one side to hold at most (at least one token's); ``function`` itself
            makes several tensors of that size.

    >>> def squared(logits, other_logits):
    ...     return Values(values=(logits - other_logits).square().sum(-1))
    >>> same = torch.ones(3, 2), Head(weight=torch.eye(2))
    >>> chunked(squared, *same, *same).values
    tensor([0., 0., 0.])
    """
    _check_sides(hidden, head, other_hidden, other_head)
    names: list[str] = []
    tensors = hidden, head.weight, head.bias, other_hidden, other_head.weight, other_head.bias
    settings = head[2:], other_head[2:], function, names, chunk_bytes
    values, *metrics = _Chunked.apply(*tensors, settings)
    return Values(values=values, metrics=dict(zip(names, metrics, strict=True)))


def reverse_kl(
    hidden: Rows,
    head: Head,
    teacher_hidden: OtherRows,
    teacher_head: Head,
    *,
    kd_temperature: float = 1.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> Values:
    """KL(student||teacher) at every token, nats: sum over v of P * (log P - log Q).

    Gradient by the student's logits: P * (log P - log Q - value). Against ``chunked``: the same, in blocks that fit a
    cache. Multiply by ``kd_temperature**2`` to undo the shrinking of the gradient.

    >>> same = torch.ones(3, 2), Head(weight=torch.eye(2))
    >>> reverse_kl(*same, *same).values
    tensor([0., 0., 0.])
    """
    _check_sides(hidden, head, teacher_hidden, teacher_head)
    return _kl(hidden, head, teacher_hidden, teacher_head, ("reverse", kd_temperature, chunk_bytes))


def forward_kl(
    hidden: Rows,
    head: Head,
    teacher_hidden: OtherRows,
    teacher_head: Head,
    *,
    kd_temperature: float = 1.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> Values:
    """KL(teacher||student) at every token, nats: sum over v of Q * (log Q - log P).

    Gradient by the student's logits: P - Q. The teacher's entropy is kept, so that equality gives 0; metrics
    ``cross_entropy`` and ``teacher_entropy`` (nats) have the value as their difference.
    """
    _check_sides(hidden, head, teacher_hidden, teacher_head)
    out = _kl(hidden, head, teacher_hidden, teacher_head, ("forward", kd_temperature, chunk_bytes))
    entropy = out.metrics["teacher_entropy"]
    return Values(values=out.values, metrics={**out.metrics, "cross_entropy": out.values.detach() + entropy})


def _check_sides(hidden: Tensor, head: Head, other_hidden: Tensor, other_head: Head) -> None:
    check(hidden, head)
    check(other_hidden, other_head)
    if len(hidden) != len(other_hidden):
        raise ShapeError(
            f"both sides must have hidden states of the same tokens, received {len(hidden)} and {len(other_hidden)}. "
            "Select both with one mask."
        )
    if len(head.weight) != len(other_head.weight):
        raise ShapeError(
            f"both heads must score the same ids, received {len(head.weight)} and {len(other_head.weight)}. Where the "
            "token maps are equal, cut both to the ids in use: heads.cut(head, num_ids)."
        )


def _kl(hidden: Tensor, head: Head, teacher_hidden: Tensor, teacher_head: Head, how: tuple[str, float, int]) -> Values:
    tensors = hidden, head.weight, head.bias, teacher_hidden, teacher_head.weight, teacher_head.bias
    values, entropy = _KL.apply(*tensors, (head[2:], teacher_head[2:], *how))
    metrics = {"negative": (values.detach() < NEGATIVE).to(values.dtype)}
    return Values(values=values, metrics={**metrics, "teacher_entropy": entropy} if how[0] == "forward" else metrics)


def _sides(tensors: Sequence[Any], settings: tuple[Any, ...]) -> tuple[Tensor, Head, Tensor, Head]:
    student = Head(tensors[1], tensors[2], *settings[0])
    return tensors[0], student, tensors[3], Head(tensors[4], tensors[5], *settings[1])


def _cooled(logits: Tensor, kd_temperature: float) -> Tensor:
    return logits if kd_temperature == 1.0 else logits.div_(kd_temperature)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        *tensors, settings = inputs
        _, _, function, names, chunk_bytes = settings
        hidden, head, other_hidden, other_head = _sides(tensors, settings)
        everything = slice(None)
        values, metrics = [], []
        plan = plan_rows(hidden, head, chunk_bytes)
        for part in plan.parts() if len(hidden) else [everything]:
            out = function(
                block_logits(hidden[part], head, everything), block_logits(other_hidden[part], other_head, everything)
            )
            names[:] = out.metrics
            values.append(out.values)
            metrics.append([out.metrics[name] for name in names])
        ctx.save_for_backward(*tensors)
        ctx.settings = settings
        found = tuple(torch.cat(pieces) for pieces in zip(*metrics, strict=True))
        ctx.mark_non_differentiable(*found)
        return torch.cat(values), *found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, head, other_hidden, other_head = _sides(ctx.saved_tensors, ctx.settings)
        _, _, function, _, chunk_bytes = ctx.settings

        def cotangent(part: slice, words: slice) -> Tensor:
            logits = block_logits(hidden[part], head, words)
            slope = slopes(logits, head)
            other = block_logits(other_hidden[part], other_head, words)
            with torch.enable_grad():
                values = function(logits.requires_grad_(), other).values
            (grad,) = torch.autograd.grad(values, logits, grads[0][part])
            return steepen(grad, slope)

        sums = Grads.zeros(hidden, head, ctx.needs_input_grad[:3])
        backpropagate(hidden, head, sums, plan_rows(hidden, head, chunk_bytes), cotangent)
        student = None if sums.hidden is None else sums.hidden.to(hidden.dtype)
        return student, sums.weight, sums.bias, None, None, None, None


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, settings = inputs
        direction, kd_temperature, _ = settings[2:]
        hidden, head, teacher_hidden, teacher_head = _sides(tensors, settings)
        head, teacher_head = finite(head), finite(teacher_head)
        first, second = Softmax(hidden), Softmax(hidden)  # first is the side that the expectation is under
        gap, spread = torch.zeros_like(first.top), torch.zeros_like(first.top)
        plan = plan_blocks(hidden, head, settings[-1] // 2)
        for words in plan.columns():
            for part in plan.parts():
                student = _cooled(block_logits(hidden[part], head, words), kd_temperature)
                teacher = _cooled(block_logits(teacher_hidden[part], teacher_head, words), kd_temperature)
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
        ctx.mark_non_differentiable(entropy)
        return values[:, 0], entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        *tensors, values, first, second = ctx.saved_tensors
        direction, kd_temperature, chunk_bytes = ctx.settings[2:]
        hidden, head, teacher_hidden, teacher_head = _sides(tensors, ctx.settings)
        head, teacher_head = finite(head), finite(teacher_head)
        scaled = grads[0][:, None] / kd_temperature

        def cotangent(part: slice, words: slice) -> Tensor:
            logits = block_logits(hidden[part], head, words)
            slope = slopes(logits, head)
            student = _cooled(logits, kd_temperature)
            teacher = _cooled(block_logits(teacher_hidden[part], teacher_head, words), kd_temperature)
            if direction == "forward":
                grad = student.sub_(second[part]).exp_().sub_(teacher.sub_(first[part]).exp_())
                return steepen(grad.mul_(scaled[part]), slope)
            logp = student.sub_(first[part])
            lacking = teacher.sub_(second[part] - values[part]).sub_(logp)  # log Q - log P + value
            return steepen(logp.exp_().mul_(lacking).mul_(-scaled[part]), slope)

        sums = Grads.zeros(hidden, head, ctx.needs_input_grad[:3])
        backpropagate(hidden, head, sums, plan_blocks(hidden, head, chunk_bytes // 2), cotangent)
        found = None if sums.hidden is None else sums.hidden.to(hidden.dtype)
        return found, sums.weight, sums.bias, None, None, None, None
