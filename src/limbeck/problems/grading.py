"""Right or wrong, for every response: exact arithmetic where that decides, symbolic algebra in a killable process else.

A grade never raises: what could not be judged says so in its outcome. Model text is never executed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from importlib import metadata
from typing import NamedTuple

from limbeck.errors import ConfigError, DataError
from limbeck.problems.extract import extract
from limbeck.problems.normal import admits, in_base, rational, tidy, word
from limbeck.problems.symbolic import judge_all

GRADER_ID = f"limbeck-1;percent=unit;numbers=exact;math-verify-{metadata.version('math-verify')}"
"""Scores are comparable only under one grader; :func:`grader_id` names the lenient variant."""


class Outcome(StrEnum):
    """What became of one response. Only ``correct`` counts as correct; the rest tell why not."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    """No answer was found, or none that may be read as mathematics."""
    TRUNCATED = "truncated"
    """The thinking never ended."""
    TIMED_OUT = "timed_out"
    ERRORED = "errored"
    """The grader could not judge: its process died, or the gold answer is beyond it."""


class Grade(NamedTuple):
    """An outcome and the answer's text as extracted, empty where there is none."""

    outcome: Outcome
    extracted: str


def grader_id(*, last_number: bool = False) -> str:
    """The name under which grades are comparable."""
    return GRADER_ID + (";last-number" if last_number else "")


def grade(response: str, answer: str, *, limit_seconds: float | int = 5, last_number: bool = False) -> Grade:
    r"""Grade one response; see :func:`grade_all`.

    >>> grade(r"so it is \boxed{8{,}000}.", "8000")
    Grade(outcome=<Outcome.CORRECT: 'correct'>, extracted='8{,}000')
    """
    return grade_all([response], [answer], limit_seconds=limit_seconds, last_number=last_number)[0]


def grade_all(
    responses: Sequence[str],
    answers: Sequence[str],
    *,
    workers: int = 1,
    limit_seconds: float | int = 5,
    last_number: bool = False,
) -> list[Grade]:
    """Grade each response against the gold answer at its place. Safe in any thread.

    No process is started where exact arithmetic decides everything; equal questions are asked once.

    Args:
        responses: what the model wrote, without the prompt.
        answers: gold answers, bare (no box, no marker).
        workers: processes for the symbolic part.
        limit_seconds: for one symbolic comparison, from outside.
        last_number: accept the last number of a response without box or marker; named in :func:`grader_id`.

    Raises:
        DataError: lists of different lengths.
        ConfigError: no worker, or no time.
    """
    if len(responses) != len(answers):
        raise DataError(
            f"each response needs its gold answer, received {len(responses)} responses and {len(answers)} answers. "
            "Repeat the answer for every sample of a problem."
        )
    if workers < 1 or limit_seconds <= 0:
        raise ConfigError(
            f"grading needs workers >= 1 and limit_seconds > 0, received {workers} and {limit_seconds}. "
            "The defaults are 1 and 5."
        )
    found = [extract(response, last_number=last_number) for response in responses]
    outcomes: list[Outcome | None] = [
        Outcome.TRUNCATED if e.truncated else decide(gold, e.answer) for e, gold in zip(found, answers, strict=True)
    ]
    questions = [(_readable(gold), _readable(e.answer)) for e, gold in zip(found, answers, strict=True)]
    open_questions = sorted({q for q, outcome in zip(questions, outcomes, strict=True) if outcome is None})
    if open_questions:
        judged = judge_all(open_questions, workers=workers, limit_seconds=float(limit_seconds))
        verdicts = dict(zip(open_questions, map(Outcome, judged), strict=True))
        outcomes = [verdicts[q] if o is None else o for q, o in zip(questions, outcomes, strict=True)]
    return [Grade(o or Outcome.ERRORED, e.answer) for o, e in zip(outcomes, found, strict=True)]


def decide(gold: str, answer: str) -> Outcome | None:
    """The outcome where text and exact arithmetic decide it; None where algebra must.

    >>> decide("1/2", "0.5"), decide("12", "1,2"), decide("x+1", "1+x")
    (<Outcome.CORRECT: 'correct'>, None, None)
    """
    expected, received = tidy(gold), tidy(answer)
    if not received:
        return Outcome.UNPARSED
    (expected, base), (received, other_base) = in_base(expected), in_base(received)
    if base and other_base and base != other_base:  # named once, the base is what the question asked for
        return Outcome.WRONG
    for g, a in ((expected, received), (_value(expected, received), _value(received, expected))):
        left, right = rational(g), rational(a)
        if left is not None and right is not None:
            return Outcome.CORRECT if left == right else Outcome.WRONG
    if _readable(gold).replace(" ", "") == _readable(answer).replace(" ", ""):
        return Outcome.CORRECT
    name = word(expected)
    if name:
        given = word(received, single=True)
        if given:
            return Outcome.CORRECT if given == name else Outcome.WRONG
        return Outcome.WRONG if admits(_readable(answer)) else Outcome.UNPARSED
    if not admits(_readable(answer)):
        return Outcome.UNPARSED
    return None if admits(_readable(gold)) else Outcome.ERRORED


def _value(text: str, other: str) -> str:
    """What a single assignment assigns, where the other side assigns nothing: ``x = 5`` answers 5."""
    match = re.fullmatch(r"[A-Za-z] ?= ?([^=]*)", text)
    return match[1] if match and "=" not in other else text


def _readable(answer: str) -> str:
    r"""The tidied text with ``\text{and}``, ``\text{or}`` as commas and ``dfrac`` as ``frac``, for the grammar."""
    text = re.sub(r"\\(?:text|mbox|mathrm|textrm)\{ ?(?:and|or) ?\}|\b(?:and|or)\b", ",", tidy(answer))
    return re.sub(r"\\[dt]frac", r"\\frac", text)
