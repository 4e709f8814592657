"""Adjusted p-values match their definitions; the smallest callable difference is pinned to known figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.reference import stats as reference

from limbeck.errors import DataError
from limbeck.stats.multiplicity import benjamini_hochberg, holm
from limbeck.stats.power import smallest_callable, smallest_callable_given


@pytest.mark.parametrize("num", [0, 1, 2, 5, 12])
def test_adjusted_p_values(num):
    p_values = (np.random.default_rng(num).random(num) ** 3).round(2).tolist()  # small ones, and ties
    family, discovery = holm(p_values), benjamini_hochberg(p_values)
    assert family == pytest.approx(reference.holm(p_values), abs=1e-12)
    assert discovery == pytest.approx(reference.benjamini_hochberg(p_values), abs=1e-12)
    assert all(p <= d <= f for p, d, f in zip(p_values, discovery, family, strict=True))


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1])
def test_no_p_value_is_guessed(bad):
    with pytest.raises(DataError, match=r"must lie in \[0, 1\]"):
        holm([0.5, bad])


@pytest.mark.parametrize(("n", "share", "points"), [(30, 0.2, 20.0), (500, 0.1, 3.2), (500, 0.2, 4.4), (500, 0.3, 5.2)])
def test_pinned_smallest_differences(n, share, points):
    assert smallest_callable(n, share).value * 100 == pytest.approx(points)


@pytest.mark.parametrize("case", [(30, 0.1), (0, 0.5), (500, 0.0)])
def test_nothing_could_be_called(case):
    measured = smallest_callable(*case)
    assert math.isnan(measured.value)
    assert "no difference could be called" in measured.reason


def test_equals_a_search_over_all_splits():
    for n in (20, 45, 120):
        for discordant in range(n + 1):
            for alpha in (0.05, 0.01):
                expected = reference.smallest_callable(n, discordant, alpha)
                found = smallest_callable(n, discordant / n, alpha=alpha).value
                assert found == pytest.approx(expected, nan_ok=True)


def test_several_samples_have_their_own_critical_value():
    # differences of +-2 in 10 problems: as with +-1, a split 9 to 1 (sum 16) is needed
    assert smallest_callable_given([2] * 10, 40).value == pytest.approx(16 / 40)
    with pytest.raises(DataError, match="as a fraction"):
        smallest_callable(30, 20.0)
