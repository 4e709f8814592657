"""Right or wrong, for every response: exact arithmetic where that decides, symbolic algebra in a killable process else.

A grade never raises: what could not be judged says so in its outcome. Model text is never executed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib import metadata
from types import TracebackType
from typing import NamedTuple

from limbeck.errors import ConfigError, DataError
from limbeck.problems.extract import extract
from limbeck.problems.normal import (
    LISTED,
    admits,
    choice,
    in_base,
    named_value,
    numbers,
    rational,
    tidy,
    unlabeled,
    word,
)
from limbeck.problems.symbolic import Judges
from limbeck.types import Outcome

PARSERS = ("math-verify", "latex2sympy2_extended", "sympy")
GRADER_ID = ";".join(
    ["limbeck-3", "percent=unit", "numbers=exact", *(f"{name}-{metadata.version(name)}" for name in PARSERS)]
)
"""Scores are comparable only under one grader; :func:`grader_id` names the lenient variant."""

MAX_TEXT = 4000  # characters of an answer that is looked at
MAX_WORKERS = 16  # unless more are asked for


class Grade(NamedTuple):
    """An outcome, the answer's text as extracted, and the rule that found it; the latter two may be empty."""

    outcome: Outcome
    extracted: str
    rule: str = ""


def grader_id(*, last_number: bool = False) -> str:
    """The name under which grades are comparable."""
    return GRADER_ID + (";last-number" if last_number else "")


def grade(
    response: str, answer: str, *, prompt: str = "", limit_seconds: float | int = 5, last_number: bool = False
) -> Grade:
    r"""Grade one response; see :func:`grade_all`.

    >>> grade(r"so it is \boxed{8{,}000}.", "8000")
    Grade(outcome=<Outcome.CORRECT: 'correct'>, extracted='8{,}000', rule='boxed')
    """
    prompts = [prompt] if prompt else None
    return grade_all([response], [answer], prompts, limit_seconds=limit_seconds, last_number=last_number)[0]


def grade_all(
    responses: Sequence[str],
    answers: Sequence[str],
    prompts: Sequence[str] | None = None,
    *,
    workers: int | None = None,
    limit_seconds: float | int = 5,
    last_number: bool = False,
    advance: Callable[[int], None] = lambda num: None,
) -> list[Grade]:
    """Grade each response against the gold answer at its place. Safe in any thread.

    No process is started where exact arithmetic decides everything; equal questions are asked once. To grade many
    batches with the same processes, keep a :class:`Grader`.

    Args:
        responses: what the model wrote, without the prompt.
        answers: gold answers, bare (no box, no marker).
        prompts: what the model read, as text. One that ends in an opening think tag, as some chat templates have it,
            makes the response begin inside the thinking.
        workers: processes for the symbolic part; by default one a core, at most 16.
        limit_seconds: for one symbolic comparison, from outside.
        last_number: accept the last number of a response without box or marker; named in :func:`grader_id`.
        advance: called with the number of responses just graded.

    Raises:
        DataError: lists of different lengths.
        ConfigError: no worker, or no time.
    """
    with Grader(workers=workers, limit_seconds=limit_seconds, last_number=last_number) as grader:
        return grader.grade_all(responses, answers, prompts, advance=advance)


class Grader:
    """:func:`grade_all` for one batch after another, with worker processes that stay until it is closed."""

    def __init__(
        self, *, workers: int | None = None, limit_seconds: float | int = 5, last_number: bool = False
    ) -> None:
        if (workers is not None and workers < 1) or limit_seconds <= 0:
            raise ConfigError(
                f"grading needs workers >= 1 and limit_seconds > 0, received {workers} and {limit_seconds}. "
                "The defaults are one a core and 5."
            )
        self.id = grader_id(last_number=last_number)
        self._last_number, self._limit = last_number, float(limit_seconds)
        self._workers = workers or min(MAX_WORKERS, len(os.sched_getaffinity(0)))
        self._judges: Judges | None = None

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes, if there are any."""
        if self._judges:
            self._judges.close()

    def grade_all(
        self,
        responses: Sequence[str],
        answers: Sequence[str],
        prompts: Sequence[str] | None = None,
        *,
        advance: Callable[[int], None] = lambda num: None,
    ) -> list[Grade]:
        """As :func:`limbeck.problems.grading.grade_all`.

        Raises:
            DataError: lists of different lengths.
        """
        if len(responses) != len(answers) or (prompts is not None and len(prompts) != len(answers)):
            raise DataError(
                f"each response needs its gold answer, received {len(responses)} responses and {len(answers)} answers"
                f"{'' if prompts is None else f' for {len(prompts)} prompts'}. "
                "Repeat the answer for every sample of a problem."
            )
        read = prompts if prompts is not None else [""] * len(responses)
        found = [
            extract(response, prompt=prompt, last_number=self._last_number)
            for response, prompt in zip(responses, read, strict=True)
        ]
        outcomes = [
            Outcome.TRUNCATED if e.truncated else decide(gold, e.answer) for e, gold in zip(found, answers, strict=True)
        ]
        asked = [
            question(gold, e.answer) if outcome is None else None
            for gold, e, outcome in zip(answers, found, outcomes, strict=True)
        ]
        distinct = sorted({q for q in asked if q is not None})
        advance(len(asked) - len(distinct))
        verdicts = dict(zip(distinct, self._ask(distinct, advance), strict=True))
        return [
            Grade(outcome or (verdicts[q] if q else Outcome.ERRORED), e.answer, e.rule)
            for outcome, q, e in zip(outcomes, asked, found, strict=True)
        ]

    def _ask(self, questions: Sequence[tuple[str, str]], advance: Callable[[int], None]) -> list[Outcome]:
        if not questions:
            return []
        if self._judges is None:
            self._judges = Judges(self._workers, self._limit)
        return [Outcome(verdict) for verdict in self._judges.ask_all(questions, advance)]


def decide(gold: str, answer: str) -> Outcome | None:
    """The outcome where text and exact arithmetic decide it; None where algebra must.

    >>> decide("1/2", "0.5"), decide("12", "1,2"), decide("x+1", "1+x")
    (<Outcome.CORRECT: 'correct'>, <Outcome.WRONG: 'wrong'>, None)
    """
    if not answer.strip():
        return Outcome.UNPARSED
    if len(answer) > MAX_TEXT:  # no answer is that long, unless it is the gold itself
        return Outcome.CORRECT if answer.strip() == gold.strip() else Outcome.UNPARSED
    expected, received = _comparable(gold, answer)
    if not received:
        return Outcome.UNPARSED
    if choice(expected) and choice(received):
        return _verdict(choice(expected) == choice(received))
    (expected, base), (received, other_base) = in_base(expected), in_base(received)
    if base and other_base and base != other_base:  # named once, the base is what the question asked for
        return Outcome.WRONG
    for read in (rational, _numbers):
        left, right = read(expected), read(received)
        if left is not None and right is not None:
            return _verdict(left == right)
    if _readable(expected).replace(" ", "") == _readable(received).replace(" ", ""):
        return Outcome.CORRECT
    name = word(expected)
    if name:
        given = word(received, single=True)
        if given:
            return _verdict(given == name)
        return Outcome.WRONG if admits(_readable(received)) else Outcome.UNPARSED
    if not admits(_readable(received)):
        return Outcome.WRONG if word(received) and admits(_readable(expected)) else Outcome.UNPARSED
    return None if admits(_readable(expected)) else Outcome.ERRORED


def ballot(answer: str) -> str:
    """What an answer votes for: its exact value where there is one, else its text; one answer in two dresses votes alike.

    >>> ballot("8,000") == ballot("8000 dollars"), ballot("1/2") == ballot("0.5"), ballot("x+1") == ballot("1+x")
    (True, True, False)
    """
    if len(answer) > MAX_TEXT:
        return answer
    text = tidy(answer)
    if choice(text):
        return choice(text)
    text = named_value(text, "")
    exact = _numbers(text)
    return str(exact) if exact else word(text) or _readable(text).replace(" ", "")


def question(gold: str, answer: str) -> tuple[str, str]:
    """What algebra is asked where :func:`decide` leaves the outcome open: gold and answer, readable."""
    expected, received = _comparable(gold, answer)
    return _readable(expected), _readable(received)


def _verdict(agree: bool) -> Outcome:
    return Outcome.CORRECT if agree else Outcome.WRONG


def _comparable(gold: str, answer: str) -> tuple[str, str]:
    """Both sides tidied, without a name or the letter of a choice that only one of them has."""
    expected, received = tidy(gold), tidy(answer)
    if not choice(expected):
        received = tidy(unlabeled(received))
    return named_value(expected, received), named_value(received, expected)


def _numbers(text: str) -> tuple[str, tuple[Fraction, ...]] | None:
    """Exact numbers in a list, a lone one being a list too where the other side is one."""
    value = rational(text)
    return numbers(_readable(text)) if value is None else ("{}", (value,))


def _readable(text: str) -> str:
    r"""A tidied text with ``\text{and}``, ``\text{or}`` as commas, without wrapping, ``dfrac`` as ``frac``: for algebra."""
    text = LISTED.sub(",", text)
    text = re.sub(r"\\(?:text|mbox|mathrm|textrm|textbf|mathit)\{([^{}\\]*)\}", r"\1", text)
    return re.sub(r"\\[cdt]frac", r"\\frac", re.sub(r" ?, ?,|(?<! ) ,", ",", text))
