"""The whole table against dense float64 references, and what it does where a number does not exist."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from tests.reference import geometry as reference
from tests.unit.geometry.factories import SHAPES, arm, dense, mapped
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.errors import ConfigError, DegenerateError, ModelError, ProvenanceError
from limbeck.geometry import METRICS, NULLS, REASONS
from limbeck.geometry.compare import Plan, compare_module
from limbeck.geometry.nulls import haar_frames, random_spectra
from limbeck.geometry.spectrum import stable_rank
from limbeck.geometry.suite import measure
from limbeck.types import Delta, LowRank, Measurement

NAMES = sorted(SHAPES)


@pytest.fixture(scope="module")
def arms() -> list[Delta]:
    return [arm("a", 1), arm("b", 2), arm("c", 3, rank=16)]


@pytest.fixture(scope="module")
def rows(arms: list[Delta]) -> list[Measurement]:
    return measure(arms, ks=(1, 4), draws=50, signs=True)


def pick(rows: list[Measurement], **wanted: object) -> list[Measurement]:
    return [r for r in rows if all(getattr(r, key) == value for key, value in wanted.items())]


def one(rows: list[Measurement], **wanted: object) -> Measurement:
    found = pick(rows, **wanted)
    assert len(found) == 1, (wanted, len(found))
    return found[0]


def test_every_row_is_named_in_the_table_with_its_unit(rows):
    assert {r.metric for r in rows} == set(METRICS) - {"barrier", "cka", "cka_debiased"}
    for row in rows:
        assert row.unit == METRICS[row.metric].unit


def test_every_null_and_reason_is_explained(rows, arms):
    assert {r.null.id for r in rows} - {""} <= set(NULLS)
    thin = mapped(arms[0], lambda _, f: LowRank(f.left[:, :1], f.right[:1]), name="thin")
    flat = mapped(arms[0], lambda _, f: LowRank(torch.eye(f.shape[0], 12), torch.eye(12, f.shape[1])), name="flat")
    odd = measure([thin, flat, arm("unknown", 5, init=""), arm("z", 6, init="another")], ks=(4, 40), draws=20)
    words = {word.split(":")[0] for r in [*rows, *odd] for word in r.reason.split(";")} - {""}
    expected = {"rank_lt_k", "k_gt_dim", "init_unknown", "init_mismatch", "gap_ratio", "flat_spectrum"}
    assert expected <= words <= set(REASONS)


def test_a_pair_does_not_depend_on_the_other_arms(arms):
    """Nor on their ranks, which differ, nor on a k that only some of them have."""
    few = measure(arms[:2], ks=(4, 14), draws=20)
    many = measure([arm(f"z{n}", 10 + n, rank=6 + 2 * n) for n in range(5)] + arms[:2], ks=(4, 14, 40), draws=20)
    found = {(r.metric, r.aggregation, r.module, r.layer, r.kind, r.side, r.k, r.arm, r.other): r.value for r in many}
    for row in few:
        key = (row.metric, row.aggregation, row.module, row.layer, row.kind, row.side, row.k, row.arm, row.other)
        assert found[key] == pytest.approx(row.value, rel=1e-9, abs=1e-9, nan_ok=True)


def test_no_row_is_written_twice(rows):
    keys = Counter((r.metric, r.aggregation, r.module, r.layer, r.kind, r.side, r.k, r.arm, r.other) for r in rows)
    assert max(keys.values()) == 1


@pytest.mark.parametrize(("x", "y"), [("a", "b"), ("a", "c"), ("b", "c")])
def test_directions_equal_the_dense_ones(arms, rows, x, y):
    by_name = {d.name: dense(d) for d in arms}
    groups = [("stacked", {}, NAMES)]
    groups += [("layer", {"layer": n}, [m for m in NAMES if f".{n}." in m]) for n in (0, 1)]
    groups += [("stacked", {"kind": "q_proj"}, [m for m in NAMES if "q_proj" in m])]
    groups += [("module", {"module": m}, [m]) for m in NAMES]
    for aggregation, where, members in groups:
        xs, ys = ([by_name[n][m] for m in members] for n in (x, y))
        where = {"kind": "", **where} if aggregation == "stacked" else where
        cosine = one(rows, metric="cosine", aggregation=aggregation, arm=x, other=y, **where)
        assert cosine.value == pytest.approx(reference.stacked_cosine(xs, ys), abs=1e-7)
        sd = math.sqrt(reference.rotated_cosine_variance(xs, ys))
        assert cosine.null.q95 == pytest.approx(1.6448536 * sd, rel=1e-5)
        for one_way, other in ((x, y), (y, x)):
            zs, ws = ([by_name[n][m] for m in members] for n in (one_way, other))
            wanted = {"aggregation": aggregation, "arm": one_way, "other": other, **where}
            norm = one(rows, metric="orthogonal_norm_fraction", **wanted).value
            assert norm == pytest.approx(reference.stacked_fraction(zs, ws), rel=1e-6)
            assert one(rows, metric="orthogonal_energy_fraction", **wanted).value == pytest.approx(norm**2, rel=1e-12)
    pooled = one(rows, metric="orthogonal_norm_fraction", aggregation="pooled", arm=x, other=y).value
    xs, ys = ([by_name[n][m] for m in NAMES] for n in (x, y))
    assert pooled == pytest.approx(reference.pooled_fraction(xs, ys), rel=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("k", [1, 4])
def test_subspaces_equal_scipys(arms, rows, side, k):
    x, y = dense(arms[0]), dense(arms[2])
    per_module = np.array([reference.angles(x[m], y[m], side, k) for m in NAMES])
    wanted = {"arm": "a", "other": "c", "side": side, "k": k}
    expected = {
        "principal_angle_smallest": per_module[:, 0],
        "principal_angle_median": np.median(per_module, axis=1),
        "principal_angle_largest": per_module[:, -1],
        "mean_cos2": np.mean(np.cos(np.radians(per_module)) ** 2, axis=1),
    }
    for metric, values in expected.items():
        found = [one(rows, metric=metric, module=m, **wanted).value for m in NAMES]
        np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-9)
        for how, reduce in (("module-mean", np.mean), ("module-median", np.median)):
            value = one(rows, metric=metric, aggregation=how, kind="", **wanted).value
            assert value == pytest.approx(reduce(values), rel=1e-6)
    overlaps = [one(rows, metric="leading_overlap", module=m, arm="a", other="c", side=side).value for m in NAMES]
    expected_overlaps = [reference.leading_overlap(x[m], y[m], side) for m in NAMES]
    np.testing.assert_allclose(overlaps, expected_overlaps, rtol=1e-6)


def test_spectra_equal_the_dense_ones(arms, rows):
    for delta in arms:
        rank = delta.modules[NAMES[0]].left.shape[1]
        for module, matrix in dense(delta).items():
            values = np.linalg.svd(matrix, compute_uv=False)[:rank]
            norm = one(rows, metric="frobenius_norm", module=module, arm=delta.name)
            assert norm.value == pytest.approx(np.linalg.norm(matrix), rel=1e-6)
            for row in pick(rows, module=module, arm=delta.name, other="", side=""):
                if row.metric != "frobenius_norm" and row.k <= rank:
                    assert row.value == pytest.approx(reference.spectral(values, row.metric, row.k), rel=1e-6), row
    total = math.sqrt(sum(np.sum(m**2) for m in dense(arms[0]).values()))
    assert one(rows, metric="frobenius_norm", aggregation="stacked", kind="", arm="a").value == pytest.approx(total)


def test_signs_equal_the_dense_ones(arms, rows):
    x, y = dense(arms[0]), dense(arms[1])
    plain, weighted, joint = zip(*(reference.sign_agreement(x[m], y[m]) for m in NAMES), strict=True)
    for module, agree, weigh in zip(NAMES, plain, weighted, strict=True):
        wanted = {"module": module, "arm": "a", "other": "b"}
        assert one(rows, metric="sign_agreement", **wanted).value == pytest.approx(agree, abs=1e-3)
        assert one(rows, metric="sign_agreement_weighted", **wanted).value == pytest.approx(weigh, rel=1e-5)
    stacked = one(rows, metric="sign_agreement", aggregation="parameter-weighted", kind="", arm="a", other="b")
    assert stacked.value == pytest.approx(np.average(plain, weights=joint), abs=1e-3)


class LargestResult(TorchDispatchMode):
    """Remembers the largest matrix that any operation gave, whatever its name."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.shape[-2:].numel())
        return out


def test_the_update_is_never_formed():
    """Nothing as large as a quarter of the update appears; forming it, the control, is seen."""
    big = {"w": (400, 300)}
    updates = [arm(name, seed, shapes=big).modules["w"] for seed, name in enumerate("ab")]
    rng = np.random.default_rng(0)
    plan = Plan([(0, 1)], (1, 4), 20, {12: haar_frames(12, 4, count=10, rng=rng)}, signs=False)
    with LargestResult() as seen:
        compare_module(updates, plan, rng)
    assert 0 < seen.entries < 400 * 300 / 4
    with LargestResult() as control:
        updates[0].left @ updates[0].right
    assert control.entries == 400 * 300


def test_workers_and_repeats_change_nothing(arms, rows):
    again = measure(arms, ks=(4, 1), draws=50, signs=True, workers=2)
    assert [str(r) for r in again] == [str(r) for r in rows]
    other = measure(arms[:2], ks=(4,), draws=50, seed=1)
    pairs = list(zip(other, measure(arms[:2], ks=(4,), draws=50, seed=2), strict=True))
    for null_id in ("N-ROW", "N-ISO"):
        assert any(r.null != s.null for r, s in pairs if r.null.id == null_id)


def test_progress_counts_modules_and_threads_are_restored(arms):
    seen, before = [], torch.get_num_threads()
    measure(arms[:1], progress=seen.append)
    assert seen == [1 / 6] * 6
    assert torch.get_num_threads() == before


def test_different_inits_leave_left_subspaces_and_ranks(arms):
    rows = measure([arms[0], arm("other", 2, init="another")], ks=(4,), draws=20, signs=True)
    for row in rows:
        if row.other and (row.side != "left"):
            assert math.isnan(row.value)
            assert "init_mismatch" in row.reason
            assert row.null.id == ""
        else:
            assert math.isfinite(row.value), row


def test_unknown_inits_are_measured_and_say_so(arms):
    known, unknown = (measure([arms[0], arm("b", 2, init=i)], ks=(4,), draws=20) for i in ("same", ""))
    assert [str(r.value) for r in known] == [str(r.value) for r in unknown]
    for row in unknown:
        assert ("init_unknown" in row.reason) == (row.other != "" and row.side != "left")


def test_a_zero_update_has_a_norm_and_reasons(arms):
    zero = mapped(arms[0], lambda _, f: LowRank(torch.zeros_like(f.left), f.right), name="zero")
    for row in measure([zero, arms[1]], ks=(1, 4), draws=20, signs=True):
        if row.metric == "frobenius_norm":
            assert (row.value == 0) == (row.arm == "zero")
        elif row.metric.startswith("sign"):
            assert math.isnan(row.value)
            assert row.reason == "empty_mask"
        elif row.metric.startswith("orthogonal") and row.arm == "b":
            assert row.value == 1
        elif "zero" in (row.arm, row.other):
            assert math.isnan(row.value)
            assert row.reason == "zero_norm"


def test_one_undefined_module_is_left_out_and_counted(arms):
    def thin(module: str, factors: LowRank) -> LowRank:
        return LowRank(factors.left[:, :2], factors.right[:2]) if module == NAMES[0] else factors

    rows = measure([mapped(arms[0], thin), arms[1]], ks=(4,), draws=20)
    wanted = {"metric": "principal_angle_median", "side": "left", "arm": "a"}
    undefined = one(rows, module=NAMES[0], **wanted)
    assert math.isnan(undefined.value)
    assert undefined.reason == "rank_lt_k"
    mean = one(rows, aggregation="module-mean", kind="", **wanted)
    others = [one(rows, module=m, **wanted).value for m in NAMES[1:]]
    assert mean.value == pytest.approx(np.mean(others))
    assert "rank_lt_k:1/6" in mean.reason


def test_nulls_mix_exactly_the_modules_that_are_averaged(arms):
    """Chance of a mean squared cosine is k/out, so its mean over modules is the mean of k/out over those modules."""

    def thin(module: str, factors: LowRank) -> LowRank:
        return LowRank(factors.left[:, :2], factors.right[:2]) if "k_proj" in module else factors

    for left_out, first in (("", arms[0]), ("k_proj", mapped(arms[0], thin))):
        rows = pick(measure([first, arms[1]], ks=(4,), draws=20), metric="mean_cos2", side="left")
        for kind in ("", "q_proj"):
            members = [m for m in NAMES if kind in m and not (left_out and left_out in m)]
            chance = np.mean([4 / SHAPES[m][0] for m in members])
            assert one(rows, aggregation="module-mean", kind=kind).null.mean == pytest.approx(chance, rel=0.02)


def test_modules_of_one_shape_have_independent_nulls(rows, arms):
    """The band of a mean over six modules is that of six independent draws, two for each of three shapes."""
    rng = np.random.default_rng(1)
    ranks = [stable_rank(random_spectra(*SHAPES[m], 12, draws=4000, rng=rng)) for m in NAMES]
    low, high = np.quantile(torch.stack(ranks).mean(0).numpy(), (0.05, 0.95))
    null = one(rows, metric="stable_rank", aggregation="module-mean", kind="", arm="a").null
    assert null.q95 - null.q05 == pytest.approx(high - low, rel=0.12)  # shared draws would be wider by sqrt 2


def test_k_beyond_the_matrix_and_flat_gaps_have_reasons():
    flat = {"w": LowRank(torch.eye(8), torch.eye(8))}
    x, y = (Delta(name=n, base="b", init_digest="i", modules=flat) for n in "xy")
    rows = measure([x, y], ks=(4, 9), draws=20)
    assert {r.reason for r in pick(rows, k=9) if r.aggregation == "module"} == {"k_gt_dim"}
    assert "gap_ratio" in one(rows, metric="mean_cos2", aggregation="module", side="left", k=4).reason
    leading = one(rows, metric="leading_overlap", aggregation="module", side="left")
    assert math.isnan(leading.value)
    assert leading.reason == "gap_ratio"
    assert one(rows, metric="hill", aggregation="module", arm="x").reason == "rank_lt_k"


def test_what_cannot_be_compared_is_refused(arms):
    moved = Delta(name="m", base="other", init_digest="same", modules=arms[0].modules)
    with pytest.raises(ProvenanceError, match="must share a base, received 'toy' and 'other'"):
        measure([arms[0], moved])
    fewer = Delta(name="f", base="toy", init_digest="", modules={m: arms[0].modules[m] for m in NAMES[1:]})
    with pytest.raises(ModelError, match=re.escape(f'("{NAMES[0]}" is only in "a")')):
        measure([arms[0], fewer])
    wider = mapped(arms[0], lambda _, f: LowRank(torch.cat([f.left, f.left]), f.right), name="w")
    with pytest.raises(ModelError, match=r"equal shapes, received \(64, 48\) and \(128, 48\) for \"model"):
        measure([arms[0], wider])
    with pytest.raises(ConfigError, match="distinct names, received 'a' twice"):
        measure([arms[0], arms[0]])
    with pytest.raises(DegenerateError, match="received 0 arms"):
        measure([])
    with pytest.raises(ConfigError, match=r"every k >= 1 and draws >= 20, received ks = \(0,\)"):
        measure(arms, ks=(0,))
