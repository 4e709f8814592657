"""Numbers are found by whose they are, whichever way round they were written."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from limbeck.errors import DataError, FolderError
from limbeck.geometry.table import read_measurements, write_measurements
from limbeck.records import read_json, write_json
from limbeck.report.claims import claims
from limbeck.report.figures import training
from limbeck.report.load import Results, load
from limbeck.report.tables import recipes
from limbeck.report.view import View
from limbeck.types import Measurement


@pytest.fixture(scope="session")
def view(results: Path) -> View:
    return View(load(results))


def made(**fields: object) -> View:
    empty = {
        "study": {"name": "x", "arms": []}, "arms": [], "comparison": {}, "measurements": [], "modules": [], "paths": [],
        "training": {}, "rollouts": {}, "samples": [], "provenance": {}, "live": {}, "frontier": {}, "missing": (),
    }  # fmt: skip
    return View(Results(**{**empty, **fields}))  # type: ignore[arg-type]


def run(arm: str, seed: int, role: str = "method", **more: object) -> dict[str, object]:
    from limbeck.report.load import RUN_KEYS

    facts = dict.fromkeys(RUN_KEYS) | {"run": f"{arm}-s{seed}", "arm": arm, "seed": seed, "role": role, "init_seed": 0}
    return facts | {"objective": "sft", "learning_rate": 1e-4} | more


def test_a_pair_seen_from_the_other_side_changes_sign_and_counts(view: View):
    one, two = view.pair("dpo-s0", "sft-s0"), view.pair("sft-s0", "dpo-s0")
    assert one is not None
    assert two is not None
    assert one.difference == -two.difference
    assert (one.low, one.high) == (-two.high, -two.low)
    assert (one.a_only, one.both_right, one.p_holm) == (two.b_only, two.both_right, two.p_holm)
    assert one.difference == pytest.approx((one.a_only - one.b_only) / one.n)


def test_symmetric_metrics_are_found_from_both_sides_and_directed_ones_are_not_mixed(view: View):
    assert view.get("cosine", "sft-s0", "dpo-s0") == view.get("cosine", "dpo-s0", "sft-s0")
    there = view.directed("orthogonal_norm_fraction", "sft-s0", "dpo-s0")
    back = view.directed("orthogonal_norm_fraction", "dpo-s0", "sft-s0")
    assert (there.arm, back.arm) == ("sft-s0", "dpo-s0")


def test_what_was_not_measured_is_nan_with_a_reason(view: View):
    row = view.get("cosine", "sft-s0", "nobody")
    assert math.isnan(row.value)
    assert row.reason == "not_measured"


def test_only_the_second_seed_of_an_arm_is_a_seed_pair(view: View):
    assert [(a.id, b.id) for a, b in view.seed_pairs] == [("sft-s0", "sft-s1")]
    assert view.seed_values("cosine") == [view.get("cosine", "sft-s0", "sft-s1").value]
    assert view.seeds_per_arm()["SFT"] == 2
    assert view.seeds_per_arm()["DPO"] == 1


def test_a_null_arm_that_repeats_a_recipe_is_one_more_seed_of_it():
    repeat = made(arms=[run("sft", 0), run("dpo", 0, objective="dpo"), run("again", 1, "null")])
    assert [(a.id, b.id) for a, b in repeat.seed_pairs] == [("sft-s0", "again-s1")]
    assert [r.id for r in repeat.leads] == ["sft-s0", "dpo-s0"]
    assert repeat.by_id["again-s1"].color == repeat.by_id["sft-s0"].color


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-3}, {"rollouts_digest": "other"}, {"init_seed": 1}, {"batch_size": 16}, {"items": 300},
        {"steps": 300},
    ],
)  # fmt: skip
def test_a_null_arm_that_differs_in_more_than_the_seed_is_no_seed_pair(change: dict[str, object]):
    assert made(arms=[run("sft", 0), run("again", 1, "null", **change)]).seed_pairs == []


def test_where_a_norm_stops_training_the_number_of_steps_is_no_part_of_the_recipe():
    arms = [run("sft", 0, stop_norm=1.0, steps=90), run("again", 1, "null", stop_norm=1.0, steps=97)]
    assert [(a.id, b.id) for a, b in made(arms=arms).seed_pairs] == [("sft-s0", "again-s1")]


def test_a_run_that_did_not_come_to_its_norm_is_not_said_to_have_stopped_there():
    runs = [
        run("sft", 0, stop_norm=1.0, update_norm=1.02, steps=90),
        run("dpo", 0, stop_norm=1.0, update_norm=0.4, steps=400),
        run("rft", 0, stop_norm=1.0),
        run("dft", 0),
    ]
    notes = [row[1].note for row in recipes(made(arms=runs)).rows]
    assert notes == ["stopped at norm 1", "did not reach norm 1 in 400 steps", "to stop at norm 1", ""]


def test_a_gap_that_none_could_call_is_told_from_one_that_was_not_computed():
    row = {"a": "x", "b": "y", "difference": 0.0, "low": -0.1, "high": 0.1, "p": 1.0, "p_holm": 1.0}
    old, none = ({"pairs": [{**row, **more}]} for more in ({}, {"smallest_callable_holm": None}))
    gaps = [made(comparison=c).pair("x", "y") for c in (old, none)]
    assert [str(pair and pair.smallest_callable_holm) for pair in gaps] == ["nan", "inf"]


def test_final_rows_win_over_earlier_steps_and_rounded_updates_are_left_out():
    fixed = {"metric": "frobenius_norm", "aggregation": "stacked", "unit": "weight", "arm": "a"}
    rows = [
        Measurement(value=3.0, **fixed),
        Measurement(value=1.0, step=100, **fixed),
        Measurement(value=9.0, delta_kind="bf16_visible", **fixed),
        Measurement(value=8.0, kind="q_proj", **fixed),
    ]
    assert made(measurements=rows).get("frobenius_norm", "a").value == 3.0
    assert made(measurements=rows[1:]).get("frobenius_norm", "a").value == 1.0


def test_a_color_belongs_to_an_arm_and_base_and_teacher_have_none(view: View):
    assert view.color("sft-s0") == view.color("sft-s1") == "@arm0"
    assert view.color("dpo-s0") != view.color("sft-s0")
    assert (view.color("base"), view.color("teacher")) == ("@base", "@teacher")


def test_no_two_of_many_arms_look_alike():
    runs = made(arms=[run(f"arm-{n}", 0, learning_rate=float(n)) for n in range(24)]).runs
    assert len({(r.color, r.shape) for r in runs}) == 24
    assert [(r.color, r.shape) for r in (runs[0], runs[8], runs[16])] == [(0, 0), (0, 1), (0, 2)]


BARRIER = "A sharp barrier stands between RIFT and DPO"
SHORT = "DPO moves the weights least"
NOT_APART = "DPO is not told apart from the base"
ALIKE = "No two losses other than DPO are told apart by accuracy"


def verdicts(view: View, **changes: object) -> dict[str, str]:
    """Verdicts by the first words of a claim, over the results of a view with some of its parts changed."""
    parts = {f: getattr(view.results, f) for f in view.results.__slots__}
    return {c.claim: c.verdict for c in claims(made(**parts | changes))}


def valued(view: View, metric: str, change: dict[frozenset[str], float]) -> list[Measurement]:
    """The measurements with other values of one stacked metric, by whose they are."""
    return [
        replace(m, value=change[frozenset((m.arm, m.other)) - {""}])
        if m.metric == metric and m.aggregation == "stacked" and frozenset((m.arm, m.other)) - {""} in change
        else m
        for m in view.results.measurements
    ]


@pytest.mark.parametrize(
    ("low", "high", "worse", "verdict"),
    [
        (0.1, 0.9, True, "reproduced"),
        (0.1, 0.9, False, "undecided"),
        (-0.1, 0.9, True, "undecided"),
        (-0.9, -0.1, True, "not reproduced"),
        (-0.9, 0.0, False, "not reproduced"),
    ],
)
def test_a_barrier_needs_both_its_marks_and_its_absence_an_interval(
    view: View, low: float, high: float, worse: bool, verdict: str
):
    excess = {"value": (low + high) / 2, "low": low, "high": high}
    paths = [{**p, "excess_midpoint": excess, "worse_than_ends": worse} for p in view.results.paths]
    assert verdicts(view, paths=paths)[BARRIER] == verdict


@pytest.mark.parametrize(
    ("dpo", "verdict"), [(0.5, "reproduced"), (0.95, "undecided"), (1.05, "undecided"), (1.5, "not reproduced")]
)
def test_a_length_is_compared_beyond_what_two_seeds_differ_by(view: View, dpo: float, verdict: str):
    """SFT is 1.0 long at one seed and 1.1 at the other, so a gap has to be above 0.1."""
    ids = [run.id for run in view.runs]
    norms = {frozenset((name,)): {"dpo-s0": dpo, "sft-s1": 1.1}.get(name, 1.0) for name in ids}
    assert verdicts(view, measurements=valued(view, "frobenius_norm", norms))[SHORT] == verdict


@pytest.mark.parametrize(
    ("within", "across", "seeds", "cluster"),
    [
        (0.97, 0.5, 0.9, "reproduced"),
        (0.97, 0.5, 0.4, "undecided"),
        (0.97, 0.9, 0.9, "undecided"),
        (0.5, 0.97, 0.9, "not reproduced"),
        (0.5, 0.55, 0.9, "undecided"),
    ],
)
def test_a_cluster_stands_out_by_more_than_a_seed_moves(
    view: View, within: float, across: float, seeds: float, cluster: str
):
    inside = {"sft-s0", "rft-s0", "rift-s0"}
    pairs = {frozenset((a.id, b.id)) for a in view.runs for b in view.runs if a.id != b.id}
    values = {pair: within if pair <= inside else across for pair in pairs} | {frozenset(("sft-s0", "sft-s1")): seeds}
    found = verdicts(view, measurements=valued(view, "cosine", values))
    assert next(verdict for claim, verdict in found.items() if "lie closer to each other" in claim) == cluster


@pytest.mark.parametrize(
    ("cosines", "verdict"),
    [((0.8, 0.5, 0.1), "reproduced"), ((0.8, 0.75, 0.1), "undecided"), ((0.5, 0.8, 0.1), "not reproduced")],
)
def test_an_order_holds_by_more_than_a_seed_moves(view: View, cosines: tuple[float, float, float], verdict: str):
    others = zip(("offline_grpo-s0", "dft-s0", "dpo-s0", "sft-s1"), (*cosines, 0.9), strict=True)
    values = {frozenset(("sft-s0", other)): value for other, value in others}
    found = verdicts(view, measurements=valued(view, "cosine", values))
    assert next(verdict for claim, verdict in found.items() if "falls in the order" in claim) == verdict


def test_without_two_seeds_no_claim_on_geometry_is_judged_but_all_are_listed(view: View):
    arms = [run for run in view.results.arms if run["run"] != "sft-s1"]
    words = ("lie closer to each other", "falls in the order", SHORT, "spreads its update")
    found = {claim: v for claim, v in verdicts(view, arms=arms).items() if any(word in claim for word in words)}
    assert list(found.values()) == ["undecided"] * 4


@pytest.mark.parametrize(
    ("half", "p_holm", "callable_", "verdict"),
    [
        (0.03, 0.9, 0.04, "reproduced"),
        (0.08, 0.9, 0.04, "undecided"),
        (0.03, 0.9, None, "undecided"),
        (0.08, 0.01, 0.04, "not reproduced"),
    ],
)
def test_not_told_apart_needs_an_interval_that_could_have_shown_the_published_gap(
    view: View, half: float, p_holm: float, callable_: float | None, verdict: str
):
    seen = {"low": -half, "high": half, "p_holm": p_holm, "smallest_callable": callable_}
    comparison = view.results.comparison
    pairs = [{**pair, **seen} for pair in comparison["pairs"]]
    found = verdicts(view, comparison={**comparison, "pairs": pairs})
    assert (found[NOT_APART], found[ALIKE]) == (verdict, verdict)


def test_no_claim_is_judged_without_its_arms():
    assert claims(made(arms=[run("sft", 0)])) == []


def test_rows_of_single_modules_are_not_read(results: Path, view: View):
    every = read_measurements(results / "measurements.parquet")
    assert any(row.aggregation == "module" for row in every)
    kept = [row for row in every if row.aggregation != "module"]
    assert len(view.results.measurements) == len(kept)
    assert [r.value for r in view.results.measurements if math.isfinite(r.value)] == [
        r.value for r in kept if math.isfinite(r.value)
    ]


def test_a_folder_without_results_is_refused(tmp_path: Path):
    with pytest.raises(FolderError, match=r"must hold study\.json .* none of them"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("study.json", [], "must hold a JSON object, received a list"),
        ("arms.json", {}, "must hold a JSON list, received a dict"),
        ("arms.json", [{"run": "x"}], "every entry needs run, arm; received entry 0 without arm"),
        ("comparison.json", {"pairs": [3]}, "received entry 0 without a, b"),
    ],
)
def test_malformed_files_are_refused_by_name(tmp_path: Path, name: str, value: object, message: str):
    write_json(tmp_path / name, value)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert name in str(caught.value)


def test_a_table_that_is_none_is_refused(tmp_path: Path):
    (tmp_path / "measurements.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="must be a Parquet file of measurements"):
        load(tmp_path)


def test_an_empty_table_is_fine(tmp_path: Path):
    write_measurements(tmp_path / "measurements.parquet", [])
    assert load(tmp_path).measurements == []


def test_reading_changes_nothing(results: Path):
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    load(results)
    assert before == {path.name: path.read_bytes() for path in results.iterdir()}
    assert isinstance(read_json(results / "study.json"), dict)


def test_seeds_that_took_the_same_steps_are_a_mean_in_a_band_and_others_are_dotted(view: View):
    name, later = next((run.arm, run.id) for run in view.runs if not run.lead)
    lead = next(run.id for run in view.runs if run.arm == name)

    def traces(of: View) -> list[dict]:
        figure = training(of)
        assert figure is not None
        panel = next(panel for panel in figure.panels if panel.title.startswith("NLL"))
        return [trace for trace in panel.data if trace["meta"] == name]

    low, high, line = traces(view)
    assert (high["fill"], high["opacity"], line["line"]["dash"]) == ("tonexty", 0.2, "solid")
    assert all(a < m < b for a, m, b in zip(low["y"], line["y"], high["y"], strict=True))
    both = [
        [r["nll"] for r in view.results.training[run]][: len(view.results.training[lead]) // len(line["y"])]
        for run in (lead, later)
    ]
    assert line["y"][0] == pytest.approx(sum(map(sum, both)) / sum(map(len, both)), rel=0.05)

    cut = {**view.results.training, later: view.results.training[later][:-40]}
    assert [trace["line"]["dash"] for trace in traces(View(replace(view.results, training=cut)))] == ["solid", "dot"]
