"""What accuracy varies with: training runs, samples and problems, arm by arm, for whoever plans the next study."""

from __future__ import annotations

from limbeck.report.parts import Cell, Sheet, Table
from limbeck.report.view import View
from limbeck.report.words import compact, fixed, number, percent

KEYS = ("value", "seed_sd", "samples_disagree", "seeds_disagree", "problems")
ROUNDING = 1e-6  # of an accuracy: a spread below it is none


def table(view: View) -> Table | None:
    """One row an arm of several seeds."""
    arms = (view.results.comparison.get("over_seeds") or {}).get("arms") or []
    labels = {run.arm: run.label for run in view.runs if run.lead}
    rows, raw = [], []
    for arm in arms:
        if arm["seeds"] < 2:
            continue
        value, spread = number(arm["value"]), number(arm["seed_sd"])
        samples, seeds = (number(arm["disagreement"][key]) for key in ("samples", "seeds"))
        problems = value * (1 - value) / spread**2 if spread > ROUNDING else float("nan")
        rows.append([
            Cell(str(labels.get(arm["name"], arm["name"])), arm["name"]), Cell(str(arm["seeds"]), arm["seeds"]),
            Cell(percent(value), value), Cell(fixed(100 * spread, 2), spread), Cell(percent(samples), samples),
            Cell(percent(seeds), seeds), Cell(compact(round(problems)) if problems == problems else "", problems),
        ])  # fmt: skip
        raw.append([arm["name"], arm["seeds"], value, spread, samples, seeds, problems])
    if not rows:
        return None
    return Table(
        title="What accuracy varies with",
        caption=(
            "Standard deviation of accuracy over training seeds, what problems alone would cause taken out (0 where seeds differ "
            "by no more); how often two samples of one run, and one sample each of two seeds, differ in being right (the n-th "
            "sample of a problem is drawn with the same random numbers for all runs, so that alike runs answer alike); and the "
            "number of problems whose sampling error is as large as that of one training run: beyond it more problems help less "
            "than more seeds. From five seeds a standard deviation is known to a factor of 0.6 to 2.9. limbeck power --pilot "
            "plans with these numbers."
        ),
        head=["arm", "seeds", "right", "sd over seeds, points", "samples differ", "seeds differ", "problems"],
        rows=rows,
        sheet=Sheet("components", ["arm", "seeds", *KEYS], raw),
    )
