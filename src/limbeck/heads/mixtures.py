"""Divergences from a mixture of student and teacher, from hidden states; gradients for the student.

Their words cannot be summed before both normalizers are known, so forward reads the vocabulary twice: normalizers, then
the divergence. Backward computes a block of logits again and knows its gradient. Laws: each equals the plain form in
value and gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

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
    own_precision,
    plan_blocks,
    slopes,
    steepen,
)
from limbeck.heads.divergences import forward_kl, reverse_kl
from limbeck.heads.logprobs import Scores
from limbeck.heads.sides import (
    NEGATIVE,
    STUDENT_SCORES,
    OtherRows,
    Rows,
    check_sides,
    cooled,
    sides,
    working_sides,
)
from limbeck.types import Values

Block = Float[Tensor, "rows words"]


class Cells(NamedTuple):
    """Log-probs of a block: the student's, the teacher's, and those of their mixture."""

    student: Block
    teacher: Block
    middle: Block


class Form(NamedTuple):
    """A divergence: the sum over v of ``term``. ``pull`` is its derivative by log P over P, up to a token's constant.

    Both take a block and the teacher's share of the mixture. Gradient by the student's logits:
    P * (pull - sum over v of P * pull). The constant makes it 0 where both sides are equal, so nothing large cancels.
    """

    term: Callable[[Cells, float], Block]
    pull: Callable[[Cells, float], Block]


JSD = Form(
    term=lambda c, share: share * _weighed(c.teacher, c.middle) + (1 - share) * _weighed(c.student, c.middle),
    pull=lambda c, share: (c.student - c.middle).mul_(1 - share),
)
SKEW_FORWARD = Form(
    term=lambda c, share: _weighed(c.teacher, c.middle),
    pull=lambda c, share: (c.teacher - c.middle).expm1_().mul_(share - 1),
)
SKEW_REVERSE = Form(
    term=lambda c, share: _weighed(c.student, c.middle),
    pull=lambda c, share: (gap := c.student - c.middle) - gap.expm1().mul_(1 - share),
)


def jsd(
    hidden: Rows,
    head: Head,
    teacher_hidden: OtherRows,
    teacher_head: Head,
    targets: Int[Tensor, " tokens"] | None = None,
    *,
    beta: float = 0.5,
    kd_temperature: float = 1.0,
    chunk_bytes: int | None = None,
) -> Values:
    """beta * KL(Q||M) + (1 - beta) * KL(P||M) at every token, nats; M = beta * Q + (1 - beta) * P, beta in (0, 1).

    Gradient by the student's logits: (1 - beta) * P * (log P - log M - KL(P||M)). ``targets`` as in ``reverse_kl``.

    >>> same = torch.ones(3, 2), Head(weight=torch.eye(2))
    >>> bool(jsd(*same, *same).values.abs().max() < 1e-6)
    True
    """
    return _mixed(hidden, head, teacher_hidden, teacher_head, targets, (JSD, beta, 1.0, kd_temperature, chunk_bytes))


def jsd_rescaled(
    hidden: Rows,
    head: Head,
    teacher_hidden: OtherRows,
    teacher_head: Head,
    targets: Int[Tensor, " tokens"] | None = None,
    *,
    beta: float = 0.5,
    kd_temperature: float = 1.0,
    chunk_bytes: int | None = None,
) -> Values:
    """``jsd`` over beta * (1 - beta)."""
    how = JSD, beta, 1 / (beta * (1 - beta)), kd_temperature, chunk_bytes
    return _mixed(hidden, head, teacher_hidden, teacher_head, targets, how)


def skew_forward(
    hidden: Rows,
    head: Head,
    teacher_hidden: OtherRows,
    teacher_head: Head,
    targets: Int[Tensor, " tokens"] | None = None,
    *,
    skew: float = 0.1,
    kd_temperature: float = 1.0,
    chunk_bytes: int | None = None,
) -> Values:
    """KL(Q||M) at every token, nats; M = skew * Q + (1 - skew) * P, skew in [0, 1). 0 is ``forward_kl``."""
    both = hidden, head, teacher_hidden, teacher_head
    if skew == 0:
        out = forward_kl(*both, targets, kd_temperature=kd_temperature, chunk_bytes=chunk_bytes)
        return Values(values=out.values, metrics={k: v for k, v in out.metrics.items() if k in METRICS})
    return _mixed(*both, targets, (SKEW_FORWARD, skew, 1.0, kd_temperature, chunk_bytes))


def skew_reverse(
    hidden: Rows,
    head: Head,
    teacher_hidden: OtherRows,
    teacher_head: Head,
    targets: Int[Tensor, " tokens"] | None = None,
    *,
    skew: float = 0.1,
    kd_temperature: float = 1.0,
    chunk_bytes: int | None = None,
) -> Values:
    """KL(P||M) at every token, nats; M = skew * P + (1 - skew) * Q, skew in [0, 1). 0 is ``reverse_kl``."""
    both = hidden, head, teacher_hidden, teacher_head
    if skew == 0:
        return reverse_kl(*both, targets, kd_temperature=kd_temperature, chunk_bytes=chunk_bytes)
    return _mixed(*both, targets, (SKEW_REVERSE, 1 - skew, 1.0, kd_temperature, chunk_bytes))


METRICS = ("negative", *STUDENT_SCORES)


def _mixed(
    hidden: Tensor,
    head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    targets: Tensor | None,
    how: tuple[Form, float, float, float, int | None],
) -> Values:
    check_sides(hidden, head, teacher_hidden, teacher_head, targets)
    tensors = hidden, head.weight, head.bias, teacher_hidden, teacher_head.weight, teacher_head.bias
    values, *scores = _Mixed.apply(*tensors, targets, (head[2:], teacher_head[2:], *how))
    negative = (values.detach() < NEGATIVE).to(values.dtype)
    return Values(values=values, metrics=dict(zip(METRICS, (negative, *scores), strict=False)))


def _weighed(logp: Block, other: Block) -> Block:
    """p * log(p / other)."""
    return (logp - other).mul_(logp.exp())


def _cells(student: Tensor, teacher: Tensor, share: float) -> Cells:
    return Cells(student, teacher, torch.logaddexp(teacher + math.log(share), student + math.log1p(-share)))


class _Mixed(torch.autograd.Function):
    @staticmethod
    @own_precision
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        *tensors, targets, settings = inputs
        form, share, factor, kd_temperature, chunk_bytes = settings[2:]
        hidden, head, teacher_hidden, teacher_head = working_sides(tensors, settings)
        scores = None if targets is None else Scores(hidden, targets)
        first, second = Softmax(hidden), Softmax(hidden)
        plan = plan_blocks(hidden, head, chunk_bytes, sides=2)
        for words in plan.columns():
            for part in plan.parts():
                student = block_logits(hidden[part], head, words)
                if kd_temperature != 1.0 or scores is None:
                    first.absorb(part, student / kd_temperature)
                if scores is not None:
                    scores.absorb(part, words, student)
                second.absorb(part, cooled(block_logits(teacher_hidden[part], teacher_head, words), kd_temperature))
        one = first if kd_temperature != 1.0 or scores is None else scores.softmax
        normalizers = one.logsumexp, second.logsumexp
        values, center = torch.zeros_like(first.top), torch.zeros_like(first.top)
        for words in plan.columns():
            for part in plan.parts():
                student = cooled(block_logits(hidden[part], head, words), kd_temperature).sub_(normalizers[0][part])
                teacher = cooled(block_logits(teacher_hidden[part], teacher_head, words), kd_temperature)
                cells = _cells(student, teacher.sub_(normalizers[1][part]), share)
                values[part] += form.term(cells, share).sum(1, keepdim=True)
                center[part] += form.pull(cells, share).mul_(student.exp_()).sum(1, keepdim=True)
        ctx.save_for_backward(*tensors, center, *normalizers)
        ctx.settings = settings
        found = () if scores is None else (scores.logprobs[:, 0], scores.entropy[:, 0])
        ctx.mark_non_differentiable(*found)
        return factor * values[:, 0], *found

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        *tensors, center, first, second = ctx.saved_tensors
        form, share, factor, kd_temperature, chunk_bytes = ctx.settings[2:]
        hidden, head, teacher_hidden, teacher_head = working_sides(tensors, ctx.settings)
        scaled = grads[0][:, None] * (factor / kd_temperature)

        def cotangent(part: slice, words: slice) -> Tensor:
            logits = block_logits(hidden[part], head, words)
            slope = slopes(logits, head)
            student = cooled(logits, kd_temperature).sub_(first[part])
            teacher = cooled(block_logits(teacher_hidden[part], teacher_head, words), kd_temperature)
            pull = form.pull(_cells(student, teacher.sub_(second[part]), share), share)
            return steepen(pull.sub_(center[part]).mul_(student.exp_()).mul_(scaled[part]), slope)

        sums = Grads.zeros(hidden, sides(tensors, ctx.settings)[1], ctx.needs_input_grad[:3])
        backpropagate(hidden, head, sums, plan_blocks(hidden, head, chunk_bytes, sides=2), cotangent)
        found = None if sums.hidden is None else sums.hidden.to(hidden.dtype)
        return found, sums.weight, sums.bias, None, None, None, None, None
