"""What is left of sparsity and of off-principal updates beside rounding? Registered in docs/results/rounding.md."""

from __future__ import annotations

import math

from contrast import HELD, NOT, OPEN, Row, corrected, over_runs
from measured import Data

from limbeck.stats.factors import mean_of_runs
from limbeck.types import Measurement

SIGNS = (-1, -1, 1)  # of SFT over RLVR, as published: denser, less on small weights, more on principal ones
SMALL = 0.05
QUANTITIES = {  # what a report calls it: family, metric, aggregation, side, k
    "unchanged in bf16": ("visible", "sparsity_visible", "parameter-weighted", "", 0),
    "changed: small": ("visible", "mask_overlap_low", "parameter-weighted", "", 0),
    "changed: principal": ("visible", "mask_overlap_principal", "parameter-weighted", "", 0),
    "spectral drift": ("exact", "nss", "module-mean", "", 0),
    "rotation": ("exact", "base_angle_largest", "module-median", "right", 8),
    "energy in leading block": ("exact", "principal_energy", "module-mean", "PP", 8),
    "stable rank": ("exact", "stable_rank", "module-mean", "", 0),
}


def rounding(data: Data) -> tuple[list[Row], str]:
    """Visible and exact quantities over chance, against RLVR at its norm, at both rates."""
    rows = [
        _apart(data, what, f"{arm}{rate}-norm", f"rlvr{rate}", rate)
        for rate in ("-low", "")
        for what in QUANTITIES
        for arm in ("sft", "opd")
    ]
    for rate in ("-low", ""):
        for arm in ("sft", "opd", "rlvr", "sft-norm", "opd-norm"):
            name = _named(arm, rate)
            plain = [_measured(data, "unchanged in bf16", f"{name}-s{seed}").value for seed in data.seeds]
            rows.append(over_runs(f"{name}: unchanged in bf16", mean_of_runs(plain)))
        for arm in ("sft-norm", "opd-norm"):
            ends = _named(arm, rate), f"rlvr{rate}"
            rows.append(over_runs(f"{' over '.join(ends)}: length, log", mean_of_runs(data.logs_of_lengths(*ends))))
    for arm in ("sft-low-norm", "opd-low-norm", "rlvr-low"):
        for what in (what for what, parts in QUANTITIES.items() if parts[0] == "visible"):
            beside = mean_of_runs([math.log(_ratio(data, what, f"{arm}-s{seed}")) for seed in data.seeds])
            rows.append(over_runs(f"{arm}: {what} over chance, log", beside))
    rows = corrected(rows)
    if not data.matched("sft-low-norm", "rlvr-low"):
        return rows, OPEN
    asked = [row for row in rows if row.family == "visible-low" and row.what.startswith("sft")]
    beyond = [row.called and sign * row.estimate.value > 0 for row, sign in zip(asked, SIGNS, strict=True)]
    if sum(found and not row.inside(SMALL) for row, found in zip(asked, beyond, strict=True)) >= 2:
        return rows, HELD
    return rows, NOT if all(row.inside(SMALL) for row in asked) else OPEN


def _named(arm: str, rate: str) -> str:
    """An arm at a rate: the rate stands before what the arm is stopped at."""
    return f"{arm.removesuffix('-norm')}{rate}{'-norm' if arm.endswith('-norm') else ''}"


def _apart(data: Data, what: str, one: str, other: str, rate: str) -> Row:
    """By what factor a quantity over its chance differs between two arms, seed by seed."""
    logs = [math.log(_ratio(data, what, f"{one}-s{s}") / _ratio(data, what, f"{other}-s{s}")) for s in data.seeds]
    return over_runs(f"{one} over {other}: {what} over chance, log", mean_of_runs(logs), QUANTITIES[what][0] + rate)


def _ratio(data: Data, what: str, run: str) -> float:
    row = _measured(data, what, run)
    return row.value / row.null.mean


def _measured(data: Data, what: str, run: str) -> Measurement:
    _, metric, aggregation, side, k = QUANTITIES[what]
    return data.number(metric, run, aggregation=aggregation, side=side, k=k)
