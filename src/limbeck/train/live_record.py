"""What a live step says of itself: how far student, sampler, base and teacher are apart, what was clipped, how fast.

Estimators are part of the names. ``kl_student_teacher_k1`` and ``_k3`` and ``kl_student_reference_k3`` are over the
tokens that the student sampled, before the update, nats a token. ``kl_sampler_student_k3`` is over the same tokens
during the update: 0 in the first one, if the sampler wrote what the trainer scores. ``teacher_agreement`` is the mean
of min(1, exp(q - o)) with q the teacher's and o the student's log-prob of the sampled token: an unbiased estimate of
the probability mass on which both agree at the positions visited, 1 minus their total variation distance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from limbeck.batches.collate import TrainingData
from limbeck.batches.forward import Scored
from limbeck.types import Rollout, TokenBatch, Values

QUANTILES = {"ratio_q05": 0.05, "ratio_q50": 0.5, "ratio_q95": 0.95, "ratio_max": 1.0}
ADDED = ("tokens", "rows")  # over the updates of a step; every other number of an update is averaged


class Watch:
    """Per-token quantities of every micro-batch of a step, for quantiles and shares that no mean can give.

    Args:
        data: of the step.
        num_own: its first so many rollouts are the student's; of the others no distance to the sampler is taken.
    """

    def __init__(self, data: TrainingData, num_own: int) -> None:
        self._data, self._num_own = data, num_own
        self._parts: list[dict[str, np.ndarray]] = []

    def __call__(self, batch: TokenBatch, scored: Scored, values: Values) -> None:
        """Note one micro-batch of this process."""
        mine = batch.mask & (batch.row_index < self._num_own)[:, None]
        own = scored.logprobs.detach()[mine].double().cpu().numpy()
        old = _joined([self._sampled(row) for row in batch.row_index.tolist() if row < self._num_own])
        part = {"log_ratio": own - old}
        for name in ("ratio", "clipped"):
            metric = values.metrics.get(name)
            if metric is not None and metric.shape == batch.mask.shape:
                part[name] = metric.detach()[batch.mask].double().cpu().numpy()
        self._parts.append(part)

    def _sampled(self, row: int) -> np.ndarray:
        found = np.asarray(self._data.rollouts[row].behavior_logprobs)
        kept = self._data.columns.get("mask")
        return found if kept is None else found[np.asarray(kept[row]) > 0]

    def gap(self) -> float:
        """The largest disagreement so far between the trainer and the sampler, nats; NaN where it is unknown."""
        gaps = [np.abs(part["log_ratio"]).max(initial=0.0) for part in self._parts]
        return float(max(gaps, default=math.nan))

    def facts(self, accelerator: Accelerator, *, spread: bool = False) -> dict[str, float]:
        """Ratios, clipping and drift over all updates of the step, of all processes.

        Args:
            accelerator: this process among the others.
            spread: say how far the student is from who wrote the rollouts, whatever ratio the objective reads.
        """
        parts = self._parts if accelerator.num_processes == 1 else gather_object(self._parts)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        log_ratio = joined["log_ratio"][np.isfinite(joined["log_ratio"])]
        ratio = joined.get("ratio", np.exp(np.minimum(log_ratio, 20.0)))
        if not len(log_ratio) or not len(ratio):
            return {}
        out = {"kl_sampler_student_k3": float(np.mean(np.expm1(np.minimum(log_ratio, 20.0)) - log_ratio))}
        out |= {name: float(np.quantile(ratio, at)) for name, at in QUANTILES.items()}
        if spread:
            out |= spread_of(log_ratio)
        if "clipped" in joined:
            clipped = joined["clipped"] > 0
            out |= {"clipped_low": float(np.mean(clipped & (ratio < 1)))}
            out |= {"clipped_high": float(np.mean(clipped & (ratio > 1)))}
        return out


def spread_of(log_ratio: np.ndarray) -> dict[str, float]:
    """Quantiles of student over writer, token by token, the spread of its log, and how many equal weights it is worth."""
    weight = np.exp(np.clip(log_ratio, -20.0, 20.0))
    out = {f"writer_{name}": float(np.quantile(weight, at)) for name, at in QUANTILES.items()}
    share = float(weight.sum() ** 2 / (len(weight) * np.square(weight).sum()))
    return out | {"writer_log_ratio_std": float(log_ratio.std()), "writer_effective_share": share}


def distances(rollouts: Sequence[Rollout], columns: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """KL to the frozen models and agreement with the teacher, from what was sampled; nothing where it is unknown.

    Args:
        rollouts: which the student sampled.
        columns: what frozen models say of them, in their order; what follows belongs to others. Tokens that the teacher
            cannot judge are left out of its numbers.
    """
    if not rollouts:
        return {}
    own = _flat([rollout.behavior_logprobs for rollout in rollouts])
    columns = {name: column[: len(rollouts)] for name, column in columns.items()}
    out: dict[str, float] = {}
    if "teacher_logprobs" in columns:
        d = _between(own, _flat(columns["teacher_logprobs"]))
        judged = columns.get("teacher_mask", columns.get("mask"))
        d = d if judged is None else d[_flat(judged) > 0]
        if len(d):
            out["kl_student_teacher_k1"] = float(d.mean())
            out["kl_student_teacher_k3"] = _k3(d)
            out["teacher_agreement"] = float(np.exp(np.minimum(-d, 0.0)).mean())
    if "reference_logprobs" in columns:
        out["kl_student_reference_k3"] = _k3(_between(own, _flat(columns["reference_logprobs"])))
    return {name: value for name, value in out.items() if math.isfinite(value)}


def _between(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """D = s - q; a token that the teacher's server left out counts as at -20 nats, as objectives count it."""
    return own - np.maximum(other, -20.0)


def _k3(d: np.ndarray) -> float:
    return float(np.mean(np.expm1(np.minimum(-d, 20.0)) + d))


def _flat(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return _joined([np.asarray(row, dtype=np.float64) for row in rows])


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def joined(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One line of a step from those of its updates.

    >>> joined([{"loss": 1.0, "tokens": 3}, {"loss": 2.0, "tokens": 5}])
    {'loss': 1.5, 'tokens': 8}
    """
    names = [name for name in lines[0] if all(name in line for line in lines)]
    sums = {name: sum(line[name] for line in lines) for name in names}
    return {name: value if name in ADDED else value / len(lines) for name, value in sums.items()}


class Clock:
    """Seconds of a step by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add what happens inside to ``name``."""
        begin = time.monotonic()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin

    def facts(self, *, sampled: int, kept: int, passes: int) -> dict[str, float]:
        """Seconds in all and by part, and response tokens a second: those sampled, and those kept in every pass."""
        done = {"sample": sampled, "score": kept, "update": kept * passes}
        out = {"seconds": round(sum(self.seconds.values()), 4)}
        out |= {f"seconds_{name}": round(value, 4) for name, value in self.seconds.items()}
        rates = {name: done[name] / value for name, value in self.seconds.items() if name in done and value > 0}
        return out | {f"tokens_per_second_{name}": round(rate, 1) for name, rate in rates.items()}
