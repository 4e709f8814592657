"""The last closed box outside the thinking wins; what is not closed is no answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.problems.extract import extract, opens_thinking, strip_thinking


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
        ("#### 1,234 apples.", "1,234"),
        ("#### 18 dollars a day\n", "18"),
        ("#### 3 Check this\nfine", ""),
        ("#### **18**", "18"),
        ("#### $18$", "$18"),
        ("#### 50%", "50"),
        ("#### 9^{9^9}", ""),
        ("#### 9**9", ""),
        ("#### 9x", ""),
        ("#### 7\x00", ""),
        ("#### 5<|im_end|>", "5"),
        ("few-shot: #### 5\nso\n#### 6", "6"),
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


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("10-3", "3"), ("10 - 3", "3"), ("x = -7.", "-7"), ("(-3)", "-3"), ("it is $-5", "$-5"), ("-$5", "-$5"),
        ("COVID-19", "19"),        ("about 1/2 of it", "1/2"), ("none", ""), ("8,000.", "8,000"),
    ],
)  # fmt: skip
def test_the_last_number_and_its_sign(response, answer):
    assert extract(response, last_number=True).answer == answer


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("q<think>", True), ("q<think>\n\n", True), ("q[THINK]", True), ("q<think>\n\n</think>\n\n", False), ("q", False),
        ("<think> what of it? <|assistant|>", False), ("", False), ("q</think>", False),
    ],
)  # fmt: skip
def test_a_prompt_that_opens_the_thinking(prompt, opened):
    assert opens_thinking(prompt) == opened
    assert extract(r"so \boxed{7}", prompt=prompt) == (("", "", True) if opened else ("7", "boxed", False))
    assert extract(r"\boxed{6}</think>\boxed{7}", prompt=prompt).answer == "7"
    assert extract(r"<think>\boxed{6}</think>\boxed{7}", prompt=prompt).answer == "7"
    assert extract(r"<think>\boxed{6}", prompt=prompt).truncated


TAGS = st.lists(st.sampled_from(["<think>", "</think>", r"\boxed{1}", "a", "#### 2\n", "{", "}"]), max_size=12)


@given(TAGS)
def test_what_follows_the_last_closing_tag_decides(parts):
    text = "".join(parts)
    if strip_thinking(text)[1]:
        assert extract(text, last_number=True) == ("", "", True)
    else:
        assert extract(text + r" \boxed{9}").answer == "9"
        assert extract(text + "</think>" + r"\boxed{9}").answer == "9"
        assert extract(text + r"<think>\boxed{9}").truncated


@given(st.text(max_size=300), st.booleans())
def test_any_text_has_an_extraction(text, last_number):
    found = extract(text, last_number=last_number)
    assert found.answer in text
    assert not (found.truncated and found.answer)


def test_a_box_without_braces_ends_with_the_formula():
    assert extract(r"so $x = \boxed 25$.").answer == "25"
    assert extract("the \\boxed answer is nice\n#### 3").answer == "3"


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
    for text in (
        "#### " + "1," * 200_000 + "a",
        "#### 1" + " a" * 200_000,
        "\\boxed " * 100_000,
        "####" + " " * 500_000,
    ):
        assert extract(text).answer == ""
