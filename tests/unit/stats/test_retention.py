"""What the base solved and what it did not, apart."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck.errors import DataError
from limbeck.stats.retention import retention, solved
from limbeck.stats.seeds import mean_over_seeds


def test_kept_and_gained_add_up_to_the_accuracy():
    rng = np.random.default_rng(0)
    base = (rng.random(200) < 0.6).astype(float)
    arm = (rng.random((200, 3)) < 0.7).astype(float)
    found = retention(base, arm)
    share = solved(base).mean()
    assert share * found.kept.value + (1 - share) * found.gained.value == pytest.approx(arm.mean())
    assert found.kept == mean_over_seeds(arm[base > 0])
    assert found.kept.n + found.gained.n == 200


def test_the_base_itself_keeps_all_and_gains_nothing():
    base = np.repeat([1.0, 0.0], 20)
    found = retention(base, base[:, None])
    assert (found.kept.value, found.gained.value) == (1.0, 0.0)
    assert found.kept.low < 1.0 < 1.0 + found.gained.high  # Wilson's: never a width of 0


def test_more_than_half_of_the_samples_are_solved():
    assert solved(np.array([0.0, 0.5, 0.75, 1.0])).tolist() == [False, False, True, True]


def test_a_side_without_problems_is_undefined_and_other_problems_are_refused():
    found = retention(np.ones(4), np.ones((4, 2)))
    assert found.kept.value == 1.0
    assert found.gained.reason == "fewer than 2 problems"
    with pytest.raises(DataError, match="received 3 and 4"):
        retention(np.ones(4), np.ones((3, 1)))
