"""The registered comparisons of docs/results call what is there, and nothing where there is nothing."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import subprocess
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.geometry.table import write_measurements
from limbeck.records import write_json
from limbeck.stats.factors import mean_of_runs
from limbeck.studies.config import load_study, packaged
from limbeck.types import Estimate, Measurement, Null

ROOT = Path(__file__).parents[2]
SEEDS = [0, 1, 2, 3, 4]


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "findings"))


def results(folder: Path, vectors: dict[str, np.ndarray], rows=()) -> Path:
    """A results folder with the cosines and norms of these updates."""
    unit = {run: v / np.linalg.norm(v) for run, v in vectors.items()}
    cosines = [
        Measurement(metric="cosine", aggregation="stacked", value=float(unit[a] @ unit[b]), unit="none", arm=a, other=b)
        for a, b in combinations(vectors, 2)
    ]
    write_json(folder / "study.json", {"seeds": SEEDS})
    norms = {run: float(np.linalg.norm(v)) for run, v in vectors.items()}
    write_json(folder / "arms.json", [{"run": run, "update_norm": norm} for run, norm in norms.items()])
    write_measurements(folder / "measurements.parquet", [*cosines, *rows])
    return folder


def updates(losses: dict[str, np.ndarray], noise: float) -> dict[str, np.ndarray]:
    """Every arm of dpo-or-rate, of length 1: a direction of its loss, a little of its rate, and noise of its seed."""
    rng = np.random.default_rng(0)
    of_rate = rng.standard_normal((4, 500))
    found = {
        f"{loss}-{rate}{suffix}-s{seed}": direction + 0.3 * of_rate[rate - 1] + noise * rng.standard_normal(500)
        for loss, direction in losses.items()
        for rate in (1, 2, 3, 4)
        for suffix in ("", "-norm")
        for seed in SEEDS
    }
    return {run: vector / np.linalg.norm(vector) for run, vector in found.items()}


def test_a_loss_of_its_own_direction_is_told_from_seeds_and_rates(tmp_path):
    from dpo_or_rate import dpo_or_rate
    from measured import Data

    one, other = np.random.default_rng(1).standard_normal((2, 500))
    rows, verdict = dpo_or_rate(Data(results(tmp_path, updates({"sft": one, "dpo": one + 2 * other}, noise=1.0))))
    assert verdict == "held"
    assert all(row.below for row in rows[:4])


def test_one_direction_with_much_noise_is_no_difference(tmp_path):
    from dpo_or_rate import dpo_or_rate
    from measured import Data

    one = np.random.default_rng(1).standard_normal(500)
    vectors = updates({"sft": one, "dpo": one}, noise=1.0)
    rows, verdict = dpo_or_rate(Data(results(tmp_path, vectors)))
    assert verdict == "did not hold"
    assert abs(rows[0].estimate.value) < 0.05  # although the cosine across is far from 1
    vectors["dpo-1-norm-s2"] *= 2
    vectors["dpo-2-norm-s2"] *= 2
    assert dpo_or_rate(Data(results(tmp_path, vectors)))[1] == "cannot be decided"  # two rates are not matched


def test_clearing_a_cosine_of_noise_gives_that_of_the_means():
    from contrast import cleared

    rng = np.random.default_rng(0)
    one = rng.standard_normal(4000)
    means = {"a": one, "b": 0.6 * one + 0.8 * rng.standard_normal(4000)}
    runs = {f"{arm}-s{s}": mean + 1.5 * rng.standard_normal(4000) for arm, mean in means.items() for s in SEEDS}

    def cosine(a: str, b: str) -> float:
        return float(runs[a] @ runs[b] / np.linalg.norm(runs[a]) / np.linalg.norm(runs[b]))

    true = means["a"] @ means["b"] / np.linalg.norm(means["a"]) / np.linalg.norm(means["b"])
    assert cleared(cosine, "a", "b", SEEDS) == pytest.approx(true, abs=0.03)
    assert cosine("a-s0", "b-s0") < 0.5 * true


def test_arms_that_share_their_order_of_data_are_cleared_between_other_seeds(tmp_path):
    """At one seed both arms have the noise of one order: cleared there, their cosine passes 1."""
    from colinear import at_other_seeds
    from contrast import cleared
    from measured import Data

    rng = np.random.default_rng(0)
    means = {"a": (one := rng.standard_normal(4000)), "b": 0.9 * one + 0.4 * rng.standard_normal(4000)}
    order = {s: 1.2 * rng.standard_normal(4000) for s in SEEDS}
    runs = {f"{arm}-s{s}": mean + order[s] for arm, mean in means.items() for s in SEEDS}
    data = Data(results(tmp_path, runs))
    true = means["a"] @ means["b"] / np.linalg.norm(means["a"]) / np.linalg.norm(means["b"])
    assert at_other_seeds(data, "a", "b", SEEDS) == pytest.approx(true, abs=0.03)
    assert cleared(lambda x, y: data.number("cosine", x, y).value, "a", "b", SEEDS) > 1.2


def test_the_algebra_of_mixed_directions_is_that_of_vectors():
    from colinear import mixed_cosine, weights_of

    right, wrong = np.random.default_rng(0).standard_normal((2, 30))
    norms = np.linalg.norm(right), np.linalg.norm(wrong)
    for pair in combinations(("sft", "rft", "rift"), 2):
        weights = [weights_of(arm, 0.25) for arm in pair]
        a, b = (w[0] * right + w[1] * wrong for w in weights)
        expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        found = mixed_cosine(*weights, right @ wrong / norms[0] / norms[1], norms[1] / norms[0])
        assert found == pytest.approx(expected)
    assert mixed_cosine((0.95, 0.05), (1.0, 0.0), 0.0, 1.0) == pytest.approx(0.9986, abs=1e-4)


def test_what_is_kept_is_read_where_the_gain_is_equal(tmp_path):
    """DPO keeps all and gains slowly, SFT gains as much by losing some: at the end of training they could not be compared."""
    from forgetting import forgetting, reached
    from measured import Data

    assert reached([0.5, 0.52, 0.56], 0.54) == (1, 0.5)
    assert reached([0.5, 0.52], 0.54) is None
    base = np.repeat([1.0, 0.0], 200)
    names, problems, right, points = [], [], [], []

    def add(name: str, values: np.ndarray) -> None:
        names.extend([name] * 400)
        problems.extend(f"p{i:03d}" for i in range(400))
        right.extend(values.tolist())

    rng = np.random.default_rng(0)
    exact = {"direction": "student_reference", "estimator": "exact", "unit": "nats/token"}
    add("base", base)
    for arm, lost in (("sft", 0.2), ("dpo", 0.0)):
        for seed in SEEDS:
            for step, growth in ((3, 0.5), (None, 1.0)):
                name = f"{arm}-s{seed}" + (f"@{step}" if step else "")
                values = base.copy()
                values[:200] -= rng.random(200) < lost * growth
                values[200:] += rng.random(200) < (lost + 0.2) * growth
                add(name, values)
                points.append({"name": name, "arm": arm, "seed": seed, "steps": step or 6,
                               "records": [{**exact, "value": 0.05 * growth}]})  # fmt: skip
    points.append({"name": "base", "arm": "base", "seed": None, "steps": 0, "records": [{**exact, "value": 0.0}]})
    write_json(tmp_path / "frontier.json", {"points": points})
    pq.write_table(pa.table({"name": names, "problem_id": problems, "right": right}), tmp_path / "scores.parquet")
    cka = [
        Measurement(metric="cka_debiased", aggregation="layer", layer=1, value=0.9, unit="none", arm=p["arm"] + f"-s{p['seed']}",
                    other="base", step=3 if "@" in p["name"] else -1)
        for p in points[:-1]
    ]  # fmt: skip
    runs = {f"{arm}-s{s}": np.ones(2) for arm in ("sft", "dpo") for s in SEEDS}
    rows, verdict = forgetting(Data(results(tmp_path, runs, cka)))
    assert verdict == "held; that losses of equal gain forget alike did not hold"
    for row in rows[:2]:  # at equal gain, and at equal KL
        assert row.what == "dpo less sft: still right"
        assert 0.03 < row.estimate.value < 0.2
    found = {row.what: row.estimate.value for row in rows}
    ends = {seed: dict(zip(problems, right[i : i + 400], strict=False)) for seed in SEEDS
            for i in [400 * list(dict.fromkeys(names)).index(f"sft-s{seed}")]}  # fmt: skip
    known = [f"p{i:03d}" for i in range(200)]  # what the base solves
    assert found["sft: kept at the end"] == pytest.approx(np.mean([[end[p] for p in known] for end in ends.values()]))
    assert found["dpo: kept at the end"] == 1
    gain = np.mean([sum(end.values()) for end in ends.values()]) / 400 - 0.5
    assert found["sft: 5 of 5 runs gain enough, 5 go far enough; gain at the end"] == pytest.approx(gain)
    again = [
        np.mean([other[p] for p in known if one[p]])
        for one in ends.values()
        for other in ends.values()
        if one is not other
    ]
    assert f"two seeds of sft: the same where the base is right too {np.mean(again):.3f}" in found


def test_a_sum_of_sparsities_is_told_from_chance_only_where_it_is_apart(tmp_path):
    from measured import Data
    from rounding import QUANTITIES, rounding

    def folder(effect: float) -> Path:
        rng = np.random.default_rng(0)
        rows = []
        for arm in ("sft", "opd", "rlvr", "sft-norm", "opd-norm"):
            for rate in ("", "-low"):
                name = arm.replace("-norm", f"{rate}-norm") if arm.endswith("norm") else arm + rate
                for seed in SEEDS:
                    for _, metric, aggregation, side, k in QUANTITIES.values():
                        sign = 1 if metric == "mask_overlap_principal" else -1
                        shift = sign * effect if name.startswith("sft") else 0.0
                        value = 0.5 * np.exp(shift + 0.005 * rng.standard_normal())
                        null = Null(id="N", mean=0.5, q05=0.4, q95=0.6)
                        rows.append(Measurement(metric=metric, aggregation=aggregation, side=side, k=k, value=float(value),
                                                unit="none", arm=f"{name}-s{seed}", null=null))  # fmt: skip
        runs = {row.arm: np.ones(2) for row in rows}
        return results(tmp_path, runs, rows)

    assert rounding(Data(folder(0.2)))[1] == "held"
    assert rounding(Data(folder(-0.2)))[1] == "cannot be decided"  # apart, and not as published
    rows, verdict = rounding(Data(folder(0.0)))
    assert verdict == "did not hold"
    found = {row.what: row.estimate for row in rows}
    assert found["sft-low-norm over rlvr-low: length, log"].value == 0
    told = found["rlvr-low: unchanged in bf16 over chance, log"]
    assert told.low < 0 < told.high
    assert abs(told.value) < 0.01  # a chance of 0.5 everywhere
    assert found["sft-low-norm: unchanged in bf16"].value == pytest.approx(0.5, abs=0.01)


def test_lengths_are_compared_seed_by_seed(tmp_path):
    from measured import Data

    runs = {f"{arm}-s{s}": np.full(4, length + s) for arm, length in (("a", 2.0), ("b", 1.0)) for s in SEEDS}
    data = Data(results(tmp_path, runs))
    assert data.logs_of_lengths("a", "b") == pytest.approx([math.log((2 + s) / (1 + s)) for s in SEEDS])
    assert not data.matched("a", "b")
    assert data.matched("a", "a")


@pytest.mark.parametrize(("bump", "verdict"), [(0.5, "held"), (0.0, "did not hold"), (0.105, "cannot be decided")])
def test_a_barrier_is_above_the_chord_and_above_the_worse_end(tmp_path, bump, verdict):
    from barrier import LOSSES, NODES, barrier
    from measured import Data

    rng = np.random.default_rng(0)
    ends = [(f"{a}-s{s}" if a != "base" else a, f"{b}-s{s}") for a, b in combinations(NODES, 2) for s in SEEDS]
    ends += [(f"sft-s{s}", f"sft-s{(s + 1) % 5}") for s in SEEDS]
    items, lines = [], []
    for a, b in ends:
        high = bump if (a[:4], b[:8]) == ("rift", "dpo-slow") else 0.0
        level = rng.random(40)
        for loss in LOSSES:
            over = high if loss == "ce_bare" else 0.0
            lines.append({"a": a, "b": b, "loss": loss, "worse_than_ends": over > 0.2})
            for alpha, added in ((0.0, 0.0), (0.5, over), (1.0, 0.1)):  # the second end is worse, which is no barrier
                values = level + added + 0.02 * rng.standard_normal(40)
                items += [(a, b, loss, alpha, f"p{i:02d}", v) for i, v in enumerate(values)]
    columns = dict(zip(("a", "b", "loss", "alpha", "problem_id", "value"), zip(*items, strict=True), strict=True))
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), tmp_path / "path_items.parquet")
    write_json(tmp_path / "paths.json", lines)
    rows, found = barrier(Data(results(tmp_path, {"sft-s0": np.ones(2), "rft-s0": np.ones(2)})))
    assert found == verdict
    assert rows[0].estimate.value == pytest.approx(bump - 0.05, abs=0.01)


def test_locking_needs_both_nulls_and_more_than_other_training(tmp_path):
    from locking import locking
    from measured import Data

    arms = ("opd", "rlvr", "sft", "rlvr-shuffled", "opd-norm", "sft-norm")
    inside = [f"{arm}-{kind}" for arm in ("opd", "rlvr", "sft") for kind in ("own", "chance", "free")]

    def said(overlap: dict[str, float], accuracy: dict[str, float]) -> str:
        rng, rows, answers = np.random.default_rng(0), [], []
        for arm in arms:
            for seed in SEEDS:
                run = f"{arm}-s{seed}"
                whole = {"aggregation": "module-mean", "unit": "none", "arm": run, "delta_kind": "dense_fp32"}
                rows += [
                    Measurement(metric="increment_norm", value=1.0, other="previous", step=s, **whole)
                    for s in (3, 6, 12)
                ]
                value = overlap.get(arm, 0.5) + 0.005 * rng.standard_normal()
                for null in ("N-WALK", "N-EXCH-NORM"):
                    band = Null(id=null, mean=0.4, q05=0.3, q95=0.55)
                    rows.append(
                        Measurement(
                            metric="sim_k", value=value, other="end", side="right", k=8, step=3, null=band, **whole
                        )
                    )
                rank = Null(id="N-WALK", mean=8.0, q05=7.0, q95=9.0)
                rows.append(
                    Measurement(
                        metric="stable_rank", value=8.0 + 0.1 * rng.standard_normal(), step=12, null=rank, **whole
                    )
                )
        for arm in inside:
            for seed in SEEDS:
                right = rng.random(400) < accuracy.get(arm, 0.4)
                answers += [(f"{arm}-s{seed}", f"p{i:03d}", float(x)) for i, x in enumerate(right)]
        table = dict(zip(("name", "problem_id", "right"), map(list, zip(*answers, strict=True)), strict=True))
        pq.write_table(pa.table(table), tmp_path / "scores.parquet")
        runs = {row.arm: np.ones(2) for row in rows}
        return locking(Data(results(tmp_path, runs, rows)))[1]

    locked = {"opd": 0.7, "opd-norm": 0.7}
    enough = {"opd-own": 0.97, "opd-free": 0.97}
    assert said(locked, enough) == "held; that its early subspace is enough held"
    everywhere = dict.fromkeys(arms, 0.7)
    assert said(everywhere, {}).startswith("did not hold; ")  # any training from that start does it
    assert said({}, {"opd-free": 0.9}) == "did not hold; that its early subspace is enough did not hold"
    assert said({"opd": 0.7}, {}).startswith("cannot be decided; ")


def test_families_are_corrected_by_themselves_and_what_is_undefined_counts():
    from contrast import corrected, over_runs

    values = [mean_of_runs([1.0, 1.1, 0.9, 1.05, 0.95]), mean_of_runs([]), mean_of_runs([0.5, -0.5, 0.1, 0.0, -0.2])]
    alone, *family = corrected([over_runs("x", values[0], "one"), *(over_runs("y", v, "two") for v in values)])
    assert alone.p_holm == alone.p
    assert family[0].p_holm == pytest.approx(3 * family[0].p)
    assert not family[1].called


def test_every_question_has_its_page_its_study_and_its_study_at_scale():
    main = (ROOT / "examples" / "findings" / "__main__.py").read_text(encoding="utf-8")
    names = re.findall(r'^    "([a-z-]+)": \w+,$', main.split("AFTERWARDS")[0], re.MULTILINE)
    assert len(names) == 11
    for name in names:
        page = (ROOT / "docs" / "results" / f"{name}.md").read_text(encoding="utf-8")
        assert f"python examples/findings {name} " in page
        assert name in packaged()
        here = load_study(name)
        assert len(here.seeds) >= 5
        there = ROOT / "examples" / "qwen3" / f"{name}.toml"
        if there.exists():
            large = load_study(str(there))
            assert [arm.name for arm in here.arms] == [arm.name for arm in large.arms]
            assert here.seeds == large.seeds
        else:
            assert re.search(r'^name = "[a-z-]+-qwen"$', page, re.MULTILINE)


def test_one_command_runs_a_study_and_reads_its_finding():
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    call = [make, "--dry-run", "--directory", str(ROOT), "finding", "NAME=trrd"]
    said = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    study, table = (said.index(part) for part in ("limbeck study run trrd --out runs/trrd", "findings trrd runs/trrd"))
    assert study < table
    unnamed = subprocess.run([*call[:1], "finding", "--directory", str(ROOT)], capture_output=True, text=True)
    assert unnamed.returncode
    assert "make finding NAME=trrd" in unnamed.stdout


DATA = ROOT / "docs" / "results" / "data"
AFTERWARDS = {  # what was looked at after a verdict, by its page
    "dpo-parts": "dpo-or-rate", "colinear-all": "colinear", "factorial-without-dpo": "factorial",
}  # fmt: skip
RUN = sorted({AFTERWARDS.get(path.name, path.name) for path in DATA.iterdir()})


def test_states_and_angles_beside_a_tenfold_rate_are_means_over_the_seeds_of_what_was_measured():
    from dpo_or_rate import dpo_or_rate
    from measured import Data

    kept = pq.read_table(DATA / "dpo-or-rate" / "measurements.parquet").to_pylist()
    last = max(row["layer"] for row in kept if row["metric"] == "cka_debiased")
    asked = {
        "CKA": {"metric": "cka_debiased", "aggregation": "layer", "layer": last},
        "smallest angle": {"metric": "principal_angle_smallest", "aggregation": "module-median", "side": "left", "k": 10},
        "largest angle": {"metric": "principal_angle_largest", "aggregation": "module-median", "side": "left", "k": 10},
    }  # fmt: skip
    found = {row.what: row.estimate.value for row in dpo_or_rate(Data(DATA / "dpo-or-rate"))[0]}
    for (what, where), (a, b) in product(asked.items(), (("sft-1", "sft-3"), ("dpo-2", "dpo-4"), ("sft-4", "dpo-4"))):
        ends = [{f"{a}-s{seed}", f"{b}-s{seed}"} for seed in range(5)]
        rows = [r for r in kept if where.items() <= r.items() and not r["kind"] and {r["arm"], r["other"]} in ends]
        assert len(rows) == 5
        assert found[f"{what} of {a} and {b}"] == pytest.approx(np.mean([row["value"] for row in rows]))


@pytest.mark.parametrize("name", RUN)
def test_a_page_prints_what_its_kept_measurements_give(name):
    spec = importlib.util.spec_from_file_location("findings", ROOT / "examples" / "findings" / "__main__.py")
    assert spec
    assert spec.loader
    findings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(findings)
    table, verdict = findings.main(name, DATA / name).split("\n\n")
    for other in (other for other, page in AFTERWARDS.items() if page == name):
        table += "\n" + findings.main(other, DATA / other).split("\n\n")[0]
    printed = {line for line in table.splitlines() if not line.startswith(("| family", "| ---"))}
    page = (ROOT / "docs" / "results" / f"{name}.md").read_text(encoding="utf-8")
    families = tuple({line.split(" | ")[0] + " | " for line in printed})
    quoted = {line for line in page.splitlines() if line.startswith(families)}
    assert {line for line in printed if not line.startswith("| secondary")} <= quoted <= printed
    assert verdict.removeprefix("The claim ").rstrip(".") in page
    assert "not yet run" not in page
    assert (ROOT / "docs" / "results" / "figures" / f"{name}.svg").is_file()
    summary = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")
    assert "not yet run" not in next(line for line in summary.splitlines() if f"[{name}]" in line)


def test_what_is_kept_of_studies_is_small():
    total = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file())
    assert total <= 20 * 2**20


def answered(folder: Path, accuracy: dict[str, float], problems: int = 400, noise: float = 0.0) -> Path:
    """Score tables of runs with these accuracies, to which each seed adds its own."""
    rng, rows = np.random.default_rng(0), []
    for arm, share in accuracy.items():
        for seed in SEEDS if arm != "base" else [None]:
            own = share + noise * rng.standard_normal()
            name = arm if seed is None else f"{arm}-s{seed}"
            rows += [(name, f"p{i:04d}", float(x)) for i, x in enumerate(rng.random(problems) < own)]
    columns = dict(zip(("name", "problem_id", "right"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "scores.parquet")
    write_json(folder / "study.json", {"seeds": SEEDS})
    return folder


def test_a_problem_counts_for_pass_at_4_where_any_answer_is_right(tmp_path):
    from measured import Data
    from trrd import _any_right

    rows = [(f"a-s{seed}", f"p{i}", share) for seed in SEEDS for i, share in enumerate((0.0, 0.25, 1.0))]
    columns = dict(zip(("name", "problem_id", "right"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "scores.parquet")
    write_json(tmp_path / "study.json", {"seeds": SEEDS})
    write_json(tmp_path / "arms.json", [])
    assert _any_right(Data(tmp_path), "a").mean(1).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"trrd": 0.8, "kdrl": 0.6, "opd-then-grpo": 0.9, "grpo": 0.5}, ("it is better", "it is worse")),
        ({"trrd": 0.5, "kdrl": 0.5, "opd-then-grpo": 0.5, "grpo": 0.5}, ("cannot be decided", "cannot be decided")),
    ],
)
def test_a_teacher_with_a_reward_is_called_better_or_worse_only_where_it_is(tmp_path, arms, said):
    from measured import Data
    from trrd import trrd

    write_json(tmp_path / "arms.json", [])
    rows, verdict = trrd(Data(answered(tmp_path, arms)))
    assert verdict == f"that TRRD is better than KDRL: {said[0]}; than OPD followed by GRPO: {said[1]}"
    assert rows[0].estimate.value == pytest.approx(arms["trrd"] - arms["kdrl"], abs=0.05)


def test_no_gain_that_matters_is_more_than_no_gain_that_was_seen():
    from contrast import Row
    from trrd import _better

    def row(value: float, half: float) -> Row:
        estimate = Estimate(value=value, low=value - half, high=value + half, level=0.95, method="", n=5)
        return Row("", estimate, 0.5, "primary", 0.5)

    assert _better(row(-0.01, 0.015)) == "no gain that matters"
    assert _better(row(0.0, 0.015)) == "cannot be decided"


@pytest.mark.parametrize(("noise", "verdict"), [(0.05, "did not hold"), (0.0, "held")])
def test_one_seed_is_enough_where_seeds_do_not_differ(tmp_path, noise, verdict):
    from measured import Data
    from study_size import apart, study_size

    write_json(tmp_path / "arms.json", [])
    arms = dict.fromkeys(("sft", "dft", "dpo", "opd", "grpo"), 0.5 if noise else 0.98)
    rows, said = study_size(Data(answered(tmp_path, arms, problems=4000, noise=noise)))
    assert said == f"that one seed is enough {verdict}"
    first = rows[0].estimate
    assert first.low <= 100 * noise <= first.high
    assert apart(0.72) == pytest.approx(0.05, abs=0.001)  # as the page has it
    assert apart(0.0) == 0.0


@pytest.mark.parametrize(
    ("objective", "optimizer", "both", "verdict"),
    [
        (0.6, 0.1, 0.1, "held"),
        (0.1, 0.6, 0.1, "did not hold: the optimizer does"),
        (0.3, 0.32, 0.1, "cannot be decided"),
        (0.3, 0.1, 0.5, "cannot be decided"),  # neither can be spoken of alone
        (0.01, 0.0, 0.0, "cannot be decided"),
    ],
)
def test_the_loss_decides_only_where_intervals_are_apart(tmp_path, objective, optimizer, both, verdict):
    from factorial import factorial
    from figures import DRAWN
    from measured import Data

    def term(name: str, share: float) -> dict[str, object]:
        return {"term": name, "unbiased": share, "low": share - 0.03, "high": share + 0.03, "p": 0.01, "p_holm": 0.03}

    shares = [term("objective", objective), term("optimizer", optimizer), term("objective x optimizer", both)]
    error = term("cell x seed", 0.2) | {"p": None, "p_holm": None}
    write_json(tmp_path / "study.json", {"seeds": SEEDS})
    write_json(tmp_path / "arms.json", [])
    runs = [{"arm": "a", "seed": s, "log norm": 0.01 * s} for s in SEEDS]
    split = {"direction": [*shares, error]}
    write_json(tmp_path / "factorial.json", {"pooled": split, "shares": split, "runs": runs})
    rows, said = factorial(Data(tmp_path))
    assert said == f"that the loss decides the direction {verdict}"
    assert rows[0].estimate.value == objective
    assert rows[0].p_holm == 0.03
    assert [row.what for row in rows if row.what.endswith("share of objective")] == [
        "direction: share of objective", "direction by own errors: share of objective",
    ]  # fmt: skip
    assert [panel.get_title() for panel in DRAWN["factorial"](Data(tmp_path), rows).axes] == ["direction"]


@pytest.mark.parametrize(
    ("factor", "lost", "verdict"), [(3.0, 0.0, "held"), (0.3, 0.0, "did not hold"), (3.0, 0.1, "did not hold")]
)
def test_a_smaller_kl_at_a_lower_accuracy_is_not_the_claim(tmp_path, factor, lost, verdict):
    from erpd_frontier import erpd_frontier
    from figures import DRAWN
    from measured import Data

    arms = ("grpo", "sapo", "mse", "from-strong", "from-weak")
    accuracy = dict.fromkeys(arms, 0.5) | {"from-weak": 0.5 - lost}
    points = []
    for arm in arms:
        for seed in SEEDS:
            kl = 0.05 * (factor if arm == "grpo" else 1.0) * (1 + 0.02 * seed)
            ends = {"value": kl, "low": 0.95 * kl, "high": 1.05 * kl, "level": 0.95, "method": "b", "n": 150}
            exact = {"direction": "student_reference", "estimator": "exact", "unit": "nats/token", **ends}
            right = {"value": accuracy[arm]}
            points.append({"arm": arm, "seed": seed, "step": None, "accuracy": right, "records": [exact]})
    write_json(tmp_path / "frontier.json", {"points": points})
    rng = np.random.default_rng(0)
    vectors = {f"{arm}-s{s}": rng.standard_normal(200) for arm in arms for s in SEEDS}
    for s in SEEDS:
        vectors[f"from-weak-s{s}"] = 0.4 * vectors[f"mse-s{s}"]
    norms = [
        Measurement(
            metric="frobenius_norm", aggregation="stacked", value=float(np.linalg.norm(v)), unit="none", arm=run
        )
        for run, v in vectors.items()
    ]
    folder = results(tmp_path, vectors, norms)
    data = Data(answered(folder, accuracy | {"base": 0.4}, problems=4000))
    rows, said = erpd_frontier(data)
    assert said == verdict
    drawn = DRAWN["erpd-frontier"](data, rows).axes[0].get_lines()
    assert {line.get_label() for line in drawn} >= set(arms)
    assert rows[0].estimate.value == pytest.approx(factor)
    assert next(row for row in rows if row.what.startswith("from-weak: share")).estimate.value == pytest.approx(0.4)
