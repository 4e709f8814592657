"""Problems and seeds as crossed levels: equal to the analysis of variance, to Student's tests at the edges, and honest."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2, norm, ttest_ind, ttest_rel
from scipy.stats import t as student
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from tests.reference import stats as reference

from limbeck.errors import DataError
from limbeck.stats import seeds
from limbeck.stats.intervals import mean_of_items


def grids(n=14, num=(3, 4), samples=2, seed=0, seed_sd=0.1):
    rng = np.random.default_rng(seed)
    problem = rng.beta(2, 2, (n, 1))
    chances = [np.clip(problem + rng.normal(0, seed_sd, (1, s)), 0, 1) for s in num]
    return [rng.binomial(samples, np.broadcast_to(p, (n, p.shape[1]))) / samples for p in chances]


@pytest.mark.parametrize("num", [(3, 4), (2, 2), (1, 5), (1, 1)])
@pytest.mark.parametrize("seed_sd", [0.0, 0.3])
def test_equals_its_definition(num, seed_sd):
    a, b = grids(num=num, seed_sd=seed_sd)
    assert seeds.crossed(a, b) == pytest.approx(reference.crossed(a.tolist(), b.tolist()), rel=1e-9)
    assert seeds.crossed(b) == pytest.approx(reference.crossed(b.tolist(), None), rel=1e-9)


def test_equals_the_mean_squares_of_statsmodels():
    grid, _ = grids(n=12, num=(4, 1), seed_sd=0.3)
    rows = [{"y": y, "problem": i, "seed": s} for i, row in enumerate(grid) for s, y in enumerate(row)]
    table = anova_lm(ols("y ~ C(problem) + C(seed)", pd.DataFrame(rows)).fit())
    of_problem, of_seed, residual = table["mean_sq"]
    assert of_seed > residual
    expected = (of_problem + of_seed - residual) / grid.size  # E = residual + 4 problem, residual + 12 seed
    assert seeds.crossed(grid).variance == pytest.approx(expected)
    assert seeds.seed_sd(grid) == pytest.approx(math.sqrt((of_seed - residual) / 12))


def test_where_problems_do_not_matter_it_is_welchs_test_of_seeds():
    rng = np.random.default_rng(0)
    a, b = (np.tile(rng.random(num), (40, 1)) for num in (4, 3))
    found, welch = seeds.crossed(a, b), ttest_ind(a[0], b[0], equal_var=False)
    assert seeds.p_over_seeds(found) == pytest.approx(welch.pvalue)
    estimate, interval = seeds.difference_over_seeds(found, 40), welch.confidence_interval()
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high))


def test_where_seeds_do_not_matter_it_is_the_paired_test_of_problems():
    rng = np.random.default_rng(0)
    a, b = (np.tile(rng.random((20, 1)), (1, num)) for num in (3, 2))
    found = seeds.crossed(a, b)
    assert found.df == pytest.approx(19)
    assert seeds.p_over_seeds(found) == pytest.approx(ttest_rel(a[:, 0], b[:, 0]).pvalue)


def test_the_critical_value_is_cochrans_to_first_order():
    """Between those of problems and of seeds, near their mean with the weights of both in the variance."""
    a, b = grids(n=60, num=(9, 8), seed=0)[0], grids(n=60, num=(9, 8), seed=1)[1]  # problems that arms do not share
    found, parts = seeds.crossed(a, b), [seeds.spread(grid) for grid in (a, b)]
    of_seeds = sum(part.seen for part in parts)
    seeds_df = of_seeds**2 / (parts[0].seen ** 2 / 8 + parts[1].seen ** 2 / 7)
    share = of_seeds / found.variance
    assert 0.2 < share < 0.9
    cochran = (1 - share) * student.ppf(0.975, 59) + share * student.ppf(0.975, seeds_df)
    assert student.ppf(0.975, found.df) == pytest.approx(cochran, rel=0.005)
    assert found.df < 1 / ((1 - share) ** 2 / 59 + share**2 / seeds_df)  # Satterthwaite's


def test_seeds_that_tie_leave_the_problems():
    rng = np.random.default_rng(0)
    a = rng.permuted(np.repeat([[1.0, 0.0]], [9, 21], axis=1).T.repeat(3, 1), axis=0)  # 9 of 30 right, every seed
    b = rng.integers(0, 2, (30, 1)) * 1.0
    found, items = seeds.crossed(a, b), a.mean(1) - b[:, 0]
    assert (found.variance, found.df) == (pytest.approx(items.var(ddof=1) / 30), 29)
    constant = np.full((30, 3), 1 / 3)
    assert seeds.crossed(constant, constant / 7).variance == 0  # rounding is no variance


def test_an_interval_and_its_test_agree():
    for seed in range(20):
        found = seeds.crossed(*grids(seed=seed))
        estimate = seeds.difference_over_seeds(found, 14)
        assert (seeds.p_over_seeds(found) < 0.05) == (not estimate.low <= 0 <= estimate.high)
        assert seeds.smallest_over_seeds(found) == pytest.approx(estimate.high - estimate.value)


def test_seeds_that_vary_make_the_interval_wider_and_one_seed_cannot_tell():
    a, b = grids(n=400, num=(3, 3), seed_sd=0.2)
    both, single = seeds.crossed(a, b), seeds.crossed(a[:, :1], b[:, :1])
    problems = float((a.mean(1) - b.mean(1)).var(ddof=1)) / 400
    assert both.variance > 4 * problems
    assert both.df < 10
    assert single.df == pytest.approx(399)
    assert math.isnan(seeds.seed_sd(a[:, :1]))


def test_order_of_problems_and_seeds_does_not_matter():
    a, b = grids()
    rows = np.random.default_rng(1).permutation(len(a))
    assert seeds.crossed(a[rows][:, ::-1], b[rows]) == pytest.approx(seeds.crossed(a, b))


def test_an_accuracy_over_seeds():
    grid, _ = grids(n=50, seed_sd=0.3)
    estimate = seeds.mean_over_seeds(grid)
    assert estimate.method == "crossed_wilson"
    assert 0 <= estimate.low < grid.mean() < estimate.high <= 1
    pooled = mean_of_items(grid.mean(1))
    assert estimate.high - estimate.low > pooled.high - pooled.low
    assert seeds.mean_over_seeds(np.ones((30, 3))).low == pytest.approx(0.8865, abs=1e-4)  # never of width 0
    assert math.isnan(seeds.mean_over_seeds(np.ones((1, 3))).value)


def test_disagreement_is_unbiased():
    rng = np.random.default_rng(0)
    chance = rng.random((4000, 1)) * np.ones((1, 2))
    grid = rng.binomial(3, chance) / 3
    within, between = seeds.disagreement(grid, 3)
    assert within == pytest.approx(1 / 3, abs=0.02)  # the mean of 2 p (1 - p) over uniform p
    assert between == pytest.approx(1 / 3, abs=0.02)  # seeds that are one model disagree as samples do
    assert all(math.isnan(x) for x in seeds.disagreement(grid[:, :1], 1))


@pytest.mark.parametrize("rows", [(3, 4), (1, 1)])
def test_grids_that_do_not_match_are_refused(rows):
    with pytest.raises(DataError, match=r"same 2 or more problems in every arm, received \[\d, \d\]"):
        seeds.crossed(np.ones((rows[0], 2)), np.ones((rows[1], 2)))


def normal_grids(rng, n, num, *, problem_sd=1.0, seed_sd=0.0, cell_sd=1.0):
    """Not accuracies, but what the analysis of variance is exact for; arms have problems of their own as well."""
    for s in num:
        yield rng.normal(0, problem_sd, (n, 1)) + rng.normal(0, seed_sd, (1, s)) + rng.normal(0, cell_sd, (n, s))


@pytest.mark.parametrize("seed_sd", [0.0, 0.2])
def test_the_variance_is_unbiased_even_where_seeds_do_not_vary(seed_sd):
    rng, n, num = np.random.default_rng(0), 40, (2, 3)
    found = [seeds.crossed(*normal_grids(rng, n, num, seed_sd=seed_sd)).variance for _ in range(2000)]
    true = sum(1 / n + seed_sd**2 / s + 1 / (n * s) for s in num)
    assert np.mean(found) == pytest.approx(true, rel=0.04)  # components of at least 0 would add a tenth where it is 0


@pytest.mark.parametrize("num", [(3, 1), (3, 3), (5, 2)])
@pytest.mark.parametrize("seed_sd", [0.0, 0.2, 0.5])
def test_covers_whatever_seeds_weigh_beside_problems(num, seed_sd):
    rng, hits, trials = np.random.default_rng(1), 0, 1500
    for _ in range(trials):
        (a,), (b,) = (normal_grids(rng, 40, (s,), seed_sd=seed_sd * (s > 1)) for s in num)  # a base has no luck
        found = seeds.crossed(a, b)
        hits += abs(found.value) <= seeds.smallest_over_seeds(found)
    assert 0.93 <= hits / trials <= 0.975


def worst_and_best(critical, seeds_df):
    """Least and most coverage over how much seeds weigh, where the variance over problems is known: by quadrature."""
    chance = (np.arange(4000) + 0.5) / 4000
    seen = chi2.ppf(chance, seeds_df)[None] / seeds_df
    weight = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98, 0.999])[:, None]
    variance = 1 - weight + weight * seen
    covered = (2 * norm.cdf(critical(weight * seen / variance) * np.sqrt(variance)) - 1).mean(1)
    return covered.min(), covered.max()


def test_no_weighting_of_critical_values_holds_for_two_seeds_against_one_run():
    """Why ``compare`` says so instead: the best power mean of the two critical values lies outside of 93 to 97 % as well."""

    def mean(power, seeds_df):
        ends = (student.ppf(0.975, df) ** power for df in (np.inf, seeds_df))
        of_problems, of_seeds = ends
        return lambda share: ((1 - share) * of_problems + share * of_seeds) ** (1 / power)

    bands = {power: worst_and_best(mean(power, 1), 1) for power in (-1, -0.5, 0.25, 0.4, 0.5, 0.6, 0.8, 1, 1.5)}
    assert all(low < 0.93 or high > 0.97 for low, high in bands.values())
    assert bands[0.5] == pytest.approx((0.929, 0.973), abs=0.001)
    ours = lambda seeds_df: lambda share: student.ppf(0.975, seeds_df / share)  # noqa: E731
    low, high = worst_and_best(ours(1), 1)
    assert (low > 0.90, high < 0.97) == (True, True)
    assert worst_and_best(ours(2), 2)[0] > 0.94
    assert worst_and_best(ours(4), 4)[0] > 0.945


@pytest.mark.parametrize("seed_sd", [0.0, 0.05])
def test_covers_new_problems_and_new_seeds(seed_sd):
    rng, hits, trials = np.random.default_rng(1), 0, 600
    for _ in range(trials):
        problem = rng.uniform(0.25, 0.75, (100, 1))
        a, b = (rng.random((100, 3)) < problem + rng.uniform(-1, 1, (1, 3)) * seed_sd * math.sqrt(3) for _ in range(2))
        estimate = seeds.difference_over_seeds(seeds.crossed(a * 1.0, b * 1.0), 100)
        hits += estimate.low <= 0 <= estimate.high
    assert 0.92 <= hits / trials <= 0.99
