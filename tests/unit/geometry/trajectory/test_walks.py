"""The nulls of a run's course against planted truths: a walk scores at its null, what persists and what is early does not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.reference import geometry as reference

from limbeck.geometry.dense.decompose import decompose
from limbeck.geometry.trajectory import walks
from limbeck.geometry.trajectory.course import Name, course, summed, values

SIDES = [(side, k, other) for side in ("left", "right") for k in (4, 8) for other in ("end", "previous")]
NAMES = [Name("sim_k", *labels) for labels in SIDES] + [Name("stable_rank"), Name("participation")]
LEFT = Name("sim_k", "left", 8, "end")
STEPS, SHAPE = 5, (80, 64)


def decomposed(increments, k=16):
    return [decompose(torch.from_numpy(increment), min(k, *increment.shape)) for increment in increments]


def low_rank(rng, rank=10, shape=SHAPE, fixed=None):
    """One increment of graded spectrum in new directions, or with the given columns on the left."""
    left, right = (np.linalg.qr(rng.standard_normal((n, rank)))[0] for n in shape)
    if fixed is not None:
        left[:, : fixed.shape[1]] = fixed
    return left * 0.8 ** np.arange(rank) @ right.T


def null_of(increments, draws=40, seed=1, rows=None):
    spectra, rng = decomposed(increments), np.random.default_rng(seed)
    return np.stack([values(course(summed(walks.walk(spectra, rows, rng), 16)), NAMES, STEPS) for _ in range(draws)])


def observed(increments):
    return values(course(decomposed(list(np.cumsum(increments, axis=0)))), NAMES, len(increments))


def exchanged(increments, draws=120, seed=2, in_place=False):
    cores = walks.cores(decomposed(increments))
    orders = walks.orders(len(increments), draws, np.random.default_rng(seed))
    return np.stack([
        values(course(summed(walks.reordered(cores, order, in_place=in_place), 16)), NAMES, len(increments))
        for order in orders
    ])  # fmt: skip


@pytest.mark.parametrize("shape", [SHAPE, (24, 20)], ids=["reduced", "whole"])
def test_the_walk_is_the_one_drawn_in_full(shape):
    """Coordinates of the joint span change nothing: means agree with a float64 walk of whole matrices, statistic by statistic."""
    rng = np.random.default_rng(0)
    increments = [low_rank(rng, shape=shape) for _ in range(STEPS)]
    drawn = null_of(increments)
    truth = []
    for _ in range(40):
        sums = reference.walk(increments, rng)
        sims = [
            [reference.sim_k(a, b, side, k) if b is not None else np.nan for a, b in zip(sums, others, strict=True)]
            for side, k, other in SIDES
            for others in [[sums[-1]] * (STEPS - 1) + [None] if other == "end" else [None, *sums[:-1]]]
        ]
        spectra = [np.linalg.svd(m, compute_uv=False) for m in sums]
        ranks = [[reference.spectral(s[s > 1e-9], m, 0) for s in spectra] for m in ("stable_rank", "participation")]
        truth.append(sims + ranks)
    truth = np.array(truth)
    spread = np.sqrt(truth.var(0) / 40 + drawn.var(0) / 40) + 1e-6
    distance = np.abs(truth.mean(0) - drawn.mean(0)) / spread
    assert np.nanmax(distance) < 5
    assert np.nanmean(distance) < 1.5


def test_a_random_walk_scores_at_both_nulls():
    rng = np.random.default_rng(3)
    outside = {"walk": [], "exchange": []}
    for _ in range(2):
        increments = [low_rank(rng) for _ in range(STEPS)]
        seen = observed(increments)
        for name, draws in (("walk", null_of(increments, 30)), ("exchange", exchanged(increments, 40))):
            low, high = np.quantile(np.nan_to_num(draws), (0.05, 0.95), axis=0)
            known = np.isfinite(seen) & (high - low > 1e-9)
            outside[name].append(((seen < low - 1e-6) | (seen > high + 1e-6))[known].mean())
    assert np.mean(outside["walk"]) < 0.3  # a tenth is expected
    assert np.mean(outside["exchange"]) < 0.3


def test_the_floor_of_a_walk_is_not_k_over_n():
    rng = np.random.default_rng(4)
    increments = [low_rank(rng) for _ in range(STEPS)]
    mean = null_of(increments)[:, NAMES.index(LEFT)].mean(0)
    assert np.all(np.diff(mean[: STEPS - 1]) > 0)
    assert mean[0] > 2 * 8 / SHAPE[0]


def test_directions_that_persist_are_above_the_walk():
    rng = np.random.default_rng(5)
    fixed = np.linalg.qr(rng.standard_normal((SHAPE[0], 3)))[0]
    increments = [low_rank(rng, fixed=fixed) for _ in range(STEPS)]
    seen, drawn = observed(increments)[NAMES.index(LEFT)], null_of(increments)[:, NAMES.index(LEFT)]
    assert np.all(seen[: STEPS - 1] > np.quantile(drawn, 0.95, axis=0)[: STEPS - 1])


def test_steady_drift_is_above_the_walk_and_within_the_exchange():
    rng = np.random.default_rng(6)
    drift = low_rank(rng, rank=40)
    increments = [drift + 0.05 * low_rank(rng, rank=40) for _ in range(STEPS)]
    seen = observed(increments)[NAMES.index(LEFT)][: STEPS - 1]
    assert np.all(seen > np.quantile(null_of(increments, 20)[:, NAMES.index(LEFT)], 0.95, axis=0)[: STEPS - 1])
    low, high = np.quantile(exchanged(increments)[:, NAMES.index(LEFT)], (0.02, 0.98), axis=0)[:, : STEPS - 1]
    own = values(course(summed(walks.cores(decomposed(increments)), 16)), NAMES, STEPS)[NAMES.index(LEFT)]
    assert np.all((own[: STEPS - 1] >= low) & (own[: STEPS - 1] <= high))


def test_early_increments_that_are_special_are_above_the_exchange():
    """The first two increments decide where the update ends; later ones are small and elsewhere."""
    rng = np.random.default_rng(7)
    increments = [low_rank(rng, rank=8) * size for size in (1.0, 1.0, *[0.15] * 6)]
    seen, drawn = observed(increments)[NAMES.index(LEFT)], exchanged(increments)[:, NAMES.index(LEFT)]
    assert seen[1] > np.quantile(drawn[:, 1], 0.95)
    assert seen[1] > 0.9


def test_a_falling_rate_is_above_the_exchange_and_within_that_of_directions():
    """A random walk whose steps get shorter: its early increments are longer and nothing else."""
    rng, above = np.random.default_rng(10), []
    for _ in range(3):
        increments = [low_rank(rng) * size for size in (1.0, 0.9, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1)]
        seen = observed(increments)[NAMES.index(LEFT)][2]
        draws = [exchanged(increments, 30, in_place=way)[:, NAMES.index(LEFT), 2] for way in (False, True)]
        above.append([seen > np.quantile(one, 0.95) for one in draws])
    plain, level = np.mean(above, axis=0)
    assert plain == 1
    assert level < 0.5


def test_a_cut_spectrum_walks_with_an_isotropic_rest():
    """Gaussian increments known in 16 of 64 directions walk as the whole ones do."""
    rng = np.random.default_rng(8)
    increments = [rng.standard_normal(SHAPE) for _ in range(STEPS)]
    whole = null_of(increments)[:, NAMES.index(LEFT)].mean(0)
    cut = [s._replace(values=s.values[:16], exactness="ritz") for s in decomposed(increments)]
    drawn = [values(course(summed(walks.walk(cut, None, rng), 16)), NAMES, STEPS) for _ in range(30)]
    assert np.allclose(np.mean(drawn, 0)[NAMES.index(LEFT)][: STEPS - 1], whole[: STEPS - 1], atol=0.06)
    assert walks.lost(cut) == pytest.approx(
        1 - sum(float(s.values.square().sum()) for s in cut) / sum(s.energy for s in cut)
    )


def test_an_adapter_walks_in_its_row_space():
    """A fixed, B a random walk: on the right a walk in all of R^n is beaten by construction, one in the row space is not."""
    rng = np.random.default_rng(9)
    rank, name = 12, Name("sim_k", "right", 8, "end")
    right = np.linalg.qr(rng.standard_normal((SHAPE[1], rank)))[0].T
    lefts = np.cumsum([rng.standard_normal((SHAPE[0], rank)) for _ in range(STEPS)], axis=0)
    increments = [lefts[0] @ right, *((b - a) @ right for a, b in pairwise(lefts))]
    seen = observed(increments)[NAMES.index(name)][: STEPS - 1]
    free = null_of(increments)[:, NAMES.index(name)]
    held = null_of(increments, rows=[torch.from_numpy(right.T.copy())] * STEPS)[:, NAMES.index(name)]
    assert np.all(seen > np.quantile(free, 0.95, axis=0)[: STEPS - 1])
    low, high = held.min(0)[: STEPS - 1], held.max(0)[: STEPS - 1]
    assert np.mean((seen >= low - 0.02) & (seen <= high + 0.02)) >= 0.75


def test_an_update_of_nothing_is_undefined_and_says_why():
    zero = [decompose(torch.zeros(20, 16), 4)] * 2
    assert course(zero)[Name("sim_k", "left", 4, "end")][0].reason == "zero_norm"
    small = decomposed([np.ones((6, 5))] * 2)
    assert course(small)[Name("sim_k", "left", 8, "end")][0].reason == "k_gt_dim"
    assert course(small)[Name("sim_k", "left", 4, "end")][0].reason == "rank_lt_k"
