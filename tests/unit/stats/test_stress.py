"""Tests and intervals where there is nothing, one of everything, or no doubt at all: numbers in range, or a reason."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from tests.unit.stats.test_compare import arm

from limbeck.errors import DegenerateError
from limbeck.stats import seeds
from limbeck.stats.compare import Arm, compare
from limbeck.stats.intervals import clopper_pearson, item_bootstrap, mean_of_items, ratio_of_items, wilson
from limbeck.stats.multiplicity import benjamini_hochberg, holm
from limbeck.stats.paired import mcnemar_exact, paired_difference, sign_flip, tango
from limbeck.stats.passk import avg_at_k, maj_at_k, pass_at_k
from limbeck.stats.power import smallest_callable
from limbeck.types import Estimate

TABLES = {
    "1 item, right": [[1]],
    "1 item, wrong": [[0]],
    "2 items, all right": [[1], [1]],
    "2 items, all wrong": [[0], [0]],
    "1 item, 3 samples": [[1, 0, 1]],
    "5 items, all right, 3 samples": [[1, 1, 1]] * 5,
    "5 items, all wrong, 3 samples": [[0, 0, 0]] * 5,
    "5 items, the same share": [[1, 0]] * 5,
    "5 items": [[1], [0], [1], [1], [0]],
}


def sound(found: Estimate, low: float = 0.0, high: float = 1.0) -> None:
    if math.isnan(found.value):
        assert found.reason
        return
    assert low <= found.low <= found.value <= found.high <= high


@pytest.mark.parametrize("n", [0, 1, 2, 10_000_000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999999])
def test_intervals_at_the_borders(n, level):
    for count in {0, n}:
        for interval in (wilson, clopper_pearson):
            found = interval(count, n, level=level)
            sound(found)
            if n:
                assert found.value == count / n
                assert found.high > found.low
    if n:
        assert wilson(0, n, level=level).low == 0.0
        assert wilson(n, n, level=level).high == 1.0


@pytest.mark.parametrize("rows", TABLES.values(), ids=list(TABLES))
def test_accuracies(rows):
    table = arm("a", rows)
    for found in (avg_at_k(table), pass_at_k(table, 1), pass_at_k(table, 3), maj_at_k(table)):
        sound(found)
    shares = [sum(row) / len(row) for row in rows]
    sound(mean_of_items(shares))
    sound(item_bootstrap(shares, seed=0, draws=200), -math.inf, math.inf)
    sound(ratio_of_items(shares, [1.0] * len(rows), seed=0, draws=200), -math.inf, math.inf)


@pytest.mark.parametrize("draws", [1, 2])
def test_a_bootstrap_of_hardly_any_draws(draws):
    for values in ([0.0, 1.0], [0.0, 1e-300], [-1e30, 1e30], [0.1, 0.2, 0.3]):
        for seed in range(5):
            for found in (
                item_bootstrap(values, seed=seed, draws=draws),
                ratio_of_items(values, [1.0] * len(values), seed=seed, draws=draws),
            ):
                sound(found, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("one", "other"), [(a, b) for a, b in product(TABLES, TABLES) if len(TABLES[a]) == len(TABLES[b])]
)
def test_pairs_of_tables(one, other):
    a, b = TABLES[one], TABLES[other]
    found = compare([arm("a", a), arm("b", b)])
    json.dumps(found, allow_nan=False)
    (pair,) = found["pairs"]
    assert 0 < pair["p"] <= pair["p_holm"] <= 1
    assert pair["low"] is None or -1 <= pair["low"] <= pair["difference"] <= pair["high"] <= 1
    if a == b:
        assert pair["p"] == 1
        assert not pair["difference"]
    sound(paired_difference(torch.tensor(a, dtype=torch.bool), torch.tensor(b, dtype=torch.bool), seed=0), -1, 1)


def test_no_discordant_problem_is_no_evidence():
    assert mcnemar_exact(0, 0) == 1.0
    assert sign_flip(np.zeros(0, int)) == sign_flip([0, 0, 0]) == 1.0
    assert mcnemar_exact(100_000, 100_000) == 1.0
    assert 0 <= mcnemar_exact(100_000, 0) < 1e-300


@pytest.mark.parametrize("counts", [(0, 0, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 10**6), (10**6, 0, 10**6)])
def test_tango_at_its_corners(counts):
    found = tango(*counts)
    sound(found, -1, 1)
    if counts[2]:
        assert found.high > found.low


GRIDS = {
    "1 problem, 1 seed": np.ones((1, 1)),
    "1 problem, 3 seeds": np.array([[0.0, 1.0, 1.0]]),
    "all right": np.ones((4, 3)),
    "all wrong": np.zeros((4, 3)),
    "identical seeds": np.repeat([[1.0], [0.0], [1.0], [0.0]], 3, axis=1),
    "1 seed": np.array([[1.0], [0.0], [0.0], [1.0]]),
    "seeds that differ alone": np.repeat([[0.0, 1.0, 1.0]], 4, axis=0),
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
def test_grids_of_seeds(grid):
    sound(seeds.mean_over_seeds(grid))
    assert math.isnan(seeds.seed_sd(grid)) or seeds.seed_sd(grid) >= 0
    for number in seeds.disagreement(grid, 1):
        assert math.isnan(number) or 0 <= number <= 1


def several(name, grid):
    columns = [grid[:, s : s + 1].astype(int) for s in range(grid.shape[1])]
    return Arm(name, tuple(arm(f"{name}-{s}", rows, model_digest=f"{name}{s}") for s, rows in enumerate(columns)))


@pytest.mark.parametrize(("one", "other"), list(product(list(GRIDS)[2:], list(GRIDS)[2:])))
def test_arms_of_several_seeds(one, other):
    a, b = (several(name, GRIDS[grid]) for name, grid in (("a", one), ("b", other)))
    found = compare([a, b])
    json.dumps(found, allow_nan=False)
    (pair,) = found["pairs"]
    assert 0 <= pair["p"] <= 1
    assert pair["low"] <= pair["difference"] <= pair["high"]
    if one == other:
        assert pair["p"] == 1


def test_nothing_to_compare_is_a_sentence():
    with pytest.raises(DegenerateError):
        compare([arm("a", []), arm("b", [])])
    assert compare([arm("a", [[1]])])["pairs"] == []
    assert holm([]) == benjamini_hochberg([]) == []
    assert holm([0.0, 1.0]) == [0.0, 1.0]
    assert math.isnan(smallest_callable(0, 0.0).value)
    assert math.isnan(smallest_callable(1, 1.0).value)
