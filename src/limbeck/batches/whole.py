"""Objectives of whole distributions, evaluated where the head is: a few rows of logits at a time, then forgotten.

What an objective reads of a frozen model's logits is made again from that model's final hidden states
(``teacher_hidden`` or ``reference_hidden`` of the batch) and its head, or, where it reads nothing beyond them, from its
likeliest ids (``teacher_top_ids``, ``teacher_top_logprobs``). Law: equals ``evaluate`` on whole logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck import heads
from limbeck.errors import ConfigError, DegenerateError, NotFiniteError, ShapeError
from limbeck.heads import STUDENT_SCORES, Head
from limbeck.heads.blocks import check
from limbeck.objectives import INPUTS, divergences, evaluate, inputs
from limbeck.objectives.divergences import log_softmax
from limbeck.types import Objective, Values

FROZEN_LOGITS = ("teacher_logits", "reference_logits")
FUSED: dict[Callable[..., Values], Callable[..., Values]] = {  # same values, blocks that fit a cache, known gradients
    divergences.reverse_kl: heads.reverse_kl,
    divergences.forward_kl: heads.forward_kl,
    divergences.jsd: heads.jsd,
    divergences.jsd_rescaled: heads.jsd_rescaled,
    divergences.skew_forward: heads.skew_forward,
    divergences.skew_reverse: heads.skew_reverse,
}
FROM_TOP = (divergences.forward_kl_topk_tail,)  # reads ids that the teacher alone chooses and one cell for the rest


class Top(NamedTuple):
    """The frozen model's ``k`` likeliest of ``num_ids`` ids and the tail of all others, at temperature 1."""

    k: int
    num_ids: int


@dataclass(frozen=True, slots=True)
class Whole:
    """An objective that reads logits, to be evaluated inside the student's forward pass.

    Not a tuple: wrappers that cast or move a module's inputs leave it, and the frozen head in it, alone.

    Attributes:
        objective: a row of ``OBJECTIVES`` with unit token that reads ``logits``.
        knobs: its settings as ``check_knobs`` returns them, with ``step`` and ``num_steps`` where it has them.
        frozen: the frozen model's head, ``heads.cut`` to the ids of the common token map, where the batch holds its
            hidden states; else which of its likeliest ids the batch holds. A wider student's head is cut to its ids.
        name: whose logits the objective reads, ``teacher_logits`` or ``reference_logits``.
    """

    objective: Objective
    knobs: Mapping[str, Any]
    frozen: Head | Top
    name: str

    def __post_init__(self) -> None:
        names, row = inputs(self.objective), self.objective
        unfit = [n for n in names if INPUTS[n].axes not in ("batch time", "batch time vocab") or n == "mask"]
        if "logits" not in names or row.unit != "token" or unfit:
            reads = ", ".join(unfit or names)
            raise ConfigError(
                f"an objective of whole distributions must have unit token, read logits and nothing that spans tokens; "
                f"received `{row.name}` with unit {row.unit}, which reads {reads}. Evaluate it on log-probs instead."
            )
        if [name for name in FROZEN_LOGITS if name in names] != [self.name]:
            raise ConfigError(
                f"`{row.name}` must be given the one frozen model whose logits it reads, received {self.name}; it reads "
                f"{', '.join(names)}. Choose another objective, or name that model."
            )
        if isinstance(self.frozen, Top):
            _check_top(row, self.knobs, self.frozen)

    @property
    def num_ids(self) -> int:
        """How many ids the divergence is over."""
        return self.frozen.num_ids if isinstance(self.frozen, Top) else len(self.frozen.weight)


def frozen_inputs(name: str, frozen: Head | Top) -> tuple[str, ...]:
    """What a batch holds in place of a frozen model's logits.

    >>> frozen_inputs("teacher_logits", Head(weight=torch.eye(2)))
    ('teacher_hidden',)
    >>> frozen_inputs("teacher_logits", Top(k=4, num_ids=9))
    ('teacher_top_ids', 'teacher_top_logprobs')
    """
    side = name.removesuffix("_logits")
    return (f"{side}_hidden",) if isinstance(frozen, Head) else (f"{side}_top_ids", f"{side}_top_logprobs")


class WholeScores(NamedTuple):
    """One entry a token: values with gradient, the rest without."""

    logprobs: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]
    values: Float[Tensor, " tokens"]
    metrics: dict[str, Tensor]


def whole_scores(
    whole: Whole,
    hidden: Float[Tensor, "tokens hidden"],
    head: Head,
    targets: Int[Tensor, " tokens"],
    given: Mapping[str, Tensor],
    mask: Bool[Tensor, "batch time"],
    *,
    chunk_bytes: int | None = None,
) -> WholeScores:
    """Values of the objective and the student's scores at every live token.

    Args:
        whole: the objective.
        hidden: the student's final hidden states at the predicting positions of live cells.
        head: the student's.
        targets: ids to score.
        given: the batch's inputs, (batch, time, ...), read inside the mask only.
        mask: which cells are live.
        chunk_bytes: of fp32 logits held at a time, one side's; by default what suits the device.

    Raises:
        ConfigError, ShapeError, DegenerateError: as ``evaluate``.
    """
    if not len(hidden):
        raise DegenerateError(
            f"{whole.objective.name} needs at least one live token, received a mask of {tuple(mask.shape)} without any. "
            "Drop the batch before the call; check max_length against the prompts."
        )
    frozen = [_live(whole, given, name, mask, hidden.dtype) for name in frozen_inputs(whole.name, whole.frozen)]
    head = heads.cut(head, whole.num_ids)
    fused = FUSED.get(whole.objective.function)
    if fused and isinstance(whole.frozen, Head):
        out = _fused(fused, whole, hidden, head, targets, frozen[0], chunk_bytes)
    else:
        out = _in_chunks(whole, hidden, head, targets, frozen, given, mask, chunk_bytes)
    metrics = dict(out.metrics)
    logprobs, entropy = (metrics.pop(name) for name in STUDENT_SCORES)
    return WholeScores(logprobs, entropy, out.values, metrics)


def _fused(
    function: Callable[..., Values],
    whole: Whole,
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    frozen: Tensor,
    chunk_bytes: int | None,
) -> Values:
    other = whole.frozen
    assert isinstance(other, Head)
    _check_unused(whole.objective.name, head, other)
    knobs = dict(whole.knobs)
    factor = knobs.get("kd_temperature", 1.0) ** 2 if knobs.pop("tau_squared", False) else 1.0
    out = function(hidden, head, frozen, other, targets, chunk_bytes=chunk_bytes, **knobs)
    bad = int((~torch.isfinite(out.values.detach())).sum())
    if bad:
        raise NotFiniteError(
            f"{whole.objective.name}: logits must be finite wherever the mask is, received {bad} tokens whose value is "
            "not. Look for NaN in the hidden states of either side: score the rollouts again, or lower the rate."
        )
    return Values(values=factor * out.values, metrics=out.metrics)


def _in_chunks(
    whole: Whole,
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    frozen: list[Tensor],
    given: Mapping[str, Tensor],
    mask: Tensor,
    chunk_bytes: int | None,
) -> Values:
    check(hidden, head, targets)
    row = whole.objective
    own = ("logits", whole.name, "logprobs", "entropy")
    names = [name for name in inputs(row) if name not in own]
    if "teacher_mask" in given:
        names.append("teacher_mask")
    others = [_live(whole, given, name, mask, None) for name in names]
    scored = not {"logprobs", "entropy"}.isdisjoint(inputs(row))

    def function(logits: Tensor, ids: Tensor, *rows: Tensor) -> Values:
        ready = dict(zip(names, rows[: len(names)], strict=True))
        frozen_logits = _frozen_logits(whole, rows[len(names) :], logits.shape[1])
        found = {}
        if scored or not torch.is_grad_enabled():  # in backward only where the objective follows them
            found = dict(zip(STUDENT_SCORES, _scores(logits, ids), strict=True))
            ready |= {"logprobs": found["student_logprobs"], "entropy": found["student_entropy"]}
        ready |= {"logits": logits, whole.name: frozen_logits}
        out = evaluate(row, ready, torch.ones_like(ids, dtype=torch.bool), whole.knobs)
        return Values(values=out.values, metrics={**out.metrics, **{k: v.detach() for k, v in found.items()}})

    return heads.chunked(function, hidden, head, targets, *others, *frozen, chunk_bytes=chunk_bytes)


def _frozen_logits(whole: Whole, rows: tuple[Tensor, ...], width: int) -> Tensor:
    """The frozen model's logits: its head on its hidden states, or its likeliest ids and the rest spread evenly.

    Evenly spread, no other id is likelier than the last of the likeliest, and their sum is the tail: what reads only
    the likeliest ids and the tail cannot tell the difference.
    """
    if isinstance(whole.frozen, Head):
        return heads.logits_of(rows[0], whole.frozen)
    ids, logprobs = rows
    tail = logprobs[:, -1:].clamp(min=divergences.UNUSED) - math.log(max(width - ids.shape[1], 1))
    return tail.expand(-1, width).scatter(1, ids.long(), logprobs[:, :-1])


def _scores(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    logp = log_softmax(logits)
    return logp.gather(1, ids[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def _live(whole: Whole, given: Mapping[str, Tensor], name: str, mask: Tensor, dtype: torch.dtype | None) -> Tensor:
    """An input at the live cells; a float one of hidden states in the type of the student's."""
    if name not in given:
        raise ConfigError(
            f"`{whole.objective.name}` reads {name}; this batch has only {', '.join(given) or 'nothing'}. "
            f"For {name}: score the rollouts with that model and keep its hidden states (limbeck score --keep hidden)."
        )
    tensor = given[name]
    if tensor.shape[:2] != mask.shape:
        raise ShapeError(
            f"{whole.objective.name}: {name} must begin with (batch, time) = {tuple(mask.shape)}, received "
            f"{tuple(tensor.shape)}. Nothing is broadcast."
        )
    found = tensor[mask].detach()
    return found.to(dtype) if dtype is not None and name.endswith("_hidden") else found


def _check_unused(owner: str, head: Head, other: Head) -> None:
    """A bias of -inf says that an id is not used, and both sides have to say so."""
    unused = [
        torch.zeros(len(h.weight), dtype=torch.bool) if h.bias is None else h.bias.isneginf() for h in (head, other)
    ]
    if not torch.equal(unused[0].to(unused[1].device), unused[1]):
        raise ShapeError(
            f"{owner}: both heads must leave out the same ids, received a bias of -inf on one side only. Set padding ids "
            "to -inf on both sides, or cut both to the ids in use: heads.cut(head, num_ids)."
        )


def _check_top(objective: Objective, knobs: Mapping[str, Any], top: Top) -> None:
    """Refuse what the likeliest ids cannot give exactly."""
    if objective.function not in FROM_TOP:
        able = ", ".join(f.__name__ for f in FROM_TOP)
        raise ConfigError(
            f"only {able} can be trained from the teacher's likeliest ids, received {objective.name}, which reads its "
            "logits of other ids too. Keep the hidden states instead: limbeck score --keep hidden."
        )
    if knobs.get("kd_temperature", 1.0) != 1.0 or knobs.get("k", top.k) > top.k:
        raise ConfigError(
            f"{objective.name} from the teacher's {top.k} likeliest ids must have kd_temperature = 1 and k of at most "
            f"{top.k}, received {knobs.get('kd_temperature', 1.0)} and {knobs.get('k', top.k)}. Lower k, or score again."
        )
