"""What divergences share: student and teacher over the same ids, checked, and as the matrix products read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from limbeck.errors import ShapeError
from limbeck.heads.blocks import Head, check, finite, working

NEGATIVE = -1e-6  # nats; rounding stays above
STUDENT_SCORES = ("student_logprobs", "student_entropy")  # metrics of a divergence that was given targets

Rows = Float[Tensor, "tokens hidden"]
OtherRows = Float[Tensor, "other_tokens other_hidden"]


def check_rows(hidden: Tensor, other: Tensor) -> None:
    """Refuse rows of different tokens."""
    if len(hidden) != len(other):
        raise ShapeError(
            f"both sides must have hidden states of the same tokens, received {len(hidden)} and {len(other)}. "
            "Select both with one mask."
        )


def check_sides(hidden: Tensor, head: Head, other_hidden: Tensor, other_head: Head, targets: Tensor | None) -> None:
    """Refuse sides that do not say something of the same tokens and ids."""
    check(hidden, head, targets)
    check(other_hidden, other_head)
    check_rows(hidden, other_hidden)
    if len(head.weight) != len(other_head.weight):
        raise ShapeError(
            f"both heads must score the same ids, received {len(head.weight)} and {len(other_head.weight)}. Where the "
            "token maps are equal, cut both to the ids in use: heads.cut(head, num_ids)."
        )


def sides(tensors: Sequence[Any], settings: tuple[Any, ...]) -> tuple[Tensor, Head, Tensor, Head]:
    """Both sides, given as hidden states, weight and bias each; their other settings lead ``settings``."""
    student = Head(tensors[1], tensors[2], *settings[0])
    return tensors[0], student, tensors[3], Head(tensors[4], tensors[5], *settings[1])


def working_sides(tensors: Sequence[Any], settings: tuple[Any, ...]) -> tuple[Tensor, Head, Tensor, Head]:
    """Both sides as the matrix products of a pass read them."""
    hidden, head, other_hidden, other_head = sides(tensors, settings)
    return hidden, finite(working(head, hidden)), other_hidden, finite(working(other_head, other_hidden))


def cooled(logits: Tensor, kd_temperature: float) -> Tensor:
    """Logits over the temperature, in place."""
    return logits if kd_temperature == 1.0 else logits.div_(kd_temperature)
