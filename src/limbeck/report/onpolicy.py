"""Arms that learned from their own rollouts: how right they were while training, pass@k, distances, where time went,
and what others printed about the same objectives.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any

from limbeck.report.claims import Claim
from limbeck.report.figures import axis, style, windows
from limbeck.report.parts import Cell, Figure, Panel, Sheet, Table
from limbeck.report.tables import name_cell
from limbeck.report.view import Pair, Run, View
from limbeck.report.words import NONE, bounds, compact, fixed, number, p_value, percent, points, short, span
from limbeck.stats.multiplicity import holm

WINDOWS = 8  # points of a curve of rewards: each holds hundreds of rollouts
PARTS = ("sample", "score", "measure", "update")
DISTANCES = ("kl_student_reference_k3", "kl_student_teacher_k3", "teacher_agreement")


@cache
def printed() -> dict[str, Any]:
    """The published numbers of on-policy objectives, each with its status."""
    return json.loads(resources.files("limbeck.report").joinpath("onpolicy.json").read_text(encoding="utf-8"))


def live_runs(view: View) -> list[Run]:
    """Runs that sampled while they learned, in the order of the study."""
    return [run for run in view.runs if run.id in view.results.live.get("runs", {})]


def over_training(view: View) -> Figure | None:
    """Share right of what each arm wrote while it trained, a panel an arm: mean and range over seeds, beside the reference."""
    found = {}
    for lead in (run for run in live_runs(view) if run.lead):
        curves = [_rewards(view, run) for run in live_runs(view) if run.arm == lead.arm]
        steps = [step for step, _ in curves[0]]
        if steps and all([step for step, _ in curve] == steps for curve in curves):
            values = [[100 * curve[i][1] for curve in curves] for i in range(len(steps))]
            found[lead.arm] = (lead, steps, values)
    if not found:
        return None
    usual = found.get(view.reference.arm) if view.reference else None
    seen = [v for _, _, values in found.values() for row in values for v in row]
    layout = {
        "xaxis": axis("step"),
        "yaxis": axis("right, %", range=[min(seen) - 2, max(seen) + 2]),
        "showlegend": False,
    }
    rows = [
        [arm, step, fmean(row), min(row), max(row), len(row)]
        for arm, (_, steps, values) in found.items()
        for step, row in zip(steps, values, strict=True)
    ]
    beside = f"; grey: the mean of {usual[0].label}" if usual else ""
    return Figure(
        title="Right while training",
        caption=(
            "Share of the student's own sampled answers that were right, over the problems of each window of steps: problems "
            "that it had not been trained on when it answered them, unless an epoch ended. Line: mean over seeds; band: "
            f"lowest to highest of {max(row[-1] for row in rows)} seeds, no interval{beside}. At one seed all arms were asked "
            "the same problems in the same order, so what moves together in all panels is how hard those were."
        ),
        panels=[
            Panel(lead.label, _curve(view, lead, steps, values, usual), layout, [lead.arm])
            for lead, steps, values in found.values()
        ],
        sheet=Sheet("reward", ["arm", "step", "mean", "lowest", "highest", "seeds"], rows),
        size="small",
    )


def _rewards(view: View, run: Run) -> list[tuple[float, float]]:
    records = [(number(r.get("step")), number(r.get("reward"))) for r in view.results.training.get(run.id, [])]
    return list(zip(*windows([r for r in records if all(map(math.isfinite, r))], WINDOWS), strict=True))


Curve = tuple[Run, Sequence[float], Sequence[Sequence[float]]]


def _curve(
    view: View, lead: Run, steps: Sequence[float], values: Sequence[Sequence[float]], usual: Curve | None
) -> list[dict[str, Any]]:
    line = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
    edge = {**line, "x": steps, "line": {"width": 0}}
    data = [
        {**edge, "y": [min(v) for v in values]},
        {**edge, "y": [max(v) for v in values], "fill": "tonexty", "fillcolor": "@shade"},
    ]
    if usual and usual[0] is not lead:
        grey = {"color": "@muted", "width": 1.5, "dash": "dash"}
        data.append({**line, "x": usual[1], "y": [fmean(v) for v in usual[2]], "line": grey})
    own = {**style(view, lead.id)["line"], "width": 2.5}
    return [*data, {**line, "x": steps, "y": [fmean(v) for v in values], "line": own, "hoverinfo": "x+y"}]


def arms(view: View) -> Table | None:
    """What every entry is worth with one answer and with several, and how far it went."""
    rates, runs = view.results.live.get("pass", {}), view.results.live.get("runs", {})
    ks = _ks(view)
    if not ks:
        return None
    rows, raw = [], []
    for name, group in _groups(view, rates):
        passes = [[number(rates[run][k]["value"]) for run in group if k in rates[run]] for k in ks]
        ends = [[(number(rates[run][k]["low"]), number(rates[run][k]["high"])) for run in group] for k in ks]
        spent = [runs[run] for run in group if run in runs]
        facts = [_mean(spent, key) for key in DISTANCES]
        cells = [_rate(v, e) for v, e in zip(passes, ends, strict=True)]
        rows.append([name_cell(view, group[0]), *cells, *(Cell(fixed(fact, 3), fact) for fact in facts)])
        raw.append([name, len(group), *(fmean(v) for v in passes), *facts])
    return Table(
        title="Arms, averaged over their seeds",
        caption=(
            "pass@k: chance that one of k sampled answers is right; under it the range over seeds, or for one run its 95 % "
            "interval over problems. KL to base and to teacher: k3 on the tokens that the student sampled at its last "
            "measured step of training, nats a token; agreement: mean of min(1, teacher/student) there."
        ),
        head=["arm", *ks, "KL to base", "KL to teacher", "agreement"],
        rows=rows,
        sheet=Sheet("onpolicy", ["arm", "seeds", *ks, *DISTANCES], raw),
    )


def times(view: View) -> Table | None:
    """Where the time of every live arm went, beside GRPO's."""
    runs = view.results.live.get("runs", {})
    usual = _step_seconds(runs, view, "grpo")
    rows, raw = [], []
    for lead in (run for run in live_runs(view) if run.lead):
        spent = [runs[run.id] for run in view.runs if run.arm == lead.arm and run.id in runs]
        numbers = [_mean(spent, "rollouts"), *(_mean(spent, f"seconds_{part}") for part in PARTS)]
        over = _step_seconds(runs, view, lead.arm) / usual - 1
        share = _scoring_share(runs, view, lead.arm)
        shares = [Cell(f"{100 * x:+.0f} %" if math.isfinite(x) else NONE, x) for x in (over, share)]
        rows.append([name_cell(view, lead.id), *(Cell(short(x), x) for x in numbers), *shares])
        raw.append([lead.arm, len(spent), *numbers, over, share])
    if not rows:
        return None
    return Table(
        title="Where the time of a run went, seconds",
        caption=(
            "Means over seeds. Sampling includes grading; scoring is the teacher's forward passes; measuring, the KL to the base "
            "that only the record reads, is not in the last two columns: time over GRPO's, and scoring over sampling and "
            "updating of the same runs, on which other work on the machine has less of a hold."
        ),
        head=["arm", "rollouts", *PARTS, "over GRPO", "scoring alone"],
        rows=rows,
        sheet=Sheet(
            "onpolicy_time",
            ["arm", "seeds", "rollouts", *(f"seconds_{part}" for part in PARTS), "over_grpo", "scoring_share"],
            raw,
        ),
    )


def _ks(view: View) -> list[str]:
    """The measured pass@k, by k."""
    found = {k for rates in view.results.live.get("pass", {}).values() for k in rates}
    return sorted(found, key=lambda k: int(k.partition("@")[2]))


def _groups(view: View, rates: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Entries with pass@k: base and teacher, then the runs of each arm."""
    found = [(name, [name]) for name in ("base", "teacher") if name in rates]
    for lead in view.contenders:
        group = [run.id for run in view.runs if run.arm == lead.arm and run.id in rates]
        found += [(lead.arm, group)] if group else []
    return found


def _mean(spent: Sequence[dict[str, Any]], key: str) -> float:
    values = [number(one.get(key, one["last"].get(key))) for one in spent]
    return fmean(values) if values else math.nan


def _step_seconds(runs: dict[str, Any], view: View, arm: str) -> float:
    """Seconds of an arm's runs without what only the record reads; NaN where it sampled nothing."""
    spent = [runs[run.id] for run in view.runs if run.arm == arm and run.id in runs]
    return (
        sum(number(one.get(f"seconds_{part}", 0.0)) for one in spent for part in PARTS if part != "measure") or math.nan
    )


def _rate(values: Sequence[float], ends: Sequence[tuple[float, float]]) -> Cell:
    note = f"seeds {span([100 * v for v in values], 1)}" if len(values) > 1 else bounds(*ends[0], scale=100.0)
    return Cell(percent(fmean(values)), fmean(values), note=note)


def key_of(run: Run) -> str:
    """The published name of an arm: its objective, where its knobs are the published ones."""
    knobs = run.facts["knobs"] if isinstance(run.facts["knobs"], dict) else {}
    objective = str(run.facts["objective"] or "").partition(":")[0]
    return "" if objective == "trrd" and knobs.get("alpha", 0.5) != 0.5 else objective


def named(view: View) -> dict[str, Run]:
    """Lead live runs by published name."""
    found: dict[str, Run] = {}
    for run in live_runs(view):
        if run.lead and key_of(run) in printed()["rows"]:
            found.setdefault(key_of(run), run)  # an arm that goes on from another comes after the plain one
    return found


def claims(view: View) -> list[Claim]:
    """Every published order that the arms can test, by the test over seeds, or over problems of one seed.

    The claims were written down before any run, so Holm's correction is over these pairs and no others.
    """
    runs = named(view)
    asked = [claim for claim in printed()["claims"] if {claim["better"], claim["worse"]} <= runs.keys()]
    pairs = [(claim, _difference(view, runs[claim["better"]], runs[claim["worse"]])) for claim in asked]
    known = [(claim, *found) for claim, found in pairs if found is not None]
    family = f"of {len(known)}" if len(known) > 1 else "alone"
    out = []
    for (claim, pair, what), p in zip(known, holm([pair.p for _, pair, _ in known]), strict=True):
        verdict = "undecided" if not p < view.alpha else "reproduced" if pair.difference > 0 else "not reproduced"
        ours = f"{points(pair.difference)} ({bounds(pair.low, pair.high, scale=100.0)}), Holm {p_value(p)} {family}, {what}"
        out.append(Claim(claim["claim"], claim["published"], claim["status"], ours, verdict))
    return out


def _difference(view: View, a: Run, b: Run) -> tuple[Pair, str] | None:
    """A beside b over new problems and seeds where the study can say that, else over problems."""
    if pair := view.over_seeds(a.arm, b.arm):
        return pair, "over problems and seeds"
    pair = view.pair(a.id, b.id)
    return pair and (pair, "over problems, one seed each")


def accuracy(view: View) -> Table:
    """Published columns of 2609.04108 and ours."""
    spec, runs, rates = printed(), named(view), view.results.live.get("pass", {})
    ks = _ks(view)
    groups = dict(_groups(view, rates))
    rows, raw = [], []
    for key, values in spec["rows"].items():
        group = groups.get(key if key in ("base", "teacher") else runs[key].arm if key in runs else "", [])
        ours = [fmean(number(rates[run][k]["value"]) for run in group) if group else math.nan for k in ks]
        cells = [Cell(value, value, tone="published") for value in values] + [Cell(percent(v), v) for v in ours]
        rows.append([Cell(spec["names"][key], spec["names"][key]), *cells])
        raw.append([key, *values, *ours])
    return Table(
        title="Accuracy, published and here",
        caption=(
            f"Percent right; published means of {spec['sources']['independent']} (their logic and mathematics sets, Qwen3-1.7B). "
            "Other models, problems and decoding: no column may be subtracted from another; the order within each can be read."
        ),
        head=["arm", *(f"{column} ({spec['status']})" for column in spec["columns"]), *(f"{k}, here" for k in ks)],
        rows=rows,
        sheet=Sheet("onpolicy_accuracy", ["arm", *spec["columns"], *ks], raw),
    )


def setup(view: View) -> Table:
    """What differs between their set-up and this one, and the price of a teacher in both."""
    spec, ours = printed(), _ours(view)
    rows = [[item["item"], item["value"], ours.get(item["item"], NONE)] for item in spec["setup"]]
    rows.append(["time over GRPO", f"{spec['overhead']['published']} ({spec['overhead']['status']})", _overheads(view)])
    return Table(
        title="What differs in the set-up",
        caption=f"Published: {' and '.join(spec['sources'].values())}. Any of these rows can explain a difference.",
        head=["item", "published", "here"],
        rows=[[Cell(a, a), Cell(b, b, tone="published"), Cell(c, c)] for a, b, c in rows],
        sheet=Sheet("onpolicy_setup", ["item", "published", "ours"], rows),
        words=3,
    )


def _ours(view: View) -> dict[str, str]:
    config = view.results.study.get("config") or {}
    live, train, comparison = config.get("live") or {}, config.get("train") or {}, view.results.comparison
    tuned = view.results.live.get("tuning") or {}
    chosen = [f"{arm}: {t['knob']} {compact(number(t['chosen']))} of {_grid(t)}" for arm, t in tuned.items()]
    rates = {compact(number(run.facts["learning_rate"])) for run in live_runs(view)}
    how = [str(train.get("method") or "lora"), str(train.get("optimizer") or ""), " to ".join(sorted(rates))]
    return {
        "student": str(view.results.study.get("student") or NONE),
        "teacher": str(view.results.study.get("teacher") or NONE),
        "training": ", ".join(text for text in how if text),
        "rollouts": f"{live.get('prompts_per_step', '?')} prompts a step, {live.get('samples', '?')} each, at most "
        f"{live.get('max_new_tokens', '?')} tokens",
        "KDRL's coefficient": "; ".join(chosen) or NONE,
        "seeds": ", ".join(sorted({str(run.seed) for run in view.runs})) or NONE,
        "test": f"{comparison.get('n', '?')} problems, {comparison.get('decoding') or NONE}",
    }


def _grid(tuning: dict[str, Any]) -> str:
    """What a tuned knob was chosen from, with the accuracy of each value on the validation problems."""
    return ", ".join(f"{compact(number(row['value']))} ({percent(number(row['accuracy']))})" for row in tuning["grid"])


def _overheads(view: View) -> str:
    """Time over GRPO's, which other work on the machine and other lengths enter, and scoring beside the same run's rest."""
    runs = view.results.live.get("runs", {})
    usual = _step_seconds(runs, view, "grpo")
    texts = []
    for key, run in named(view).items():
        over, own = _step_seconds(runs, view, run.arm) / usual - 1, _scoring_share(runs, view, run.arm)
        if key != "grpo" and math.isfinite(over):
            texts.append(f"{printed()['names'][key]} {100 * over:+.0f} % (its scoring alone {100 * own:+.0f} %)")
    return f"{', '.join(texts)} of a step, teacher of the student's size" if texts else NONE


def _scoring_share(runs: dict[str, Any], view: View, arm: str) -> float:
    """Seconds of scoring over those of sampling and updating in the same runs."""
    spent = [runs[run.id] for run in view.runs if run.arm == arm and run.id in runs]
    score, sample, update = (
        sum(number(one.get(f"seconds_{p}", 0.0)) for one in spent) for p in ("score", "sample", "update")
    )
    return score / (sample + update) if sample + update > 0 else math.nan
