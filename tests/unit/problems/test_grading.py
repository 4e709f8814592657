"""Grades are right on what graders are known to get wrong, and no response can hang, crash or run the grader."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import limbeck
from limbeck.errors import ConfigError, DataError
from limbeck.problems import grading
from limbeck.problems.grading import GRADER_ID, Grader, Outcome, ballot, decide, grade, grade_all, grader_id
from limbeck.problems.normal import admits, rational, tidy, word
from limbeck.problems.sources import FORMATS
from limbeck.problems.symbolic import Judges

ROOT = Path(__file__).parents[3]
CORRECT, WRONG, UNPARSED = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSED

EXACT = [  # gold, answer, outcome: none of these needs a process
    ("23", "023", CORRECT), ("023", "23", CORRECT), ("023", "230", WRONG), ("23", "23.5", WRONG), ("23", "23.0", CORRECT),
    ("8000", "8,000", CORRECT), ("8000", "8{,}000", CORRECT), ("-8000", "\u22128,000", CORRECT), ("8000", "-8000", WRONG),
    ("1234.5", r"\$1,234.50", CORRECT), ("-5", r"-\$5", CORRECT), ("-5", r"\$-5", CORRECT), ("5", "+5", CORRECT),
    (r"11,\! 111,\! 111,\! 100", "11111111100", CORRECT), (r"\$32,\!348", "32348", CORRECT), ("12", "12.", CORRECT),
    ("2", "2 2/3", WRONG), ("8/3", "2 2/3", CORRECT), ("71/6", "11 5/6", CORRECT), ("-3/2", "-1 1/2", CORRECT),
    (r"1\frac{4}{5}", "9/5", CORRECT), (r"\frac43", "4/3", CORRECT), (r"\frac{270}7\text{ degrees}", "270/7", CORRECT),
    (r"\frac{1}{2}", "0.5", CORRECT), (r"-\frac{1}{2}", r"\frac{-1}{2}", CORRECT), ("1/3", "0.333333", WRONG),
    ("50", "0.5", WRONG), ("5000", "50", WRONG), ("50", r"50\%", CORRECT), ("0.5", "50%", WRONG),
    ("1e-20", "2e-20", WRONG), ("1e-20", "0.00000000000000000001", CORRECT), ("0", "-0", CORRECT),
    (r"90^\circ", "90", CORRECT), (r"864 \mbox{ inches}^2", "864", CORRECT), (r"5.4 \text{ cents}", "5.4", CORRECT),
    ("5", r"5 \text{ million}", UNPARSED), ("x=5", "5", CORRECT), ("5", "x = 5", CORRECT), ("5", "x = 6", WRONG),
    ("3", "x = 3 = 4", UNPARSED), (r"\text{Evelyn}", "evelyn", CORRECT), (r"\text{Evelyn}", "Navin", WRONG),
    (r"\text{(C)}", "C", CORRECT), (r"\text{(C)}", r"\text{(D)}", WRONG), (r"\text{even}", "17", WRONG),
    ("52_8", "52_{8}", CORRECT), ("52_8", "52", CORRECT), ("52_8", "52_9", WRONG), ("7", "", UNPARSED),
    (r"\frac{\pi}{2}", r"\dfrac{ \pi }{2}", CORRECT), ("12", "1,2", WRONG), ("1,2", "12", WRONG),
    ("18", "18 dollars", CORRECT), ("18", "18 eggs per day.", CORRECT), ("5", "5 million", UNPARSED),
    ("50", "50 percent", CORRECT),
    ("5", r"5 \text{ million dollars}", UNPARSED), ("5", "5 less", UNPARSED), ("12", "12 cm^2", CORRECT), ("5", "5x", None),
    ("60", r"60\text{ km/h}", CORRECT), ("42", r"\mathbf{42}", CORRECT), ("42", "**42**", CORRECT),
    ("12345", r"12\,345", CORRECT),
    ("1/3", r"0.\overline{3}", CORRECT), ("1/6", r"0.1\overline{6}", CORRECT), ("1/3", "0.3", WRONG),
    ("-1/3", r"-0.\overline{3}", CORRECT),
    (r"\sqrt{2}", r"\sqrt{2} \approx 1.41", CORRECT), ("22/7", r"\frac{22}{7} \approx 3.14", CORRECT),
    ("3.14", r"\pi \approx 3.14", CORRECT),
    ("5", r"\text{Area} = 5", CORRECT), ("5", "AB = 5", CORRECT), ("5", "2x = 5", None),
    ("(1,2)", "(x,y) = (1, 2)", CORRECT),
    ("1,-2", "x = 1, x = -2", CORRECT), ("1,-2", r"x=-2 \text{ or } x=1", CORRECT), ("1,-2", "x = 1, y = -2", UNPARSED),
    ("C", r"\text{C}", CORRECT), ("C", "(C)", CORRECT), ("C", r"\textbf{(C)}\ 12", CORRECT), ("C", "D", WRONG),
    ("12", r"\textbf{(C)}\ 12", CORRECT),
    ("1,-2", "-2, 1", CORRECT), ("1,-2", "(1,-2)", WRONG), ("(1, 2)", "(2, 1)", WRONG),
    ("(1, 2)", "1, 2", WRONG), (r"\{1,2\}", "2,1", CORRECT),
    (r"\{1,2\}", r"\{1\}", None), ("[3,4]", "(3,4)", WRONG), (r"(\frac12, 3)", r"\left( 0.5, 3 \right)", CORRECT),
    ("1,2", r"1 \text{ and } 2", CORRECT), ("1000, 2000", "1,000, 2,000", CORRECT), ("(1e-20, 1)", "(2e-20, 1)", WRONG),
    ("(11 5/6, 2)", "(71/6, 2)", CORRECT), ("2, 3", "2 2/3, 3", WRONG), ("17", r"\text{even}", WRONG),
    ("5", r"5\mathrm{i}", None), ("5i", r"5\mathrm{i}", CORRECT), ("2", r"2\text{e}", None), ("5", r"5\text{ N}", CORRECT),
    ("5", r"5\mathrm{m}", CORRECT), ("2", "2 theta", UNPARSED), ("3.14", r"\approx 3.14", CORRECT), ("3", r"\approx 3.14", WRONG),
    ("3:2", "3:2", CORRECT), ("x^2", "f(x) = x^2", CORRECT),
    ("3", "3" * 5000, UNPARSED), ("7", "\x007", UNPARSED), ("7", "7}", UNPARSED),
]  # fmt: skip

SYMBOLIC = [
    (r"\sqrt{2}/2", r"\frac{1}{\sqrt{2}}", CORRECT), ("p - q", "-q+p", CORRECT), ("(a+5)(b+2)", "ab+2a+5b+10", CORRECT),
    (r"\sqrt{2}", "1.41421356", CORRECT), (r"7\pi", "21.99", WRONG), ("1024", "2^{10}", CORRECT),
    ("10^{-20}", r"2 \cdot 10^{-20}", WRONG), (r"\{1,2\}", r"\{1\}", WRONG), (r"(\pi, 2]", r"[\pi, 2]", WRONG),
    ("5", "5x", WRONG), ("5", r"5\mathrm{i}", WRONG), ("2i-1", r"-1+2\mathrm{i}", CORRECT), ("1", r"-1+2\mathrm{i}", WRONG),
    (r"(\sqrt{4}, 1)", "(2, 1)", CORRECT), (r"(\pi, 1)", r"(1, \pi)", WRONG), (r"\pi, 1", r"1, \pi", CORRECT),
    ("5", "2x = 5", WRONG),
    (r"1.2 \times 10^{5}", "120000", CORRECT), ("120000", r"1.2 \times 10^{5}", CORRECT),
    ("x+1", "x+2", WRONG), ("x+1", "y+1", WRONG), (r"\sin^2 x + \cos^2 x", "1", CORRECT), (r"\sqrt{x^2}", "x", WRONG),
    (r"1 \pm \sqrt{19}", r"1-\sqrt{19} \text{ and } 1+\sqrt{19}", CORRECT), (r"x \in [-2,7]", "[-2,7]", CORRECT),
    (r"\begin{pmatrix} -2 \\ -14 \end{pmatrix}", r"\begin{bmatrix} -2 \\ -14 \end{bmatrix}", CORRECT),
    ("6 - 5i", "-5i + 6", CORRECT), ("y = 2x + 3", "-2x + y = 3", CORRECT), (r"\pi", "3", WRONG),
]  # fmt: skip

ATTACKS = [
    "__import__('os').system('touch pwned')", "().__class__.__bases__[0].__subclasses__()", "lambda: open('pwned','w')",
    r"\text{__import__('os').system('touch pwned')}", "exec(chr(111))", "x.__class__", "open('pwned','w')", "f'{x}'",
    "9^{9^{9^9}}", "9^9^9^9", "9**9**9", "(10^9)!", "10000!", "5!!", "2^{99999}", "9" * 1_000_000,
    "{" * 10_000 + "}" * 10_000, "(" * 200 + ")" * 200, r"\sum_{n=1}^{9999999} n", r"\input{/etc/passwd}", "1_000__0",
]  # fmt: skip


def boxed(answer):
    return f"so it is \\boxed{{{answer}}}"


@pytest.mark.parametrize(("gold", "answer", "outcome"), EXACT)
def test_exact_arithmetic_decides(gold, answer, outcome):
    assert decide(gold, answer) == outcome


def test_exact_arithmetic_starts_no_process(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a process was asked for")

    monkeypatch.setattr(grading, "Judges", refuse)
    rows = [row for row in EXACT if row[2] and row[1] != "7}"]  # which no box can hold
    grades = grade_all([boxed(a) for _, a, _ in rows], [g for g, _, _ in rows])
    assert [g.outcome for g in grades] == [outcome for _, _, outcome in rows]


def test_algebra_decides_the_rest_from_any_thread():
    expected = [outcome for _, _, outcome in SYMBOLIC]
    responses, golds = [boxed(a) for _, a, _ in SYMBOLIC], [g for g, _, _ in SYMBOLIC]
    assert {decide(g, a) for g, a, _ in SYMBOLIC} == {None}
    found = {}

    def work():
        found["thread"] = grade_all(responses, golds, workers=2)

    async def loop():
        return grade_all(responses[:3], golds[:3])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [g.outcome for g in found["thread"]] == expected
    assert [g.outcome for g in asyncio.run(loop())] == expected[:3]


def test_nothing_the_model_writes_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    responses = [form(a) for a in ATTACKS for form in (str, boxed, lambda a: boxed(rf"\text{{{a}}}"))]
    grades = grade_all(responses, ["7"] * len(responses), last_number=False)
    assert {g.outcome for g in grades} == {UNPARSED}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ATTACKS)
def test_the_grammar_keeps_it_from_the_parser(text):
    assert not admits(tidy(text))


@pytest.mark.parametrize("text", [r"x^{2^x}", "10!", "n!", r"\log_2 8", r"\{1\pm\sqrt{5},-2\}", "2x^{2}y + 1", "|x|"])
def test_the_grammar_admits_mathematics(text):
    assert admits(tidy(text)) == ("2^x" not in text)


ENDLESS = [
    "1", "1,", "1 ", "a ", "1 a", "abc-", " /", "{", "}", r"\text{", r"\text{a} ", r"\frac", "=", "x = ", "x=1,", "(a, ", "^",
    "\\", "{,}", ".", "- ", r"\approx", "1.2e3", "!", " ! ", "_", "a_b", "~", "and ", r"\overline{", "\n", "\u00a0", "\\!", "%",
]  # fmt: skip


@pytest.mark.parametrize("part", ENDLESS)
def test_no_text_takes_long(part):
    text = part * (3900 // len(part))
    begin = time.perf_counter()
    for answer in (text, f"7{text}", f"5 {text}7", f"{text}$"):
        decide("7", answer)
        ballot(answer)
    assert time.perf_counter() - begin < 1.0


def processes(session):
    """Living processes of one session (the nursery leads its own), by the kernel's list."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, leader = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # gone meanwhile
            continue
        if int(leader) == session and state != "Z":
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def judges():
    with Judges(1, 4.0) as judges:
        yield judges


def test_a_hanging_comparison_is_killed_and_the_next_one_graded(judges):
    # past the grammar on purpose: this is what the clock is for
    out = judges.ask_all([("1", "9^{9^{9^{9}}}"), ("x+1", "1+x")])
    assert out[0] in ("timed_out", "errored")  # whichever of clock and memory limit is first
    assert out[1] == "correct"
    assert len(processes(judges._nursery.pid)) == 2


def test_questions_behind_a_hanging_one_are_asked_again(judges):
    hang = "9^{9^{9^{9}}}"
    pairs = [("1", a) for a in ("2-1", hang, "1+0", "1+1", "3-2", "0+1", "4-3", "2+2", "5-4")]
    out = judges.ask_all(pairs)
    assert out.pop(1) in ("timed_out", "errored")
    assert out == ["correct", "correct", "wrong", "correct", "correct", "correct", "wrong", "correct"]


def test_a_killed_worker_is_an_error_and_replaced(judges):
    assert judges.ask_all([("x+1", "1+x")]) == ["correct"]
    os.kill(judges._slots[0].pid, signal.SIGKILL)
    assert judges.ask_all([("x+1", "1+x"), ("x+1", "2+x"), ("x+1", "1+x")])[1:] == ["wrong", "correct"]


def test_answers_that_nobody_waits_for_any_more_are_no_answers_to_the_next_questions(judges):
    for _ in range(3):
        os.kill(judges._slots[0].pid, signal.SIGKILL)
        time.sleep(0.3)  # the successor has greeted: it answers what is written for the one before, too
        assert judges.ask_all([("x+1", "1+x"), ("x+1", "2+x"), ("x+1", "1+x")])[1:] == ["wrong", "correct"]
    assert len(processes(judges._nursery.pid)) == 2


def test_a_lost_nursery_is_started_again():
    with Judges(1, 20.0) as judges:
        assert judges.ask_all([("x+1", "1+x")]) == ["correct"]
        os.killpg(judges._nursery.pid, signal.SIGKILL)
        judges._nursery.wait()
        assert judges.ask_all([("x+1", "2+x"), ("x+1", "1+x")]) == ["wrong", "correct"]


ORPHAN = """
import os, signal, sys
from limbeck.problems.symbolic import Judges
judges = Judges(2, 60.0)
assert judges.ask_all([("x+1", "1+x")]) == ["correct"]
print(judges._nursery.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_outlives_a_killed_grader():
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while (left := processes(int(done.stdout))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def test_an_interrupt_ends_the_processes(monkeypatch):
    judges = Judges(1, 60.0)
    judges.ask_all([("x+1", "1+x")])
    nursery = judges._nursery.pid

    def interrupt(num):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judges.ask_all([("x+1", "1+x"), ("x+1", "2+x")], interrupt)
    assert processes(nursery) == []


def test_the_processes_see_no_secret(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hunter2-planted")
    with Grader(workers=1) as grader:
        assert grader.grade_all([boxed("1+x")], ["x+1"])[0].outcome == CORRECT
        for pid in processes(grader._judges._nursery.pid):
            assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_one_grader_serves_many_batches_with_the_same_processes():
    counted = []
    with Grader(workers=1) as grader:
        assert grader._judges is None
        for _ in range(2):
            grades = grader.grade_all([boxed("1+x")] * 3 + [boxed("7")], ["x+1"] * 3 + ["7"], advance=counted.append)
            assert {g.outcome for g in grades} == {CORRECT}
            nursery = grader._judges._nursery.pid
        assert nursery == grader._judges._nursery.pid
        assert grader.id == GRADER_ID
    assert sum(counted) == 8
    assert processes(nursery) == []


def test_truncated_thinking_is_its_own_outcome():
    assert grade(r"<think>\boxed{7}", "7") == (Outcome.TRUNCATED, "", "")
    assert grade(r"so \boxed{7}", "7", prompt="2 + 5?<think>\n") == (Outcome.TRUNCATED, "", "")
    assert grade(r"so \boxed{6}</think>\boxed{7}", "7", prompt="2 + 5?<think>\n").outcome == CORRECT
    grades = grade_all(["it is 7"] * 2, ["7"] * 2, ["<think>", "<think></think>"], last_number=True)
    assert [g.outcome for g in grades] == [Outcome.TRUNCATED, CORRECT]
    assert grade(r"<think>\boxed{6}</think>\boxed{7}", "7").outcome == CORRECT


def test_gold_beyond_the_grader_is_its_error_not_the_models():
    assert grade(boxed("x+1"), r"\int_0^1 f").outcome == Outcome.ERRORED


def test_grader_id_names_versions_and_leniency():
    assert "math-verify-0." in GRADER_ID
    assert grader_id() == GRADER_ID != grader_id(last_number=True)


def test_arguments_that_cannot_mean_anything():
    with pytest.raises(DataError, match="received 2 responses and 1 answers"):
        grade_all(["a", "b"], ["a"])
    with pytest.raises(DataError, match="received 1 responses and 1 answers for 2 prompts"):
        grade_all(["a"], ["a"], ["p", "q"])
    with pytest.raises(ConfigError, match=r"workers >= 1 and limit_seconds > 0, received 0 and 5"):
        grade_all(["a"], ["a"], workers=0)
    assert grade_all([], []) == []


def test_evaluators_are_named_nowhere():
    names = {"eval", "exec", "sympify", "parse_expr", "compile"}
    for path in Path(limbeck.__file__).parent.glob("problems/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Name) and node.id in names), path
            assert not (isinstance(node, ast.alias) and node.name in names), path


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_an_integer_in_any_dress_is_right_and_its_neighbors_are_wrong(value, dress):
    sign, size = "-" * (value < 0), abs(value)
    shown = (
        f"{value}",
        f"{value:,}",
        f"{sign}\\${size:,}.00",
        f"{value:,}".replace(",", "{,}"),
        f"{sign}00{size} units",
    )
    assert decide(str(value), shown[dress]) == CORRECT
    assert decide(shown[dress], str(value)) == CORRECT
    for other in {value + 1, -value, value * 100, value * 10} - {value}:
        assert decide(str(other), shown[dress]) == WRONG


@given(st.fractions(), st.fractions())
def test_fractions_are_exact_and_symmetric(a, b):
    forms = [f"{f.numerator}/{f.denominator}" for f in (a, b)]
    forms[1] = rf"{'-' * (b < 0)}\frac{{{abs(b.numerator)}}}{{{b.denominator}}}"
    if max(map(len, forms)) < 60:
        assert (decide(*forms) == CORRECT) == (a == b)
        assert decide(*forms) == decide(*reversed(forms))


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_has_an_outcome_without_raising(gold, answer):
    assert decide(gold, answer) in {None, *Outcome}
    if decide(gold, answer) is None:
        assert decide(answer, gold) is not CORRECT


def test_the_forms_that_the_page_lists_are_graded_as_it_says():
    page = (ROOT / "docs" / "grading.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \| (\w+) \|", page.partition("<!-- forms -->")[2], re.MULTILINE)
    assert len(rows) > 40
    grades = grade_all([boxed(answer) for _, answer, _ in rows], [gold for gold, _, _ in rows])
    assert [(row, str(g.outcome)) for row, g in zip(rows, grades, strict=True)] == [(row, row[2]) for row in rows]


DATA = Path(os.environ.get("LIMBECK_TEST_DATA", ROOT.parent / "shared" / "data"))


def reference(name, form):
    if not (DATA / name).is_file():
        pytest.skip(f"needs {name} in ../shared/data or in the folder that LIMBECK_TEST_DATA names")
    return FORMATS[form](DATA / name)


@pytest.mark.parametrize(
    ("name", "form", "num"), [("gsm8k_test.jsonl", "gsm8k", 1319), ("math500_test.jsonl", "math", 500)]
)
def test_reference_solutions_are_right_and_a_wrong_box_last_is_wrong(name, form, num):
    solved = reference(name, form)
    assert len(solved) == num
    golds = [problem.answer for problem, _ in solved]
    assert {g.outcome for g in grade_all([solution for _, solution in solved], golds)} == {CORRECT}
    spoiled = grade_all([solution + r" Wait, \boxed{123454321}." for _, solution in solved], golds)
    assert {g.outcome for g in spoiled} == {WRONG}


@pytest.mark.parametrize(
    ("name", "file", "form"), [("GSM8K test", "gsm8k_test.jsonl", "gsm8k"), ("MATH-500", "math500_test.jsonl", "math")]
)
def test_perturbed_references_are_wrong_and_the_exceptions_are_minus_zero(name, file, form, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import grader

    items = [grader.Item(problem.id, problem.answer, solution) for problem, solution in reference(file, form)]
    zeros_and_words = re.compile(r"(?<![\d.])0(?![\d.])|\\text\{")
    items = [item for number, item in enumerate(items) if number % 8 == 0 or zeros_and_words.search(item.gold)]
    rows = grader.reference_rows({name: items})
    assert len(rows) == 4
    exceptions = {row["what"]: row["exceptions"] for row in rows if row["exceptions"]}
    left_out = [one for row in rows for one in row["left_out"]]
    if form == "gsm8k":
        assert (exceptions, left_out) == ({}, [])
        return
    ((what, minus_zero),) = exceptions.items()
    assert "sign flipped" in what
    assert len(minus_zero) == 8
    assert all(re.search(r"read '\(?-0\b", one) for one in minus_zero)
    assert len(left_out) == 8
    assert all("\\text{" in one for one in left_out)  # words, which have no sign


@pytest.mark.parametrize(
    "dresses",
    [
        ("8000", "8,000", r"8{,}000", "8000 dollars", r"\$8000.00", "8 000"), ("1/2", "0.5", r"\frac12"),
        ("1,-2", "-2, 1", r"x = 1, x = -2"), (r"\text{(C)}", "C"), ("Evelyn", r"\text{evelyn}"), ("x+1", "x + 1"), ("5", "x = 5"),
    ],
)  # fmt: skip
def test_one_answer_in_any_dress_is_one_vote(dresses):
    assert len({ballot(answer) for answer in dresses}) == 1
    assert ballot(dresses[0]) not in {ballot(other) for other in ("7999", "(1,-2)", "y+1", "D", "0.3", "7" * 5000)}


def test_numbers_and_words():
    assert rational("1,2") is rational("12,34") is rational("1.2.3") is rational("") is rational("2 4/3") is None
    assert rational("9" * 61) is None
    assert (word("xy"), word("x", single=True), word("no solution"), word("7")) == ("", "x", "no solution", "")
