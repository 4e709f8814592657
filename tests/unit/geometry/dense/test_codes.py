"""Stored codes: what counts as changed, the masks, and the rounding null against a simulation of what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.unit.geometry.dense.factories import moved, save, weights

from limbeck.errors import ConfigError
from limbeck.geometry.dense import codes
from limbeck.geometry.dense.checkpoints import open_checkpoint
from limbeck.geometry.dense.entries import entry_cells, ground_of, see
from limbeck.geometry.dense.suite import measure


def test_different_codes_are_what_the_published_tolerance_calls_changed():
    """abs(a - b) > 1e-3 max(abs(a), abs(b)) for every neighbor of every finite bf16 value, zeros and signs included."""
    values = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    values = values[torch.isfinite(values)]
    for shift in (0, 1, 5, len(values) // 2):
        other = values.roll(shift)
        a, b = values.double(), other.double()
        expected = ((a - b).abs() > 1e-3 * torch.maximum(a.abs(), b.abs())).numpy()
        one, two = codes.codes(values, torch.bfloat16), codes.codes(other, torch.bfloat16)
        assert np.array_equal(codes.changed(one, two), expected)
        assert codes.count_changed(one, two) == expected.sum()


def test_changes_are_counted_across_chunks(monkeypatch):
    monkeypatch.setattr(codes, "CHUNK", 64)
    generator = np.random.default_rng(0)
    one = generator.integers(-32768, 32767, 1000, dtype=np.int16)
    two = np.where(generator.random(1000) < 0.3, one ^ 1, one).astype(np.int16)
    assert codes.count_changed(one, two) == (one != two).sum()


@pytest.mark.parametrize("grid", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_what_is_not_finite_is_seen_in_either_and_nothing_else(grid, bad, where, monkeypatch):
    monkeypatch.setattr(codes, "CHUNK", 32)
    values = torch.randn(2, 300, generator=torch.Generator().manual_seed(2)).to(grid)
    values[:, 7] = torch.finfo(grid).max
    assert codes.tally(*(codes.codes(row, grid) for row in values), grid)[1]
    values[where, 200] = bad
    assert not codes.tally(*(codes.codes(row, grid) for row in values), grid)[1]


@pytest.mark.parametrize("shape", [(37, 51), (5, 7), (600, 300)])
def test_the_largest_entries_are_exactly_as_many_as_asked(shape):
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(shape[0], 6, generator=generator), torch.randn(6, shape[1], generator=generator)
    size = (left @ right).abs().flatten()
    mask = torch.from_numpy(np.unpackbits(codes.largest(left, right, 0.3), count=len(size)).astype(bool))
    assert int(mask.sum()) == round(0.3 * len(size))
    assert size[mask].min() >= size[~mask].max() * (1 - 1e-6)


def test_ties_keep_their_order():
    mask = np.unpackbits(codes.largest(torch.ones(4, 1), torch.ones(1, 5), 0.3), count=20)
    assert mask.tolist() == [1] * 6 + [0] * 14


@pytest.mark.parametrize("scale", [2e-6, 3e-5, 1e-3])
@pytest.mark.parametrize("grid", [torch.bfloat16, torch.float16])
def test_the_rounding_null_is_what_rounding_does(scale, grid):
    """Density and visible energy of simulated Gaussian steps, and the step found back from either."""
    generator = torch.Generator().manual_seed(1)
    base = (torch.randn(400, 300, generator=generator) * 0.02).to(grid)
    after = (base.double() + scale * torch.randn(base.shape, generator=generator, dtype=torch.float64)).to(grid)
    seen = see(base, after, ground_of(base, grid))
    counts = codes.histogram(codes.codes(base, grid))
    density = seen.changed / base.numel()
    assert codes.match_density(counts, density, grid, on_grid=True).scale == pytest.approx(scale, rel=0.1)
    found = codes.match_energy(counts, seen.total, grid, stored=True)
    assert found.scale == pytest.approx(scale, rel=0.05)
    assert found.visible @ counts / counts.sum() == pytest.approx(density, rel=0.03)


@pytest.mark.parametrize("shape", [(61, 43), (500,), (6, 4, 3)])
def test_sums_are_those_of_every_entry(shape, monkeypatch):
    """Against shares looked up entry by entry; the low mask ends inside a code, whose ties count with their share."""
    monkeypatch.setattr(codes, "CHUNK", 256)
    generator = torch.Generator().manual_seed(2)
    base = (torch.randn(shape, generator=generator) * 0.02).bfloat16()
    after = (base.double() + 3e-5 * torch.randn(shape, generator=generator).double()).bfloat16()
    inside = (torch.rand(base.numel(), generator=generator) < 0.3).numpy()
    ground = ground_of(base, torch.bfloat16, np.packbits(inside))
    seen = see(base, after, ground)
    magnitude = base.view(torch.int16).numpy().ravel() & 0x7FFF
    differ = (base != after).numpy().ravel()
    squares = (after.double() - base.double()).square().numpy().ravel()
    share = ground.low[magnitude]
    if len(shape) == 2:
        assert ((share > 0) & (share < 1)).any()
    assert share.sum() == pytest.approx(0.3 * base.numel())
    assert (seen.changed, seen.total) == (differ.sum(), pytest.approx(squares.sum()))
    assert seen.low == pytest.approx((differ @ share, squares @ share))
    assert seen.principal == pytest.approx(((differ & inside).sum(), squares @ inside))
    assert np.array_equal(ground.principal_counts, np.bincount(magnitude[inside], minlength=1 << 15))
    grid = differ.reshape(shape[0], -1)
    assert seen.rows == pytest.approx(grid.mean(1))
    assert seen.columns == pytest.approx(grid.mean(0))
    assert seen.within["sparsity_abs", 5] == (np.sqrt(squares) <= 1e-5).sum()


def test_sparsity_alone_is_that_of_the_suite(tmp_path):
    base = weights()
    opened = [open_checkpoint(save(tmp_path / n, t)) for n, t in (("base", base), ("a", moved(base, 1)))]
    wide = open_checkpoint(save(tmp_path / "b", moved(base, 2), dtype=torch.float32))
    whole = measure(opened[0], [opened[1], wide], ks=(1,), nulls="none", pairs=False, workers=1)
    alone = measure(opened[0], [opened[1], wide], only="sparsity")
    wanted = [r for r in whole if r.metric == "sparsity_visible"]
    assert [(r.aggregation, r.module, r.layer, r.kind, r.arm, r.delta_kind) for r in alone] == [
        (r.aggregation, r.module, r.layer, r.kind, r.arm, r.delta_kind) for r in wanted
    ]
    assert [r.value for r in alone] == pytest.approx([r.value for r in wanted], rel=1e-12)
    assert {r.null.id for r in alone} == {""}
    with pytest.raises(ConfigError, match="only must be one of sparsity"):
        measure(opened[0], opened[1:], only="ranks")


def test_the_null_of_fp32_weights_knows_where_in_their_cells_they_lie():
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(400, 300, generator=generator) * 0.02
    after = base + 1e-5 * torch.randn(base.shape, generator=generator)
    ground = ground_of(base, torch.bfloat16)
    assert not ground.on_grid
    cells = {
        c.key.metric: c for c in entry_cells("a", see(base, after, ground), ground, stored=False, kind="dense_fp32")
    }
    row = cells["mask_overlap_low"]
    assert row.value == pytest.approx(row.null.mean, rel=0.01)


def test_fp16_and_mixed_storage_are_labeled(tmp_path):
    base = weights()
    one = open_checkpoint(save(tmp_path / "base", base))
    for dtype, kind, shown in (
        (torch.float16, "fp16_visible", "fp16_visible"),
        (torch.float32, "dense_fp32", "bf16_visible"),
        (torch.bfloat16, "bf16_visible", "bf16_visible"),
    ):
        other = open_checkpoint(save(tmp_path / kind, moved(base, 1), dtype=dtype))
        rows = measure(one, [other], ks=(1,), nulls="none", workers=1)
        assert {r.delta_kind for r in rows if r.metric == "stable_rank"} == {kind}
        assert {r.delta_kind for r in rows if r.metric == "sparsity_visible"} == {shown}
