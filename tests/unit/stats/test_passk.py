"""pass@k is unbiased, avg@k uses all samples, maj@k is what a hand count gives."""

from __future__ import annotations

import itertools
import math

import pytest
from tests.reference import stats as reference

from limbeck.errors import ConfigError
from limbeck.stats.passk import avg_at_k, maj_at_k, pass_at_k
from limbeck.types import Finish, Score, ScoreTable


def table(*problems, name="arm"):
    """Each problem a list of (extracted, correct)."""
    scores = tuple(
        Score(
            problem_id=f"p{i:03d}",
            sample=j,
            correct=correct,
            answer="4",
            extracted=extracted,
            finish=Finish.STOP,
            response_tokens=1,
        )
        for i, samples in enumerate(problems)
        for j, (extracted, correct) in enumerate(samples)
    )
    return ScoreTable(name=name, scores=scores, problems_digest="d", grader="g", decoding="greedy")


def flags(*rows):
    return table(*[[("4", True) if right else (f"w{j}", False) for j, right in enumerate(row)] for row in rows])


def test_eight_samples_two_right():
    found = pass_at_k(flags([1, 1, 0, 0, 0, 0, 0, 0], [0] * 8), 4)
    assert found.value * 2 == pytest.approx(0.7857, abs=1e-4)  # 1 - C(6, 4) / C(8, 4) = 1 - 15 / 70; the other is 0
    assert found.n == 2


@pytest.mark.parametrize("n", range(1, 9))
def test_equals_all_subsets(n):
    for c in range(n + 1):
        row = [i < c for i in range(n)]
        for k in range(1, n + 1):
            assert pass_at_k(flags(row, row), k).value == pytest.approx(reference.pass_at_k(row, k))


def test_deleting_samples_at_random_changes_nothing_on_average():
    row = [1, 0, 0, 1, 0, 0]
    for k in (1, 2, 3):
        full = pass_at_k(flags(row, row), k).value
        kept = [pass_at_k(flags(list(s), list(s)), k).value for s in itertools.combinations(row, 4)]
        assert sum(kept) / len(kept) == pytest.approx(full)


def test_too_few_samples_is_nan_with_the_count():
    found = pass_at_k(flags([1, 0], [0, 0]), 4)
    assert math.isnan(found.value)
    assert found.n == 2
    assert found.reason == "pass@4 needs 4 samples a problem, the table has 2"
    with pytest.raises(ConfigError, match="k >= 1"):
        pass_at_k(flags([1]), 0)


def test_success_in_the_last_of_four():
    rows = flags([0, 0, 0, 1], [0, 0, 0, 1])
    assert avg_at_k(rows).value == 0.25
    assert pass_at_k(rows, 4).value == 1.0
    assert maj_at_k(rows).value == 0.25  # four answers, one vote each, one of them right
    united = table(*[[("3", False)] * 3 + [("4", True)]] * 2)
    assert maj_at_k(united).value == 0.0


def test_majority_votes():
    right, wrong, silent = ("4", True), ("3", False), ("", False)
    assert maj_at_k(table([right, right, wrong], [wrong, wrong, right])).value == 0.5
    assert maj_at_k(table([right, silent, silent], [right, right, right])).value == 1.0
    assert maj_at_k(table([silent] * 3, [right, wrong, silent])).value == 0.25


def test_votes_are_counted_by_ballot():
    split = table([("8,000", True), ("8000", True), ("8000", True), ("7", False), ("7", False)])
    assert (maj_at_k(split).value, maj_at_k(split, ballot=lambda answer: answer.replace(",", "")).value) == (0.5, 1.0)


def test_single_samples_are_plain_accuracy_by_wilson():
    found = avg_at_k(flags(*[[1]] * 30))
    assert (found.method, found.value) == ("wilson", 1.0)
    assert found.low == pytest.approx(0.8865, abs=1e-4)


def test_no_problems():
    empty = ScoreTable(name="x", scores=(), problems_digest="d", grader="g", decoding="greedy")
    assert math.isnan(avg_at_k(empty).value)
    assert math.isnan(maj_at_k(empty).value)
