"""compare says what is known, in JSON, and refuses what is not comparable."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from limbeck.errors import ConfigError, DataError, DegenerateError, ProvenanceError
from limbeck.stats.compare import compare
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


def test_identical_arms():
    pair = compare([A, replace(A, name="again")])["pairs"][0]
    assert (pair["p"], pair["difference"], pair["smallest_callable"]) == (1.0, 0.0, None)
    assert pair["low"] < 0 < pair["high"]


def test_row_order_does_not_matter_and_seed_decides():
    rows_a = [[1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1], [0, 1, 0, 0]] * 5
    rows_b = [[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1]] * 5
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
