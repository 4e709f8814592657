"""Is DPO different, or is its learning rate? Registered in docs/results/dpo-or-rate.md."""

from __future__ import annotations

from itertools import combinations, product
from statistics import fmean

import numpy as np
from contrast import HELD, NOT, OPEN, Row, Value, across, among, corrected, over_runs, reliability
from measured import Data

from limbeck.stats.factors import jackknife, mean_of_runs

RATES = (1, 2, 3, 4)  # rising by about the square root of ten
TENFOLD = ((1, 3), (2, 4))
SMALL = 0.1  # of a cosine


def dpo_or_rate(data: Data) -> tuple[list[Row], str]:
    """Cosines at one rate and norm beside those of seeds and of tenfold rates."""

    def cosine(a: str, b: str) -> float:
        return data.number("cosine", a, b).value

    rows, matched = [], []
    for suffix, family in (("-norm", "beyond the seed"), ("", "")):
        for rate in RATES:
            a, b = f"sft-{rate}{suffix}", f"dpo-{rate}{suffix}"
            found = jackknife(lambda s, a=a, b=b: across(cosine, a, b, s) - reliability(cosine, a, b, s), data.seeds)
            rows.append(over_runs(f"cosine of {a} and {b}, less that of seeds", found, family))
            matched += [data.matched(a, b)] if suffix else []
    for low, high in TENFOLD:
        found = jackknife(
            lambda s, low=low, high=high: (
                across(cosine, f"sft-{high}", f"dpo-{high}", s)
                - fmean(across(cosine, f"{arm}-{low}", f"{arm}-{high}", s) for arm in ("sft", "dpo"))
            ),
            data.seeds,
        )
        rows.append(
            over_runs(
                f"cosine of SFT and DPO at rate {high}, less that of rates {low} and {high}", found, "beyond the rate"
            )
        )
    for suffix, rate in ((suffix, rate) for suffix in ("-norm", "") for rate in RATES):
        a, b = f"sft-{rate}{suffix}", f"dpo-{rate}{suffix}"
        for what, number in (("cosine of", across), ("what one mean update would score,", reliability)):
            found = jackknife(lambda s, n=number, a=a, b=b: n(cosine, a, b, s), data.seeds)
            rows.append(over_runs(f"{what} {a} and {b}", found))
    for one, other in product(RATES, RATES):
        if one != other:
            a, b = f"sft-{one}", f"dpo-{other}"
            found = jackknife(lambda s, a=a, b=b: across(cosine, a, b, s), data.seeds)
            rows.append(over_runs(f"cosine of {a} and {b}", found))
    rows = corrected(rows + _states_and_angles(data))
    seed = [row for row, ok in zip(rows, matched, strict=False) if ok]
    rate = [row for row in rows if row.family == "beyond the rate"]
    if len(seed) < 3:
        return rows, OPEN
    if all(row.below for row in (*seed, *rate)):
        return rows, HELD
    return rows, NOT if all(row.inside(SMALL) for row in seed) or all(row.above for row in rate) else OPEN


def _states_and_angles(data: Data) -> list[Row]:
    """The same of hidden states and subspaces at matched norms, CKA to the base, and both beside a tenfold rate."""
    values = _values(data)
    rows = []
    for rate in RATES:
        a, b = f"sft-{rate}-norm", f"dpo-{rate}-norm"
        for what, value in values.items():
            found = jackknife(
                lambda s, v=value, a=a, b=b: across(v, a, b, s) - fmean(among(v, arm, s) for arm in (a, b)), data.seeds
            )
            rows.append(over_runs(f"{what} of {a} and {b}, less that of seeds", found))
            plain = jackknife(lambda s, v=value, a=a, b=b: across(v, a, b, s), data.seeds)
            rows.append(over_runs(f"{what} of {a} and {b}", plain))
        base = [[values["CKA"](f"{arm}-s{s}", "base") for s in data.seeds] for arm in (a, b)]
        rows.append(over_runs(f"CKA to the base, {b} less {a}", mean_of_runs(np.subtract(base[1], base[0]).tolist())))
    for (low, high), (what, value) in product(TENFOLD, values.items()):
        for a, b in ((f"sft-{low}", f"sft-{high}"), (f"dpo-{low}", f"dpo-{high}"), (f"sft-{high}", f"dpo-{high}")):
            found = jackknife(lambda s, v=value, a=a, b=b: across(v, a, b, s), data.seeds)
            rows.append(over_runs(f"{what} of {a} and {b}", found))
    return rows


def _values(data: Data) -> dict[str, Value]:
    last = max((key[4] for key in data.of("cka_debiased")), default=-1)

    def cka(a: str, b: str) -> float:
        return data.number("cka_debiased", a, b, aggregation="layer", layer=last).value

    def angle(which: str) -> Value:
        metric, where = f"principal_angle_{which}", "module-median"
        return lambda a, b: data.number(metric, a, b, aggregation=where, side="left", k=10).value

    return {"CKA": cka, "smallest angle": angle("smallest"), "largest angle": angle("largest")}


def dpo_parts(data: Data) -> tuple[list[Row], str]:
    """Cosines of SFT and DPO with what the right and the wrong rollouts of their pairs alone teach."""

    def cosine(a: str, b: str) -> float:
        return data.number("cosine", a, b).value

    rows = []
    for rate in (2, 4):
        arms = [f"{arm}-{rate}" for arm in ("right", "wrong", "sft", "dpo")]
        for a, b in combinations(arms, 2):
            found = jackknife(lambda s, a=a, b=b: across(cosine, a, b, s), data.seeds)
            rows.append(over_runs(f"cosine of {a} and {b}", found))
        length = [data.steepness[f"wrong-{rate}-s{s}"] / data.steepness[f"right-{rate}-s{s}"] for s in data.seeds]
        rows.append(over_runs(f"gradient of wrong-{rate} over that of right-{rate}", mean_of_runs(length)))
    return rows, "was not registered, and has no verdict"
