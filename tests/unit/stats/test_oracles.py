"""The same numbers from packages that share no code with ours: evalci, scipy, statsmodels."""

from __future__ import annotations

import evalci
import numpy as np
import pytest
from evalci._correction import benjamini_hochberg as evalci_bh
from evalci._correction import holm as evalci_holm
from scipy.stats import permutation_test
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from limbeck.stats import intervals, multiplicity, paired, planning


@pytest.mark.parametrize(("right", "n"), [(0, 30), (7, 30), (30, 30), (420, 500), (1200, 1319)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_intervals_of_an_accuracy(right, n, level):
    scores = np.arange(n) < right
    for name, ours in (("wilson", intervals.wilson), ("clopper-pearson", intervals.clopper_pearson)):
        found = ours(right, n, level=level)
        theirs = evalci.ci(scores, method=name, confidence=level)
        assert (found.low, found.high) == pytest.approx((theirs.lower, theirs.upper), abs=1e-12)
        method = "beta" if name == "clopper-pearson" else "wilson"
        assert (found.low, found.high) == pytest.approx(proportion_confint(right, n, 1 - level, method), abs=1e-12)


def test_mcnemar_of_single_outcomes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.random((2, 40)) < 0.7
        theirs = evalci.compare(a, b, method="mcnemar", n_resamples=10)
        if theirs.extra["statistic"] is None:  # theirs is exact below 25 discordant problems
            assert paired.mcnemar_exact(int((a & ~b).sum()), int((b & ~a).sum())) == pytest.approx(theirs.p_value)


def test_sign_flips_of_several_samples():
    rng = np.random.default_rng(0)
    for _ in range(20):
        right = rng.binomial(4, 0.5, (2, 10))
        ours = paired.sign_flip(right[0] - right[1])
        assert ours == pytest.approx(evalci.compare(*(right / 4), method="permutation", n_resamples=10).p_value)
        kept = right[:, right[0] != right[1]]
        mean = permutation_test(
            tuple(kept), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
        )
        # scipy doubles the smaller tail, which is symmetric here
        assert ours == pytest.approx(mean.pvalue)


def test_bootstrap_of_problems_is_as_wide_as_another_for_many():
    rng = np.random.default_rng(0)
    outcomes = rng.random((300, 4)) < rng.beta(2, 2, (300, 1))
    ours = intervals.item_bootstrap(outcomes.mean(1), seed=0)
    theirs = evalci.cluster_ci(outcomes.ravel(), np.repeat(np.arange(300), 4), n_resamples=2000, random_state=0)
    assert ours.value == pytest.approx(theirs.estimate)
    assert (ours.low, ours.high) == pytest.approx((theirs.lower, theirs.upper), abs=0.005)
    effective = intervals.mean_of_items(outcomes.mean(1))
    assert (effective.low, effective.high) == pytest.approx((theirs.lower, theirs.upper), abs=0.005)


@pytest.mark.parametrize("num", [1, 3, 10])
def test_adjusted_p_values(num):
    p_values = np.random.default_rng(num).random(num) ** 3
    assert multiplicity.holm(p_values.tolist()) == pytest.approx(evalci_holm(p_values))
    assert multiplicity.benjamini_hochberg(p_values.tolist()) == pytest.approx(evalci_bh(p_values))


@pytest.mark.parametrize(("accuracy", "difference"), [(0.6, 0.02), (0.5, 0.05), (0.85, 0.03)])
def test_problems_for_unrelated_answers_are_those_of_two_proportions(accuracy, difference):
    theirs = evalci.power(delta=difference, baseline=accuracy).n
    ours = planning.problems_needed(planning.Design(accuracy=accuracy), difference).value
    assert theirs <= ours <= 1.05 * theirs  # an exact test needs a little more than a normal one


@pytest.mark.parametrize("n", [30, 500])
def test_power_of_several_samples_is_that_of_a_paired_t_test(n):
    design = planning.Design(accuracy=0.6, discordance=0.3, samples=4, sample_disagreement=0.2)
    spread = (0.3 - 0.05**2 - 0.2 * 3 / 4) ** 0.5
    theirs = TTestPower().power(0.05 / spread, n, 0.05, alternative="larger")
    assert planning.power(design, 0.05, n) < theirs  # one-sided, so at half the level:
    theirs = TTestPower().power(0.05 / spread, n, 0.025, alternative="larger")
    assert planning.power(design, 0.05, n) == pytest.approx(theirs, rel=1e-6)
