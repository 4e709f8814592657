"""Loss, optimizer or schedule? Registered in docs/results/factorial.md."""

from __future__ import annotations

import math
from statistics import stdev

from contrast import OPEN, Row
from measured import Data

from limbeck.folders import read_json
from limbeck.stats.factors import mean_of_runs
from limbeck.types import Estimate

LEAST = 0.05  # of the variance, below which neither decides
EVEN = 0.15  # standard deviation of log norm, above which lengths are not matched


def factorial(data: Data) -> tuple[list[Row], str]:
    """The share of every term in the variance of every response."""
    found = read_json(data.folder / "factorial.json")
    rows = []
    for response, terms in found["shares"].items():
        for term in terms:
            share = Estimate(
                value=term["unbiased"], low=term["low"], high=term["high"], level=0.95, method="jackknife_t",
                n=len(data.seeds),
            )  # fmt: skip
            p, p_holm = (math.nan if term[key] is None else term[key] for key in ("p", "p_holm"))
            rows.append(Row(f"{response}: share of {term['term']}", share, p, response, p_holm))
    lengths = [run["log norm"] for run in found["runs"]]
    rows.append(Row(f"sd of log norm over runs {stdev(lengths):.3f}, below {EVEN}", mean_of_runs([]), math.nan))
    direction = {term["term"]: term for term in found["shares"]["direction"]}
    loss, optimizer = direction["objective"], direction["optimizer"]
    both = next(t for name, t in direction.items() if set(name.split(" x ")) == {"objective", "optimizer"})
    if both["unbiased"] > max(loss["unbiased"], optimizer["unbiased"]) or max(loss["high"], optimizer["high"]) < LEAST:
        return rows, f"that the loss decides the direction {OPEN}"
    if loss["low"] > optimizer["high"]:
        return rows, "that the loss decides the direction held"
    other = optimizer["low"] > loss["high"]
    return rows, f"that the loss decides the direction {'did not hold: the optimizer does' if other else OPEN}"
