"""The last closed box outside the thinking wins; what is not closed is no answer."""

from __future__ import annotations

import pytest

from limbeck.problems.extract import extract, strip_thinking


@pytest.mark.parametrize("gap", [0, 40, 4000])
def test_last_box_wins_at_any_distance(gap):
    assert extract(r"\boxed{5}" + "." * gap + r" wait, \boxed{25}").answer == "25"


def test_unclosed_last_box_is_no_answer():
    assert extract(r"\boxed{5} wait, \boxed{2") == ("", "boxed", False)
    assert extract("\\boxed{5} wait, \\boxed{2\n#### 7").answer == ""


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{\frac{1}{\sqrt{2}}} q.e.d.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a \\}", r"a \\"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed {7} and \fbox{8}", "8"),
        (r"\boxed{ 9 }", "9"),
        (r"\boxed{}", ""),
    ],
)
def test_boxes(response, answer):
    assert extract(response).answer == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so\n#### 18", "18"),
        ("#### 4\nno,\n#### 1,234.5", "1,234.5"),
        ("#### -3.", "-3"),
        ("#### \u22123", "\u22123"),
        ("#### $36", "$36"),
        ("#### 1/2", "1/2"),
        ("#### 5 \n", "5"),
        ("#### 2. Multiply\nIt is\n#### 8", "8"),
        ("#### 8\n#### 3. Check\nfine", "8"),
        ("#### Conclusion", ""),
        ("the answer is 12", ""),
    ],
)
def test_markers(response, answer):
    assert extract(response).answer == answer


def test_box_before_marker_and_last_number_only_on_request():
    assert extract("#### 3\n\\boxed{4}").rule == "boxed"
    assert extract("First 3, then 1,204 and \u22125.", last_number=True) == ("\u22125", "last_number", False)
    assert extract("nothing", last_number=True).answer == ""
    assert extract("#### 3\nover 7 lines", last_number=True) == ("3", "marker", False)


def test_answer_inside_the_thinking_does_not_count():
    response = r"<think>\boxed{10}</think> The answer is \(204\)"
    assert extract(response).answer == ""
    assert extract(response, last_number=True).answer == "204"


@pytest.mark.parametrize(
    ("response", "text", "truncated"),
    [
        ("<think>a</think>b", "b", False),
        ("<think>a<think>b</think>c</think>d", "d", False),
        ("<think>a</think>b<think>c</think>d", "bd", False),
        ("a</think>b", "b", False),
        ("a</think>b</think>c", "c", False),
        ("<think>a", "", True),
        ("a<think>b</think>c<think>\\boxed{1}", "ac", True),
        ("<THINK>a</Think>b<thinking>c</thinking>", "b", False),
        ("no tags", "no tags", False),
    ],
)
def test_thinking(response, text, truncated):
    assert strip_thinking(response) == (text, truncated)
    assert extract(response).truncated == truncated


def test_large_texts_are_linear():
    assert extract("\\boxed{" + "{" * 10_000 + "}" * 10_000 + "}").rule == "boxed"
    assert extract("\\boxed{" * 20_000).answer == ""
    assert extract("9" * 1_000_000, last_number=True).rule == "last_number"
    assert extract("<think>" * 50_000).truncated
    assert extract("####" * 50_000 + " 7").answer == "7"
