"""Merges beside what their parts add up to, and whether cosines foretold it, on numbers that can be redone by head."""

from __future__ import annotations

from itertools import combinations

import pytest

from limbeck.report.load import RUN_KEYS, Results
from limbeck.report.merges import foretold, merges, table
from limbeck.report.view import View
from limbeck.types import Measurement

BASE, PARENTS = 0.3, {"a": 0.4, "b": 0.5, "c": 0.45, "d": 0.35}
COSINES = dict(zip(combinations(PARENTS, 2), (0.9, 0.1, 0.3, 0.5, 0.7, 0.0), strict=True))


def view(seeds=(0, 1), paths=()):
    """Sums that fall short of perfect addition by a tenth of the parents' cosine."""
    pairs = {f"{x}+{y}": (x, y) for x, y in COSINES}
    right = PARENTS | {name: PARENTS[x] + PARENTS[y] - BASE - COSINES[x, y] / 10 for name, (x, y) in pairs.items()}
    arms = [{"name": name, "merge": None} for name in PARENTS]
    arms += [{"name": name, "merge": {"arms": list(parts), "weights": "sum"}} for name, parts in pairs.items()]
    runs = [dict.fromkeys(RUN_KEYS) | {"run": f"{n}-s{s}", "arm": n, "seed": s} for n in right for s in seeds]
    scored = [{"name": "base", "value": BASE}] + [{"name": run["run"], "value": right[run["arm"]]} for run in runs]
    cosines = [
        Measurement(
            metric="cosine", aggregation="stacked", arm=f"{x}-s{s}", other=f"{y}-s{s}", value=value, unit="none"
        )
        for (x, y), value in COSINES.items()
        for s in seeds
    ]
    return View(Results(
        study={"name": "x", "arms": [{"name": n} for n in right], "config": {"arms": arms}}, arms=runs,
        comparison={"arms": [arm | {"low": 0, "high": 1} for arm in scored]}, measurements=cosines, modules=[], paths=list(paths),
        training={}, rollouts={}, samples=[], provenance={}, live={}, frontier={}, missing=(),
    ))  # fmt: skip


def test_a_merge_is_held_against_its_parts():
    found = {merge.run.arm: merge for merge in merges(view())}
    assert len(found) == 6
    one = found["a+b"]
    assert one.expected[1] == pytest.approx(0.6)  # 0.3 + 0.1 + 0.2
    assert one.over[0] == pytest.approx(-0.09)
    assert (one.best, one.gain[0]) == ("b", pytest.approx(0.01))
    assert table(view()).sheet.rows[0][:4] == ["a+b", "a+b", "sum", pytest.approx(0.9)]


def test_a_shortfall_by_cosine_is_foretold_by_it_at_every_seed():
    path = {"loss": "ce_solution", "a": "a-s0", "b": "b-s0", "excess_midpoint": {"value": 0.1}}
    rows = {(row[1], row[2]): row[3:] for row in foretold(view(paths=[path])).sheet.rows}
    assert rows["cosine of the parts", "over the sum of gains"][:3] == [6, 2, pytest.approx(-1)]
    assert not any(known.startswith("loss") for known, _ in rows)  # one path orders nothing
    assert foretold(view(seeds=(0,))).rows[0][-1].note == ""


def test_arms_that_are_no_merges_leave_no_table():
    plain = view()
    for arm in plain.results.study["config"]["arms"]:
        arm["merge"] = None
    assert table(plain) is foretold(plain) is None
