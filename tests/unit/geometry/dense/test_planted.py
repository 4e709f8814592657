"""What was planted is found again, chance is scored as chance, and every number equals a dense float64 reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.reference import geometry as reference
from tests.unit.geometry.dense.factories import SHAPES, moved, save, weights

from limbeck.geometry import METRICS, NULLS, REASONS
from limbeck.geometry.dense import DENSE_METRICS, DENSE_NULLS, DENSE_REASONS
from limbeck.geometry.dense.checkpoints import open_checkpoint
from limbeck.geometry.dense.decompose import decompose, decompose_pair
from limbeck.geometry.dense.krylov import leading
from limbeck.geometry.dense.lapack import leading_eigen
from limbeck.geometry.dense.piece import Record
from limbeck.geometry.dense.relate import _gaussian
from limbeck.geometry.dense.suite import measure
from limbeck.types import Measurement

MATRIX = "model.layers.0.self_attn.q_proj"
KEY = f"{MATRIX}.weight"


def pick(rows: list[Measurement], metric: str, **wanted: object) -> Measurement:
    wanted = {"aggregation": "module", "module": MATRIX, "arm": "a"} | wanted
    found = [r for r in rows if r.metric == metric and all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(found) == 1, (metric, wanted, len(found))
    return found[0]


def run(tmp_path, base, *tuned, dtype=torch.float32, **chosen):
    opened = open_checkpoint(save(tmp_path / "base", base, dtype=dtype))
    others = [
        open_checkpoint(save(tmp_path / name, t, dtype=dtype), name=name) for name, t in zip("abc", tuned, strict=False)
    ]
    return measure(opened, others, **({"ks": (1, 4), "workers": 1} | chosen))


@pytest.fixture(scope="module")
def base():
    return weights()


@pytest.fixture(scope="module")
def arms(base):
    return moved(base, 1), moved(base, 2)


@pytest.fixture(scope="module")
def rows(tmp_path_factory, base, arms):
    return run(tmp_path_factory.mktemp("pair"), base, *arms, nulls="all")


def updates(base, tuned):
    return {name: (tuned[name].double() - base[name].double()).numpy() for name in base}


# --- against dense references ---------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["stable_rank", "participation", "erank_energy", "erank"])
def test_ranks_equal_the_dense_ones(rows, base, arms, metric):
    values = np.linalg.svd(updates(base, arms[0])[KEY], compute_uv=False)
    row = pick(rows, metric)
    assert row.value == pytest.approx(reference.spectral(values[values > 0], metric, 0), rel=1e-3)
    assert (row.exactness, row.delta_kind) == ("gram", "dense_fp32")


@pytest.mark.parametrize(("metric", "k"), [("topk_energy", 1), ("topk_energy", 4), ("hill", 10)])
def test_tails_equal_the_dense_ones(tmp_path, base, metric, k):
    tuned = moved(base, 3, rank=20)
    found = run(tmp_path, base, tuned, nulls="none")
    values = np.linalg.svd(updates(base, tuned)[KEY], compute_uv=False)
    assert pick(found, metric, k=k).value == pytest.approx(reference.spectral(values, metric, k), rel=1e-6)


def test_drift_and_rotation_equal_the_dense_ones(rows, base, arms):
    before, after = base[KEY].double().numpy(), arms[0][KEY].double().numpy()
    one, two = (np.linalg.svd(m, compute_uv=False) for m in (before, after))
    moved_by, length = np.linalg.norm(two - one), np.linalg.norm(after - before)
    assert pick(rows, "nss").value == pytest.approx(moved_by / np.linalg.norm(before), rel=1e-7)
    assert pick(rows, "spectrum_share").value == pytest.approx(moved_by / length, rel=1e-7)
    for side in ("left", "right"):
        angles = reference.angles(before, after, side, 4)
        for which, value in (("smallest", angles[0]), ("median", np.median(angles)), ("largest", angles[-1])):
            assert pick(rows, f"base_angle_{which}", side=side, k=4).value == pytest.approx(value, rel=1e-6)
        found = pick(rows, "base_mean_cos2", side=side, k=4).value
        assert found == pytest.approx(np.mean(np.cos(np.radians(angles)) ** 2), rel=1e-9)


def test_mirsky_bounds_the_drift(rows):
    drift = {r.module: r.value for r in rows if r.metric == "nss" and r.aggregation == "module" and r.arm == "a"}
    norm = {
        r.module: r.value for r in rows if r.metric == "relative_norm" and r.aggregation == "module" and r.arm == "a"
    }
    assert len(drift) == 7
    assert all(0 < drift[name] <= norm[name] for name in drift)


def test_energy_by_block_of_the_base(rows, base, arms):
    before, delta = base[KEY].double().numpy(), updates(base, arms[0])[KEY]
    u, _, vt = np.linalg.svd(before)
    turned = (u.T @ delta @ vt.T) ** 2 / np.sum(delta**2)
    blocks = {"PP": turned[:4, :4], "PQ": turned[:4, 4:], "QP": turned[4:, :4], "QQ": turned[4:, 4:]}
    for side, block in blocks.items():
        row = pick(rows, "principal_energy", side=side, k=4)
        assert row.value == pytest.approx(block.sum(), rel=1e-6)
        assert row.null.mean == pytest.approx(block.size / turned.size)


def test_pairs_equal_the_dense_ones(rows, base, arms):
    x, y = (updates(base, a) for a in arms)
    pair = {"other": "b"}
    cosine = reference.stacked_cosine(list(x.values()), list(y.values()))
    everywhere = {"aggregation": "stacked", "module": "", "kind": "", "layer": -1}
    assert pick(rows, "cosine", **everywhere, **pair).value == pytest.approx(cosine, abs=1e-12)
    fraction = reference.stacked_fraction(list(x.values()), list(y.values()))
    assert pick(rows, "orthogonal_norm_fraction", **everywhere, **pair).value == pytest.approx(fraction, rel=1e-9)
    for side in ("left", "right"):
        angles = reference.angles(x[KEY], y[KEY], side, 4)
        row = pick(rows, "principal_angle_smallest", side=side, k=4, **pair)
        assert row.value == pytest.approx(angles[0], rel=1e-6)
        assert row.null.id == "N-ISO"
        found = pick(rows, "leading_overlap", side=side, k=1, **pair).value
        assert found == pytest.approx(reference.leading_overlap(x[KEY], y[KEY], side), abs=1e-7)
    plain, weighted, _ = reference.sign_agreement(x[KEY], y[KEY])
    assert pick(rows, "sign_agreement", **pair).value == pytest.approx(plain)
    assert pick(rows, "sign_agreement_weighted", **pair).value == pytest.approx(weighted)


def test_the_rotated_cosine_has_the_spread_that_turning_gives(rows, base, arms):
    """N-ROT from leading frames and remainders, against the closed form of the dense matrices."""
    x, y = (updates(base, a)[KEY] for a in arms)
    sd = math.sqrt(reference.rotated_cosine_variance([x], [y]))
    assert pick(rows, "cosine", other="b").null.q95 / 1.6448536 == pytest.approx(sd, rel=1e-6)


def test_leading_eigenvectors_are_those_of_a_full_decomposition():
    generator = np.random.default_rng(0)
    for n in (5, 33, 90):
        x = generator.standard_normal((n + 7, n))
        values, vectors = leading_eigen(np.asfortranarray(x.T @ x), 3)
        full, all_vectors = np.linalg.eigh(x.T @ x)
        assert values == pytest.approx(full[::-1], rel=1e-10)
        assert np.abs(np.sum(vectors * all_vectors[:, ::-1][:, :3], axis=0)) == pytest.approx(np.ones(3), rel=1e-10)


@pytest.mark.parametrize("shape", [(700, 520), (520, 700)])
def test_krylov_finds_the_leading_directions_and_says_how_far_it_is(shape):
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(side, 60, generator=generator, dtype=torch.float64)).Q for side in shape)
    values = 0.9 ** torch.arange(60)
    matrix = (u * values) @ v.T + 1e-4 * torch.randn(shape, generator=generator, dtype=torch.float64)
    found, exact = leading(matrix, None, 20, seed=0), decompose(matrix, 20)
    assert (found.exactness, exact.exactness, found.complete) == ("ritz", "gram", False)
    assert found.values.tolist() == pytest.approx(exact.values[:20].tolist(), rel=1e-3)
    assert 0 < found.residual < 0.01
    gap = torch.linalg.vector_norm(matrix.T @ found.left - found.right * found.values, dim=0) / found.values[0]
    assert found.residual >= gap.max().item() - 1e-9
    assert (found.right[:, :10].T @ exact.right[:, :10]).square().sum().item() / 10 > 0.999


def test_krylov_starts_near_what_is_known_and_does_not_mind_small_numbers():
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(side, 40, generator=generator, dtype=torch.float64)).Q for side in (700, 520))
    matrix = (u * 0.9 ** torch.arange(40)) @ v.T + 1e-3 * torch.randn(
        700, 520, generator=generator, dtype=torch.float64
    )
    cold = leading(matrix, None, 20, seed=0, steps=0)
    warm = leading(matrix, None, 20, seed=0, steps=0, near=v[:, :20])
    assert warm.residual < 0.03 < cold.residual / 3
    tiny = leading(matrix * 1e-25, None, 20, seed=0)
    assert (tiny.values / leading(matrix, None, 20, seed=0).values * 1e25).tolist() == pytest.approx([1.0] * 20)


def test_wide_is_tall_turned(base):
    weight = base[KEY].bfloat16()
    tall, wide = decompose(weight, 5), decompose(weight.T.contiguous(), 5)
    assert wide.values.tolist() == pytest.approx(tall.values.tolist(), rel=1e-12)
    assert (wide.left.abs() - tall.right.abs()).abs().max() < 1e-9
    assert (wide.right.abs() - tall.left.abs()).abs().max() < 1e-9


@pytest.mark.parametrize("shape", [(90, 90), (200, 60)])
def test_spectra_of_chance_are_those_of_gaussian_matrices(shape):
    rng = np.random.default_rng(0)
    drawn = np.mean([np.linalg.svd(rng.standard_normal(shape), compute_uv=False) for _ in range(400)], 0)
    found = np.mean([_gaussian(*shape, rng).values.numpy() for _ in range(400)], 0)
    assert found == pytest.approx(drawn, rel=0.03, abs=0.02)


# --- what was planted -----------------------------------------------------------------------------------------


def test_a_planted_rank_is_found_and_storage_inflates_it(tmp_path, base):
    tuned = moved(base, 5, rank=3, scale=3e-5)
    exact = run(tmp_path / "fp32", base, tuned, nulls="none")
    stored = run(tmp_path / "bf16", base, tuned, dtype=torch.bfloat16, nulls="none")
    assert pick(exact, "topk_energy", k=4).value > 0.999
    assert 1 < pick(exact, "erank_energy").value < 3
    assert pick(stored, "erank_energy").value > 5
    assert pick(stored, "erank_energy").delta_kind == "bf16_visible"


def test_planted_angles_are_found_far_below_the_floor_of_float32():
    """Rotating the leading plane by 1e-5 degrees: the arccos of a float32 cosine reads 0.02 degrees or more here."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(80, 50, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(50, 50, generator=generator, dtype=torch.float64)).Q
    values = torch.linspace(2, 1, 50, dtype=torch.float64)
    values[:2] *= 5
    turned = u.clone()
    angle = math.radians(1e-5)
    turned[:, 0], turned[:, 9] = (
        math.cos(angle) * u[:, 0] + math.sin(angle) * u[:, 9],
        math.cos(angle) * u[:, 9] - math.sin(angle) * u[:, 0],
    )
    from limbeck.geometry.dense.relate import rotation

    one, two = (decompose((frame * values) @ v.T, 2) for frame in (u, turned))
    found = rotation(one, two, (2,), "base_")
    assert found["base_angle_largest", "left", 2].value == pytest.approx(1e-5, rel=1e-3)
    assert found["base_angle_largest", "right", 2].value < 1e-9
    trap = torch.rad2deg(torch.linalg.svdvals(one.left.float().T @ two.left.float()).clamp(max=1).acos()).max()
    assert trap == 0 or trap > 1e-3


def test_planted_sparsity_and_masks_are_counted(tmp_path, base):
    """A step on a known fifth of the smallest entries, large enough for every code to change."""
    tuned = {name: weight.clone() for name, weight in base.items()}
    flat = tuned[KEY].view(-1)
    order = flat.abs().argsort()
    chosen = order[: len(flat) // 5]
    flat[chosen] *= 1.5
    flat[chosen[flat[chosen] == 0]] = 1e-3
    found = run(tmp_path, base, tuned, dtype=torch.bfloat16)
    assert pick(found, "sparsity_visible").value == pytest.approx(1 - len(chosen) / len(flat))
    assert pick(found, "sparsity_abs", k=0).value == pytest.approx(1 - len(chosen) / len(flat))
    assert pick(found, "mask_overlap_low").value == pytest.approx(1.0)
    assert pick(found, "mask_energy_low").value == pytest.approx(1.0)
    assert pick(found, "mask_overlap_low").value > pick(found, "mask_overlap_low").null.mean + 0.1
    everywhere = {"aggregation": "parameter-weighted", "module": "", "kind": "", "layer": -1}
    entries = sum(t.numel() for t in base.values())
    assert pick(found, "sparsity_visible", **everywhere).value == pytest.approx(1 - len(chosen) / entries)


def test_an_update_on_the_principal_entries_is_found_there(tmp_path, base):
    u, s, v = torch.linalg.svd(base[KEY].double(), full_matrices=False)
    size = ((u[:, :6] * s[:6]) @ v[:6]).abs()  # an eighth of 48 directions
    chosen = size >= size.flatten().kthvalue(round(0.9 * size.numel())).values
    tuned = base | {KEY: torch.where(chosen, base[KEY] * 1.25, base[KEY])}
    found = run(tmp_path, base, tuned, dtype=torch.bfloat16, nulls="none")
    visible = pick(found, "sparsity_visible").value
    assert visible == pytest.approx(0.9, abs=0.002)  # but for chosen entries that are zero
    assert pick(found, "mask_overlap_principal").value == pytest.approx(1.0)
    assert pick(found, "mask_overlap_principal").null.mean < 0.5


def test_a_planted_intruder_is_counted_once(tmp_path, base):
    """A direction orthogonal to every left vector of the base, as strong as its fifth."""
    weight = base[KEY].double()
    u, s, v = torch.linalg.svd(weight, full_matrices=True)
    strong = weight + 20 * (u[:, :12] * s[:12]) @ v[:12]  # a decaying spectrum, whose vectors do not mix
    strong += 20 * (u[:, :12] * torch.linspace(1, 0, 12)) @ v[:12]
    planted = strong + u[:, -1:] @ v[-1:] * torch.linalg.svdvals(strong)[4] * 1.05
    found = run(tmp_path, base | {KEY: strong.float()}, base | {KEY: planted.float()}, nulls="none")
    assert pick(found, "intruders").value == 1.0
    assert pick(found, "intruder_capture").value < 0.8
    same = run(tmp_path / "same", base | {KEY: strong.float()}, base | {KEY: (strong * 1.01).float()}, nulls="none")
    assert pick(same, "intruders").value == 0.0
    assert pick(same, "intruder_capture").value == pytest.approx(1.0)


def test_chance_is_scored_as_chance(tmp_path):
    """An isotropic update, rounded: every number with a null lies at it."""
    shapes = {KEY: (512, 256), "model.embed_tokens.weight": (64, 48)}
    base = weights(4, shapes)
    generator = torch.Generator().manual_seed(9)
    tuned = {
        n: (w.double() + 3e-5 * torch.randn(w.shape, generator=generator).double()).bfloat16() for n, w in base.items()
    }
    found = run(tmp_path, base, tuned, dtype=torch.bfloat16, nulls="all")
    for metric, k, margin in (
        ("sparsity_visible", 0, 0.01), ("sparsity_abs", 5, 0.01), ("sparsity_rel", 3, 0.01), ("mask_overlap_low", 0, 0.01),
        ("mask_overlap_principal", 0, 0.02), ("mask_energy_low", 0, 0.05), ("stable_rank", 0, 0.05), ("erank", 0, 0.01),
        ("participation", 0, 0.02), ("nss", 0, 0.15), ("hill", 10, 0.5),
    ):  # fmt: skip
        row = pick(found, metric, k=k)
        assert row.value == pytest.approx(row.null.mean, rel=margin), metric
    for side in ("left", "right"):
        row = pick(found, "density_gini", side=side)
        assert row.value == pytest.approx(row.null.mean, rel=0.15)
        row = pick(found, "base_angle_median", side=side, k=4)
        assert row.value == pytest.approx(row.null.mean, rel=0.6)
    row = pick(found, "principal_energy", side="PQ", k=4)
    assert row.value == pytest.approx(row.null.mean, rel=0.3)


# --- what does not exist, labels, invariance ------------------------------------------------------------------


def test_a_delta_of_zero_has_a_norm_and_reasons(tmp_path, base):
    found = run(tmp_path, base, base, moved(base, 1), dtype=torch.bfloat16, nulls="all")
    for metric, value in (("frobenius_norm", 0.0), ("sparsity_visible", 1.0), ("relative_norm", 0.0), ("nss", 0.0)):
        assert pick(found, metric).value == value
    for metric, side in (("stable_rank", ""), ("erank", ""), ("spectrum_share", ""), ("principal_energy", "PP")):
        row = pick(found, metric, side=side)
        assert math.isnan(row.value)
        assert row.reason == "zero_norm"
    assert pick(found, "mask_overlap_low").reason == "empty_mask"
    assert pick(found, "cosine", other="b").reason == "zero_norm"
    assert pick(found, "principal_angle_median", other="b", side="left", k=4).reason == "zero_norm"
    assert pick(found, "base_angle_largest", side="left", k=4).value == pytest.approx(0, abs=1e-6)


def test_an_arm_with_itself(tmp_path, base):
    tuned = moved(base, 1)
    found = run(tmp_path, base, tuned, tuned)
    assert pick(found, "cosine", other="b").value == pytest.approx(1.0)
    assert pick(found, "principal_angle_largest", other="b", side="left", k=4).value < 1e-6
    assert pick(found, "orthogonal_norm_fraction", other="b").value < 1e-6
    assert pick(found, "mask_jaccard", other="b").value == 1.0


def test_ritz_labels_what_it_found_and_refuses_what_needs_all(tmp_path):
    shapes = {KEY: (600, 512)}
    base = weights(4, shapes)
    found = run(tmp_path, base, moved(base, 1, rank=30), spectra="ritz", nulls="none", ks=(1, 8))
    assert pick(found, "erank").reason == "spectrum_truncated"
    assert pick(found, "nss").reason == "spectrum_truncated"
    row = pick(found, "stable_rank")
    values = np.linalg.svd(updates(base, moved(base, 1, rank=30))[KEY], compute_uv=False)
    assert row.value == pytest.approx(reference.spectral(values, "stable_rank", 0), rel=1e-3)
    assert row.exactness == "ritz"
    assert 0 <= row.residual < 0.02


def test_every_name_is_explained(rows, tmp_path, base):
    known = METRICS | DENSE_METRICS
    assert set(DENSE_METRICS) <= {r.metric for r in rows} <= set(known)
    for row in rows:
        assert row.unit == known[row.metric].unit
        assert row.exactness in ("exact", "gram", "ritz")
    odd = run(tmp_path, base, base, moved(base, 1), dtype=torch.float16, ks=(1, 64), spectra="ritz", nulls="kind")
    words = {word.split(":")[0] for r in [*rows, *odd] for word in r.reason.split(";")} - {""}
    assert words <= set(REASONS) | set(DENSE_REASONS)
    assert {r.null.id for r in [*rows, *odd]} - {""} <= set(NULLS) | set(DENSE_NULLS)
    keys = [(r.metric, r.aggregation, r.module, r.layer, r.kind, r.side, r.k, r.arm, r.other) for r in rows]
    assert len(set(keys)) == len(keys)


def test_localization_adds_up(rows):
    shares = [r for r in rows if r.metric == "energy_share" and r.arm == "a"]
    for how in ("module", "stacked"):
        chosen = [r for r in shares if r.aggregation == how]
        assert sum(r.value for r in chosen) == pytest.approx(1.0)
        assert sum(r.null.mean for r in chosen) == pytest.approx(1.0)
    assert {r.kind for r in shares if r.aggregation == "stacked"} == {
        "embed_tokens", "norm", "q_proj", "k_proj", "down_proj", "input_layernorm",
    }  # fmt: skip


def same(one: list[Measurement], two: list[Measurement]) -> bool:
    return [str(r) for r in one] == [str(r) for r in two]


def test_workers_shards_and_resumption_change_nothing(tmp_path, base, arms, rows):
    opened = open_checkpoint(save(tmp_path / "base", base, dtype=torch.float32, shards=3), eager=True)
    folders = [save(tmp_path / name, arm, dtype=torch.float32, shards=2) for name, arm in zip("ab", arms, strict=True)]
    others = [open_checkpoint(folder) for folder in folders]
    kept: dict[str, dict] = {}
    again = measure(opened, others, ks=(1, 4), nulls="all", workers=2, keep=kept.__setitem__)
    assert same(again, rows)
    half = dict(list(kept.items())[: len(kept) // 2])
    fresh: dict[str, dict] = {}
    steps: list[float] = []
    resumed = measure(
        opened, others, ks=(1, 4), nulls="all", workers=1, done=half, keep=fresh.__setitem__, progress=steps.append
    )
    assert same(resumed, rows)
    assert set(fresh) == set(kept) - set(half)
    assert sum(steps) == pytest.approx(1.0)
    assert set(kept) == {name.removesuffix(".weight") for name in SHAPES}
    record = Record.read(kept[MATRIX])
    assert record.plain()["entries"] == base[KEY].numel()


def test_a_base_matrix_is_decomposed_once(tmp_path, base, monkeypatch):
    from limbeck.geometry.dense import piece

    seen = []
    monkeypatch.setattr(piece, "decompose", lambda matrix, k: seen.append(1) or decompose(matrix, k))
    run(tmp_path, base, *(moved(base, n) for n in (1, 2, 3)), nulls="none")
    assert len(seen) == sum(len(shape) == 2 for shape in SHAPES.values())


def test_blocks_do_not_change_a_decomposition(monkeypatch):
    from limbeck.geometry.dense import decompose as module

    one, two = torch.randn(70, 40, dtype=torch.float64), torch.randn(70, 40, dtype=torch.float64)
    ground = decompose(one, 5)
    *whole, inside = decompose_pair(one, two, 5, ground, 3)
    expected = [ground.left[:, :3].T @ (two - one), (two - one) @ ground.right[:, :3]]
    assert all(torch.allclose(a, b) for a, b in zip(inside, expected, strict=True))
    monkeypatch.setattr(module, "BLOCK_BYTES", 8 * 40 * 9)
    for before, after in zip(whole, decompose_pair(one, two, 5, ground, 3)[:2], strict=True):
        assert after.values.tolist() == pytest.approx(before.values.tolist(), rel=1e-10)
        assert (after.left.abs() - before.left.abs()).abs().max() < 1e-10


def test_pairs_alone_are_what_pairs_are_beside_everything_else(tmp_path, base, arms, rows):
    found = run(tmp_path, base, *arms, only="pairs")

    def key(r):
        return r.metric, r.aggregation, r.module, r.kind, r.layer, r.side, r.k, r.arm, r.other

    between, alone = [r for r in rows if r.other], {key(r): r for r in found if r.other}
    assert len(alone) == len(between)
    for r in between:
        twin = alone[key(r)]
        assert twin.value == pytest.approx(r.value, rel=1e-6, abs=1e-9, nan_ok=True)
        assert (twin.null.id, twin.reason) == (r.null.id, r.reason)
    assert {r.metric for r in found if not r.other} == {"frobenius_norm", "relative_norm", "energy_share"}
