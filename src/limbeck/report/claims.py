"""The published pattern of arXiv 2606.23740 as claims that our numbers bear out or not; no number is subtracted.

Each rule tests an order or a sign within our own runs, never our number against a published one: model, data and
grader differ. A claim whose arms were not run says so by returning nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from limbeck.report.view import Pair, Run, View
from limbeck.report.words import bounds, fixed, listed, number, p_value, percent, points, short, span

CLUSTER = ("sft", "rft", "rift")
ALL = ("sft", "rft", "rift", "offline_grpo", "dft", "dpo")
PUBLISHED_GAP = 0.053  # the least that parts DPO (93.5) from the other losses (87.3 to 88.2) on GSM8K
COMPARED = 4  # of the six losses, that a study is held against the claims about them


class Claim(NamedTuple):
    """A published claim, with what they printed, what we saw, and the verdict of the rule."""

    claim: str
    published: str
    status: str
    ours: str
    verdict: str


@cache
def published() -> dict[str, Any]:
    """The published numbers, each with its status."""
    text = resources.files("limbeck.report").joinpath("published.json").read_text(encoding="utf-8")
    return json.loads(text)


def key_of(arm: str, objective: str = "") -> str:
    """An arm's name as the published table spells it; a bare "grpo" is what its objective says it is.

    >>> key_of("Offline-GRPO"), key_of("grpo", "offline_grpo:advantage-nll"), key_of("grpo", "grpo")
    ('offline_grpo', 'offline_grpo', 'grpo')
    """
    key = arm.lower().replace("-", "_").replace(" ", "_")
    return "offline_grpo" if key == "grpo" and objective.startswith("offline_grpo") else key


def named(view: View) -> dict[str, Run]:
    """Lead runs by published name; controls and nulls have other names and are not among them."""
    keyed = {key_of(run.arm, str(run.facts["objective"] or "")): run for run in view.leads}
    return {key: run for key, run in keyed.items() if key in published()["accuracy"]["rows"]}


def asked(view: View) -> bool:
    """Whether a study asks what the paper asked: two arms that happen to be called sft and dpo do not make its comparison."""
    return len(named(view)) >= COMPARED


def claims(view: View) -> list[Claim]:
    """Every claim that the runs at hand can test, in the order of the paper."""
    runs = named(view)
    rules = (_best, _not_above_base, _damage, _alike, _cluster, _order, _seeds, _short, _spread, _path)
    found = (rule(view, runs) for rule in rules)
    return [claim for claim in found if claim is not None]


def _verdict(held: bool) -> str:
    return "reproduced" if held else "not reproduced"


def _beyond(gaps: Sequence[float], floor: float) -> str:
    """Reproduced where every gap is above what two seeds differ by, contradicted where one is below minus that.

    Anything between, and every gap where no two seeds of one recipe were measured (a floor of NaN), is undecided.

    >>> _beyond([0.3, 0.2], 0.1), _beyond([0.3, -0.2], 0.1), _beyond([0.3, 0.05], 0.1), _beyond([0.3], math.nan)
    ('reproduced', 'not reproduced', 'undecided', 'undecided')
    """
    if any(gap < -floor for gap in gaps):
        return "not reproduced"
    return "reproduced" if all(gap > floor for gap in gaps) else "undecided"


def _cosine_floor(view: View) -> float:
    """How far from 1 the cosine of two seeds of one recipe falls, NaN without such a pair."""
    return 1 - min(view.seed_values("cosine"), default=math.nan)


def _seeds_apart(view: View, metric: str, aggregation: str) -> float:
    """The largest difference of a metric between two seeds of one recipe, NaN without such a pair."""
    values = [[view.get(metric, run.id, aggregation=aggregation).value for run in pair] for pair in view.seed_pairs]
    return max((abs(a - b) for a, b in values if math.isfinite(a - b)), default=math.nan)


def _floor_text(floor: float, digits: int = 2) -> str:
    return (
        f"two seeds differ by {fixed(floor, digits)}"
        if math.isfinite(floor)
        else "no two seeds of one recipe were measured"
    )


def _best(view: View, runs: dict[str, Run]) -> Claim | None:
    if not {"sft", "dpo"} <= runs.keys():
        return None
    pair = view.pair(runs["dpo"].id, runs["sft"].id)
    if pair is None:
        return None
    called = pair.p_holm < view.alpha
    return Claim(
        "DPO answers more problems right than SFT",
        "93.5 against 87.3 to 88.2 on GSM8K, p < 1e-9",
        "pub",
        f"{points(pair.difference)}, Holm {p_value(pair.p_holm)}",
        _verdict(pair.difference > 0) if called else "undecided",
    )


def _not_above_base(view: View, runs: dict[str, Run]) -> Claim | None:
    pair = view.pair(runs["dpo"].id, "base") if "dpo" in runs else None
    if pair is None:
        return None
    called = pair.p_holm < view.alpha
    return Claim(
        "DPO is not told apart from the base",
        "94.2 against 94.0 on GSM8K, re-measured",
        "sec",
        f"{points(pair.difference)}, interval {fixed(100 * pair.low, 1)} to {fixed(100 * pair.high, 1)}",
        _verdict(not called) if called or _informative(pair) else "undecided",
    )


def _informative(pair: Pair) -> bool:
    """Whether "not told apart" says anything: the test could call some difference, and one as large as published.

    The interval's half width has to be at most the published gap.
    """
    return math.isfinite(pair.smallest_callable) and (pair.high - pair.low) / 2 <= PUBLISHED_GAP


def _damage(view: View, runs: dict[str, Run]) -> Claim | None:
    pair = view.pair(runs["sft"].id, "base") if "sft" in runs else None
    if pair is None:
        return None
    called = pair.p_holm < view.alpha
    return Claim(
        "SFT on the teacher's rollouts lowers accuracy below the base",
        "87.6 against 94.0 on GSM8K, re-measured",
        "sec",
        f"{points(pair.difference)}, Holm {p_value(pair.p_holm)}",
        _verdict(pair.difference < 0) if called else "undecided",
    )


def _alike(view: View, runs: dict[str, Run]) -> Claim | None:
    members = [runs[name] for name in ALL if name in runs and name != "dpo"]
    pairs = [view.pair(a.id, b.id) for a, b in combinations(members, 2)]
    known = [pair for pair in pairs if pair is not None]
    if len(members) < 3 or not known:
        return None
    apart = [pair for pair in known if pair.p_holm < view.alpha]
    widest = max((pair.high - pair.low) / 2 for pair in known)
    values = [100 * view.accuracy(run.id) for run in members]
    names = ", ".join(f"{view.label(p.a)} · {view.label(p.b)}" for p in apart[:4]) + (
        " and more" if len(apart) > 4 else ""
    )
    return Claim(
        "No two losses other than DPO are told apart by accuracy",
        "p >= 0.15 within the cluster",
        "pub",
        f"{fixed(min(values), 1)} to {percent(max(values) / 100)}; "
        + (
            f"told apart: {names}" if apart else f"no pair told apart, widest interval ± {points(widest, signed=False)}"
        ),
        _verdict(not apart) if apart or all(map(_informative, known)) else "undecided",
    )


def _cosine(view: View, a: Run, b: Run) -> float:
    return view.get("cosine", a.id, b.id).value


def _cluster(view: View, runs: dict[str, Run]) -> Claim | None:
    inside = [runs[name] for name in CLUSTER if name in runs]
    outside = [runs[name] for name in ALL if name in runs and name not in CLUSTER]
    within = [_cosine(view, a, b) for a, b in combinations(inside, 2)]
    across = [_cosine(view, a, b) for a in inside for b in outside]
    if len(inside) < 2 or not across or not all(math.isfinite(x) for x in within + across):
        return None
    floor = _cosine_floor(view)
    return Claim(
        f"The updates of {listed([run.label for run in inside])} lie closer to each other than to any other",
        "cosine 0.967 to 0.977 within, at most 0.74 to the others",
        "pub",
        f"{span(within)} within, at most {fixed(max(across))} to the others; {_floor_text(floor)}",
        _beyond([min(within) - max(across)], floor),
    )


def _order(view: View, runs: dict[str, Run]) -> Claim | None:
    order = [name for name in ("offline_grpo", "dft", "dpo") if name in runs]
    if "sft" not in runs or len(order) < 2:
        return None
    values = [_cosine(view, runs["sft"], runs[name]) for name in order]
    if not all(math.isfinite(x) for x in values):
        return None
    labels = [runs[name].label for name in order]
    floor = _cosine_floor(view)
    return Claim(
        f"Closeness to SFT falls in the order {listed(labels)}",
        "0.74, 0.57, 0.06",
        "pub",
        f"{', '.join(fixed(x) for x in values)}; {_floor_text(floor)}",
        _beyond([x - y for x, y in pairwise(values)], floor),
    )


def _seeds(view: View, runs: dict[str, Run]) -> Claim | None:
    inside = [runs[name] for name in CLUSTER if name in runs]
    within = [_cosine(view, a, b) for a, b in combinations(inside, 2)]
    seeds = view.seed_values("cosine")
    if not within or not seeds or not all(math.isfinite(x) for x in within):
        return None
    return Claim(
        "Two seeds of one loss are less alike than two losses of the SFT cluster at one seed",
        "0.07 to 0.36 against 0.967 and more",
        "pub",
        f"{span(seeds)} against {fixed(min(within))} and more",
        _verdict(max(seeds) < min(within)),
    )


def _short(view: View, runs: dict[str, Run]) -> Claim | None:
    norms = {name: view.get("frobenius_norm", runs[name].id).value for name in ALL if name in runs}
    if "dpo" not in norms or len(norms) < 2 or not all(math.isfinite(x) for x in norms.values()):
        return None
    rest = [value for name, value in norms.items() if name != "dpo"]
    floor = _seeds_apart(view, "frobenius_norm", "stacked")
    return Claim(
        "DPO moves the weights least",
        "13 times shorter than SFT (0.22 against 2.84), at a tenth of the learning rate",
        "pub; 0.22 chk",
        f"DPO {short(norms['dpo'])}, the others {short(min(rest))} to {short(max(rest))}; {_floor_text(floor, 3)}",
        _beyond([min(rest) - norms["dpo"]], floor),
    )


def _spread(view: View, runs: dict[str, Run]) -> Claim | None:
    if not {"sft", "dpo"} <= runs.keys():
        return None
    metrics = ("stable_rank", "participation", "erank_energy", "erank")
    both = [[_rank(view, m, runs[n]) for m in metrics] for n in ("dpo", "sft")]
    if not all(math.isfinite(x) for row in both for x in row):
        return None
    noise = [_seeds_apart(view, m, "module-mean") for m in metrics]
    gaps = [x - y for x, y in zip(*both, strict=True)]
    higher = sum(gap > floor for gap, floor in zip(gaps, noise, strict=True))
    lower = sum(gap < -floor for gap, floor in zip(gaps, noise, strict=True))
    return Claim(
        "DPO spreads its update over more directions than SFT",
        "effective rank 24.5 against about 16, formula not given",
        "pub",
        f"erank {fixed(both[0][3], 1)} against {fixed(both[1][3], 1)}; "
        + (
            f"beyond what two seeds differ by, higher in {higher} and lower in {lower} of 4 definitions"
            if all(map(math.isfinite, noise))
            else "no two seeds of one recipe were measured"
        ),
        _verdict(higher == 4) if 4 in (higher, lower) else "undecided",
    )


def _rank(view: View, metric: str, run: Run) -> float:
    return view.get(metric, run.id, aggregation="module-mean").value


def _path(view: View, runs: dict[str, Run]) -> Claim | None:
    if not {"rift", "dpo"} <= runs.keys():
        return None
    ids = {runs["rift"].id, runs["dpo"].id}
    found = [path for path in view.results.paths if {path["a"], path["b"]} == ids and path["loss"] == "ce_bare"]
    excess = (found[0].get("excess_midpoint") or {}) if found else {}
    if excess.get("value") is None or excess.get("low") is None:
        return None
    worse = bool(found[0].get("worse_than_ends"))
    above, absent = excess["low"] > 0, number(excess.get("high")) <= 0
    return Claim(
        "A sharp barrier stands between RIFT and DPO",
        "3.82, 7.06, 8.64 nats along the way; over the chord −1.63 and +0.02",
        "pub; excess chk",
        f"mid-point over the chord {fixed(excess['value'], 3)} ({bounds(excess['low'], number(excess.get('high')), 3)}); "
        + ("a point is worse than both ends" if worse else "no point is worse than both ends"),
        _verdict(above and worse) if absent or (above and worse) else "undecided",
    )
