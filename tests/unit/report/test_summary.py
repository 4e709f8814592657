"""Sentences say what their numbers say, and nothing beyond."""

from __future__ import annotations

import math

import pytest

from limbeck.report import summary
from limbeck.report.barriers import Excess, barriers
from limbeck.report.parts import Sentence
from limbeck.report.summary import Closeness, Verdict


def texts(sentences: list[Sentence]) -> list[str]:
    return [s.text for s in sentences]


BETTER = Verdict("DPO", 0.05, 0.02, 0.08, 0.004, 0.03)
WORSE = Verdict("SFT", -0.061, -0.09, -0.03, 1e-6, 0.04)
OPEN = Verdict("RFT", -0.01, -0.03, 0.01, 0.8, 0.025)


def test_called_differences_are_named_with_interval_and_p_and_the_rest_is_not_decided():
    said = texts(summary.against("base", [OPEN, BETTER, WORSE], alpha=0.05, n=500))
    assert said[0] == "Better than base (points, 95 % interval, Holm p): DPO +5.0 (2.0 to 8.0, p = 0.004)."
    assert said[1] == "Worse than base (points, 95 % interval, Holm p): SFT −6.1 (−9.0 to −3.0, p < 0.001)."
    assert said[2] == (
        "Not decided against base on 500 problems (points, Holm p): RFT −1.0 (0.8). "
        "The smallest difference that this test could have called alone is 2.5 points."
    )


def test_a_p_value_at_alpha_is_not_called():
    said = texts(summary.against("base", [BETTER._replace(p_holm=0.05)], alpha=0.05, n=500))
    assert said[0] == "No arm differs from base by a test corrected for all pairs."
    assert said[1].startswith("Not decided against base")


def test_a_missing_p_value_is_not_called():
    assert "No arm differs" in texts(summary.against("base", [BETTER._replace(p_holm=math.nan)], alpha=0.05, n=9))[0]


def test_called_arms_are_ordered_by_size_of_the_difference():
    more = BETTER._replace(label="KTO", difference=0.09)
    said = texts(summary.against("base", [BETTER, more], alpha=0.05, n=500))[0]
    assert said.index("KTO") < said.index("DPO")


def test_the_interval_is_labelled_by_alpha():
    assert "99 % interval" in texts(summary.against("base", [BETTER], alpha=0.01, n=500))[0]


def test_undecided_without_power_says_so_and_a_range_names_both_ends():
    none = OPEN._replace(smallest_callable=math.nan)
    assert "No difference at all could have been called" in texts(summary.against("b", [none], alpha=0.05, n=5))[-1]
    two = [OPEN, OPEN._replace(label="DFT", smallest_callable=0.05)]
    assert "alone is 2.5 to 5.0 points, by pair." in texts(summary.against("b", two, alpha=0.05, n=5))[-1]


def test_what_could_be_called_is_said_alone_and_at_the_first_step_of_the_correction():
    step = "; at Holm's first step (alpha over the number of pairs) "

    def said(*verdicts: Verdict) -> str:
        return texts(summary.against("b", list(verdicts), alpha=0.05, n=5))[-1]

    both = OPEN._replace(smallest_callable_holm=0.04)
    assert said(both).endswith(f"could have called alone is 2.5 points{step}it is 4.0 points.")
    none = OPEN._replace(label="DFT", smallest_callable_holm=math.inf)
    assert said(none).endswith(f"alone is 2.5 points{step}no difference could have been called.")
    assert said(both, none).endswith(f"alone is 2.5 points{step}it is 4.0 points (and none for 1 of 2).")


def test_a_sentence_of_very_many_arms_has_a_short_form_that_counts_them():
    arms = [Verdict(f"arm {i}", 0.01, -0.02, 0.04, 0.6, 0.03) for i in range(summary.MANY + 1)]
    _, few = summary.against("base", arms[1:], alpha=0.05, n=500)
    _, many = summary.against("base", arms, alpha=0.05, n=500)
    assert few.brief == ""
    assert many.brief.startswith(
        "Not decided against base on 500 problems: 9 arms. The smallest difference that this test"
    )
    assert all(arm.label in many.text and arm.label not in many.brief for arm in arms)


def test_no_comparison_with_the_other_says_nothing():
    assert summary.against("base", [], alpha=0.05, n=0) == []


def test_seeds():
    assert texts(summary.training_variance({"SFT": 3, "DPO": 2}))[0].startswith("2 seeds an arm")
    assert summary.training_variance({}) == []


def test_an_unscored_base_is_a_limit():
    assert summary.ends(math.nan, 0.9)[0].about == "limit"
    assert texts(summary.ends(0.5, math.nan)) == ["Base answers 50.0 % right."]


def test_cosines_are_sorted_into_closer_alike_and_apart_by_the_seed_null():
    arms = [Closeness("DPO", 0.06, 0.02), Closeness("RFT", 0.97, 0.01), Closeness("DFT", 0.4, 0.01)]
    said = texts(summary.cosines("SFT", arms, [0.35, 0.45]))
    assert said[0] == "Cosine of the whole update with that of SFT: RFT 0.97, DFT 0.40, DPO 0.06."
    assert said[1] == (
        "Two seeds of one objective reach 0.35 to 0.45: closer than that to SFT is RFT; "
        "no different from that to SFT is DFT; further apart is DPO."
    )
    assert said[2] == "Nine in ten randomly turned updates (N-ROT) stay within ±0.020 of 0; every arm lies outside it."


def test_a_cosine_inside_the_rotation_band_is_named_and_no_seed_null_is_a_limit():
    said = summary.cosines("SFT", [Closeness("DPO", -0.01, 0.02)], [])
    assert said[1].about == "limit"
    assert said[2].text.endswith("inside it: DPO.")


def test_undefined_cosines_are_left_out():
    assert summary.cosines("SFT", [Closeness("DPO", math.nan, math.nan)], [0.4]) == []


def test_a_group_of_very_many_arms_has_a_short_form_that_names_the_furthest():
    arms = [BETTER._replace(label=f"arm {i}", difference=0.01 * i) for i in range(1, summary.MANY + 2)]
    assert summary.against("base", arms[1:], alpha=0.05, n=500)[0].brief == ""
    (many,) = summary.against("base", arms, alpha=0.05, n=500)
    assert many.brief.endswith("9 arms, most of all arm 9 +9.0 (2.0 to 8.0, p = 0.004).")
    close = [Closeness(f"arm {i}", 0.1 * i, 0.01) for i in range(summary.MANY + 1)]
    assert summary.cosines("SFT", close, [])[0].brief.endswith("9 arms, from arm 0 0.00 to arm 8 0.80.")


def test_what_was_named_says_which_of_it_is_not_decided():
    (said,) = texts(summary.named([BETTER._replace(label="a less b"), OPEN._replace(label="c less d")], 0.05))
    assert said.endswith("a less b +5.0 (2.0 to 8.0, p = 0.004); c less d −1.0 (−3.0 to 1.0, p = 0.8), not decided.")
    assert summary.named([], 0.05) == []


def test_a_response_names_its_three_largest_called_terms():
    terms = [summary.Share(f"t{i}", 0.1 * i, 0.0, 0.9, p) for i, p in enumerate((0.01, 0.01, 0.2, 0.01, 0.01))]
    (said,) = texts(summary.decides({"rank": terms}, 0.05))
    assert [part.split()[0] for part in said.partition(": ")[2].split(", ")] == ["t4", "t3", "t1"]


FLAT = Excess("A to B", -0.05, -0.11, -0.01, False, False)
STEEP = Excess("A to C", 0.3, 0.2, 0.4, True, False)
SEEDS = Excess("A to A", 0.02, -0.1, 0.1, False, True)


def test_a_barrier_needs_an_interval_above_zero():
    assert texts(barriers("accuracy", "fraction", [FLAT, SEEDS])) == [
        "No barrier on accuracy: of 1 path, no mid-point is worse than the chord between its ends."
    ]
    assert texts(barriers("bare", "nats/token", [FLAT, STEEP, SEEDS])) == [
        "Barrier on bare on 1 of 2 paths, mid-point over the chord in nats/token: A to C 0.300 (0.200 to 0.400); "
        "worse than both ends. Between two seeds that is 0.020; beyond it: A to C."
    ]


def test_a_barrier_is_one_path_that_is_both_above_its_chord_and_worse_than_its_ends():
    above = Excess("A to B", 0.5, 0.1, 0.9, False, False)
    worse = Excess("C to D", -0.2, -0.4, -0.1, True, False)
    assert texts(barriers("bare", "nats/token", [above, worse])) == [
        "Above the chord, without a barrier, on bare on 1 of 2 paths, mid-point over the chord in nats/token: A to B "
        "0.500 (0.100 to 0.900); never worse than the worse end. Somewhere along the way C to D passes a point worse "
        "than both ends, with no mid-point shown to lie above the chord."
    ]
    said = texts(barriers("bare", "nats/token", [above, STEEP]))[0]
    assert said.startswith("Barrier on bare on 1 of 2 paths, mid-point over the chord in nats/token: A to C")
    assert "Above the chord, without a barrier, on bare on 1 of 2 paths" in said


def test_absence_of_a_barrier_is_claimed_only_where_no_interval_reaches_above_zero():
    wide = Excess("A to D", 3.5, -0.01, 7.0, False, False)
    assert texts(barriers("bare", "nats/token", [FLAT, wide])) == [
        "No barrier shown on bare: of 2 paths, no mid-point is shown to be worse than the chord between its ends (its "
        "interval reaches 0); the largest is A to D 3.500 (−0.010 to 7.000) nats/token."
    ]
    unknown = FLAT._replace(low=math.nan, high=math.nan)
    assert texts(barriers("bare", "nats/token", [unknown]))[0].startswith("No barrier shown on bare")


def test_a_barrier_no_larger_than_between_seeds_is_not_beyond_them():
    steep = Excess("A to C", 0.3, 0.2, 0.4, False, False)
    seeds = Excess("A to A", 0.25, 0.1, 0.4, False, True)
    said = texts(barriers("bare", "nats", [steep, seeds]))[0]
    assert "beyond it: none." in said
    assert said.startswith("Above the chord, without a barrier, on bare on 1 of 1 path")


def test_seed_pairs_alone_are_no_path():
    assert barriers("bare", "nats", [Excess("A to A", 0.1, 0.05, 0.2, False, True)]) == []


def test_what_did_not_reproduce_is_printed_first_and_plainly():
    said = texts(
        summary.published(
            [("DPO is best", "reproduced"), ("The sky is green", "not reproduced"), ("X", "undecided")], "arXiv 1"
        )
    )
    assert said == [
        "Published in arXiv 1 and NOT reproduced here: the sky is green.",
        "Published in arXiv 1 and not decided here: X.",
        "Published in arXiv 1 and reproduced here: DPO is best.",
    ]
    assert texts(summary.published([("DPO is best", "reproduced")], "arXiv 1"))[0].endswith("none was contradicted.")
    assert summary.published([], "arXiv 1") == []


@pytest.mark.parametrize("value", [0.0, 0.04999])
def test_a_small_p_value_below_alpha_is_called(value: float):
    assert texts(summary.against("b", [BETTER._replace(p_holm=value)], alpha=0.05, n=9))[0].startswith("Better")
