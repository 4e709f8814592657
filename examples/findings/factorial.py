"""Loss, optimizer or schedule? Registered in docs/results/factorial.md."""

from __future__ import annotations

import math
from statistics import stdev
from typing import Any

from contrast import OPEN, Row
from measured import Data

from limbeck.records import read_json
from limbeck.stats.factors import mean_of_runs
from limbeck.types import Estimate

LEAST = 0.05  # of the variance, below which neither decides
EVEN = 0.15  # standard deviation of log norm, above which lengths are not matched


def factorial(data: Data) -> tuple[list[Row], str]:
    """The share of every term in the variance of every response: as registered by one error for all, then by its own."""
    found = read_json(data.folder / "factorial.json")
    rows = [_row(data, name, term, name) for name, terms in found["pooled"].items() for term in terms]
    lengths = [run["log norm"] for run in found["runs"]]
    rows.append(Row(f"sd of log norm over runs {stdev(lengths):.3f}, below {EVEN}", mean_of_runs([]), math.nan))
    rows += [_row(data, f"{name} by own errors", term) for name, terms in found["shares"].items() for term in terms]
    direction = {term["term"]: term for term in found["pooled"]["direction"]}
    loss, optimizer = direction["objective"], direction["optimizer"]
    both = next(t for name, t in direction.items() if set(name.split(" x ")) == {"objective", "optimizer"})
    if both["unbiased"] > max(loss["unbiased"], optimizer["unbiased"]) or max(loss["high"], optimizer["high"]) < LEAST:
        return rows, f"that the loss decides the direction {OPEN}"
    if loss["low"] > optimizer["high"]:
        return rows, "that the loss decides the direction held"
    other = optimizer["low"] > loss["high"]
    return rows, f"that the loss decides the direction {'did not hold: the optimizer does' if other else OPEN}"


def without_dpo(data: Data) -> tuple[list[Row], str]:
    """The split of directions where no row is a pair."""
    rows, verdict = factorial(data)
    kept = (row for row in rows if row.family == "direction")
    return [row._replace(what=f"{row.what}, without DPO", family="without DPO") for row in kept], verdict


def _row(data: Data, response: str, term: dict[str, Any], family: str = "") -> Row:
    share = Estimate(
        value=term["unbiased"], low=term["low"], high=term["high"], level=0.95, method="jackknife_t", n=len(data.seeds)
    )
    p, p_holm = (math.nan if term[key] is None else term[key] for key in ("p", "p_holm"))
    return Row(f"{response}: share of {term['term']}", share, p, family, p_holm)
