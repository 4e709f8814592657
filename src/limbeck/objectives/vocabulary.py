"""Two models over one vocabulary: equal token maps, unequal widths, unequal end tokens.

Divergences compare id with id. So the maps from token to id must be equal; the widths need not be, because models pad
their heads differently, and what is beyond the map is set to -inf on both sides before softmax.
"""

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import ModelError, ShapeError


def check_same_map(student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
    """Refuse two tokenizers whose ids mean different tokens, naming the first that differs.

    >>> check_same_map({"a": 0, "b": 1}, {"b": 1, "a": 0})
    """
    if student == teacher:
        return
    differing = {token for token in student.keys() | teacher.keys() if student.get(token) != teacher.get(token)}
    first = min(differing, key=lambda token: (student.get(token, teacher.get(token)), token))
    raise ModelError(
        f"student and teacher must map every token to the same id, received {student.get(first)} and "
        f"{teacher.get(first)} for {first!r}. Use a teacher of the same family, or an objective without the teacher's logits."
    )


def common_width(
    logits: Float[Tensor, "*tokens student"], teacher_logits: Float[Tensor, "*tokens teacher"], *, num_ids: int
) -> tuple[Float[Tensor, "*tokens vocab"], Float[Tensor, "*tokens vocab"], int]:
    """Both sides cut to the ids in use; returns the number of padding columns that were dropped, both sides together.

    A dropped column and a column of -inf are the same to a softmax.

    Args:
        logits: student, at least ``num_ids`` wide.
        teacher_logits: teacher, at least ``num_ids`` wide.
        num_ids: one more than the largest id of the common token map.
    """
    widths = logits.shape[-1], teacher_logits.shape[-1]
    if min(widths) < num_ids:
        raise ShapeError(f"both heads must score all {num_ids} ids, received widths {widths}. Compare the token maps.")
    return logits[..., :num_ids], teacher_logits[..., :num_ids], sum(widths) - 2 * num_ids


def teacher_mask(
    mask: Bool[Tensor, "batch time"],
    targets: Int[Tensor, "batch time"],
    *,
    student_stops: Collection[int],
    teacher_stops: Collection[int],
) -> Bool[Tensor, "batch time"]:
    """The mask without positions whose token ends the answer for one side only: there the two answer different questions.

    >>> ones = torch.ones(1, 3, dtype=torch.bool)
    >>> teacher_mask(ones, torch.tensor([[5, 6, 7]]), student_stops={7}, teacher_stops={7, 6})
    tensor([[ True, False,  True]])
    """
    one_sided = torch.tensor(
        sorted(set(student_stops) ^ set(teacher_stops)), dtype=targets.dtype, device=targets.device
    )
    return mask & ~torch.isin(targets, one_sided)
