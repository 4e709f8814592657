"""Sentences of straight paths: where the way from one model to another has a barrier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from limbeck.report.parts import Sentence
from limbeck.report.words import bounds, count, fixed, listed


class Excess(NamedTuple):
    """The mid-point of one path over its chord, positive is worse, with its interval."""

    label: str
    value: float
    low: float
    high: float
    worse_than_ends: bool
    null: bool


def barriers(loss: str, unit: str, paths: Sequence[Excess]) -> list[Sentence]:
    """Which paths have a barrier: a mid-point shown to lie above the chord, and a point worse than the worse end.

    Absence is claimed only where every interval ends at 0 or below.

    >>> barriers("accuracy", "fraction", [Excess("SFT to DPO", -0.02, -0.03, -0.01, False, False)])[0].text
    'No barrier on accuracy: of 1 path, no mid-point is worse than the chord between its ends.'
    """
    real = [p for p in paths if not p.null and math.isfinite(p.value)]
    if not real:
        return []
    above = [p for p in real if p.low > 0]
    total = count(len(real), "path")
    text = _above(loss, unit, above, total) if above else _not_above(loss, unit, real, total)
    nulls = [p.value for p in paths if p.null and math.isfinite(p.value)]
    if above and nulls:
        beyond = [p.label for p in above if p.low > max(nulls)]
        text += f" Between two seeds that is {fixed(max(nulls), 3)}; beyond it: {listed(beyond) or 'none'}."
    elsewhere = [p.label for p in real if p.worse_than_ends and p not in above]
    if elsewhere:
        over = f"{listed(elsewhere)} {'passes' if len(elsewhere) == 1 else 'pass'} a point worse than both ends"
        text += f" Somewhere along the way {over}, with no mid-point shown to lie above the chord."
    return [Sentence("path", text)]


def _above(loss: str, unit: str, above: Sequence[Excess], total: str) -> str:
    parts = []
    for kind, end, group in (
        ("Barrier", "worse than both ends", [p for p in above if p.worse_than_ends]),
        ("Above the chord, without a barrier,", "never worse than the worse end", [p for p in above if not p.worse_than_ends]),
    ):  # fmt: skip
        if group:
            what = listed([_excess(p) for p in group])
            parts.append(
                f"{kind} on {loss} on {len(group)} of {total}, mid-point over the chord in {unit}: {what}; {end}."
            )
    return " ".join(parts)


def _not_above(loss: str, unit: str, real: Sequence[Excess], total: str) -> str:
    if all(p.high <= 0 for p in real):
        return f"No barrier on {loss}: of {total}, no mid-point is worse than the chord between its ends."
    most = max(real, key=lambda p: p.value)
    return (
        f"No barrier shown on {loss}: of {total}, no mid-point is shown to be worse than the chord between its ends "
        f"(its interval reaches 0); the largest is {_excess(most)} {unit}."
    )


def _excess(path: Excess) -> str:
    return f"{path.label} {fixed(path.value, 3)} ({bounds(path.low, path.high, 3)})"
