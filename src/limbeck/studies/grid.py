"""A factorial as arms: every combination of the levels of its factors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any


def cells_of(factorial: Mapping[str, Any]) -> list[dict[str, dict[str, Any]]]:
    """Every combination of levels: name of a level to what it overrides of [train], one a factor; none without factors.

    >>> [list(cell) for cell in cells_of({"schedule": ["cosine", "wsd"], "size": {"small": {"batch_size": 8}}})]
    [['cosine', 'small'], ['wsd', 'small']]
    """
    if not factorial:
        return []
    return [dict(cell) for cell in product(*(_levels(factor, given).items() for factor, given in factorial.items()))]


def _levels(factor: str, given: Any) -> dict[str, dict[str, Any]]:
    if isinstance(given, Mapping):
        return dict(given)
    return {re.sub(r"[^A-Za-z0-9_.+-]", "-", str(value)): {factor: value} for value in given}


def name_of(cell: Mapping[str, Any]) -> str:
    """What the arm of a cell is called."""
    return "-".join(cell)


def expanded(values: dict[str, Any]) -> dict[str, Any]:
    """A study's file with an arm for every cell of its factorial before its own arms; one that it gives itself stays as it is."""
    arms = values.get("arms", [])
    try:
        given = {arm["name"] for arm in arms}
        cells = cells_of(values.get("factorial", {}))
        made = [
            {"name": name_of(cell), "train": {k: v for level in cell.values() for k, v in level.items()}}
            for cell in cells
        ]
    except (AttributeError, KeyError, TypeError):  # no such tables, as the models will say
        return values
    new = [arm for arm in made if arm["name"] not in given]
    return {**values, "arms": [*new, *arms]} if new else values
