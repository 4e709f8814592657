"""Factors over seeds: by hand, and that their intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from limbeck.errors import DataError
from limbeck.stats.factors import factor_over_seeds, jackknife, mean_of_runs, p_of
from limbeck.types import Estimate


def measured(value: float, error: float = 0.0) -> Estimate:
    half = float(norm.ppf(0.975)) * error * value
    return Estimate(value=value, low=value - half, high=value + half, level=0.95, method="m", n=101)


def test_two_seeds_by_hand():
    found = factor_over_seeds([measured(2.0), measured(8.0)], [measured(1.0), measured(1.0)])
    assert found.value == pytest.approx(4.0)
    sd = math.log(4) / math.sqrt(2)  # of ln 2 and ln 8
    assert math.log(found.high / found.value) == pytest.approx(student.ppf(0.975, 1) * sd / math.sqrt(2))


def test_one_seed_has_the_interval_of_its_problems():
    found = factor_over_seeds([measured(3.0, 0.3)], [measured(1.0, 0.4)])
    assert math.log(found.high / 3) == pytest.approx(student.ppf(0.975, 100) * 0.5) == -math.log(found.low / 3)
    half = factor_over_seeds([measured(3.0, 0.3)], [measured(1.0, 0.4)], level=0.5)
    assert found.low < half.low < half.high < found.high


def test_what_is_not_positive_has_no_factor():
    found = factor_over_seeds([measured(0.0)], [measured(1.0)])
    assert math.isnan(found.value)
    assert "positive" in found.reason
    with pytest.raises(DataError, match="received 1 and 2"):
        factor_over_seeds([measured(1.0)], [measured(1.0)] * 2)


@pytest.mark.parametrize(("of_seeds", "of_problems"), [(0.3, 0.02), (0.1, 0.1), (0.01, 0.2)])
def test_intervals_cover_the_factor_of_new_seeds_and_problems(of_seeds, of_problems):
    rng, covered, draws = np.random.default_rng(0), 0, 1500
    for _ in range(draws):
        a, b = (2.0 * rng.lognormal(0, of_problems), rng.lognormal(0, of_problems))  # problems are common to all seeds
        seeds = [[measured(x * rng.lognormal(0, of_seeds), of_problems) for _ in range(3)] for x in (a, b)]
        found = factor_over_seeds(*seeds)
        covered += found.low <= 2.0 <= found.high
    assert covered / draws > 0.93


def test_a_mean_of_runs_needs_all_of_them():
    assert mean_of_runs([0.5]).high == 0.5
    assert math.isnan(mean_of_runs([0.5, math.nan]).value)
    assert math.isnan(mean_of_runs([]).value)


def test_of_a_mean_the_jackknife_is_student_over_runs():
    values = dict(enumerate([0.3, -0.1, 0.7, 0.2, 0.25]))
    found = jackknife(lambda seeds: float(np.mean([values[s] for s in seeds])), list(values))
    plain = mean_of_runs(list(values.values()))
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high))
    assert p_of(found) == pytest.approx(p_of(plain))


def test_a_mean_over_pairs_of_five_runs_is_covered():
    """Pairs share runs, so that ten of them are no ten observations: a t interval over pairs would be far too narrow."""
    rng = np.random.default_rng(0)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    covered, naive = 0, 0
    for _ in range(1000):
        runs = 1.0 + 0.3 * rng.standard_normal(5)

        def product(seeds, runs=runs):
            return float(np.mean([runs[i] * runs[j] for i, j in pairs if i in seeds and j in seeds]))

        found = jackknife(product, range(5))
        covered += found.low < 1.0 < found.high
        wrong = mean_of_runs([runs[i] * runs[j] for i, j in pairs])
        naive += wrong.low < 1.0 < wrong.high
    assert 0.92 < covered / 1000 < 0.98
    assert naive / 1000 < 0.9


def test_what_is_undefined_without_a_run_has_no_interval():
    assert jackknife(lambda seeds: math.nan if 2 not in seeds else 1.0, range(3)).reason
    assert jackknife(lambda seeds: 1.0, [0]).reason
    assert math.isnan(p_of(jackknife(lambda seeds: 1.0, [0])))
    assert math.isnan(p_of(mean_of_runs([0.5])))
    assert p_of(mean_of_runs([0.5, 0.5, 0.5])) == 0.0
    assert p_of(mean_of_runs([0.5, 0.5, 0.5]), null=0.5) == 1.0
