"""compare says what is known, in JSON, and refuses what is not comparable."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from limbeck.errors import ConfigError, DataError, DegenerateError, ProvenanceError
from limbeck.stats import seeds
from limbeck.stats.compare import ONE_SEED, TWO_SEEDS, Arm, compare, interval_named
from limbeck.types import Finish, Score, ScoreTable


def arm(name, rows, **changes):
    scores = tuple(
        Score(
            problem_id=f"p{i:04d}",
            sample=j,
            correct=bool(right),
            answer="4",
            extracted="4" if right else "3",
            finish=Finish.STOP,
            response_tokens=1,
        )
        for i, row in enumerate(rows)
        for j, right in enumerate(row)
    )
    base = {"name": name, "scores": scores, "problems_digest": "d" * 64, "grader": "g/1", "decoding": "greedy"}
    base["template_digest"] = "t1"
    return ScoreTable(**{**base, **changes})


def single(name, both, own, other, neither, **changes):
    return arm(name, [[1]] * (both + own) + [[0]] * (other + neither), **changes)


A = single("a", 10, 9, 1, 10)
B = arm("b", [[1]] * 10 + [[0]] * 9 + [[1]] + [[0]] * 10)


def test_two_arms_by_hand():
    result = compare([A, B])
    json.dumps(result, allow_nan=False)
    pair = result["pairs"][0]
    assert (pair["both_right"], pair["a_only"], pair["b_only"], pair["both_wrong"]) == (10, 9, 1, 10)
    assert pair["difference"] == pytest.approx(8 / 30)
    assert pair["p"] == pytest.approx(22 / 1024)  # 2 (C(10, 0) + C(10, 1)) / 2**10
    assert pair["p"] == pair["p_holm"] == pair["p_bh"]
    assert pair["smallest_callable"] == pytest.approx(8 / 30)  # of 10 discordant problems 9 to 1 is called, 8 to 2 not
    assert pair["smallest_callable_holm"] == pair["smallest_callable"]  # one pair has nothing to be corrected for
    assert (pair["test"], pair["method"]) == ("mcnemar_exact", "tango")
    assert pair["low"] > 0
    assert [(x["name"], x["correct"], x["n"]) for x in result["arms"]] == [("a", 19, 30), ("b", 11, 30)]
    shares = {x["discordant_share"]: x["difference"] for x in result["smallest_callable"]}
    assert shares[0.1] is None
    assert shares[0.2] == pytest.approx(0.2)


def test_family_of_three_is_corrected():
    third = single("c", 10, 0, 0, 20)
    result = compare([A, B, third])
    assert [(p["a"], p["b"]) for p in result["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    p_values = [p["p"] for p in result["pairs"]]
    assert result["pairs"][1]["p_holm"] == pytest.approx(3 * min(p_values))  # 9 to 0: the smallest
    assert all(p["p_holm"] >= p["p"] for p in result["pairs"])
    # Of a and b's 10 discordant problems, 9 to 1 has p = 22 / 1024: below 0.05, above 0.05 / 3; 10 to 0 is below both.
    assert result["pairs"][0]["smallest_callable"] == pytest.approx(8 / 30)
    assert result["pairs"][0]["smallest_callable_holm"] == pytest.approx(10 / 30)
    # b and c differ on one problem alone, which can call nothing.
    assert result["pairs"][2]["smallest_callable_holm"] is None


def test_pairs_among_some_of_the_arms_are_a_family_of_their_own():
    third = single("c", 10, 0, 0, 20)
    some = compare([A, B, third], among=["a", "c"])
    assert [arm["name"] for arm in some["arms"]] == ["a", "b", "c"]
    assert some["pairs"] == compare([A, third])["pairs"]


def test_identical_arms():
    pair = compare([A, replace(A, name="again")])["pairs"][0]
    assert (pair["p"], pair["difference"], pair["smallest_callable"]) == (1.0, 0.0, None)
    assert pair["low"] < 0 < pair["high"]


def test_row_order_does_not_matter_and_seed_decides():
    rows_a, rows_b = np.random.default_rng(0).random((2, 60, 8)) < 0.6
    a, b = arm("a", rows_a), arm("b", rows_b)
    shuffled = replace(b, scores=b.scores[::-1])
    assert compare([a, b], seed=1) == compare([a, shuffled], seed=1)
    assert compare([a, b], seed=1) != compare([a, b], seed=2)


def test_several_samples():
    rows_a = [[1, 1], [1, 0], [1, 1], [1, 1], [0, 0], [1, 1]]
    rows_b = [[0, 0], [0, 0], [0, 1], [1, 0], [0, 0], [0, 1]]
    result = compare([arm("a", rows_a), arm("b", rows_b)])
    pair = result["pairs"][0]
    assert pair["test"] == "sign_flip_exact"
    assert pair["p"] == pytest.approx(2 / 2**5)  # five differences of one sign
    assert pair["difference"] == pytest.approx((2 + 1 + 1 + 1 + 1) / 12)
    assert sum(pair[k] for k in ("both_right", "a_only", "b_only", "both_wrong")) == pytest.approx(6)
    assert result["arms"][0]["samples"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"problems_digest": "e" * 64}, r"same problems, received digests dddddddd and eeeeeeee \(other prompts"),
        ({"grader": "g/2"}, "must share one grader, received 'g/1' and 'g/2'"),
        ({"decoding": "T=1"}, "must share one decoding, received 'greedy' and 'T=1'"),
        ({"template_digest": "t2"}, "must share one template_digest, received 't1' and 't2'"),
    ],
)
def test_incomparable_arms_are_refused(changes, words):
    with pytest.raises(ProvenanceError, match=words):
        compare([A, replace(B, **changes)])


def test_missing_problem_duplicates_names_and_nothing():
    with pytest.raises(ProvenanceError, match=r"1 ids in one only, such as 'p0029'"):
        compare([A, replace(B, scores=B.scores[:-1])])
    with pytest.raises(DataError, match="each sample once"):
        compare([replace(A, scores=A.scores + A.scores)])
    with pytest.raises(ConfigError, match="distinct names"):
        compare([A, A])
    with pytest.raises(ConfigError, match="distinct names"):
        compare([])
    with pytest.raises(ConfigError, match="alpha must lie"):
        compare([A, B], alpha=5.0)
    with pytest.raises(DegenerateError, match="at least one score"):
        compare([arm("none", [])])


def test_one_table_has_an_interval_and_no_pair():
    result = compare([A])
    assert result["pairs"] == []
    assert result["arms"][0]["low"] < 19 / 30 < result["arms"][0]["high"]


def test_an_unknown_template_is_not_another_and_is_said():
    result = compare([A, replace(B, template_digest="")])
    assert result["n"] == 30
    assert result["notes"] == [ONE_SEED, "b: the prompt template is not known"]
    assert result["template_digest"] == "t1"


def test_different_templates_are_compared_only_when_that_is_asked_for():
    result = compare([A, replace(B, template_digest="t2")], mixed_templates=True)
    assert result["notes"] == [ONE_SEED, "prompt templates differ between arms: a difference may be theirs"]
    assert result["template_digest"] == "t1, t2"


def runs(name, num, *, gain=0.0, seed=0, n=60, samples=1):
    rng = np.random.default_rng(seed)
    chance = np.random.default_rng(99).beta(2, 2, (n, 1)) + gain
    return Arm(name, tuple(arm(f"{name}-s{i}", rng.random((n, samples)) < chance) for i in range(num)))


def test_seeds_are_a_level_of_their_own():
    a, b = runs("a", 3, gain=0.2, seed=1), runs("b", 2, seed=2)
    result = compare([a, b])
    json.dumps(result, allow_nan=False)
    pair = result["pairs"][0]
    found = seeds.crossed(a.grid, b.grid)
    assert (pair["test"], pair["method"], pair["seeds"]) == ("crossed_t", "crossed_t", [3, 2])
    assert pair["p"] == pytest.approx(seeds.p_over_seeds(found))
    assert pair["difference"] == pytest.approx(found.value)
    assert pair["smallest_callable"] == pytest.approx(pair["high"] - pair["difference"])
    assert [x["seeds"] for x in result["arms"]] == [3, 2]
    assert result["arms"][0]["method"] == "crossed_wilson"
    assert result["arms"][0]["disagreement"]["seeds"] == pytest.approx(seeds.disagreement(a.grid, 1)[1])
    assert result["arms"][0]["disagreement"]["samples"] is None  # one sample cannot tell
    assert result["notes"] == []
    assert result["smallest_callable"] == []  # McNemar's would be another test's
    assert sum(pair[k] for k in ("both_right", "a_only", "b_only", "both_wrong")) == pytest.approx(60)


def test_what_one_seed_does_not_cover_is_said():
    base = runs("base", 1, seed=3)
    assert compare([A, B])["notes"] == [ONE_SEED]
    mixed = compare([base, runs("a", 3), runs("b", 1, seed=4)])
    assert mixed["notes"] == [f"base, b: {ONE_SEED} (an untrained model has none)"]
    assert [pair["test"] for pair in mixed["pairs"]] == ["crossed_t", "mcnemar_exact", "crossed_t"]


def test_order_of_seeds_does_not_matter():
    a, b = runs("a", 3, seed=1), runs("b", 3, seed=2)
    swapped = compare([a._replace(tables=a.tables[::-1]), b])
    assert swapped["pairs"][0]["p"] == pytest.approx(compare([a, b])["pairs"][0]["p"])


def test_seeds_that_are_all_alike_leave_the_problems():
    same = arm("same", [[1]] * 20)
    pair = compare([Arm("a", (same, same)), Arm("b", (same, same))])["pairs"][0]
    assert (pair["test"], pair["p"], pair["method"]) == ("sign_flip_exact", 1.0, "tango")
    assert pair["high"] > 0.1


def test_seeds_that_are_no_seeds_are_refused():
    one = replace(A, adapter_digest="x")
    whole = replace(A, model_digest="m", adapter_digest="none")
    for twice in (one, whole):
        with pytest.raises(ProvenanceError, match="different training runs, received one twice"):
            compare([Arm("a", (twice, twice))])
    assert compare([Arm("a", (whole, replace(whole, model_digest="n")))])["arms"][0]["seeds"] == 2
    assert (
        compare([Arm("a", (replace(one, model_digest="m"), replace(one, model_digest="m", adapter_digest="y")))])["n"]
        == 30
    )
    assert compare([Arm("base", (replace(A, adapter_digest="none"),) * 2)])["arms"][0]["seeds"] == 2
    with pytest.raises(DataError, match=r"same number of samples a problem, received \[1, 2\]"):
        compare([Arm("a", (A, arm("more", [[1, 0]] * 30)))])
    with pytest.raises(ProvenanceError, match="same problems"):
        compare([Arm("a", (A, replace(A, problems_digest="e" * 64)))])
    with pytest.raises(ConfigError, match="received none"):
        compare([Arm("a", ())])


def test_the_interval_of_an_accuracy_can_be_exact():
    wilson, exact = (compare([A], interval=interval_named(n))["arms"][0] for n in ("wilson", "clopper_pearson"))
    assert (wilson["method"], exact["method"]) == ("wilson", "clopper_pearson")
    assert exact["high"] - exact["low"] > wilson["high"] - wilson["low"]
    with pytest.raises(ConfigError, match="one of wilson, clopper_pearson, received 'wald'"):
        interval_named("wald")


@pytest.mark.parametrize(("num", "said"), [((2, 1), True), ((1, 2), True), ((3, 1), False), ((2, 2), False)])
def test_two_seeds_beside_a_single_run_are_said_to_be_few(num, said):
    assert (TWO_SEEDS in compare([runs("a", num[0]), runs("b", num[1], seed=1)])["notes"]) == said
