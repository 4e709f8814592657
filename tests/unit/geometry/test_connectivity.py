"""Barriers with known shape, their intervals, and paths whose ends are the arms themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.reference import geometry as reference
from tests.unit.geometry.factories import arm, dense

from limbeck.errors import ConfigError, DataError
from limbeck.geometry.connectivity import barrier, interpolate

GRID = [0, 0.25, 0.5, 0.75, 1]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def noise(points: int, items: int) -> torch.Tensor:
    return torch.randn(points, items, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_quadratic_loss_has_its_closed_form_excess():
    """L(a) = h/2 (a - c)^2 lies below its chord by h/2 a(1-a): -h/8 at the middle, for any minimum c."""
    path = np.array(GRID)
    curve = 3.0 / 2 * (path - 0.2) ** 2
    found = barrier(GRID, torch.from_numpy(np.repeat(curve[:, None], 40, axis=1)), rng=rng())
    assert found.midpoint.value == pytest.approx(-3 / 8)
    assert found.maximum.value == pytest.approx(-3 / 2 * 0.25 * 0.75)
    assert not found.worse_than_ends


def test_equals_the_reference_on_noisy_items_and_swaps_with_its_ends():
    losses = noise(5, 60)
    found = barrier(GRID, losses, rng=rng())
    excess = reference.excess(np.array(GRID), losses.numpy().mean(1))
    assert found.midpoint.value == pytest.approx(excess[2])
    assert found.maximum.value == pytest.approx(excess[1:-1].max())
    assert found.curve == pytest.approx(losses.numpy().mean(1))
    mirrored = barrier(GRID, losses.flip(0), rng=rng())
    assert mirrored.midpoint.value == pytest.approx(found.midpoint.value)
    assert mirrored.curve == pytest.approx(found.curve[::-1])


def test_weights_make_the_mean_token_weighted():
    losses, tokens = noise(3, 40), torch.arange(1.0, 41.0)
    found = barrier([0, 0.5, 1], losses, rng=rng(), weights=tokens)
    expected = np.average(losses.numpy(), axis=1, weights=tokens.numpy())
    assert found.curve == pytest.approx(expected)
    assert found.midpoint.value == pytest.approx(expected[1] - (expected[0] + expected[2]) / 2)


def test_a_score_is_reversed_so_that_a_dip_is_a_barrier():
    accuracy = torch.tensor([[0.8], [0.3], [0.6]]).expand(3, 50)
    found = barrier([0, 0.5, 1], accuracy, rng=rng(), higher_is_better=True)
    assert found.midpoint.value == pytest.approx(0.4)
    assert found.worse_than_ends
    assert found.curve == pytest.approx((0.8, 0.3, 0.6))


def test_a_steady_rise_is_no_barrier_and_not_worse_than_its_worse_end():
    """Ends 2.25 and 8.64, 3.82 and 7.06 between: below the chord at the middle, nowhere above the worse end."""
    curve = torch.tensor([2.25, 3.0, 3.82, 7.06, 8.64], dtype=torch.float64)
    found = barrier(GRID, curve.unsqueeze(1).expand(5, 30), rng=rng())
    assert found.midpoint.value == pytest.approx(3.82 - (2.25 + 8.64) / 2)
    assert found.midpoint.value < -1.6
    assert found.maximum.value == pytest.approx(7.06 - (0.25 * 2.25 + 0.75 * 8.64))
    assert not found.worse_than_ends


def test_intervals_cover_the_truth_and_pair_the_points():
    """An offset that an item carries at every alpha cancels: pairing leaves the noise of the excess only."""
    generator = np.random.default_rng(7)
    covered, widths = 0, []
    for _ in range(200):
        item = generator.normal(0, 10, 50)
        losses = item + generator.normal(0, 1, (3, 50)) + np.array([[0.0], [1.0], [0.0]])
        found = barrier([0, 0.5, 1], torch.from_numpy(losses), rng=generator, draws=400).midpoint
        covered += found.low <= 1.0 <= found.high
        widths.append(found.high - found.low)
    assert 0.88 <= covered / 200 <= 0.99
    assert np.mean(widths) == pytest.approx(2 * 1.96 * math.sqrt(1.5 / 50), rel=0.1)


def test_the_maximum_stays_inside_its_own_interval():
    """The bootstrap maximum is biased upwards; its interval is widened to contain the point."""
    for seed in range(20):
        losses = torch.randn(11, 30, generator=torch.Generator().manual_seed(seed))
        found = barrier(np.linspace(0, 1, 11).tolist(), losses, rng=rng(), draws=200).maximum
        assert found.low <= found.value <= found.high


def test_few_items_and_bad_paths():
    few = barrier(GRID, noise(5, 29), rng=rng())
    assert few.midpoint.reason == few.maximum.reason == "too_few_items"
    assert math.isnan(few.midpoint.value)
    assert len(few.curve) == 5
    for path in ([0, 1], [0, 0.4, 1], [0.1, 0.5, 1], [0, 0.5, 0.5, 1], [0, 0.5, 0.9]):
        with pytest.raises(ConfigError, match=r"ascending alphas from 0 to 1 with 0\.5 among them"):
            barrier(path, noise(len(path), 40), rng=rng())
    with pytest.raises(DataError, match="one row per alpha = 5, received 3"):
        barrier(GRID, noise(3, 40), rng=rng())
    with pytest.raises(DataError, match="must be finite, received 1 "):
        barrier(
            [0, 0.5, 1],
            torch.full((3, 40), 1.0).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan)),
            rng=rng(),
        )


def test_same_seed_same_interval_and_global_state_untouched():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    one, other = (barrier(GRID, noise(5, 40), rng=np.random.default_rng(3)) for _ in range(2))
    assert one == other
    assert (np.random.get_state()[1] == before).all()


def test_a_path_is_straight_between_updates_and_ends_at_the_arms():
    x, y = arm("x", 1), arm("y", 2, rank=5)
    for alpha in (0.25, 0.5):
        point = dense(interpolate(x, y, alpha))
        for module, (one, other) in {m: (dense(x)[m], dense(y)[m]) for m in point}.items():
            np.testing.assert_allclose(point[module], (1 - alpha) * one + alpha * other, rtol=1e-5, atol=1e-9)
    assert interpolate(x, y, 0.5).modules["model.layers.0.self_attn.q_proj"].left.shape[1] == 17
    for alpha, end in ((0, x), (1, y)):
        exact = interpolate(x, y, alpha)
        assert all(torch.equal(exact.modules[m].left, end.modules[m].left) for m in end.modules)
    with pytest.raises(ConfigError, match=r"alpha must lie in \[0, 1\], received 1.5"):
        interpolate(x, y, 1.5)
