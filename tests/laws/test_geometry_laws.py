"""Laws over the whole METRICS table: a metric added to ``measure`` is held to all of them without a new test.

Every law compares two tables of the same arms, one of them transformed in a way that must not matter, or must matter
in a known way. Nulls are reproduced by simulating, densely and literally, what their names promise.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.geometry.factories import arm, mapped

from limbeck.geometry import METRICS, nulls, spectrum, subspace
from limbeck.geometry.connectivity import barrier
from limbeck.geometry.direction import Contact, contact_of, cosine, orthogonal_fraction
from limbeck.geometry.representation import cka
from limbeck.geometry.suite import measure
from limbeck.types import Delta, LowRank, Measurement

K = 4
PAIRED = [name for name, metric in METRICS.items() if "two arms" in metric.inputs]
FACTORED = PAIRED + [name for name, metric in METRICS.items() if metric.inputs == "factors"]
SIGNS = ("sign_agreement", "sign_agreement_weighted")
Key = tuple[object, ...]


def table(*arms: Delta) -> dict[Key, Measurement]:
    rows = measure(arms, ks=(1, K), draws=20, signs=True)
    return {(r.metric, r.aggregation, r.module, r.layer, r.kind, r.side, r.k, r.arm, r.other): r for r in rows}


@pytest.fixture(scope="module")
def arms() -> tuple[Delta, Delta]:
    return arm("x", 1), arm("y", 2, rank=14)


@pytest.fixture(scope="module")
def plain(arms) -> dict[Key, Measurement]:
    return table(*arms)


def of(rows: dict[Key, Measurement], metric: str) -> dict[Key, Measurement]:
    found = {key: row for key, row in rows.items() if row.metric == metric}
    assert found, f"measure gave no row of {metric}"
    return found


def unchanged(plain: dict[Key, Measurement], changed: dict[Key, Measurement], metric: str, rel: float = 2e-5) -> None:
    """Equal to what fp32 factors allow; single signs of entries near zero may flip."""
    before, after = of(plain, metric), of(changed, metric)
    assert before.keys() == after.keys()
    loose = 2e-3 if metric in SIGNS else 2e-5
    for key, row in before.items():
        assert after[key].value == pytest.approx(row.value, rel=rel, abs=loose, nan_ok=True), key
        assert after[key].reason == row.reason


def haar(dim: int, seed: int) -> torch.Tensor:
    return nulls.haar_frames(dim, dim, count=1, rng=np.random.default_rng(seed))[0]


def test_every_metric_is_held_to_a_law():
    assert set(FACTORED) | {"barrier", "cka", "cka_debiased"} == set(METRICS)


@pytest.fixture(scope="module")
def gauged(arms):
    def move(module: str, f: LowRank) -> LowRank:
        rank = f.left.shape[1]
        mixing = haar(rank, rank) @ torch.diag(torch.linspace(0.5, 2, rank, dtype=torch.float64)) @ haar(rank, 1)
        return LowRank((f.left.double() @ mixing).float(), (torch.linalg.inv(mixing) @ f.right.double()).float())

    return table(*(mapped(a, move) for a in arms))


@pytest.mark.parametrize("metric", FACTORED)
def test_gauge(plain, gauged, metric):
    """(B M, M^-1 A) is the same update."""
    unchanged(plain, gauged, metric)


@pytest.fixture(scope="module")
def scaled(arms):
    return table(mapped(arms[0], lambda _, f: LowRank(8 * f.left, f.right)), arms[1])


@pytest.mark.parametrize("metric", FACTORED)
def test_scale(plain, scaled, metric):
    """Eight times an arm is eight times as long and otherwise the same."""
    if metric != "frobenius_norm":
        unchanged(plain, scaled, metric, rel=1e-9)
        return
    for key, row in of(plain, metric).items():
        assert scaled[key].value == pytest.approx((8 if row.arm == "x" else 1) * row.value, rel=1e-12)


@pytest.fixture(scope="module")
def negated(arms):
    return table(mapped(arms[0], lambda _, f: LowRank(-f.left, f.right)), arms[1])


@pytest.mark.parametrize("metric", FACTORED)
def test_sign(plain, negated, metric):
    """Turning an arm round reverses its cosine and its signs, and nothing else."""
    for key, row in of(plain, metric).items():
        reversed_ = {"cosine": -row.value, **dict.fromkeys(SIGNS, 1 - row.value)}.get(metric, row.value)
        assert negated[key].value == pytest.approx(reversed_, rel=1e-9, abs=1e-9, nan_ok=True), key


@pytest.fixture(scope="module")
def transposed(arms):
    return table(*(mapped(a, lambda _, f: LowRank(f.right.T.contiguous(), f.left.T.contiguous())) for a in arms))


@pytest.mark.parametrize("metric", FACTORED)
def test_transposition(plain, transposed, metric):
    """Left becomes right; everything without a side stays."""
    swap = {"left": "right", "right": "left", "": ""}
    for key, row in of(plain, metric).items():
        mirrored = transposed[(*key[:5], swap[row.side], *key[6:])]
        assert mirrored.value == pytest.approx(row.value, rel=1e-6, abs=1e-6, nan_ok=True), key


@pytest.fixture(scope="module")
def rotated(arms):
    def turn(_: str, f: LowRank) -> LowRank:
        left, right = haar(f.shape[0], 1), haar(f.shape[1], 2)
        return LowRank((left @ f.left.double()).float(), (f.right.double() @ right).float())

    return table(*(mapped(a, turn) for a in arms))


@pytest.mark.parametrize("metric", [m for m in FACTORED if m not in SIGNS])
def test_joint_rotation(plain, rotated, metric):
    """The same orthogonal maps on both arms change nothing; signs alone depend on the axes."""
    unchanged(plain, rotated, metric)


@pytest.fixture(scope="module")
def reordered(arms):
    return table(
        *(
            Delta(name=a.name, base=a.base, init_digest=a.init_digest, modules=dict(reversed(list(a.modules.items()))))
            for a in arms
        )
    )


@pytest.mark.parametrize("metric", FACTORED)
def test_module_order(plain, reordered, metric):
    for key, row in of(plain, metric).items():
        assert str(reordered[key]) == str(row)


@pytest.fixture(scope="module")
def exchanged(arms):
    return table(arms[1], arms[0])


@pytest.mark.parametrize("metric", PAIRED)
def test_exchange(plain, exchanged, metric):
    """Symmetric, except that an orthogonal fraction is of one arm and off the other."""
    for key, row in of(plain, metric).items():
        same = key if metric.startswith("orthogonal") else (*key[:7], row.other, row.arm)
        assert exchanged[same].value == pytest.approx(row.value, rel=1e-9, abs=1e-9, nan_ok=True), key


@pytest.fixture(scope="module")
def twins(arms):
    return table(arms[0], mapped(arms[0], lambda _, f: f, name="twin"))


@pytest.mark.parametrize("metric", PAIRED)
def test_an_arm_against_itself(twins, metric):
    for row in of(twins, metric).values():
        if metric.startswith(("principal_angle", "orthogonal")):
            assert 0 <= row.value < (1e-6 if "angle" in metric else 1e-12)
        else:
            assert row.value == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("metric", FACTORED)
def test_a_zero_update_is_never_a_plausible_number(arms, metric):
    nothing = mapped(arms[0], lambda _, f: LowRank(f.left, 0 * f.right), name="x")
    for row in of(table(nothing, arms[1]), metric).values():
        if metric == "frobenius_norm" and row.arm == "x":
            assert row.value == 0
        elif metric.startswith("orthogonal") and row.arm == "y":
            assert row.value == 1
        elif row.other or row.arm == "x":
            assert math.isnan(row.value)
            assert row.reason in ("zero_norm", "empty_mask")
            assert row.null.id == "" or metric in SIGNS


@pytest.mark.parametrize("metric", [m for m in FACTORED if not METRICS[m].null.startswith("none")])
def test_every_number_stands_beside_its_null(plain, metric):
    for row in of(plain, metric).values():
        if math.isfinite(row.value):
            assert row.null.id
            assert math.isfinite(row.null.mean)
            assert metric in SIGNS or row.null.q05 <= row.null.mean <= row.null.q95


# --- spectra and contacts in general

VALUES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12).map(lambda v: sorted(v, reverse=True))


@settings(max_examples=80, deadline=None)
@given(VALUES)
def test_ranks_are_ordered(values):
    v = torch.tensor(values, dtype=torch.float64)
    ranks = [f(v).item() for f in (spectrum.stable_rank, spectrum.participation, spectrum.erank_energy, spectrum.erank)]
    chain = [1.0, *ranks, float(len(values))]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(chain))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_pooled_is_at_most_stacked(seed, modules):
    generator = torch.Generator().manual_seed(seed)

    def update() -> LowRank:
        return LowRank(torch.randn(6, 2, generator=generator), torch.randn(2, 5, generator=generator))

    contacts = [contact_of(update(), update()) for _ in range(modules)]
    pooled, stacked = (orthogonal_fraction(contacts, pooled=p).value for p in (True, False))
    assert 0 <= pooled <= stacked + 1e-12 <= 1 + 2e-12
    assert stacked**2 + cosine(contacts).value ** 2 == pytest.approx(1, abs=1e-9)


# --- nulls, reproduced on a 64 x 48 case

M, N, RANK, DRAWS = 64, 48, 8, 1500


def update(seed: int, rank: int = RANK) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(M, rank, generator=generator, dtype=torch.float64)
    return left * 0.7 ** torch.arange(rank) @ torch.randn(rank, N, generator=generator, dtype=torch.float64)


def low_rank(matrix: torch.Tensor, rank: int = RANK) -> LowRank:
    u, s, vh = torch.linalg.svd(matrix)
    return LowRank((u[:, :rank] * s[:rank]).float(), vh[:rank].float())


def leading(matrix: torch.Tensor, k: int) -> torch.Tensor:
    return torch.linalg.svd(matrix)[0][..., :k]


def close(draws: torch.Tensor, simulated: torch.Tensor) -> None:
    """Means within four standard errors of their difference, and 5-95 % bands alike."""
    error = math.sqrt((draws.var() / len(draws) + simulated.var() / len(simulated)).item())
    assert abs(draws.mean() - simulated.mean()).item() < 4 * error + 1e-12
    band = simulated.quantile(0.95) - simulated.quantile(0.05)
    for q in (0.05, 0.95):
        assert abs(draws.quantile(q) - simulated.quantile(q)).item() < 0.12 * band + 1e-12


@pytest.mark.parametrize(("dim", "k"), [(M, 4), (M, 1), (12, 8), (5, 5)])
def test_isotropic_angles_are_those_of_dense_frames(dim, k):
    """Also where k is more than half the dimension and some angles are zero."""
    x, y = (
        torch.linalg.qr(torch.randn(DRAWS, dim, k, generator=torch.Generator().manual_seed(s)).double()).Q
        for s in (0, 1)
    )
    simulated = subspace.summarize(subspace.principal_angles(x, y))
    drawn = nulls.isotropic_angles(dim, k, draws=DRAWS, rng=np.random.default_rng(0))
    for ours, dense in zip(drawn, simulated, strict=True):
        if dense.std() > 1e-4:
            close(ours, dense)
        else:
            assert abs(ours - dense).max() < 1e-4
    assert drawn.mean_cos2.mean().item() == pytest.approx(k / dim, rel=0.06)


def test_isotropic_overlap_is_that_of_dense_vectors():
    x = torch.randn(20_000, M, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cosines = (x[:, 0] / x.norm(dim=1)).abs()
    null = nulls.isotropic_overlap(M)
    assert null.mean == pytest.approx(cosines.mean().item(), rel=0.02)
    assert null.q95 == pytest.approx(cosines.quantile(0.95).item(), rel=0.02)
    assert null.mean == pytest.approx(math.sqrt(2 / math.pi / M), rel=0.01)
    close(torch.from_numpy(nulls.overlap_draws(M, draws=4000, rng=np.random.default_rng(0))), cosines)


def test_row_null_is_a_rotation_inside_each_row_space():
    """B L Q becomes B L R Q with R Haar, literally, on arms whose row spaces partly agree."""
    x = update(1)
    y = update(2, 4) + update(3, 4) @ torch.linalg.pinv(x) @ x  # half of its rows lie in x's row space
    contact_frames = [spectrum.factor(low_rank(z)) for z in (x, y)]
    rng = np.random.default_rng(0)
    frames = nulls.haar_frames(RANK, 3, count=1000, rng=rng)
    drawn = nulls.row_overlaps(
        contact_frames[0].right.T @ contact_frames[1].right, frames, frames, draws=DRAWS, rng=rng
    )
    turned = []
    for seed, z in enumerate((x, y)):
        turns = nulls.haar_frames(RANK, RANK, count=DRAWS, rng=np.random.default_rng(seed + 10))
        basis = torch.linalg.svd(z)[2][:RANK]
        turned.append(leading((z @ basis.T @ turns @ basis).mT, 3))
    simulated = subspace.summarize(subspace.principal_angles(*turned))
    for ours, dense in zip(nulls.row_angles(drawn, k=3), simulated, strict=True):
        close(ours, dense)
    close(drawn[:, 0, 0].abs(), (turned[0][..., 0] * turned[1][..., 0]).sum(-1).abs())
    assert simulated.mean_cos2.mean() > 3 / N * 1.5  # or the isotropic null would have passed too


def rotated_contacts(xs: list[torch.Tensor], ys: list[torch.Tensor], draws: int) -> list[list[Contact]]:
    """Contacts after a Haar rotation of every X's output side, dense."""
    turns = nulls.haar_frames(M, M, count=draws * len(xs), rng=np.random.default_rng(5))
    out = []
    for d in range(draws):
        row = []
        for m, (x, y) in enumerate(zip(xs, ys, strict=True)):
            z = turns[d * len(xs) + m] @ x
            inner, energy, other = ((a * b).sum().item() for a, b in ((z, y), (x, x), (y, y)))
            row.append(Contact(inner, energy, other, energy - inner**2 / other, other - inner**2 / energy, 0.0))
        out.append(row)
    return out


def test_rotation_null_of_cosine_and_fractions():
    xs, ys = [update(1), 3 * update(2)], [update(3) + update(1), update(4)]
    contacts = [contact_of(low_rank(x), low_rank(y)) for x, y in zip(xs, ys, strict=True)]
    simulated = rotated_contacts(xs, ys, DRAWS)
    cosines = torch.tensor([cosine(row).value for row in simulated])
    null = nulls.rotated_cosine(contacts)
    assert cosines.mean().item() == pytest.approx(0, abs=4 * cosines.std().item() / math.sqrt(DRAWS))
    assert nulls.rotated_sd(contacts) == pytest.approx(cosines.std().item(), rel=0.08)
    assert null.q95 == pytest.approx(cosines.quantile(0.95).item(), rel=0.12)
    for energy in (False, True):
        power = 2 if energy else 1
        for pooled in (False, True):
            values = torch.tensor([orthogonal_fraction(row, pooled=pooled).value ** power for row in simulated])
            drawn = (
                nulls.rotated_pooled_fraction(contacts, energy=energy, draws=4000, rng=np.random.default_rng(0))
                if pooled
                else nulls.rotated_fraction(contacts, energy=energy)
            )
            assert 1 - drawn.mean == pytest.approx(1 - values.mean().item(), rel=0.1)
            assert 1 - drawn.q05 == pytest.approx(1 - values.quantile(0.05).item(), rel=0.15)


def test_random_spectra_are_those_of_dense_products():
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(DRAWS, M, RANK, generator=generator) @ torch.randn(DRAWS, RANK, N, generator=generator)
    simulated = torch.linalg.svdvals(dense.double())[:, :RANK]
    drawn = nulls.random_spectra(M, N, RANK, draws=DRAWS, rng=np.random.default_rng(0))
    for f in (spectrum.stable_rank, spectrum.participation, spectrum.erank_energy, spectrum.erank):
        close(f(drawn), f(simulated))
    close(spectrum.topk_energy(drawn, k=2), spectrum.topk_energy(simulated, k=2))
    close(spectrum.hill(drawn, k=5), spectrum.hill(simulated, k=5))


@pytest.mark.parametrize("correlation", [-0.5, 0.06, 0.74])
def test_sign_laws_are_those_of_gaussian_entries(correlation):
    x, z = torch.randn(2, 400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = correlation * x + math.sqrt(1 - correlation**2) * z
    agree, weight = x * y > 0, (x * y).abs()
    assert nulls.arcsine_law(correlation) == pytest.approx(agree.double().mean().item(), abs=0.004)
    assert nulls.weighted_arcsine_law(correlation) == pytest.approx(
        ((agree * weight).sum() / weight.sum()).item(), abs=0.006
    )


def test_a_mixed_null_is_that_of_the_same_modules(plain):
    """The null of a median over widths 64, 32 and 48 is the median's over those widths, simulated densely."""
    row = plain["mean_cos2", "module-median", "", -1, "", "left", K, "x", "y"]
    generator = torch.Generator().manual_seed(0)
    columns = []
    for dim in (64, 32, 48) * 2:
        x, y = torch.linalg.qr(torch.randn(2, DRAWS, dim, K, generator=generator, dtype=torch.float64)).Q
        columns.append((x.mT @ y).square().sum((-1, -2)) / K)
    medians = torch.stack(columns).quantile(0.5, dim=0)
    assert row.null.mean == pytest.approx(medians.mean().item(), rel=0.02)
    assert row.null.q95 == pytest.approx(medians.quantile(0.95).item(), rel=0.03)


# --- barrier and CKA


def test_an_arm_against_itself_has_no_barrier_and_cka_one():
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    for debiased in (False, True):
        assert cka(x, x, debiased=debiased).value == pytest.approx(1, abs=1e-12)
    same = barrier([0.0, 0.25, 0.5, 1.0], x[0].repeat(4, 3), rng=np.random.default_rng(0))
    assert same.midpoint.value == pytest.approx(0, abs=1e-12)
    assert same.maximum.value == pytest.approx(0, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 5), st.floats(-1, 2))
def test_a_convex_loss_has_no_barrier_anywhere(seed, curvature, center):
    grid = np.linspace(0, 1, 5)
    offsets = np.random.default_rng(seed).normal(size=30)
    losses = torch.from_numpy(curvature * (grid[:, None] - center) ** 2 + offsets)
    found = barrier(grid.tolist(), losses, rng=np.random.default_rng(0), draws=50)
    assert found.maximum.value <= 0
    assert not found.worse_than_ends
