"""A factorial's variance: equal to effects computed one by one and to statsmodels, honest about labels that mean nothing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import AnovaRM, anova_lm
from tests.reference import stats as reference

from limbeck.errors import DataError
from limbeck.stats.factorial import split

FACTORS = {"loss": ["a", "b", "c"], "optimizer": ["x", "y"], "schedule": ["s", "t"]}


def design(factors=FACTORS, num=3):
    cells = [(*cell, seed) for cell in itertools.product(*factors.values()) for seed in range(num)]
    levels = {name: [cell[place] for cell in cells] for place, name in enumerate(factors)}
    return levels, [cell[-1] for cell in cells]


def unit_vectors(levels, seeds, dims=7, seed=0):
    """Directions that the loss decides mostly, the schedule a little, and the seed for all cells alike."""
    rng = np.random.default_rng(seed)
    own = {name: rng.normal(0, size, dims) for name, size in (("a", 2), ("b", 2), ("c", 2), ("s", 0.5), ("t", 0.5))}
    shared = rng.normal(0, 0.3, (max(seeds) + 1, dims))
    rows = [
        own[loss] + own[schedule] + shared[s] + rng.normal(0, 0.3, dims)
        for loss, schedule, s in zip(levels["loss"], levels["schedule"], seeds, strict=True)
    ]
    return np.array([row / np.linalg.norm(row) for row in rows])


def test_directions_split_by_their_cosines_as_by_their_coordinates():
    levels, seeds = design()
    vectors = unit_vectors(levels, seeds)
    expected, total = reference.factorial_squares(vectors.tolist(), levels, seeds)
    found = split(vectors @ vectors.T, levels, seeds, draws=19)
    assert [share.term for share in found] == list(expected)
    assert [share.share for share in found] == pytest.approx([x / total for x in expected.values()], rel=1e-9)
    assert sum(share.share for share in found) == pytest.approx(1, rel=1e-12)


def test_numbers_split_as_in_statsmodels():
    levels, seeds = design()
    y = np.random.default_rng(3).normal(0.4, 0.1, len(seeds))
    table = anova_lm(
        ols("y ~ C(loss) * C(optimizer) * C(schedule) + C(s)", pd.DataFrame({**levels, "s": seeds, "y": y})).fit()
    )
    found = {share.term: share for share in split(np.outer(y, y), levels, seeds, error="pooled", draws=19)}
    error = table.loc["Residual", "mean_sq"]
    total = table["sum_sq"].sum()
    parts = table["sum_sq"] - table["df"] * error
    parts["C(s)"] *= 3 / 2  # three seeds show two thirds of what they vary
    parts["Residual"] = len(seeds) * error
    for term, row in table.iterrows():
        name = {"C(s)": "seed", "Residual": "cell x seed"}.get(
            term, term.replace("C(", "").replace(")", "").replace(":", " x ")
        )
        assert found[name].df == row["df"]
        assert found[name].share == pytest.approx(row["sum_sq"] / total, rel=1e-9)
        assert found[name].unbiased == pytest.approx(parts[term] / parts.sum(), rel=1e-9, abs=1e-12)


def test_own_errors_are_those_of_repeated_measures_in_statsmodels():
    levels, seeds = design()
    y = np.random.default_rng(3).normal(0.4, 0.1, len(seeds))
    frame = pd.DataFrame({**levels, "subject": seeds, "right": y})
    table = AnovaRM(frame, "right", "subject", within=list(FACTORS)).fit().anova_table
    found = {share.term: share for share in split(np.outer(y, y), levels, seeds, draws=19)}
    parts = {
        term.replace(":", " x "): found[term.replace(":", " x ")].share * (1 - 1 / row["F Value"])
        for term, row in table.iterrows()
    }
    parts |= {term: 1.5 * found[term].share for term in ("seed", "cell x seed")}  # three seeds show two thirds
    assert {term: share.unbiased for term, share in found.items()} == pytest.approx(
        {term: part / sum(parts.values()) for term, part in parts.items()}, rel=1e-9
    )


def test_a_small_effect_is_seen_where_its_cells_err_alike():
    levels, seeds = design(num=5)
    rng = np.random.default_rng(6)
    step = rng.normal(0, 0.05, 30)  # of the schedule, among rows that all schedules of a loss share at a seed
    effect = (step**2).sum() / 4
    truth = effect / (effect + 30 * (1 + 0.05**2))
    found = []
    for _ in range(20):
        rows = {(loss, seed): rng.normal(0, 1, 30) for loss in FACTORS["loss"] for seed in range(5)}
        y = np.array([rows[loss, seed] for loss, seed in zip(levels["loss"], seeds, strict=True)])
        y += rng.normal(0, 0.05, y.shape) + np.outer([name == "s" for name in levels["schedule"]], step)
        found.append([split(y @ y.T, levels, seeds, error=error, draws=99)[2] for error in ("own", "pooled")])
    assert {share.term for pair in found for share in pair} == {"schedule"}
    assert all(own.p == 0.01 for own, _ in found)
    assert np.mean([own.low <= truth <= own.high for own, _ in found]) >= 0.8
    assert np.mean([own.unbiased for own, _ in found]) == pytest.approx(truth, rel=0.2)
    assert all(pooled.high < 0 and pooled.p > 0.5 for _, pooled in found)


def test_a_planted_cause_is_found_and_only_it():
    levels, seeds = design(num=5)
    rng = np.random.default_rng(1)
    y = np.array([{"a": 0.0, "b": 1.0, "c": 2.0}[loss] for loss in levels["loss"]]) + rng.normal(0, 0.5, len(seeds))
    found = {share.term: share for share in split(np.outer(y, y), levels, seeds, draws=499)}
    truth = (2 / 3) / (2 / 3 + 0.25)  # of the loss, in infinitely many seeds
    assert found["loss"].low < truth < found["loss"].high
    assert found["loss"].p == 1 / 500
    assert all(share.p > 0.01 for term, share in found.items() if term not in ("loss", "seed", "cell x seed"))
    assert found["loss"].chance == pytest.approx(2 / 55, abs=0.02)  # its degrees of freedom among those within seeds
    assert math.isnan(found["seed"].p)


def test_intervals_hold_the_share_that_infinitely_many_seeds_have():
    levels, seeds = design({"loss": ["a", "b"], "optimizer": ["x", "y"]}, num=5)
    rng = np.random.default_rng(4)
    effect = np.array([[1.0, 0, 0] if loss == "a" else [-1.0, 0, 0] for loss in levels["loss"]])
    truth = 1 / (1 + 3 * 0.25 + 3 * 0.09)
    found = []
    for _ in range(150):
        shared = rng.normal(0, 0.3, (5, 3))[seeds]
        values = effect + shared + rng.normal(0, 0.5, effect.shape)
        found.append(split(values @ values.T, levels, seeds, draws=1)[0])
    assert np.mean([share.unbiased for share in found]) == pytest.approx(truth, abs=0.02)
    assert 0.88 <= np.mean([share.low <= truth <= share.high for share in found]) <= 1


def test_labels_without_meaning_are_called_as_often_as_the_level_says():
    levels, seeds = design({"loss": ["a", "b"], "optimizer": ["x", "y"]})
    rng = np.random.default_rng(0)
    drawn = [rng.normal(0, 1, (len(seeds), 3)) for _ in range(150)]
    called = [share.p <= 0.2 for v in drawn for share in split(v @ v.T, levels, seeds, draws=49)[:3]]
    assert np.mean(called) == pytest.approx(0.2, abs=0.06)


def test_scale_and_the_order_of_runs_do_not_matter():
    levels, seeds = design()
    vectors = unit_vectors(levels, seeds)
    order = np.random.default_rng(2).permutation(len(seeds))
    shuffled = {name: [given[i] for i in order] for name, given in levels.items()}
    one = split(vectors @ vectors.T, levels, seeds, draws=19)
    other = split(9 * vectors[order] @ vectors[order].T, shuffled, [seeds[i] for i in order], draws=19)
    for a, b in zip(one, other, strict=True):
        assert (a.term, a.df) == (b.term, b.df)
        assert (a.share, a.unbiased, a.low, a.high) == pytest.approx((b.share, b.unbiased, b.low, b.high), rel=1e-9)


def test_too_little_says_so_instead_of_a_number():
    levels, seeds = design(num=2)
    y = np.arange(len(seeds), dtype=float)
    assert all(
        math.isnan(share.low) and math.isfinite(share.unbiased) for share in split(np.outer(y, y), levels, seeds)
    )
    flat = np.ones((len(seeds), len(seeds)))
    assert all(math.isnan(share.share) for share in split(flat, levels, seeds))
    assert all(math.isnan(share.share) for share in split(flat * np.nan, levels, seeds))
    gone = {name: given[1:] for name, given in levels.items()}
    with pytest.raises(DataError, match="every cell once at every seed, received 23 runs of 24 cells and seeds"):
        split(flat[1:, 1:], gone, seeds[1:])
    with pytest.raises(DataError, match="two or more seeds"):
        split(np.eye(2), {"loss": ["a", "b"]}, [0, 0])
