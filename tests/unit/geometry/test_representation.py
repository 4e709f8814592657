"""CKA against the closed form, in any chunking, without padding, and beside its null."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.reference import geometry as reference

from limbeck.errors import ModelError, ShapeError
from limbeck.geometry.representation import StreamingCKA, cka, last_by_row, mean_by_row, row_shuffle_null, select


def states(items: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(items, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream(x: torch.Tensor, y: torch.Tensor, chunk: int, *, debiased: bool) -> float:
    streaming = StreamingCKA()
    for a, b in zip(x.split(chunk), y.split(chunk), strict=True):
        streaming.update(a, b)
    return streaming.value(debiased=debiased).value


@pytest.mark.parametrize("shape", [(12, 30, 20), (60, 7, 9), (30, 7, 40)])
@pytest.mark.parametrize("debiased", [False, True])
def test_equals_the_definition_in_both_forms_and_any_chunking(shape, debiased):
    items, dim, other = shape
    x = states(items, dim, 0) + 5
    y = torch.cat([x[:, :3] * 2, states(items, other - 3, 1)], dim=1)
    expected = (reference.cka_debiased if debiased else reference.cka)(x.numpy(), y.numpy())
    assert cka(x, y, debiased=debiased).value == pytest.approx(expected, abs=1e-10)
    for chunk in (1, 5, items):
        assert stream(x, y, chunk, debiased=debiased) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("items", [20, 80])
@pytest.mark.parametrize("debiased", [False, True])
def test_ignores_rotation_scale_shift_and_order(items, debiased):
    x, y = states(items, 30, 0), states(items, 30, 0) + states(items, 30, 1)
    rotation = torch.linalg.qr(states(30, 30, 2)).Q
    order = torch.randperm(items, generator=torch.Generator().manual_seed(3))
    value = cka(x, y, debiased=debiased).value
    for z in (x @ rotation, 1e-3 * x, x + 100 * states(1, 30, 4)):
        assert cka(z, y, debiased=debiased).value == pytest.approx(value, abs=1e-9)
    assert cka(x[order], y[order], debiased=debiased).value == pytest.approx(value, abs=1e-12)
    assert cka(x, x, debiased=debiased).value == pytest.approx(1, abs=1e-12)


def test_a_weight_cosine_without_centring_would_fail_the_shift():
    """The faulty form, kept to show that the test above can fail."""
    x, y = states(40, 10, 0), states(40, 10, 1)

    def uncentred(x, y):
        return ((x.T @ y).square().sum() / (x.T @ x).norm() / (y.T @ y).norm()).item()

    assert abs(uncentred(x + 3, y) - uncentred(x, y)) > 0.05


def test_outlying_channels_do_not_cancel():
    x, y = states(200, 16, 0), states(200, 16, 1)
    value = stream(x, y, 50, debiased=True)
    huge = 1e6 * torch.ones(1, 16, dtype=torch.float64)
    assert stream(x + huge, y - huge, 50, debiased=True) == pytest.approx(value, abs=1e-8)


def test_independent_states_score_their_bias_and_debiased_nothing():
    """Biased CKA of independent Gaussian states is about dim / (items + dim), however unrelated the models."""
    x, y = states(100, 400, 0), states(100, 400, 1)
    assert cka(x, y, debiased=False).value == pytest.approx(400 / 500, abs=0.01)
    assert cka(x, y, debiased=True).value == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("debiased", [False, True])
def test_row_shuffle_null_is_what_independent_states_score(debiased):
    x, y = states(50, 80, 0), states(50, 80, 0)
    null = row_shuffle_null(x, y, debiased=debiased, rng=np.random.default_rng(0))
    independent = np.mean(
        [cka(states(50, 80, s), states(50, 80, s + 100), debiased=debiased).value for s in range(1, 40)]
    )
    assert null.id == "row-shuffle"
    assert null.mean == pytest.approx(independent, abs=0.02)
    assert null.q05 <= null.mean <= null.q95
    assert null.q95 < cka(x, y, debiased=debiased).value


def test_padding_never_enters():
    hidden, mask = states(12, 2, 0).reshape(3, 4, 2), torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]]).bool()
    padded = torch.cat([hidden, torch.full((3, 5, 2), math.nan)], dim=1)
    wider = torch.cat([mask, torch.zeros(3, 5, dtype=torch.bool)], dim=1)
    for take in (select, mean_by_row, last_by_row):
        assert torch.equal(take(padded, wider), take(hidden, mask))
    assert torch.equal(select(hidden, mask), torch.cat([hidden[0, :3], hidden[1, 1:], hidden[2, :1]]))
    assert torch.equal(last_by_row(hidden, mask), torch.stack([hidden[0, 2], hidden[1, 3], hidden[2, 0]]))
    torch.testing.assert_close(mean_by_row(hidden, mask)[0], hidden[0, :3].mean(0))


def test_undefined_is_nan_with_a_reason():
    x = states(3, 5, 0)
    assert cka(x, x, debiased=True).reason == "too_few_items"
    assert StreamingCKA().value(debiased=True).reason == "too_few_items"
    constant, moving = states(1, 5, 0).expand(9, 5) * 0.1, states(9, 5, 1)
    for debiased in (False, True):
        assert cka(constant, moving, debiased=debiased).reason == "zero_norm"
        assert row_shuffle_null(constant, moving, debiased=debiased, rng=np.random.default_rng(0)).id == ""
    assert cka(constant[:, :2].repeat(2, 1), moving[:, :2].repeat(2, 1), debiased=False).reason == "zero_norm"
    with pytest.raises(ShapeError, match="one state per item, received 9 and 8 rows"):
        cka(moving, moving[1:], debiased=True)
    with pytest.raises(ModelError, match="hidden states must be finite, received 45 NaN"):
        cka(moving * math.nan, moving, debiased=True)
    with pytest.raises(ShapeError, match="received 1 rows without"):
        mean_by_row(states(4, 3, 0).reshape(2, 2, 3), torch.tensor([[True, False], [False, False]]))
