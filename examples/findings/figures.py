"""One figure a page of docs/results, from what a study left."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
from barrier import LOSSES, path_items
from colinear import PAIRS, SHARES, at_other_seeds, predicted
from contrast import Row, across, among, cleared, reliability
from dpo_or_rate import RATES
from forgetting import GAIN, cka_of, kl_of
from locking import EARLY, K, steps_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measured import Data
from merging import sums_and_means
from plotting import COLORS, INK, MARKERS, MUTED, dots, line, names_below, panels, rows_of

from limbeck.records import read_json
from limbeck.report.frontier import EXACT, record
from limbeck.stats.factors import jackknife, mean_of_runs
from limbeck.stats.retention import solved
from limbeck.stats.seeds import mean_over_seeds
from limbeck.types import Estimate


def dpo_or_rate(data: Data, rows: Sequence[Row]) -> Figure:
    """Cosine of SFT and DPO against the rate, between those of two seeds and of a tenfold rate."""
    figure, axes = panels(2, share_y=True)
    rates = [float(data.runs[f"sft-{rate}-s{data.seeds[0]}"]["learning_rate"]) for rate in RATES]

    def cosine(a: str, b: str) -> float:
        return data.number("cosine", a, b).value

    for panel, suffix, title in ((axes[0], "", "equal steps"), (axes[1], "-norm", "equal norm")):
        ends = [(f"sft-{rate}{suffix}", f"dpo-{rate}{suffix}") for rate in RATES]
        kinds = (
            ("SFT with DPO", lambda s, a, b: across(cosine, a, b, s)),
            ("two seeds of SFT", lambda s, a, b: among(cosine, a, s)),
            ("two seeds of DPO", lambda s, a, b: among(cosine, b, s)),
        )
        for place, (label, number) in enumerate(kinds):
            found = [jackknife(lambda s, n=number, a=a, b=b: n(s, a, b), data.seeds) for a, b in ends]
            line(panel, rates, found, place, label, "-" if place == 0 else "--")
        expected = [reliability(cosine, a, b, data.seeds) for a, b in ends]
        panel.plot(rates, expected, color=INK, linewidth=0.8, linestyle=":", label="one mean update, noise of seeds")
        for place, arm in enumerate(("sft", "dpo"), 3):
            tenfold = [(f"{arm}-{low}{suffix}", f"{arm}-{low + 2}{suffix}") for low in (1, 2)]
            found = [jackknife(lambda s, a=a, b=b: across(cosine, a, b, s), data.seeds) for a, b in tenfold]
            line(panel, rates[2:], found, place, f"{arm.upper()} at a rate and a tenth of it", "--")
        panel.axhline(0, color=MUTED, linewidth=0.7, linestyle=(0, (4, 2)))
        panel.set(xscale="log", xlabel="learning rate", title=title)
    axes[0].set_ylabel("cosine of whole updates")
    names_below(figure, axes[0], 3)
    return figure


def colinear(data: Data, rows: Sequence[Row]) -> Figure:
    """Cosines cleared of noise and accuracy against the share of right rollouts, with the algebra's curves."""
    figure, axes = panels(2)

    def cosine(a: str, b: str) -> float:
        return data.number("cosine", a, b).value

    names = {"sft": "SFT", "rft": "RFT", "rift": "RIFT"}
    _against_share(axes[0], data, lambda a, b, s: cleared(cosine, a, b, s))
    axes[0].axhline(1, color=MUTED, linewidth=0.5)
    for place, (arm, label) in enumerate(names.items()):
        found = [_percent(mean_over_seeds(data.grid(f"{arm}-{x}"))) for x in SHARES]
        line(axes[1], SHARES, found, place + 3, label)
    base = 100 * float(data.scores["base"].mean())
    axes[1].axhline(base, color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)), label="base")
    axes[1].set(xlabel="right rollouts, %", ylabel="test problems right, %")
    for panel in axes:
        panel.legend(frameon=False)
    return figure


def colinear_apart(data: Data, rows: Sequence[Row]) -> Figure:
    """Cosines between different seeds, cleared of noise, with the algebra's curves."""
    figure, axes = panels(1, width=3.6)
    _against_share(axes[0], data, lambda a, b, s: at_other_seeds(data, a, b, s))
    axes[0].legend(frameon=False)
    return figure


def _against_share(panel: Axes, data: Data, number: Callable[[str, str, Sequence[int]], float]) -> None:
    for place, pair in enumerate(PAIRS):
        ends = [tuple(f"{arm}-{x}" for arm in pair) for x in SHARES]
        found = [jackknife(lambda s, a=a, b=b: number(a, b, s), data.seeds) for a, b in ends]
        line(panel, SHARES, found, place, " and ".join(arm.upper() for arm in pair))
        shares = range(SHARES[0], SHARES[-1] + 1, 5)
        told = [predicted(data, pair, x, data.seeds) for x in shares]
        panel.plot(shares, told, color=COLORS[place], linewidth=1, linestyle=":")
    panel.plot([], [], color=MUTED, linewidth=1, linestyle=":", label="the algebra's")
    panel.set(xlabel="right rollouts, %", ylabel="cosine, cleared of the seeds' noise")


def _percent(e: Estimate) -> Estimate:
    return Estimate(value=100 * e.value, low=100 * e.low, high=100 * e.high, level=e.level, method=e.method, n=e.n)


def barrier(data: Data, rows: Sequence[Row]) -> Figure:
    """Loss along the path, less its chord: a line a seed, a row a loss, a column a pair."""
    items = path_items(data)
    first, last = data.seeds[0], data.seeds[-1]
    pairs = {
        "RIFT to slow DPO": [(f"rift-s{s}", f"dpo-slow-s{s}") for s in data.seeds],
        "RIFT to DPO": [(f"rift-s{s}", f"dpo-s{s}") for s in data.seeds],
        "SFT to DPO": [(f"sft-s{s}", f"dpo-s{s}") for s in data.seeds],
        "base to DPO": [("base", f"dpo-s{s}") for s in data.seeds],
        "two seeds of SFT": [(f"sft-s{s}", f"sft-s{s + 1 if s < last else first}") for s in data.seeds],
    }
    units = {"ce_bare": "bare answer, nats", "ce_cot": "after reasoning, nats", "accuracy": "right, %"}
    figure, axes = panels(len(pairs), len(LOSSES), height=1.7)
    for row, loss in enumerate(LOSSES):
        for column, (label, ends) in enumerate(pairs.items()):
            panel = axes[row * len(pairs) + column]
            for place, (a, b) in enumerate(ends):
                points = items[a, b, loss]
                means = [(100 if loss == "accuracy" else 1) * float(points[alpha].mean()) for alpha in sorted(points)]
                panel.plot(sorted(points), means, color=COLORS[place], linewidth=0.9)
                panel.plot([0, 1], [means[0], means[-1]], color=COLORS[place], linewidth=0.5, linestyle=":")
            panel.set(title=label if row == 0 else "", xticks=[0, 0.5, 1], ylabel="" if column else units[loss])
            panel.set_xlabel("share of the way" if row == len(LOSSES) - 1 else "")
    return figure


def rounding(data: Data, rows: Sequence[Row]) -> Figure:
    """Every quantity over chance, against RLVR at its norm: an arm a color, a rate a panel."""
    figure, axes = panels(2, height=2.8, share_y=True)
    for panel, rate, title in ((axes[0], "-low", "the lower rate"), (axes[1], "", "the higher rate")):
        shown = [row for row in rows if row.family in (f"visible{rate}", f"exact{rate}")]
        labels = [row.what.partition(": ")[2].removesuffix(" over chance, log") for row in shown]
        arms = ["sft" if row.what.startswith("sft") else "opd" for row in shown]
        rows_of(panel, labels, [row.estimate for row in shown], [int(arm == "opd") for arm in arms])
        panel.set(title=title, xlabel="log of (arm over chance) / (RLVR over chance)")
    for place, label in enumerate(("SFT", "OPD")):
        axes[0].plot([], [], color=COLORS[place], label=label)
    names_below(figure, axes[0])
    return figure


def accuracies(data: Data, arms: dict[str, str]) -> Figure:
    """Every arm's seeds, mean and interval."""
    figure, axes = panels(1, width=max(3.4, 0.8 * len(arms) + 1))
    for place, arm in enumerate(arms):
        grid = data.grid(arm, data.seeds_of(arm))
        dots(axes[0], place, (100 * grid.mean(0)).tolist(), _percent(mean_over_seeds(grid)), place)
    axes[0].axhline(100 * float(data.scores["base"].mean()), color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
    axes[0].set_xticks(range(len(arms)), list(arms.values()))
    axes[0].set(ylabel="test problems right, %", xlim=(-0.5, len(arms) - 0.5))
    return figure


def trrd(data: Data, rows: Sequence[Row]) -> Figure:
    """Accuracy by arm and seed."""
    return accuracies(data, {"trrd": "TRRD", "kdrl": "KDRL", "opd-then-grpo": "OPD, then\nGRPO", "grpo": "GRPO"})


def study_size(data: Data, rows: Sequence[Row]) -> Figure:
    """Accuracy by arm and seed."""
    return accuracies(data, {"sft": "SFT", "dft": "DFT", "dpo": "DPO", "opd": "OPD", "grpo": "GRPO"})


def factorial(data: Data, rows: Sequence[Row]) -> Figure:
    """Shares of the variance, a panel a response."""
    responses = list(dict.fromkeys(row.family for row in rows if row.family))
    figure, axes = panels(len(responses), share_y=True)
    for place, (panel, response) in enumerate(zip(axes, responses, strict=True)):
        shown = [row for row in rows if row.family == response]
        labels = [row.what.partition("share of ")[2] for row in shown]
        rows_of(panel, labels, [_percent(row.estimate) for row in shown], [place] * len(shown))
        panel.set(title=response, xlabel="share of the variance, %")
    return figure


def merging(data: Data, rows: Sequence[Row]) -> Figure:
    """What a sum has over its parents' gains and over the better one, against the parents' cosine."""
    figure, axes = panels(2)
    known = [merge for merge in sums_and_means(data) if merge.kind == "sum"]
    outcomes = (("beyond both gains, points", "over"), ("beyond the better, points", "gain"))
    for panel, (name_of, name) in zip(axes, outcomes, strict=True):
        for merge in known:
            x, y = fmean(merge.cosine.values()), mean_of_runs([100 * v for v in getattr(merge, name).values()])
            live = sum(part in ("opd", "grpo") for part in merge.parts)
            panel.plot([x, x], [y.low, y.high], color=COLORS[live], linewidth=0.8)
            panel.plot([x], [y.value], "o", color=COLORS[live], markersize=3.5)
            if live != 1:  # the mixed ones lie close together
                label = " + ".join(part.upper() for part in merge.parts)
                panel.annotate(label, (x, y.value), (3, 2), textcoords="offset points", fontsize=5, color=MUTED)
        panel.axhline(0, color=MUTED, linewidth=0.7, linestyle=(0, (4, 2)))
        panel.set(xlabel="cosine of the parents", ylabel=name_of)
    for live, label in enumerate(("two off-policy parents", "one of each", "two on-policy parents")):
        axes[0].plot([], [], "o", color=COLORS[live], label=label)
    names_below(figure, axes[0])
    return figure


def forgetting(data: Data, rows: Sequence[Row]) -> Figure:
    """What is kept, how far, and how like the base, against the gain: kept steps in their order, means over seeds."""
    points = read_json(data.folder / "frontier.json")["points"]
    distance, cka, held = kl_of(points), cka_of(data), solved(data.scores["base"])
    base = float(data.scores["base"].mean())
    shown = (
        ("still right of what the base solves, %", lambda name: 100 * float(data.scores[name][held].mean())),
        ("KL to the base, nats a token", lambda name: math.exp(distance[name])),
        ("CKA to the base, last layer", lambda name: cka[name]),
    )
    figure, axes = panels(len(shown))
    labels = {"sft": "SFT", "rft": "RFT", "dft": "DFT", "rift": "RIFT", "grpo": "offline GRPO", "dpo": "DPO"}
    for panel, (label, number) in zip(axes, shown, strict=True):
        for place, (arm, name_of_arm) in enumerate(labels.items()):
            own = [p for p in points if p["arm"] == arm]
            steps = [[p["name"] for p in own if p["steps"] == step] for step in sorted({p["steps"] for p in own})]
            gains = [100 * (fmean(float(data.scores[n].mean()) for n in names) - base) for names in steps]
            values = [fmean(number(n) for n in names) for names in steps]
            panel.plot(
                gains, values, color=COLORS[place], marker=MARKERS[place], markersize=3, linewidth=1, label=name_of_arm
            )
        panel.axvline(100 * GAIN, color=MUTED, linewidth=0.7, linestyle=(0, (4, 2)))
        panel.set(xlabel="accuracy over the base's, points", ylabel=label)
    axes[1].set_yscale("log")
    names_below(figure, axes[0], 6)
    return figure


def locking(data: Data, rows: Sequence[Row]) -> Figure:
    """Overlap with the end along the run: a line a seed, and each seed's 95 % of walks and orders."""
    arms = {"opd-norm": "OPD", "rlvr": "RLVR", "sft-norm": "SFT", "rlvr-shuffled": "shuffled rewards"}
    figure, axes = panels(len(arms), share_y=True)
    for place, (panel, (arm, label)) in enumerate(zip(axes, arms.items(), strict=True)):
        for seed in data.seeds:
            run = f"{arm}-s{seed}"
            steps = steps_of(data, run)
            where = {"aggregation": "module-mean", "side": "right", "k": K}
            own, order = (
                [data.number("sim_k", run, "end", step=s, null=null, **where) for s in steps]
                for null in ("N-WALK", "N-EXCH-NORM")
            )
            x = [step / steps[-1] for step in steps]
            panel.plot(x, [row.value for row in own], color=COLORS[place], linewidth=0.9)
            panel.plot(x, [row.null.q95 for row in own], color=MUTED, linewidth=0.6, linestyle=":")
            panel.plot(x, [row.null.q95 for row in order], color=INK, linewidth=0.6, linestyle="--")
        panel.axvline(EARLY, color=MUTED, linewidth=0.5)
        panel.set(title=label, xlabel="share of the run")
    axes[0].set_ylabel("overlap with the end")
    axes[0].plot([], [], color=MUTED, linestyle=":", label="95 % of walks")
    axes[0].plot([], [], color=INK, linestyle="--", label="95 % of orders")
    names_below(figure, axes[0])
    return figure


def erpd_frontier(data: Data, rows: Sequence[Row]) -> Figure:
    """Accuracy against KL to the base: every seed at its end."""
    points = read_json(data.folder / "frontier.json")["points"]
    figure, axes = panels(1, width=4.6, height=3.0)
    arms = list(dict.fromkeys(p["arm"] for p in points if p["step"] is None and p["arm"] != "base"))
    for place, arm in enumerate(arms):
        own = [p for p in points if p["arm"] == arm and p["step"] is None]
        x, y = [record(p, *EXACT)["value"] for p in own], [100 * p["accuracy"]["value"] for p in own]
        marker, color = MARKERS[(place + place // 8) % 8], COLORS[place % 8]  # together they come round after 64
        axes[0].plot(x, y, marker, color=color, markersize=3, fillstyle="none", markeredgewidth=0.8)
        mean = float(np.exp(np.mean(np.log(x))))
        axes[0].plot([mean], [fmean(y)], marker, color=color, markersize=6, label=arm)
    axes[0].axhline(100 * float(data.scores["base"].mean()), color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
    axes[0].set(xscale="log", xlabel="KL to the base, nats a token", ylabel="test problems right, %")
    names_below(figure, axes[0], 3)
    return figure


DRAWN: dict[str, Callable[[Data, Sequence[Row]], Figure]] = {
    "dpo-or-rate": dpo_or_rate, "colinear": colinear, "barrier": barrier, "forgetting": forgetting, "locking": locking,
    "rounding": rounding, "trrd": trrd, "erpd-frontier": erpd_frontier, "factorial": factorial, "merging": merging,
    "study-size": study_size, "colinear-all": colinear_apart,
}  # fmt: skip
