"""Paired tests are exact, their intervals cover, and pairing is worth what it should be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from tests.reference import stats as reference

from limbeck.errors import DataError, ShapeError
from limbeck.stats import paired
from limbeck.stats.intervals import wilson


def outcomes(both, a_only, b_only, neither):
    a = [True] * (both + a_only) + [False] * (b_only + neither)
    b = [True] * both + [False] * a_only + [True] * b_only + [False] * neither
    return torch.tensor(a)[:, None], torch.tensor(b)[:, None]


def test_exact_p_for_all_small_tables():
    for b in range(13):
        for c in range(13):
            p = paired.mcnemar_exact(b, c)
            assert p == pytest.approx(float(reference.mcnemar(b, c)), rel=1e-12)
            assert p == pytest.approx(statsmodels_mcnemar([[5, b], [c, 5]], exact=True).pvalue, rel=1e-12)
            assert p == paired.mcnemar_exact(c, b)
    assert paired.mcnemar_exact(0, 0) == 1.0
    with pytest.raises(DataError, match="received -1 and 2"):
        paired.mcnemar_exact(-1, 2)


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=0, max_size=9))
def test_sign_flip_equals_enumeration(differences):
    values = np.array(differences, dtype=np.int64)
    assert paired.sign_flip(values) == pytest.approx(float(reference.sign_flip(differences)), rel=1e-12)
    tail = paired.sign_flip_tail(values)
    assert tail[0] == 1.0
    assert (np.diff(tail) <= 0).all()


@pytest.mark.parametrize(("b", "c"), [(0, 0), (6, 0), (33, 17), (160, 100), (700, 619)])
def test_sign_flip_of_single_outcomes_is_mcnemar(b, c):
    differences = np.array([1] * b + [-1] * c + [0] * 5)
    assert paired.sign_flip(differences) == pytest.approx(paired.mcnemar_exact(b, c), rel=1e-9)


def test_sign_flip_refuses_fractions():
    with pytest.raises(DataError, match="must be integers"):
        paired.sign_flip([0.5, 0.25])


@pytest.mark.parametrize(
    "cell", [(0, 0, 20), (12, 2, 50), (2, 12, 50), (5, 0, 30), (0, 5, 30), (30, 20, 500), (1, 1, 3)]
)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_tango_equals_its_reference(cell, level):
    b, c, n = cell
    estimate = paired.tango(b, c, n, level=level)
    assert estimate.value == (b - c) / n
    assert estimate.low == pytest.approx(reference.tango_bound(b, c, n, level, -1), abs=2e-6)
    assert estimate.high == pytest.approx(reference.tango_bound(b, c, n, level, 1), abs=2e-6)
    mirrored = paired.tango(c, b, n, level=level)
    assert (-mirrored.high, -mirrored.low) == pytest.approx((estimate.low, estimate.high), abs=1e-9)


def test_tango_where_all_problems_sit_in_one_cell():
    z2 = 1.959964**2
    none = paired.tango(0, 0, 100)
    assert (none.low, none.high) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)), rel=1e-5)
    all_a = paired.tango(100, 0, 100)
    assert (all_a.low, all_a.value, all_a.high) == pytest.approx(((100 - z2) / (100 + z2), 1, 1), rel=1e-5)
    assert paired.tango(0, 100, 100).low == -1
    assert math.isnan(paired.tango(0, 0, 0).value)
    with pytest.raises(DataError, match="at most n = 3"):
        paired.tango(2, 2, 3)


def test_pairing_is_worth_its_factor():
    a, b = outcomes(225, 25, 25, 225)  # 500 problems, both at 50 %, 10 % discordant
    estimate = paired.paired_difference(a, b, seed=0)
    half = (estimate.high - estimate.low) / 2
    assert half / 1.96 == pytest.approx(math.sqrt(50) / 500, rel=0.04)  # 0.0141, Tango's a little wider
    single = wilson(250, 500)
    unpaired = math.hypot(*[(single.high - single.low) / 2 / 1.96] * 2)
    assert unpaired == pytest.approx(0.0316, rel=0.01)


def test_interval_covers_under_the_null_and_under_a_difference():
    rng = np.random.default_rng(0)
    for truth, shares, num in ((0.0, [0.45, 0.05, 0.05, 0.45], 2000), (0.06, [0.5, 0.08, 0.02, 0.4], 700)):
        draws = rng.multinomial(500, shares, size=num)
        covered = {(b, c): paired.tango(b, c, 500) for _, b, c, _ in draws.tolist()}
        found = [covered[b, c] for _, b, c, _ in draws.tolist()]
        assert 0.93 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.97


def test_several_samples_bootstrap_the_problems():
    rng = np.random.default_rng(0)
    rates = rng.beta(2, 2, 200)[:, None]
    a = torch.from_numpy(rng.random((200, 4)) < np.clip(rates + 0.1, 0, 1))
    b = torch.from_numpy(rng.random((200, 4)) < rates)
    estimate = paired.paired_difference(a, b, seed=1)
    assert estimate.method == "item_bootstrap"
    assert estimate.n == 200
    differences = (a.double().mean(1) - b.double().mean(1)).numpy()
    assert estimate.value == pytest.approx(differences.mean())
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * differences.std() / math.sqrt(200), rel=0.05)
    copied = paired.paired_difference(a.repeat(1, 4), b.repeat(1, 4), seed=1)
    assert (copied.low, copied.high) == pytest.approx((estimate.low, estimate.high))
    swapped = paired.paired_difference(b, a, seed=1)
    assert swapped.value == pytest.approx(-estimate.value)


def test_equal_differences_do_not_claim_certainty():
    same = torch.ones(30, 4, dtype=torch.bool)
    estimate = paired.paired_difference(same, same, seed=0)
    assert (estimate.method, estimate.value) == ("tango", 0.0)
    assert estimate.high > 0.1


def test_counts_over_a_common_denominator():
    a = torch.tensor([[True, False], [True, True]])
    b = torch.tensor([[True, False, False], [True, True, False]])
    counts, scale = paired.difference_counts(a, b)
    assert scale == 6
    assert counts.tolist() == [1, 2]  # 3/6 - 2/6, 6/6 - 4/6
    table = paired.cells(a, b)
    assert sum(table) == pytest.approx(2)
    assert table.both_right == pytest.approx(1 / 6 + 2 / 3)


def test_misaligned_rows_are_refused():
    with pytest.raises(ShapeError, match="received 3 and 2 rows"):
        paired.paired_difference(torch.ones(3, 1).bool(), torch.ones(2, 1).bool(), seed=0)
