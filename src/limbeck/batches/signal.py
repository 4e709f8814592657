"""The token signal of ERPD-style training as data: made once from stored scores, no model is asked again. OUR READING.

Each teacher (a stage-1 policy) is held against a contrast on the same tokens: the base, or an unlearned twin. Of a twin with
several checkpoints the one of the teacher's step is taken, or the one that drifted about as far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from limbeck.batches.score import floored, write_scores
from limbeck.config import Config
from limbeck.errors import DegenerateError
from limbeck.objectives.erpd import combined, signal_scale, token_signal
from limbeck.objectives.estimators import k3
from limbeck.types import RolloutSet, is_right

ROUNDING = 1e-4  # nats: log-probs of one model in two batches differ by less
MATCHED = 2.0  # drifts of teacher and twin may differ by this factor
Scores = Sequence[Sequence[float]]


class SignalConfig(Config):
    """How log-ratios become a signal."""

    scale: Literal["none", "std"] = "none"
    """Divide each teacher's log-ratio by 1 nat or by its own standard deviation over all tokens."""
    limit: float = Field(default=5.0, gt=0)
    """Clamp after scaling, nats; of each teacher."""
    length: Literal["none", "inverse"] = "none"
    """`inverse` gives every rollout the same total influence."""
    combine: Literal["mean", "agree"] = "mean"
    """Of several teachers: the mean, or 0 where their signs differ. Each is then divided by its own standard deviation."""


class Made(NamedTuple):
    """One number per response token, nats, and what it was made of."""

    rows: list[list[float]]
    facts: dict[str, Any]


class Teacher(NamedTuple):
    """Scores of a stage-1 policy and of what it is held against.

    Attributes:
        name: for the record.
        scores: of the policy.
        contrasts: name to scores; the first is that of the matching step, the others are further steps of it.
    """

    name: str
    scores: Scores
    contrasts: Mapping[str, Scores]


def make_signal(
    rollout_set: RolloutSet, teachers: Sequence[Teacher], reference: Scores | None, config: SignalConfig
) -> Made:
    """The signal on every response token.

    Args:
        rollout_set: the rollouts that all scores belong to.
        teachers: one or more.
        reference: scores of the base, for drifts; None where they are not known, and the first contrasts are taken.
        config: scale, clamp, length and how teachers combine.

    Raises:
        DegenerateError: a teacher equal to its contrast, or teachers that agree nowhere.
    """
    lengths = rollout_set.outline.response_tokens.tolist()
    anchor = None if reference is None else _flat(reference).tensor
    parts, told = [], []
    for teacher in teachers:
        signal, facts = _one(teacher, anchor, lengths, config, several=len(teachers) > 1)
        parts.append(signal)
        told.append(facts)
    flat = combined([part[None] for part in parts], rule=config.combine)[0]
    if not bool((flat.abs() > 0).any()):
        raise DegenerateError(
            f"a signal must say something of at least one token, received {len(teachers)} teachers whose signs agree on "
            'none of them. Use combine = "mean", or other teachers.'
        )
    rows = [row.tolist() for row in flat.split(lengths)]
    facts = {**config.model_dump(), **_summary(flat), **_against_rewards(rows, rollout_set), "teachers": told}
    return Made(rows, facts)


def write_signal(out: Path, rollout_set: RolloutSet, made: Made, *, overwrite: bool = False) -> Path:
    """Store a signal as a folder of kind ``signal`` that names its rollouts; ``signal.json`` says what it was made of."""
    beside = {"signal.json": made.facts}
    return write_scores(out, rollout_set, made.rows, model_digest="", kind="signal", beside=beside, overwrite=overwrite)


class _Flat(NamedTuple):
    tensor: Tensor  # one entry a token, float64
    floored: int


def _flat(scores: Scores) -> _Flat:
    rows, count = floored(scores)
    return _Flat(torch.tensor([x for row in rows for x in row], dtype=torch.float64), count)


def _one(
    teacher: Teacher, anchor: Tensor | None, lengths: list[int], config: SignalConfig, *, several: bool
) -> tuple[Tensor, dict[str, Any]]:
    own = _flat(teacher.scores)
    contrasts = {name: _flat(scores) for name, scores in teacher.contrasts.items()}
    drifts = {} if anchor is None else {name: _drift(flat.tensor, anchor) for name, flat in contrasts.items()}
    drift = None if anchor is None else _drift(own.tensor, anchor)
    name = next(iter(contrasts)) if drift is None else _nearest(drift, drifts)
    other = contrasts[name]
    gap = (own.tensor - other.tensor).abs()
    if not bool(gap.nan_to_num().max() > ROUNDING):
        raise DegenerateError(
            f"a teacher must differ from what it is held against, received {teacher.name} and {name}, equal to within "
            f"{ROUNDING:g} nats on every one of {len(gap)} tokens: the signal is zero. Train stage 1 for longer, or choose "
            "another contrast."
        )
    live = torch.isfinite(own.tensor) & torch.isfinite(other.tensor)  # NaN: longer than the model's context
    scale = 1.0
    if config.scale == "std" or several:
        scale = signal_scale(own.tensor[None], other.tensor[None], live[None])
    settings = {"scale": scale, "limit": config.limit, "length": config.length}
    rows = zip(own.tensor.split(lengths), other.tensor.split(lengths), live.split(lengths), strict=True)
    signal = torch.cat([token_signal(a[None], b[None], mask[None], **settings)[0] for a, b, mask in rows])
    facts = {
        "name": teacher.name, "contrast": name, "scale_nats": scale, "drift": drift, "contrast_drifts": drifts,
        "floored": own.floored, "contrast_floored": other.floored,
        "clamped_share": float((gap[live] / scale > config.limit).double().mean()), **_summary(signal[live]),
    }  # fmt: skip
    return signal, facts


def _nearest(drift: float, drifts: Mapping[str, float]) -> str:
    """The contrast of the matching step unless its drift is another one's size; then the nearest in drift."""
    first = next(iter(drifts))
    if len(drifts) == 1 or _ratio(drift, drifts[first]) <= MATCHED:
        return first
    return min(drifts, key=lambda name: _ratio(drift, drifts[name]))


def _ratio(a: float, b: float) -> float:
    low, high = sorted((a, b))
    return high / low if low > 0 else math.inf if high > 0 else 1.0


def _drift(scores: Tensor, anchor: Tensor) -> float:
    """Mean of exp(D) - D - 1 over the tokens, nats; D the policy's minus the base's log-prob."""
    return float(k3(anchor, scores).nanmean())


def _summary(flat: Tensor) -> dict[str, float]:
    return {
        "mean": float(flat.mean()),
        "std": float(flat.std(correction=0)),
        "zero_share": float((flat == 0).double().mean()),
    }


def _against_rewards(rows: Sequence[Sequence[float]], rollout_set: RolloutSet) -> dict[str, float | None]:
    """Does the summed signal tell right rollouts from wrong ones of the same problem? Share of such pairs, ties half."""
    sums = [math.fsum(row) for row in rows]
    right = [is_right(reward) for reward in rollout_set.outline.reward.tolist()]
    won = asked = 0.0
    for group in rollout_set.groups.values():
        for i in (i for i in group if right[i]):
            for j in (j for j in group if not right[j]):
                won += 0.5 if sums[i] == sums[j] else float(sums[i] > sums[j])
                asked += 1
    return {"agreement": won / asked if asked else None}
