"""Intervals agree with their definitions, cover what they promise, and are never of width 0."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import stats as reference

from limbeck.errors import DataError
from limbeck.stats import intervals


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_binomial_intervals_equal_their_references(level):
    for n in (1, 2, 7, 30, 500):
        for correct in {0, 1, n // 2, n - 1, n}:
            wilson = intervals.wilson(correct, n, level=level)
            assert (wilson.low, wilson.high) == pytest.approx(reference.wilson(correct, n, level), abs=1e-12)
            exact = intervals.clopper_pearson(correct, n, level=level)
            assert (exact.low, exact.high) == pytest.approx(reference.clopper_pearson(correct, n, level), abs=1e-9)
            assert wilson.value == exact.value == correct / n


@settings(deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_no_accuracy_has_width_zero(case):
    correct, n = case
    for estimate in (intervals.wilson(correct, n), intervals.clopper_pearson(correct, n)):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.high - estimate.low > 1e-3


def test_thirty_of_thirty():
    assert intervals.wilson(30, 30).low == pytest.approx(0.8865, abs=1e-4)  # 30 / (30 + 1.96**2)
    assert intervals.mean_of_items(np.ones(30)).low == pytest.approx(0.8865, abs=1e-4)
    same = intervals.mean_of_items(np.full(30, 0.5))  # a bootstrap could only draw 0.5
    assert (same.method, same.value) == ("wilson_items", 0.5)
    assert (same.low, same.high) == pytest.approx(reference.wilson(15, 30, 0.95))


def test_too_little_data_is_nan_with_a_reason():
    for estimate in (intervals.wilson(0, 0), intervals.clopper_pearson(0, 0), intervals.mean_of_items([])):
        assert math.isnan(estimate.value)
        assert estimate.reason == "no problems"
    for values in ([], [0.5]):
        estimate = intervals.item_bootstrap(values, seed=0)
        assert math.isnan(estimate.low)
        assert estimate.reason == "fewer than 2 problems"


@pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5)])
def test_counts_that_cannot_be_are_refused(correct, n):
    with pytest.raises(DataError, match=r"0 <= correct <= n, received"):
        intervals.wilson(correct, n)
    with pytest.raises(DataError, match=r"one value in \[0, 1\] a problem"):
        intervals.mean_of_items([0.5, 1.5])


@pytest.mark.parametrize("draws", [500, 8000])
def test_bootstrap_error_is_that_of_a_mean_whatever_the_draws(draws):
    values = np.random.default_rng(0).integers(0, 9, 400) / 8
    means, spreads = intervals.bootstrap_moments(values, rng=np.random.default_rng(1), draws=draws)
    assert means.std() == pytest.approx(values.std() / math.sqrt(400), rel=0.1 if draws == 500 else 0.05)
    by_index, by_index_spreads = reference.bootstrap_moments(values, draws, np.random.default_rng(2))
    assert means.std() == pytest.approx(by_index.std(), rel=0.12 if draws == 500 else 0.05)
    assert np.quantile(means, [0.05, 0.95]) == pytest.approx(np.quantile(by_index, [0.05, 0.95]), abs=0.005)
    assert np.quantile(spreads, [0.05, 0.95]) == pytest.approx(np.quantile(by_index_spreads, [0.05, 0.95]), abs=0.005)


def test_studentized_interval_equals_its_reference():
    values = np.random.default_rng(0).integers(-4, 5, 40) / 4
    estimate = intervals.item_bootstrap(values, seed=1)
    half = reference.symmetric_bootstrap_t(values, 10_000, np.random.default_rng(2), 0.95)
    assert estimate.value == pytest.approx(values.mean())
    assert (estimate.value - estimate.low, estimate.high - estimate.value) == pytest.approx((half, half), rel=0.02)
    assert half > 1.96 * values.std(ddof=1) / math.sqrt(40)  # few problems cost width


def test_equal_values_cannot_be_resampled_and_say_so():
    estimate = intervals.item_bootstrap([0.25] * 9, seed=0)
    assert (estimate.low, estimate.high, estimate.reason) == (0.25, 0.25, "all problems have the same value")


def test_sample_size_that_a_variance_is_worth():
    # a variance of p (1 - p) / 50 is worth 50 outcomes, with the normal quantile Wilson's own interval
    estimate = intervals.wilson_of_mean(0.4, 0.4 * 0.6 / 50, df=1e9, n=20)
    assert (estimate.low, estimate.high) == pytest.approx(reference.wilson(20, 50, 0.95), abs=1e-6)
    few = intervals.wilson_of_mean(0.4, 0.4 * 0.6 / 50, df=3, n=20)
    assert few.low < estimate.low < estimate.high < few.high
    for value, variance in ((0.0, 0.1), (1.0, 0.1), (0.5, 0.0)):
        with pytest.raises(DataError, match="effective sample size needs"):
            intervals.wilson_of_mean(value, variance, df=3, n=20)


def test_problems_are_the_unit():
    rates = np.random.default_rng(0).integers(0, 5, 60) / 4
    outcomes = np.stack([np.arange(4) < 4 * r for r in rates])
    once = intervals.mean_of_items(outcomes.mean(1))
    copied = intervals.mean_of_items(np.repeat(outcomes, 4, axis=1).mean(1))
    assert copied == once
    independent = intervals.wilson(int(outcomes.sum()), outcomes.size)  # the fault: samples taken for problems
    assert independent.high - independent.low < 0.7 * (once.high - once.low)


def test_same_seed_same_bytes_and_no_global_generator():
    values = np.linspace(0, 1, 17)
    before = (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), random.getstate())
    first, second = (intervals.item_bootstrap(values, seed=5) for _ in range(2))
    assert first == second
    assert first != intervals.item_bootstrap(values, seed=6)
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), random.getstate())


def test_intervals_of_clustered_samples_cover_with_30_problems():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(400):
        values = rng.binomial(4, rng.beta(2, 2, 30)) / 4
        estimate = intervals.item_bootstrap(values, seed=trial, draws=1000)
        effective = intervals.mean_of_items(values)
        hits += np.array([e.low <= 0.5 <= e.high for e in (estimate, effective)])
    assert (np.abs(hits / 400 - 0.95) <= 0.03).all()
