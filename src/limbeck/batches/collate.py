"""Which rows make a step, how they are cut into micro-batches, and how a micro-batch becomes tensors.

The plan of a run is fixed before the first forward pass: it depends on the number of items, the seed and nothing
else. A pair is one item of two rows and is never split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.batches import align
from limbeck.errors import DegenerateError, ShapeError
from limbeck.objectives.reduce import StepCount
from limbeck.types import Outline, Rollout, TokenBatch, outline

STUDENT_INPUTS = (
    "logprobs",
    "entropy",
    "logits",
    "mask",
)  # what the student's forward pass and the batch itself provide
PER_TOKEN_INPUTS = ("behavior_logprobs", "old_logprobs", "reference_logprobs", "teacher_logprobs", "signal")
VECTOR_INPUTS = tuple(  # one vector per response token, of a frozen model
    f"{side}_{what}" for side in ("teacher", "reference") for what in ("hidden", "top_ids", "top_logprobs")
)
BEHAVIOR = (
    "behavior_logprobs",
    "old_logprobs",
)  # rollouts carry them, unless a re-score of the policy that wrote them is given


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Selected rollouts, the items that steps are made of, and what the objective reads of each row.

    Attributes:
        rollouts: the rows, which may lie on disk; every row of an item indexes into them.
        items: one row for token and sequence objectives, (chosen, rejected) for pair objectives; a sequence of tuples or
            an array.
        weights: one per item; read by objectives that name ``pair_weights``.
        columns: name to one number per row (rewards, advantages), one list per row (per-token scores) or one
            (tokens, size) tensor per row (``VECTOR_INPUTS``); any sequence, read a row at a time when it is needed.
            ``teacher_mask`` and ``mask`` hold a 1 or 0 per token: what the teacher cannot judge stays or is left out.
    """

    rollouts: Sequence[Rollout]
    items: Sequence[tuple[int, ...]] | Int[np.ndarray, "items rows"]
    weights: Sequence[float] | Float[np.ndarray, " items"]
    columns: Mapping[str, Sequence | np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.items):
            raise DegenerateError(
                f"training needs at least one item, received 0 from {len(self.rollouts)} rollouts. Check the selection: "
                "pairs need groups with a right and a wrong rollout."
            )
        for name, column in self.columns.items():
            if len(column) != len(self.rollouts):
                raise ShapeError(
                    f"{name} must have one entry per rollout = {len(self.rollouts)}, received {len(column)}."
                )

    @cached_property
    def outline(self) -> Outline:
        """What is known of the rows without their tokens."""
        return outline(self.rollouts)

    @cached_property
    def used_rows(self) -> Int[np.ndarray, " rows"]:
        """The rows that items are made of, ascending, each once: a row of several pairs is one row."""
        return np.unique(np.asarray(self.items))

    def rows_of(self, items: Iterable[int]) -> list[int]:
        """The rows of these items, one item's behind the other's."""
        return [int(row) for item in items for row in self.items[item]]

    @property
    def keys(self) -> list[str]:
        """A name for each item that does not depend on what else was selected."""
        return ["|".join("{}/{}".format(*self.outline.key(row)) for row in item) for item in self.items]

    def sizes(self, item: int) -> list[int]:
        """Tokens of each of the item's rows."""
        told = self.outline
        return [int(told.prompt_tokens[row] + told.response_tokens[row]) for row in self.rows_of([item])]

    def width(self, item: int) -> int:
        """Tokens of the item's longest row."""
        return max(self.sizes(item))

    @cached_property
    def longest_response(self) -> int:
        return int(self.outline.response_tokens[self.used_rows].max())


def plan(keys: Sequence[str], *, batch_size: int, num_steps: int, seed: int) -> Iterator[list[int]]:
    """The items of each step: epochs shuffled one after another, no item twice before all were used once.

    The order is that of a hash of seed, epoch and key. So two arms that train on overlapping rows meet the shared ones in
    the same order, and a difference between them is not one of data order.

    Args:
        keys: a stable name for each item.
        batch_size: items a step.
        num_steps: how many steps to plan.
        seed: of the order.

    >>> list(plan(["a", "b", "c", "d"], batch_size=2, num_steps=2, seed=0))
    [[3, 2], [0, 1]]
    """
    queue = np.zeros(0, dtype=np.int64)
    epoch = 0
    for _ in range(num_steps):
        while len(queue) < batch_size:
            queue = np.concatenate([queue, by_hash(keys, f"{seed}/{epoch}")])
            epoch += 1
        yield queue[:batch_size].tolist()
        queue = queue[batch_size:]


def by_hash(keys: Sequence[str], salt: str) -> Int[np.ndarray, " keys"]:
    """Positions in the order of sha256("salt/key"), which owes nothing to the order given."""
    digests = bytearray()
    for key in keys:
        digests += hashlib.sha256(f"{salt}/{key}".encode("utf-8", "surrogatepass")).digest()
    words = np.frombuffer(digests, dtype=">u8").reshape(-1, 4)
    return np.lexsort(words.T[::-1])


def micro_batches(data: TrainingData, items: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Cut a step's items into micro-batches of similar length whose padded size stays within the budget."""
    out: list[list[int]] = [[]]
    rows = widest = 0
    for item in sorted(items, key=lambda i: (data.width(i), i)):
        rows, widest = rows + len(data.items[item]), max(widest, data.width(item))
        if out[-1] and rows * widest > token_budget:
            out.append([])
            rows, widest = len(data.items[item]), data.width(item)
        out[-1].append(item)
    return out


def collate(data: TrainingData, items: Sequence[int], names: Sequence[str]) -> TokenBatch:
    """Tensors of one micro-batch with exactly the inputs that the objective names.

    In place of a frozen model's logits go what these data have of it: hidden states, or likeliest ids with log-probs.
    """
    index = data.rows_of(items)
    rows = [data.rollouts[i] for i in index]
    prompts = torch.tensor([len(r.prompt_ids) for r in rows])
    lengths = prompts + torch.tensor([len(r.response_ids) for r in rows])
    width = int(lengths.max())
    flat = np.fromiter(chain.from_iterable((*r.prompt_ids, *r.response_ids) for r in rows), dtype=np.int64)
    inside = torch.arange(width)[None] < lengths[:, None]
    ids = torch.zeros(len(rows), width, dtype=torch.long).masked_scatter(inside, torch.from_numpy(flat))
    mask = align.response_mask(prompts, lengths, width=width)
    names = [kept for name in names if name not in STUDENT_INPUTS for kept in _kept(name, data)]
    inputs = {name: _input(name, data, items, index, rows, mask) for name in names}
    judged = {name: _judged(data, name, index, mask) for name in ("mask", "teacher_mask") if name in data.columns}
    mask = judged.pop("mask", mask)
    inputs |= judged
    return TokenBatch(ids=ids, lengths=lengths, mask=mask, row_index=torch.tensor(index), inputs=inputs)


def count_items(data: TrainingData, items: Sequence[int]) -> StepCount:
    """What a step of these items will be divided by, from lengths alone: no process has to hold the others' rows.

    Law: the sum of ``reduce.count`` over the step's collated micro-batches.
    """
    rows = data.rows_of(items)
    pairs = sum(len(data.items[item]) == 2 for item in items)
    live = [live_tokens(data, row) for row in rows]
    return StepCount(tokens=sum(live), rollouts=sum(num > 0 for num in live), pairs=pairs)


def live_tokens(data: TrainingData, row: int) -> int:
    """How many tokens of a row are scored."""
    kept = data.columns.get("mask")
    return int(data.outline.response_tokens[row]) if kept is None else int(sum(kept[row]))


def _judged(data: TrainingData, name: str, index: Sequence[int], mask: Tensor) -> Tensor:
    return mask & (align.per_token([data.columns[name][i] for i in index], mask) > 0)


def _kept(name: str, data: TrainingData) -> Sequence[str]:
    """The columns that stand for an input."""
    if not name.endswith("_logits"):
        return [name]
    side = name.removesuffix("_logits")
    own = [column for column in VECTOR_INPUTS if column.startswith(side) and column in data.columns]
    return own or [f"{side}_hidden"]


def _input(
    name: str, data: TrainingData, items: Sequence[int], index: Sequence[int], rows: Sequence[Rollout], mask: Tensor
) -> Tensor:
    if name == "pairs":
        return torch.arange(len(index)).reshape(-1, 2)
    if name == "pair_weights":
        return torch.tensor([data.weights[item] for item in items], dtype=torch.float32)
    if name in BEHAVIOR and name not in data.columns:
        return align.per_token([r.behavior_logprobs for r in rows], mask)
    if name == "rewards" and name not in data.columns:
        return torch.tensor([r.reward for r in rows], dtype=torch.float32)
    if name not in data.columns:
        keep = ", keeping hidden states," if name in VECTOR_INPUTS else ""
        raise ShapeError(
            f"the objective reads {name}; these data have {', '.join(data.columns) or 'no such columns'}. "
            f"Score the rollouts{keep} or assign credit first."
        )
    picked = [data.columns[name][i] for i in index]
    if name in VECTOR_INPUTS:
        return align.per_token_rows(picked, mask)
    if name in PER_TOKEN_INPUTS:
        return align.per_token(picked, mask)
    column = torch.tensor(picked, dtype=torch.float32)
    return torch.where(mask, column[:, None], 0.0) if name == "advantages" else column
