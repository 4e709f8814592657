"""avg@k, pass@k and maj@k of a score table, each over problems and with its interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import ConfigError
from limbeck.stats.intervals import mean_of_items, undefined
from limbeck.types import Estimate, Score, ScoreTable


def avg_at_k(table: ScoreTable, *, level: float = 0.95) -> Estimate:
    """Share of right samples, averaged over problems; with one sample a problem plain accuracy.

    Args:
        table: k samples a problem.
        level: coverage, in (0, 1).
    """
    return mean_of_items(_rates(table), level=level)


def pass_at_k(table: ScoreTable, k: int, *, level: float = 0.95) -> Estimate:
    """Chance that at least one of ``k`` samples is right, unbiased from n >= k samples a problem.

    Per problem with c of n right: 1 - C(n - c, k) / C(n, k). NaN with a reason where n < k.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1. Differs from source: none.
    """
    num_samples = _num_samples(table)
    if k < 1:
        raise ConfigError(f"pass@k needs k >= 1, received {k}.")
    if num_samples < k:
        reason = f"pass@{k} needs {k} samples a problem, the table has {num_samples}"
        return undefined(f"pass@{k}", len(table.problem_ids), level, reason)
    right = table.correct.sum(1).tolist()
    values = [1.0 - math.comb(num_samples - c, k) / math.comb(num_samples, k) for c in right]
    return mean_of_items(values, level=level)


def maj_at_k(table: ScoreTable, *, ballot: Callable[[str], str] = str, level: float = 0.95) -> Estimate:
    """Accuracy of the most frequent extracted answer of all k samples.

    Samples without an answer do not vote. A tie counts as its expectation under a random choice among the tied
    answers.

    Args:
        table: k samples a problem.
        ballot: what an answer votes for; by default its text as written, in which ``1/2`` and ``0.5`` are two.
        level: coverage, in (0, 1).
    """
    groups: dict[str, list[Score]] = {name: [] for name in table.problem_ids}
    for score in table.scores:
        groups[score.problem_id].append(score)
    return mean_of_items([_majority(groups[name], ballot) for name in table.problem_ids], level=level)


def _majority(scores: Sequence[Score], ballot: Callable[[str], str]) -> float:
    votes = Counter(ballot(s.extracted) for s in scores if s.extracted)
    if not votes:
        return 0.0
    tied = [answer for answer, num in votes.items() if num == max(votes.values())]
    right = {ballot(s.extracted) for s in scores if s.correct}
    return sum(answer in right for answer in tied) / len(tied)


def _num_samples(table: ScoreTable) -> int:
    return len(table.scores) // max(len(table.problem_ids), 1)


def _rates(table: ScoreTable) -> NDArray[np.float64]:
    if not table.scores:
        return np.zeros(0)
    return table.correct.double().mean(1).numpy()
