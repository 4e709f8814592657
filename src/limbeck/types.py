"""The nouns, in the order in which data flows, each with the invariant that the rest of the code relies on.

Problems become rollouts; a selection of rollouts becomes batches; an objective turns batches into a run; a
run minus its base is a delta; deltas are measured, scores are compared, and a report says what is known and
how surely. Nothing here reads a file, moves a device or knows a model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import DataError, ShapeError

Unit = Literal["token", "sequence", "pair"]
Normalizer = Literal["token", "sequence", "constant"]
NORMALIZERS: tuple[Normalizer, ...] = ("token", "sequence", "constant")
RIGHT_ABOVE = 0.0  # the one threshold, see :func:`is_right`


def is_right(reward: float, above: float = RIGHT_ABOVE) -> bool:
    """Whether a reward says right: above zero, for rewards of 0/1 and of -1/+1 alike.

    Objectives read the sign (``rift``: a positive reward pulls, any other pushes), so a graded reward between
    0 and 1 counts as right too; give another ``above`` where that is not meant.

    >>> [is_right(reward) for reward in (1.0, 0.2, 0.0, -1.0)]
    [True, True, False, False]
    """
    return reward > above


class Finish(StrEnum):
    """Why a response ended: the model stopped, or the length limit cut it."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with its gold answer. Ids are unique in a set; text and answer are never empty."""

    id: str
    prompt: str
    answer: str
    source: str

    def __post_init__(self) -> None:
        if not self.id or not self.prompt.strip() or not self.answer.strip():
            raise DataError(
                f"a problem needs an id, a prompt and an answer, received id={self.id!r}, "
                f"prompt={self.prompt[:40]!r}, answer={self.answer!r}. Drop the row or fill the field."
            )


def problems_digest(problems: Sequence[Problem]) -> str:
    """Identity of a problem set: ids, prompts and answers in order."""
    return _sha256([p.id, p.prompt, p.answer] for p in problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer to one problem. Id lists are what the model reads and wrote, never re-tokenised.

    ``behavior_logprobs`` has one entry per response token, nats, NaN where the sampler gave none.
    """

    problem_id: str
    sample: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    behavior_logprobs: tuple[float, ...]
    reward: float
    finish: Finish
    response: str

    def __post_init__(self) -> None:
        where = f"rollout {self.problem_id!r} sample {self.sample}"
        if not self.prompt_ids or not self.response_ids:
            raise DataError(
                f"{where}: prompt and response must each have at least one token, received "
                f"{len(self.prompt_ids)} and {len(self.response_ids)}. Drop the row from the rollouts file."
            )
        if len(self.behavior_logprobs) != len(self.response_ids):
            raise DataError(
                f"{where}: behavior_logprobs must have one entry per response token = {len(self.response_ids)}, "
                f"received {len(self.behavior_logprobs)}. Use NaN where the sampler gave none."
            )
        if any(map(math.isinf, self.behavior_logprobs)):
            raise DataError(
                f"{where}: behavior_logprobs must be finite, or NaN where the sampler gave none, received an infinity. A "
                "sampled token has no probability of 0: drop the row, or score the rollouts again."
            )
        if not math.isfinite(self.reward):
            raise DataError(f"{where}: reward must be a finite number, received {self.reward}. Grade it again.")

    @property
    def key(self) -> tuple[str, int]:
        return self.problem_id, self.sample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outline:
    """What is known of rollouts without their tokens, one entry each: small enough to be held whole whatever the set.

    Attributes:
        problems: the distinct problem ids.
        problem: where in ``problems`` the rollout's own is.
        sample: its number within the problem.
        reward: as graded.
        truncated: whether the length limit ended it.
        prompt_tokens: length of the prompt, tokens.
        response_tokens: length of the response, tokens.
        known: whether every behavior log-prob is known.
    """

    problems: tuple[str, ...]
    problem: Int[np.ndarray, " rows"]
    sample: Int[np.ndarray, " rows"]
    reward: Float[np.ndarray, " rows"]
    truncated: Bool[np.ndarray, " rows"]
    prompt_tokens: Int[np.ndarray, " rows"]
    response_tokens: Int[np.ndarray, " rows"]
    known: Bool[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.problem)

    @property
    def tokens(self) -> Int[np.ndarray, " rows"]:
        """Length of the whole row, tokens."""
        return self.prompt_tokens + self.response_tokens

    def check_keys(self) -> None:
        """Refuse two rollouts of one name."""
        order = np.lexsort((self.sample, self.problem))
        repeats = (np.diff(self.problem[order]) == 0) & (np.diff(self.sample[order]) == 0)
        if repeats.any():
            raise DataError(
                f"(problem_id, sample) must be unique in a rollout set, received {len(self)} rollouts with "
                f"{len(self) - int(repeats.sum())} distinct keys. Number the samples of each problem 0, 1, 2, ..."
            )

    def key(self, row: int | np.integer) -> tuple[str, int]:
        """Problem id and sample number of a row."""
        return self.problems[self.problem[row]], int(self.sample[row])

    def every_key(self) -> Iterator[tuple[str, int]]:
        """Of all rows, in order."""
        for problem, sample in zip(self.problem.tolist(), self.sample.tolist(), strict=True):
            yield self.problems[problem], sample

    def take(self, rows: np.ndarray) -> Outline:
        """Of these rows alone, given by position or by a mask."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "problems"}
        return Outline(problems=self.problems, **columns)


def outline(rollouts: Sequence[Rollout]) -> Outline:
    """The outline of any rollouts; those that are read from a folder bring their own."""
    own = getattr(rollouts, "outline", None)
    if own is not None:
        return own
    names: dict[str, int] = {}
    return Outline(
        problem=np.array([names.setdefault(r.problem_id, len(names)) for r in rollouts], dtype=np.int32),
        problems=tuple(names),
        sample=np.array([r.sample for r in rollouts], dtype=np.int64),
        reward=np.array([r.reward for r in rollouts], dtype=np.float64),
        truncated=np.array([r.finish == Finish.LENGTH for r in rollouts], dtype=bool),
        prompt_tokens=np.array([len(r.prompt_ids) for r in rollouts], dtype=np.int32),
        response_tokens=np.array([len(r.response_ids) for r in rollouts], dtype=np.int32),
        known=np.array([not any(map(math.isnan, r.behavior_logprobs)) for r in rollouts], dtype=bool),
    )


@dataclass(frozen=True, kw_only=True)
class RolloutSet:
    """Rollouts with their provenance. Two runs used identical rollouts iff their digests are equal.

    ``rollouts`` may lie on disk: take rows one at a time, and what the outline tells from there.
    """

    rollouts: Sequence[Rollout]
    provenance: Mapping[str, object]

    def __post_init__(self) -> None:
        self.outline.check_keys()

    @cached_property
    def outline(self) -> Outline:
        """What is known of the rollouts without their tokens."""
        return outline(self.rollouts)

    @cached_property
    def digest(self) -> str:
        """Over ids, rewards, endings and behavior log-probs; order counts, text and provenance do not."""
        known = getattr(self.rollouts, "digest", "")  # of rollouts read from a folder, which was checked then
        return known or _sha256(
            [
                r.problem_id,
                r.sample,
                r.prompt_ids,
                r.response_ids,
                [None if math.isnan(x) else round(x, 6) for x in r.behavior_logprobs],
                r.reward,
                r.finish,
            ]
            for r in self.rollouts
        )

    @cached_property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Problem id to the positions of its rollouts, in order of first appearance."""
        out: dict[int, list[int]] = {}
        for index, problem in enumerate(self.outline.problem.tolist()):
            out.setdefault(problem, []).append(index)
        return {self.outline.problems[problem]: tuple(indices) for problem, indices in out.items()}

    def __len__(self) -> int:
        return len(self.rollouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Rows of one micro-batch, right-padded. Every (batch, time) tensor is aligned to the *target* token.

    ``ids`` has one column more than ``mask``: target ``t`` is ``ids[:, t + 1]``. ``inputs`` holds exactly the
    tensors that the objective names in its signature, apart from what the student's forward pass provides.
    """

    ids: Int[Tensor, "batch length"]
    lengths: Int[Tensor, " batch"]
    mask: Bool[Tensor, "batch time"]
    row_index: Int[Tensor, " batch"]
    inputs: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.ids.shape[1] != self.mask.shape[1] + 1 or self.ids.shape[0] != self.mask.shape[0]:
            raise ShapeError(
                f"mask must be (batch, length - 1) for ids of {tuple(self.ids.shape)}, received "
                f"{tuple(self.mask.shape)}. Build batches with batches.collate."
            )

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch with every tensor on ``device``."""
        return TokenBatch(
            ids=self.ids.to(device),
            lengths=self.lengths.to(device),
            mask=self.mask.to(device),
            row_index=self.row_index.to(device),
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What an objective returns: one value per unit, unreduced, and detached per-unit metrics of that shape.

    Token-unit values are (batch, time), sequence-unit (batch,), pair-unit (pairs,). Finite wherever the mask is.
    """

    values: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A row of ``OBJECTIVES``: a pure function and what cannot be read off its signature.

    Attributes:
        name: the key in the table.
        function: batch tensors before ``*``, knobs with defaults after it; returns :class:`Values`.
        unit: what one value belongs to.
        normalizer: the divisor used when a study runs "as published".
        linear: gradients with respect to ``logprobs`` do not depend on their values (the head may then
            compute the gradient in its forward pass).
        status: PUBLISHED, SECONDARY or OUR READING, as it must stand beside results.
        source: paper, equation, code.
        formula: one line in the code's own names.
        credit: name of the advantage rule when ``advantages`` is read, as published; empty otherwise.
        deviations: what differs from the source; "none" is a claim.
    """

    name: str
    function: Callable[..., Values]
    unit: Unit
    normalizer: Normalizer
    linear: bool
    status: str
    source: str
    formula: str
    credit: str = ""
    deviations: str = "none"


class LowRank(NamedTuple):
    """An update ``left @ right`` in fp32 with every scale folded into ``left``."""

    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """Tuned minus base, fp32, module name to low-rank factors; sorted by name, tied weights once.

    ``init_digest`` identifies the initial factors that a run shared with others; empty when unknown.
    """

    name: str
    base: str
    init_digest: str
    modules: Mapping[str, LowRank]


class Measured(NamedTuple):
    """A metric's value, or NaN with the reason why it is undefined."""

    value: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Null:
    """What chance scores at this shape: which null, its mean and its 5-95 % band."""

    id: str = ""
    mean: float = math.nan
    q05: float = math.nan
    q95: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One number of the geometry with where, whose, how sure and against which null. A row of the table."""

    metric: str
    aggregation: str
    value: float
    unit: str
    module: str = ""
    layer: int = -1
    kind: str = ""
    side: str = ""
    k: int = 0
    arm: str = ""
    other: str = ""
    step: int = -1
    delta_kind: str = "lora_fp32"
    null: Null = field(default_factory=Null)
    exactness: str = "exact"
    residual: float = math.nan
    reason: str = ""

    def row(self) -> dict[str, object]:
        """The fixed columns of ``measurements.parquet``."""
        flat: dict[str, object] = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("null", "reason", "exactness", "residual")
        }
        null = {
            "null_id": self.null.id,
            "null_mean": self.null.mean,
            "null_q05": self.null.q05,
            "null_q95": self.null.q95,
        }
        tail = {"exactness": self.exactness, "residual": self.residual, "reason": self.reason}
        ordered = {**flat, **null, **tail}
        return {name: ordered[name] for name in MEASUREMENT_COLUMNS}


MEASUREMENT_COLUMNS = (
    "metric", "aggregation", "module", "layer", "kind", "side", "k", "arm", "other", "step", "value", "unit",
    "delta_kind", "null_id", "null_mean", "null_q05", "null_q95", "exactness", "residual", "reason",
)  # fmt: skip


class Outcome(StrEnum):
    """What became of one response. Only ``correct`` counts as correct; the rest tell why not."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    """No answer was found, or none that may be read as mathematics."""
    TRUNCATED = "truncated"
    """The thinking never ended."""
    TIMED_OUT = "timed_out"
    ERRORED = "errored"
    """The grader could not judge: its process died, or the gold answer is beyond it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One graded response to one problem.

    ``finish``, ``response_tokens`` and ``outcome`` are None where the record of another program does not tell;
    an outcome agrees with ``correct``.
    """

    problem_id: str
    sample: int
    correct: bool
    answer: str
    extracted: str
    finish: Finish | None
    response_tokens: int | None
    outcome: Outcome | None = None
    response: str = ""

    def __post_init__(self) -> None:
        if self.outcome is not None and self.correct != (self.outcome == Outcome.CORRECT):
            raise DataError(
                f"score {self.problem_id!r} sample {self.sample}: correct must be true exactly when the outcome is "
                f"'correct', received {self.correct} with {self.outcome!s}. Take both from one grade."
            )


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Outcomes of one checkpoint, rectangular: every problem has the same number of samples, ids sorted.

    ``template_digest`` is that of the prompt template, ``model_digest`` that of the weights (of the base, where an
    adapter was on it) and ``adapter_digest`` that of the adapter, ``"none"`` without one. Empty means unknown:
    tables that another program wrote often do not tell.
    """

    name: str
    scores: tuple[Score, ...]
    problems_digest: str
    grader: str
    decoding: str
    template_digest: str = ""
    model_digest: str = ""
    adapter_digest: str = ""

    def __post_init__(self) -> None:
        counts: dict[str, int] = {}
        for score in self.scores:
            counts[score.problem_id] = counts.get(score.problem_id, 0) + 1
        if len(set(counts.values())) > 1:
            low, high = min(counts.values()), max(counts.values())
            raise DataError(
                f"score table {self.name!r}: every problem needs the same number of samples, received between {low} and "
                f"{high}. Evaluate the missing samples, they are not failures."
            )

    @cached_property
    def problem_ids(self) -> tuple[str, ...]:
        return tuple(sorted({s.problem_id for s in self.scores}))

    @cached_property
    def correct(self) -> Bool[Tensor, "problems samples"]:
        """Right or wrong, rows in the order of ``problem_ids``, columns by sample number."""
        ordered = sorted(self.scores, key=lambda s: (s.problem_id, s.sample))
        flat = torch.tensor([s.correct for s in ordered], dtype=torch.bool)
        return flat.reshape(len(self.problem_ids), -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its interval: ``low <= value <= high`` at ``level``, or NaN with a reason."""

    value: float
    low: float
    high: float
    level: float
    method: str
    n: int
    seed: int | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        ordered = self.low <= self.value <= self.high
        if not (ordered or (self.reason and math.isnan(self.value))):
            raise DataError(
                f"an estimate needs low <= value <= high, or NaN with a reason; received {self.low}, {self.value}, "
                f"{self.high}, reason {self.reason!r}."
            )


def _sha256(rows: Iterable[object]) -> str:
    """Of the rows as one JSON list, written a row at a time."""
    out, separator = hashlib.sha256(), "["
    for row in rows:
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        out.update((separator + text).encode("utf-8", "surrogatepass"))
        separator = ","
    out.update(b"]" if separator == "," else b"[]")
    return out.hexdigest()
