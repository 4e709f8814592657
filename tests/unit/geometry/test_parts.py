"""Planted spectra, angles and cancellations; the faulty forms of peers are kept as controls."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from tests.reference import geometry as reference
from tests.unit.geometry.factories import arm, dense

from limbeck.errors import ConfigError, DataError, DegenerateError, ModelError, ShapeError
from limbeck.geometry import direction, nulls, spectrum, subspace
from limbeck.geometry.delta import check_comparable, combine, place
from limbeck.geometry.table import read_measurements, write_measurements
from limbeck.types import LowRank, Measurement, Null


def frame(dim: int, k: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, k, generator=generator, dtype=torch.float64)).Q


# --- inner products


def test_inner_products_of_many_arms_are_those_of_their_matrices():
    arms = [arm("a", 1), arm("b", 2, rank=5), arm("c", 3, rank=1)]
    flat = [np.concatenate([update.ravel() for update in dense(one).values()]) for one in arms]
    found = direction.inner_products(arms)
    np.testing.assert_allclose(found, np.array(flat) @ np.array(flat).T, rtol=1e-9)
    pairs = zip(arms[0].modules.values(), arms[1].modules.values(), strict=True)
    contacts = [direction.contact_of(x, y) for x, y in pairs]
    assert direction.cosines(found)[0, 1] == pytest.approx(direction.cosine(contacts).value, rel=1e-9)
    assert np.isnan(direction.cosines(np.zeros((2, 2)))).all()


# --- angles


def planted(radians: float, dim: int = 256, k: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Two frames whose k principal angles are all the same."""
    basis = frame(dim, 2 * k, 0)
    x, z = basis[:, :k], basis[:, k:]
    return x, (math.cos(radians) * x + math.sin(radians) * z) @ frame(k, k, 1)


@pytest.mark.parametrize("degrees", [1e-8, 1e-6, 0.001, 0.01, 1, 30, 45, 60, 89, 89.9999999, 90])
def test_planted_angles_are_recovered(degrees):
    found = subspace.principal_angles(*planted(math.radians(degrees)))
    assert found.tolist() == pytest.approx([degrees] * 16, rel=1e-6 if degrees < 1e-3 else 1e-10, abs=1e-13)


def test_the_pure_forms_miss_what_the_hybrid_finds():
    """The cosine of fp32 frames reads a frame against itself as 0.03 degrees or more; the sine alone stops below 90."""
    x = frame(256, 16, 0).float()
    cosines = torch.linalg.svdvals(x.T @ x).clamp(max=1).double()
    assert torch.rad2deg(cosines.acos()).max() > 0.01
    wide = subspace.orthonormal(x)
    assert subspace.principal_angles(wide, wide).max() < 1e-6
    u, v = planted(math.pi / 2)
    u, v = u.float(), v.float()
    sines = torch.linalg.svdvals(v - u @ (u.T @ v)).clamp(max=1).double()
    assert torch.rad2deg(sines.asin()).min() < 89.99


def test_mixed_angles_and_symmetry():
    angles = torch.tensor([0.0, 1e-7, 0.3, 0.8, 1.2, math.pi / 2], dtype=torch.float64)
    basis = frame(40, 12, 0)
    x = basis[:, :6] @ frame(6, 6, 1)
    y = (basis[:, :6] * angles.cos() + basis[:, 6:] * angles.sin()) @ frame(6, 6, 2)
    for found in (subspace.principal_angles(x, y), subspace.principal_angles(y, x)):
        torch.testing.assert_close(found, torch.rad2deg(angles), rtol=1e-6, atol=1e-9)


def test_angles_refuse_what_they_cannot_measure():
    with pytest.raises(ShapeError, match=re.escape("received (8, 2) torch.float64 and (8, 3) torch.float64")):
        subspace.principal_angles(frame(8, 2, 0), frame(8, 3, 0))
    with pytest.raises(ShapeError, match="fp64 frames"):
        subspace.principal_angles(frame(8, 2, 0).float(), frame(8, 2, 0).float())


# --- spectra


def test_core_route_equals_the_dense_decomposition():
    generator = torch.Generator().manual_seed(0)
    update = LowRank(torch.randn(70, 9, generator=generator), torch.randn(9, 50, generator=generator))
    matrix = update.left.double() @ update.right.double()
    found = spectrum.factor(update)
    torch.testing.assert_close(found.left * found.values @ found.right.T, matrix, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.values, torch.linalg.svdvals(matrix)[:9], rtol=1e-10, atol=0)
    torch.testing.assert_close(spectrum.singular_values(update), found.values, rtol=1e-10, atol=0)
    for basis in (found.left, found.right):
        torch.testing.assert_close(basis.T @ basis, torch.eye(9, dtype=torch.float64), atol=1e-13, rtol=0)


def test_flat_and_single_spectra():
    flat, single = torch.ones(6, dtype=torch.float64), torch.tensor([3.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    for rank in (spectrum.stable_rank, spectrum.participation, spectrum.erank_energy, spectrum.erank):
        assert rank(flat).item() == pytest.approx(6)
        assert rank(single).item() == pytest.approx(1)
        assert math.isnan(rank(0 * flat).item())
        assert rank(flat * 1e-170).item() == pytest.approx(6)
    assert math.isnan(spectrum.hill(flat, k=4).item())
    assert math.isnan(spectrum.hill(single, k=4).item())
    assert math.isnan(spectrum.hill(flat[:3], k=4).item())
    assert spectrum.topk_energy(flat, k=2).item() == pytest.approx(1 / 3)
    assert spectrum.topk_energy(flat, k=9).item() == pytest.approx(1)
    with pytest.raises(ConfigError, match="hill needs k >= 2, received 1"):
        spectrum.hill(flat, k=1)


def test_hill_of_pareto_values():
    """Mean a(k-1)/(k-2) and relative sd 1/sqrt(k-3), so about 38 % for one matrix at k = 10."""
    values = np.sort(np.random.default_rng(0).pareto(2.5, (4000, 400)) + 1, axis=1)[:, ::-1].copy()
    found = spectrum.hill(torch.from_numpy(values), k=10)
    assert found.mean().item() == pytest.approx(2.5 * 9 / 8, rel=0.02)
    assert (found.std() / found.mean()).item() == pytest.approx(1 / math.sqrt(7), rel=0.1)


# --- direction


def test_nearly_parallel_arms_keep_their_digits():
    """At f = 1e-6 the form 1 - cos^2 has four digits left in fp64 and none in fp32; the QR-core has all."""
    basis_u, basis_v = frame(60, 8, 0), frame(40, 8, 1)
    x = spectrum.Frames(basis_u[:, :4], torch.tensor([4.0, 3, 2, 1], dtype=torch.float64), basis_v[:, :4])
    tilted = basis_u[:, :4] * math.cos(1e-9) + basis_u[:, 4:] * math.sin(1e-9)
    y = spectrum.Frames(tilted, x.values, x.right)
    found = direction.contact(x, y, x.left.T @ y.left, x.right.T @ y.right)
    assert direction.orthogonal_fraction([found], pooled=True).value == pytest.approx(1e-9, rel=1e-5)
    assert direction.orthogonal_fraction([found, found], pooled=False).value == pytest.approx(1e-9, rel=1e-5)
    naive = math.sqrt(max(0.0, 1 - direction.cosine([found]).value ** 2))
    assert naive != pytest.approx(1e-9, rel=0.5)


def test_signs_by_tiles_equal_the_whole():
    x, y = (arm(n, s).modules["model.layers.0.self_attn.q_proj"] for n, s in (("x", 1), ("y", 2)))
    whole = direction.sign_agreement(x, y)
    tiles = direction.sign_agreement(x, y, rows=7)
    plain, weighted, joint = reference.sign_agreement(*((f.left @ f.right).numpy() for f in (x, y)))
    for found in (whole, tiles):
        assert found.plain == pytest.approx(plain)
        assert found.weighted == pytest.approx(weighted)
        assert found.joint == joint
    with pytest.raises(DegenerateError, match="rows >= 1, received 0"):
        direction.sign_agreement(x, y, rows=0)


def test_the_published_norm_ratio_is_45_percent_of_the_energy():
    found = direction.Contact(0.74, 1.0, 1.0, 1 - 0.74**2, 1 - 0.74**2, 0.0)
    assert direction.orthogonal_fraction([found], pooled=True).value == pytest.approx(0.673, abs=5e-4)
    assert direction.orthogonal_fraction([found], pooled=True).value ** 2 == pytest.approx(0.452, abs=5e-4)


# --- combining and naming


def test_combination_is_exact_and_says_whose_init_it_has():
    x, y = arm("x", 1), arm("y", 2, rank=5)
    both = combine([2.0, -0.5], [x, y], name="both")
    for module, matrix in dense(both).items():
        np.testing.assert_allclose(matrix, 2 * dense(x)[module] - 0.5 * dense(y)[module], rtol=1e-6, atol=1e-9)
    assert both.init_digest == "same"
    assert combine([1.0, 1.0], [x, arm("z", 3, init="other")], name="mix").init_digest == ""
    assert combine([1.0, -1.0], [x, x], name="zero").name == "zero"
    with pytest.raises(ConfigError, match="received 1 weights for 2 deltas"):
        combine([1.0], [x, y], name="both")
    with pytest.raises(ModelError, match="must adapt the same modules"):
        combine([1.0, 1.0], [x, arm("w", 3, shapes={"other": (3, 3)})], name="both")
    check_comparable([x, y])


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.0.mlp.down_proj", 0, "down_proj"),
        ("transformer.h.11.attn.c_attn", 11, "c_attn"),
        ("encoder.block.3.layer.1.DenseReluDense.wo", 3, "wo"),
        ("lm_head", -1, "lm_head"),
        ("model.embed_tokens", -1, "embed_tokens"),
    ],
)
def test_layer_and_kind_are_read_off_the_name(name, layer, kind):
    assert place(name) == (layer, kind)


# --- nulls at published sizes


def test_chance_angles_at_the_sizes_of_the_literature():
    """Chance for unrelated frames at k = 10 in dimensions 1024 and 2560, degrees: computed once with dense frames."""
    rng = np.random.default_rng(0)
    for dim, expected in ((1024, (79.9, 85.4, 89.7)), (2560, (83.6, 87.1, 89.8))):
        found = nulls.isotropic_angles(dim, 10, draws=2000, rng=rng)
        assert [x.mean().item() for x in found[:3]] == pytest.approx(expected, abs=0.1)
        assert found.mean_cos2.mean().item() == pytest.approx(10 / dim, rel=0.02)


def test_a_shared_row_space_of_rank_32_raises_chance_to_0_14():
    rng = np.random.default_rng(0)
    frames = nulls.haar_frames(32, 10, count=1000, rng=rng)
    drawn = nulls.row_overlaps(torch.eye(32, dtype=torch.float64), frames, frames, draws=4000, rng=rng)
    assert drawn[:, 0, 0].abs().mean().item() == pytest.approx(0.141, abs=0.01)
    angles = nulls.row_angles(drawn, k=10)
    assert [x.mean().item() for x in angles[:3]] == pytest.approx((27, 60, 88), abs=1)
    assert angles.mean_cos2.mean().item() == pytest.approx(10 / 32, rel=0.02)


def test_random_factors_at_4096_by_2560():
    """Stable rank 24.84 is the mean of 100 dense draws (standard error 0.04)."""
    values = nulls.random_spectra(4096, 2560, 32, draws=200, rng=np.random.default_rng(0))
    found = [f(values).mean().item() for f in (spectrum.stable_rank, spectrum.participation, spectrum.erank)]
    assert found == pytest.approx([24.84, 31.4, 31.9], abs=0.15)
    assert spectrum.hill(values, k=10).mean().item() == pytest.approx(24, abs=2)


def test_nulls_refuse_impossible_sizes_and_leave_global_state():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    with pytest.raises(ConfigError, match="k must lie between 1 and dim = 4, received 5"):
        nulls.isotropic_angles(4, 5, draws=10, rng=np.random.default_rng(0))
    with pytest.raises(ConfigError, match="positive sizes, received 3 x 0 at rank 2"):
        nulls.random_spectra(3, 0, 2, draws=10, rng=np.random.default_rng(0))
    nulls.isotropic_angles(8, 4, draws=10, rng=np.random.default_rng(0))
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])
    assert nulls.isotropic_overlap(1) == Null(id="N-ISO", mean=1.0, q05=1.0, q95=1.0)


# --- the table


def test_the_table_survives_its_file(tmp_path):
    rows = [
        Measurement(metric="cosine", aggregation="stacked", value=0.5, unit="none", arm="a", other="b"),
        Measurement(
            metric="hill", aggregation="module", value=math.nan, unit="exponent", module="m\u2028", layer=3, k=10,
            null=Null(id="N-ISO", mean=1.0, q05=0.5, q95=2.0), reason="rank_lt_k",
        ),
    ]  # fmt: skip
    for written in (rows, []):
        write_measurements(tmp_path / "measurements.parquet", written)
        assert str(read_measurements(tmp_path / "measurements.parquet")) == str(written)


def test_a_foreign_table_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"metric": ["cosine"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"must have the columns of measurements\.parquet in order"):
        read_measurements(tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="must be a Parquet file of measurements"):
        read_measurements(tmp_path / "broken.parquet")
    with pytest.raises(DataError, match="must be a Parquet file"):
        read_measurements(tmp_path / "absent.parquet")
