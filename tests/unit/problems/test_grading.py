"""Grades are right on what graders are known to get wrong, and no response can hang, crash or run the grader."""

from __future__ import annotations

import ast
import asyncio
import os
import threading
from pathlib import Path

import pytest

import limbeck
from limbeck.errors import ConfigError, DataError
from limbeck.problems import grading, symbolic
from limbeck.problems.grading import GRADER_ID, Outcome, decide, grade, grade_all, grader_id
from limbeck.problems.normal import admits, rational, tidy, word

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
    (r"\frac{\pi}{2}", r"\dfrac{ \pi }{2}", CORRECT),
]  # fmt: skip

SYMBOLIC = [
    (r"\sqrt{2}/2", r"\frac{1}{\sqrt{2}}", CORRECT), ("p - q", "-q+p", CORRECT), ("(a+5)(b+2)", "ab+2a+5b+10", CORRECT),
    (r"\sqrt{2}", "1.41421356", CORRECT), (r"7\pi", "21.99", WRONG), ("1024", "2^{10}", CORRECT), ("12", "1,2", WRONG),
    ("10^{-20}", r"2 \cdot 10^{-20}", WRONG), ("1,-2", "-2, 1", CORRECT), ("1,-2", "(1,-2)", WRONG),
    ("(1, 2)", "(2, 1)", WRONG), ("(1, 2)", "1, 2", WRONG), (r"\{1,2\}", r"\{1\}", WRONG), ("(3,4]", "[3,4]", WRONG),
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


def test_integers_start_no_process(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a process was asked for")

    monkeypatch.setattr(grading, "judge_all", refuse)
    grades = grade_all([boxed(a) for _, a, _ in EXACT], [g for g, _, _ in EXACT])
    assert [g.outcome for g in grades] == [outcome for _, _, outcome in EXACT]


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


def children():
    """Processes of ours that grade, by the kernel's own list."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:  # gone meanwhile
            continue
        if parent == os.getpid() and b"limbeck.problems.symbolic" in command:
            found.append(int(folder.name))
    return found


def test_a_hanging_comparison_is_killed_and_the_next_one_graded():
    # past the grammar on purpose: this is what the clock is for
    pairs = [("1", "9^{9^{9^{9}}}"), ("x+1", "1+x"), ("1", "(10^9)!")]
    out = symbolic.judge_all(pairs, workers=1, limit_seconds=2.0)
    assert out[0] in ("timed_out", "errored")  # whichever of clock and memory limit is first
    assert out[1] == "correct"
    assert out[2] in ("timed_out", "errored")
    assert children() == []


def test_a_killed_process_is_an_error_and_replaced():
    with symbolic.Judge(20.0) as judge:
        assert judge.ask("x+1", "1+x") == "correct"
        judge._process.kill()
        judge._process.wait()
        assert judge.ask("x+1", "1+x") == "errored"
        assert judge.ask("x+1", "2+x") == "wrong"
        assert children() == ([judge._process.pid] if Path("/proc").exists() else [])
    assert children() == []


def test_the_child_sees_no_secret(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hunter2-planted")
    with symbolic.Judge(20.0) as judge:
        judge.ask("x+1", "1+x")
        environment = Path(f"/proc/{judge._process.pid}/environ")
        if not environment.exists():
            pytest.skip("needs /proc")
        assert b"hunter2" not in environment.read_bytes()


def test_truncated_thinking_is_its_own_outcome():
    assert grade(r"<think>\boxed{7}", "7") == (Outcome.TRUNCATED, "")
    assert grade(r"<think>\boxed{6}</think>\boxed{7}", "7").outcome == CORRECT


def test_gold_beyond_the_grader_is_its_error_not_the_models():
    assert grade(boxed("x+1"), r"\int_0^1 f").outcome == Outcome.ERRORED


def test_grader_id_names_versions_and_leniency():
    assert "math-verify-0." in GRADER_ID
    assert grader_id() == GRADER_ID != grader_id(last_number=True)


def test_arguments_that_cannot_mean_anything():
    with pytest.raises(DataError, match="received 2 responses and 1 answers"):
        grade_all(["a", "b"], ["a"])
    with pytest.raises(ConfigError, match=r"workers >= 1 and limit_seconds > 0, received 0 and 5"):
        grade_all(["a"], ["a"], workers=0)
    assert grade_all([], []) == []


def test_evaluators_are_named_nowhere():
    names = {"eval", "exec", "sympify", "parse_expr", "compile"}
    for path in Path(limbeck.__file__).parent.glob("problems/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Name) and node.id in names), path
            assert not (isinstance(node, ast.alias) and node.name in names), path


def test_numbers_and_words():
    assert rational("1,2") is rational("12,34") is rational("1.2.3") is rational("") is rational("2 4/3") is None
    assert rational("9" * 61) is None
    assert (word("xy"), word("x", single=True), word("no solution"), word("7")) == ("", "x", "no solution", "")
