"""What can be known of a student and of rollouts without loading or training anything: sizes, lengths, rewards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from limbeck.rollouts.importing import Record, read_records, token_counts
from limbeck.rollouts.store import read_rollouts
from limbeck.train.models import load_tokenizer, model_folder
from limbeck.types import is_right

SPREAD, LONGEST = (
    200,
    50,
)  # rows whose tokens are counted: evenly spaced ones for the mean, and those of the longest text


class Shape(NamedTuple):
    """The tensors of a model.

    Attributes:
        matrices: name to (rows, columns) of every matrix, embeddings and head included.
        parameters: numbers in all tensors.
        stored: bytes of the weight files.
    """

    matrices: dict[str, tuple[int, int]]
    parameters: int
    stored: int

    def named(self, targets: Sequence[str]) -> list[tuple[int, int]]:
        """The matrices that an adapter with these targets stands on."""
        ends = {name: name.removesuffix(".weight").rpartition(".")[2] for name in self.matrices}
        return [shape for name, shape in self.matrices.items() if ends[name] in targets]


@cache
def shape_of(model: str) -> Shape:
    """Read off the headers of the weight files.

    Raises:
        ModelError: no such model, or one without safetensors.
    """
    matrices, parameters, stored = {}, 0, 0
    for path in sorted(model_folder(model).glob("*.safetensors")):
        stored += path.stat().st_size
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no dictionary
                size = 1
                shape = file.get_slice(name).get_shape()
                for side in shape:
                    size *= side
                parameters += size
                if len(shape) == 2:
                    matrices[name] = (shape[0], shape[1])
    return Shape(matrices, parameters, stored)


class RolloutFacts(NamedTuple):
    """A rollout set in numbers. Lengths are tokens.

    Attributes:
        rows: rollouts.
        problems: groups.
        prompt: mean length of a prompt.
        response: mean length of a response.
        longest_prompt: of the rows whose tokens were counted, the longest texts among them.
        longest_response: the same.
        right: rollouts that count as right; None where they are yet to be graded.
        mixed: problems with right and wrong rollouts; None likewise.
    """

    rows: int
    problems: int
    prompt: float
    response: float
    longest_prompt: int
    longest_response: int
    right: int | None
    mixed: int | None


@cache
def rollout_facts(path: Path, model: str) -> RolloutFacts:
    """Of a rollouts folder, or of a file through the model's tokenizer; nothing is graded.

    Raises:
        DataError: what :func:`limbeck.rollouts.importing.read_records` refuses.
    """
    if path.is_dir():
        told = read_rollouts(path).outline
        counts = list(zip(told.prompt_tokens.tolist(), told.response_tokens.tolist(), strict=True))
        return _facts([problem for problem, _ in told.every_key()], told.reward.tolist(), counts, counts)
    records, _ = read_records(path)
    tokenizer = load_tokenizer(model)
    spread = token_counts(records[:: max(1, len(records) // SPREAD)], tokenizer)
    longest = sorted(records, key=lambda record: len(record.prompt) + len(record.response))[-LONGEST:]
    rewards = _rewards(records)
    return _facts([r.problem_id for r in records], rewards, spread, [*spread, *token_counts(longest, tokenizer)])


def _rewards(records: Sequence[Record]) -> list[float] | None:
    """As import takes them: given, 1 for demonstrations, None where there is an answer to grade by."""
    if all(record.reward is not None for record in records):
        return [float(record.reward or 0.0) for record in records]
    return None if any(record.answer is not None for record in records) else [1.0] * len(records)


def _facts(
    names: Sequence[str],
    rewards: Sequence[float] | None,
    spread: Sequence[tuple[int, int]],
    longest: Sequence[tuple[int, int]],
) -> RolloutFacts:
    groups: dict[str, set[bool]] = {name: set() for name in names}
    for name, reward in zip(names, rewards or (), strict=False):
        groups[name].add(is_right(reward))
    return RolloutFacts(
        rows=len(names),
        problems=len(groups),
        prompt=sum(prompt for prompt, _ in spread) / len(spread),
        response=sum(response for _, response in spread) / len(spread),
        longest_prompt=max(prompt for prompt, _ in longest),
        longest_response=max(response for _, response in longest),
        right=None if rewards is None else sum(map(is_right, rewards)),
        mixed=None if rewards is None else sum(len(found) == 2 for found in groups.values()),
    )
