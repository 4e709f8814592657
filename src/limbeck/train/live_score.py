"""What frozen models say of a step's rollouts, and only where the objective reads it: one forward pass over the
sampled tokens each, log-probs of those tokens or, for objectives of whole distributions, hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from limbeck.batches.forward import head_of, unwrapped
from limbeck.batches.score import frozen_passes, score_rollouts
from limbeck.batches.whole import FROZEN_LOGITS
from limbeck.heads import Head, cut
from limbeck.objectives import inputs
from limbeck.objectives.signature import tensor_parameters
from limbeck.train.engine import Engine, precision
from limbeck.train.live_draw import evaluating
from limbeck.train.models import load_model
from limbeck.train.processes import gathered
from limbeck.types import Objective, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenModels:
    """The frozen models of a live run.

    Attributes:
        base: the untouched student's name, for a student whose every weight is trained.
        teacher: None where no objective reads it.
        num_ids: one more than the largest id of the common token map.
        one_sided: ids that end an answer for only one of student and teacher.
    """

    base: str
    teacher: nn.Module | None
    num_ids: int
    one_sided: frozenset[int]


def columns_of(
    engine: Engine, frozen: FrozenModels, objective: Objective, rollouts: Sequence[Rollout]
) -> dict[str, Sequence[Any]]:
    """The columns of ``TrainingData`` that frozen models give.

    Args:
        engine: the student, whose base is the reference.
        frozen: the frozen models.
        objective: its signature says what is read.
        rollouts: of the step.
    """
    names = inputs(objective)
    out: dict[str, Sequence[Any]] = {}
    if "teacher_logprobs" in names:
        out["teacher_logprobs"] = _logprobs(engine, _teacher(frozen), rollouts)
    if "teacher_logits" in names:
        out["teacher_hidden"] = _hidden(engine, _teacher(frozen), rollouts)
    if "reference_logprobs" in names:
        out["reference_logprobs"] = reference_logprobs(engine, frozen, rollouts)
    if "reference_logits" in names:
        with untouched(engine, frozen.base) as base:
            out["reference_hidden"] = _hidden(engine, base, rollouts)
    if frozen.one_sided and any(name.startswith("teacher") for name in names):
        # a joint objective keeps such a token for its reward; elsewhere the two would answer different questions
        name = "teacher_mask" if "teacher_mask" in tensor_parameters(objective) else "mask"
        out[name] = [[float(token not in frozen.one_sided) for token in r.response_ids] for r in rollouts]
    return out


def reference_logprobs(engine: Engine, frozen: FrozenModels, rollouts: Sequence[Rollout]) -> list[list[float]]:
    """What the untouched base gives to the tokens of the rollouts, nats."""
    with untouched(engine, frozen.base) as base:
        return _logprobs(engine, base, rollouts)


def own_logprobs(engine: Engine, rollouts: Sequence[Rollout]) -> list[list[float]]:
    """What the student as it is now gives to the tokens of the rollouts, whoever wrote them, nats."""
    with evaluating(engine.model) as student:
        return _logprobs(engine, student, rollouts)


def frozen_heads(engine: Engine, frozen: FrozenModels, objective: Objective) -> dict[str, Head]:
    """The heads that turn hidden states into the distributions that an objective reads."""
    names = [name for name in FROZEN_LOGITS if name in inputs(objective)]
    if not names:
        return {}
    if names[0] == "teacher_logits":
        return {names[0]: cut(head_of(_teacher(frozen)), frozen.num_ids)}
    with untouched(engine, frozen.base) as base:
        return {names[0]: head_of(unwrapped(base))}


@contextmanager
def untouched(engine: Engine, base: str) -> Iterator[nn.Module]:
    """The student as it was before the run: the adapter switched off, or a second copy where every weight is trained."""
    model = engine.model
    if not isinstance(model, PeftModel):
        yield _copy(base)
        return
    with evaluating(model), model.disable_adapter():
        yield model


@cache
def _copy(base: str) -> nn.Module:
    return load_model(base).requires_grad_(False)


def _teacher(frozen: FrozenModels) -> nn.Module:
    assert frozen.teacher is not None  # checked before the run began
    return frozen.teacher


def _logprobs(engine: Engine, model: nn.Module, rollouts: Sequence[Rollout]) -> list[list[float]]:
    return _shared(engine, rollouts, lambda mine: score_rollouts(model, mine, token_budget=engine.config.pass_tokens))


def _hidden(engine: Engine, model: nn.Module, rollouts: Sequence[Rollout]) -> list[Tensor]:
    def passes(mine: Sequence[Rollout]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for index, parts in frozen_passes(model, mine, token_budget=engine.config.pass_tokens):
            assert parts is not None  # what was sampled fits the student's context, and the teacher's was compared
            found |= zip(index, parts, strict=True)
        return [found[i] for i in range(len(mine))]

    return _shared(engine, rollouts, passes)


def _shared(engine: Engine, rollouts: Sequence[Rollout], score: Callable[[Sequence[Rollout]], list[Any]]) -> list[Any]:
    """Every process scores its share; all get everything, in order."""
    accelerator = engine.accelerator
    mine = rollouts[accelerator.process_index :: accelerator.num_processes]
    bf16 = precision(engine.config, accelerator.device) == "bf16"
    with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=bf16):
        own = score(mine) if mine else []
    return gathered(accelerator, own, len(rollouts))
