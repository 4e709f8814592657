"""The one door through which batches meet objectives: select, check, mask, call, check again.

Masking is two-sided. Masked cells of the inputs are set to zero before the call, so that NaN or infinity there
reaches neither a value nor a gradient; cells of the output outside the mask are set to zero after it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.errors import ConfigError, DegenerateError, NotFiniteError, ShapeError
from limbeck.objectives.signature import tensor_parameters
from limbeck.types import Objective, Values

STUDENT_INPUTS = ("logprobs", "entropy", "logits")  # the only tensors that a gradient reaches
TEACHER_FLOOR = -20.0  # nats, for a token that the teacher's server left out of its answer


class Input(NamedTuple):
    """A batch tensor: its axes, what it holds, and what to do where a batch has none."""

    axes: str
    meaning: str
    remedy: str


_STUDENT = "it comes from the student's forward pass"
_SCORE = "score the rollouts with that model first (limbeck score)"
_CREDIT = "assign credit to the rewards first (rollouts.credit)"
INPUTS: dict[str, Input] = {
    "logprobs": Input("batch time", "student log p of the target token, nats; carries the gradient", _STUDENT),
    "entropy": Input("batch time", "entropy of the student's next-token distribution, nats; gradient", _STUDENT),
    "logits": Input("batch time vocab", "student scores before softmax; carries the gradient", _STUDENT),
    "teacher_logits": Input("batch time vocab", "teacher scores before softmax", "run the teacher on the same rows"),
    "reference_logits": Input(
        "batch time vocab", "frozen base's scores before softmax", "run the base on the same rows"
    ),
    "behavior_logprobs": Input("batch time", "log p under the sampler that wrote the rollouts, nats", _SCORE),
    "old_logprobs": Input("batch time", "log p under the trainer's snapshot that the rollouts came from, nats", _SCORE),
    "reference_logprobs": Input("batch time", "log p under the frozen base, nats", _SCORE),
    "teacher_logprobs": Input("batch time", "log p under the teacher, nats; -inf is floored at -20", _SCORE),
    "signal": Input("batch time", "token signal read out of a stage-1 policy, nats", "read it with erpd.token_signal"),
    "advantages": Input("batch time", "credit of the rollout on each of its tokens", _CREDIT),
    "rewards": Input("batch", "grade of the rollout, as graded", "grade the rollouts first"),
    "correct": Input("batch", "1 where the rollout is right, else 0", "grade the rollouts first"),
    "group_all_wrong": Input("batch", "1 where every rollout of the same problem is wrong, else 0", _CREDIT),
    "teacher_mask": Input("batch time", "true where the teacher can judge the token; optional", "leave it out"),
    "mask": Input("batch time", "true where a token is scored", "it comes with the batch"),
    "pairs": Input("pairs 2", "row indices of chosen and rejected", "select pairs first (rollouts.select)"),
    "pair_weights": Input("pairs", "weight of each pair", "select pairs first (rollouts.select)"),
}


def evaluate(objective: Objective, inputs: Mapping[str, Tensor], mask: Tensor, knobs: Mapping[str, Any]) -> Values:
    """Call an objective on a batch and return its unreduced values, zero outside the mask.

    Tensors that the signature does not name are ignored. A -inf teacher log-prob is floored at -20 nats and counted
    in the metric ``teacher_floored``. Half precision is widened to float32 before the call.

    Args:
        objective: a row of ``OBJECTIVES``.
        inputs: batch tensors by name; see ``INPUTS``.
        mask: true where a token is scored, (batch, time); any leading shape for objectives of logits alone.
        knobs: settings, as returned by ``check_knobs``; ``step`` and ``num_steps`` where the signature has them.

    Raises:
        ConfigError: a tensor is missing or not in the vocabulary.
        ShapeError: a tensor or the result has another shape than its name promises; nothing is broadcast.
        DegenerateError: nothing is live, or a live cell is not finite.
    """
    if mask.dtype is not torch.bool:
        raise ShapeError(f"mask must be boolean, received {mask.dtype}. Compare lengths, not token ids, to build it.")
    if not bool(mask.any()):
        raise DegenerateError(
            f"{objective.name} needs at least one live token, received a mask of {tuple(mask.shape)} without any. "
            "Drop the batch before the call; check max_length against the prompts."
        )
    masks = {"mask": mask, "teacher_mask": _teacher_mask(objective.name, inputs, mask)}
    names = [name for name in tensor_parameters(objective) if name not in masks]
    _check_present(objective, names, inputs)
    ready = {name: _ready(objective.name, name, inputs[name], mask) for name in names}
    if "pairs" in ready:
        _check_pairs(objective.name, ready, mask)
    for other in ("teacher_logits", "reference_logits"):
        if other in ready:
            _check_vocabulary(objective.name, ready["logits"], other, ready[other])
    ready |= {name: masks[name] for name in tensor_parameters(objective) if name in masks}
    out = objective.function(**ready, **knobs)
    metrics = dict(out.metrics)
    if "teacher_logprobs" in names and objective.unit == "token":
        metrics["teacher_floored"] = torch.isneginf(inputs["teacher_logprobs"]).to(out.values.dtype)
    live = _live_units(objective, mask, ready.get("pairs"))
    masked = {name: _masked_output(objective, name, metric.detach(), live) for name, metric in metrics.items()}
    return Values(values=_masked_output(objective, "values", out.values, live), metrics=masked)


def _check_present(objective: Objective, names: list[str], inputs: Mapping[str, Tensor]) -> None:
    missing = [name for name in names if name not in inputs]
    if missing:
        remedy = INPUTS[missing[0]].remedy if missing[0] in INPUTS else "add it to the batch"
        raise ConfigError(
            f"`{objective.name}` reads {' and '.join(missing)}; this batch has none, only "
            f"{', '.join(inputs) or 'nothing'}. For {missing[0]}: {remedy}."
        )


def _teacher_mask(owner: str, inputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    given = inputs.get("teacher_mask", mask)
    if given.shape != mask.shape or given.dtype is not torch.bool:
        raise ShapeError(
            f"{owner}: teacher_mask must be boolean {tuple(mask.shape)}, received {given.dtype} {tuple(given.shape)}. "
            "Leave it out where the teacher judges every token."
        )
    return given & mask


def _ready(owner: str, name: str, tensor: Tensor, mask: Tensor) -> Tensor:
    """The tensor checked against its axes and the mask, widened, with everything dead set to zero."""
    axes = INPUTS[name].axes
    if name == "pairs":
        return tensor
    if axes == "pairs":
        return _finite(owner, name, _wide(tensor).detach(), torch.ones_like(tensor, dtype=torch.bool))
    live = mask if axes.startswith("batch time") else mask.any(-1)
    is_logits = axes.endswith("vocab")
    if tensor.shape[: live.ndim] != live.shape or tensor.ndim != live.ndim + is_logits:
        hint = " For one value per answer use credit.per_token(advantages, mask)." if name == "advantages" else ""
        wants = f"({', '.join(axes.split())}) = {(*live.shape, *(['vocab'] if is_logits else []))}"
        raise ShapeError(
            f"{owner}: {name} must be {wants}, received {tuple(tensor.shape)}.{hint or ' Nothing is broadcast.'}"
        )
    tensor = _wide(tensor) if name in STUDENT_INPUTS else _wide(tensor).detach()
    filled = torch.where(
        live[..., None] if is_logits else live, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device)
    )
    if name == "teacher_logprobs":
        filled = filled.masked_fill(torch.isneginf(filled), TEACHER_FLOOR)
    return _finite(owner, name, filled, live)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _finite(owner: str, name: str, tensor: Tensor, live: Tensor) -> Tensor:
    """Refuse what cannot be computed with; -inf is a score only in logits, where it means an id that is not used."""
    is_logits = tensor.ndim > live.ndim
    bad = torch.isnan(tensor) | torch.isposinf(tensor) if is_logits else ~torch.isfinite(tensor)
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        raise NotFiniteError(
            f"{owner}: {name} must be finite wherever the mask is, received {int(bad.sum())} bad cells, the first "
            f"{tensor[where].item()} at {where}. Where this is an unknown score: {INPUTS[name].remedy}."
        )
    return tensor


def _check_vocabulary(owner: str, logits: Tensor, name: str, other: Tensor) -> None:
    if logits.shape != other.shape:
        raise ShapeError(
            f"{owner}: logits and {name} must have one width, received {logits.shape[-1]} and "
            f"{other.shape[-1]}. Where the token maps are equal, use vocabulary.common_width."
        )
    if bool((torch.isneginf(logits) != torch.isneginf(other)).any()):
        raise ShapeError(
            f"{owner}: logits and {name} must leave out the same ids, received -inf on one side only. Set "
            "padding ids to -inf on both sides (vocabulary.common_width)."
        )


def _check_pairs(owner: str, ready: Mapping[str, Tensor], mask: Tensor) -> None:
    pairs = ready["pairs"]
    if pairs.ndim != 2 or pairs.shape[-1] != 2 or pairs.dtype not in (torch.int64, torch.int32):
        raise ShapeError(
            f"{owner}: pairs must be whole numbers of shape (pairs, 2), received {pairs.dtype} of "
            f"{tuple(pairs.shape)}. Give row indices of chosen and rejected."
        )
    if "pair_weights" in ready and ready["pair_weights"].shape != pairs.shape[:1]:
        got = tuple(ready["pair_weights"].shape)
        raise ShapeError(
            f"{owner}: pair_weights must be (pairs,) = {tuple(pairs.shape[:1])}, received {got}. Give one per pair."
        )
    live = mask.any(-1)
    inside = bool(((pairs >= 0) & (pairs < len(live))).all())
    if not len(pairs) or not inside or not bool(live[pairs].all()) or bool((pairs[:, 0] == pairs[:, 1]).any()):
        raise DegenerateError(
            f"{owner}: each pair must be two different rows with a live token, below {len(live)}, received "
            f"{len(pairs)} pairs, {pairs.tolist()[:4]}. Pair the rows of this batch."
        )


def _live_units(objective: Objective, mask: Tensor, pairs: Tensor | None) -> Tensor:
    if objective.unit == "token":
        return mask
    if objective.unit == "sequence":
        return mask.any(-1)
    assert pairs is not None
    return torch.ones(len(pairs), dtype=torch.bool, device=mask.device)


def _masked_output(objective: Objective, name: str, tensor: Tensor, live: Tensor) -> Tensor:
    if tensor.shape != live.shape or tensor.dtype not in (torch.float32, torch.float64):
        raise ShapeError(
            f"{objective.name}: {name} must be float32 or wider, one per {objective.unit} = {tuple(live.shape)}, "
            f"received {tensor.dtype} of {tuple(tensor.shape)}. Return values unreduced."
        )
    return torch.where(live, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))
