"""Score tables of several arms against each other: paired, corrected for their number, with what could be called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from limbeck.errors import ConfigError, DataError, DegenerateError, ProvenanceError
from limbeck.stats.multiplicity import benjamini_hochberg, holm
from limbeck.stats.paired import cells, difference_counts, mcnemar_exact, paired_difference, sign_flip
from limbeck.stats.passk import avg_at_k
from limbeck.stats.power import smallest_callable, smallest_callable_given
from limbeck.types import Estimate, Measured, ScoreTable

SHARES = (0.1, 0.2, 0.3)


def compare(tables: Sequence[ScoreTable], *, alpha: float = 0.05, seed: int = 0) -> dict[str, Any]:
    """Every arm's accuracy and every pair's difference, as JSON-ready values; NaN never appears, null does.

    Intervals are at level 1 - alpha and one comparison at a time; ``p_holm`` holds for all pairs together.
    ``difference`` is a minus b, a fraction. ``smallest_callable`` is what the test could have called: of the whole
    set at usual shares of discordant problems, and of each pair at its own; ``smallest_callable_holm`` is the same of
    each pair at Holm's first step, alpha over the number of pairs, which the smallest p of all has to pass; null where
    there is none. With several samples a problem the four cells are expected counts.

    Args:
        tables: one an arm, of the same problems, grader and decoding.
        alpha: level of the tests.
        seed: of the bootstrap over problems (used with several samples a problem only).

    Raises:
        ConfigError: alpha outside (0, 1), no table, or two of one name.
        ProvenanceError: problems, graders or decodings differ.
        DegenerateError: tables without scores.
    """
    _check(tables, alpha)
    first = tables[0]
    n = len(first.problem_ids)
    both = list(combinations(tables, 2))
    levels = (alpha, alpha / max(len(both), 1))
    pairs = [_pair(a, b, levels, seed) for a, b in both]
    p_values = [pair["p"] for pair in pairs]
    for pair, p_holm, p_bh in zip(pairs, holm(p_values), benjamini_hochberg(p_values), strict=True):
        pair.update(p_holm=p_holm, p_bh=p_bh)
    return {
        "problems_digest": first.problems_digest,
        "grader": first.grader,
        "decoding": first.decoding,
        "alpha": alpha,
        "n": n,
        "smallest_callable": [
            {"discordant_share": s, **_callable(smallest_callable(n, s, alpha=alpha))} for s in SHARES
        ],
        "arms": [_arm(table, alpha, seed) for table in tables],
        "pairs": pairs,
    }


def _arm(table: ScoreTable, alpha: float, seed: int) -> dict[str, Any]:
    counts = {"correct": int(table.correct.sum()), "n": len(table.problem_ids), "samples": table.correct.shape[1]}
    return {"name": table.name, **counts, **_interval(avg_at_k(table, seed=seed, level=1 - alpha), "value")}


def _pair(a: ScoreTable, b: ScoreTable, levels: tuple[float, float], seed: int) -> dict[str, Any]:
    n = len(a.problem_ids)
    counts, scale = difference_counts(a.correct, b.correct)
    single = scale == 1
    table = {k: round(v) if single else v for k, v in cells(a.correct, b.correct)._asdict().items()}
    difference = paired_difference(a.correct, b.correct, seed=seed, level=1 - levels[0])
    smallest, smallest_holm = (smallest_callable_given(counts, n * scale, alpha=level) for level in levels)
    return {
        "a": a.name,
        "b": b.name,
        "n": n,
        **table,
        **_interval(difference, "difference"),
        "test": "mcnemar_exact" if single else "sign_flip_exact",
        "p": mcnemar_exact(round(table["a_only"]), round(table["b_only"])) if single else sign_flip(counts),
        "smallest_callable": _callable(smallest)["difference"],
        "smallest_callable_holm": _callable(smallest_holm)["difference"],
    }


def _interval(estimate: Estimate, name: str) -> dict[str, Any]:
    numbers = {name: estimate.value, "low": estimate.low, "high": estimate.high}
    clean = {key: None if math.isnan(x) else x for key, x in numbers.items()}
    return {**clean, "method": estimate.method, "reason": estimate.reason}


def _callable(measured: Measured) -> dict[str, Any]:
    return {"difference": None if math.isnan(measured.value) else measured.value, "reason": measured.reason}


def _check(tables: Sequence[ScoreTable], alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must lie in (0, 1), received {alpha}. 0.05 is customary.")
    names = [table.name for table in tables]
    if not tables or len(set(names)) < len(names):
        raise ConfigError(f"compare needs score tables of distinct names, received {names}. Rename one of them.")
    first = tables[0]
    for table in tables[1:]:
        if table.problems_digest != first.problems_digest or table.problem_ids != first.problem_ids:
            lone = sorted(set(first.problem_ids) ^ set(table.problem_ids))
            detail = f"{len(lone)} ids in one only, such as {lone[0]!r}" if lone else "other prompts or answers"
            raise ProvenanceError(
                f'arms "{first.name}" and "{table.name}" must be scored on the same problems, received digests '
                f"{first.problems_digest[:8]} and {table.problems_digest[:8]} ({detail}). "
                "Evaluate both on one problem set."
            )
        _same(first, table, "grader")
        _same(first, table, "decoding")
    for table in tables:
        if not table.scores:
            raise DegenerateError(f'arm "{table.name}" needs at least one score, received none. Evaluate it first.')
        if len({(s.problem_id, s.sample) for s in table.scores}) < len(table.scores):
            raise DataError(f'arm "{table.name}" must have each sample once, received duplicates. Evaluate it again.')


def _same(first: ScoreTable, table: ScoreTable, name: str) -> None:
    ours, theirs = getattr(first, name), getattr(table, name)
    if ours != theirs:
        raise ProvenanceError(
            f'arms "{first.name}" and "{table.name}" must share one {name}, received {ours!r} and {theirs!r}. '
            "Evaluate one of them again with the other's settings."
        )
