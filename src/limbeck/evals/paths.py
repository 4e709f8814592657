"""Losses along the straight line between two deltas: teacher-forced cross-entropies and greedy accuracy, per item.

The line is walked in weight space, by exact rank concatenation. Its ends are evaluated like its interior, and all
points see the same items, so that barriers are paired by item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from limbeck.batches.score import score_rollouts
from limbeck.geometry.delta import combine
from limbeck.problems.prompts import prompt_ids, response_ids
from limbeck.types import Delta, Finish, Problem, Rollout

Losses = dict[str, Float[Tensor, " items"]]


class Item(NamedTuple):
    """A problem with a solution that no arm wrote (empty when there is none) and its answer as text."""

    problem: Problem
    solution: str
    answer: str


def split_solution(problem: Problem, solution: str, answer_prefix: str) -> Item:
    """Cut a reference solution before its last answer marker; one without the marker is kept whole.

    >>> p = Problem(id="a", prompt="?", answer="9", source="")
    >>> split_solution(p, "14 - 5 = 9. #### 9", "#### ")[1:]
    ('14 - 5 = 9.', '#### 9')
    >>> split_solution(p, "14 - 5 = 9, that is all.", "#### ")[1:]
    ('14 - 5 = 9, that is all.', '#### 9')
    """
    marked = answer_prefix and answer_prefix in solution
    reasoning = solution.rpartition(answer_prefix)[0] if marked else solution
    return Item(problem=problem, solution=reasoning.rstrip(), answer=f"{answer_prefix}{problem.answer}")


def between(one: Delta | None, other: Delta | None, alpha: float) -> Delta | None:
    """The point ``(1 - alpha) * one + alpha * other``; ``None`` stands for the base, a delta of zero.

    At 0 and 1 the end itself is returned, not a sum with a zero term.
    """
    parts = [(1 - alpha, one), (alpha, other)]
    kept = [(weight, delta) for weight, delta in parts if weight and delta is not None]
    if len(kept) == 1 and kept[0][0] == 1:
        return kept[0][1]
    return combine([w for w, _ in kept], [d for _, d in kept], name=f"path-{alpha:g}") if kept else None


def teacher_forced(model: nn.Module, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> Losses:
    """Cross-entropies per item, nats per token.

    Returns:
        ``ce_bare``: the answer straight after the prompt (short, and sensitive to style). Where every item has a
        solution also ``ce_cot``: the answer after that solution, and ``ce_solution``: the solution itself.
    """
    bare = [_row(tokenizer, item.problem, "", item.answer) for item in items]
    out = {"ce_bare": _mean_nll(model, bare)}
    if all(item.solution for item in items):
        out["ce_cot"] = _mean_nll(
            model, [_row(tokenizer, item.problem, item.solution, " " + item.answer) for item in items]
        )
        out["ce_solution"] = _mean_nll(
            model, [_row(tokenizer, item.problem, "", item.solution, close=False) for item in items]
        )
    return out


def reading(tokenizer: PreTrainedTokenizerBase, problem: Problem, text: str) -> Rollout:
    """A problem with a fixed text to read after it: its solution, or its bare answer when there is none."""
    return _row(tokenizer, problem, "", text or problem.answer)


def _row(
    tokenizer: PreTrainedTokenizerBase, problem: Problem, given: str, scored: str, *, close: bool = True
) -> Rollout:
    """``given`` is read, ``scored`` is scored; a rollout because that is what gets scored."""
    prefix = tuple(tokenizer.encode(given, add_special_tokens=False)) if given else ()
    ids = response_ids(tokenizer, scored)
    ids = ids if close else ids[:-1]
    return Rollout(
        problem_id=problem.id,
        sample=0,
        prompt_ids=prompt_ids(tokenizer, problem.prompt) + prefix,
        response_ids=ids,
        behavior_logprobs=(float("nan"),) * len(ids),
        reward=1.0,
        finish=Finish.STOP,
        response=scored,
    )


def _mean_nll(model: nn.Module, rows: Sequence[Rollout]) -> Float[Tensor, " items"]:
    return torch.tensor([-sum(row) / len(row) for row in score_rollouts(model, rows)], dtype=torch.float64)
