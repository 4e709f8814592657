"""What every foreign log becomes first: one record an answer, with what identifies its problem and its prompt.

Here stands what makes a log fit to be paired; the readers beside it only know where each program keeps what.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from limbeck.bounds import Budget, allowed
from limbeck.errors import ConfigError, DataError, nearest
from limbeck.problems.extract import extract
from limbeck.problems.grading import grade_all, grader_id
from limbeck.records import digest_of
from limbeck.types import Finish, Outcome, Score, ScoreTable

MAX_BYTES = 8 << 30  # of one log in memory
Regrade = Literal["", "strict", "last_number"]  # take the log's grades, or judge the responses again, and how
MAX_COUNT = 1 << 24  # a sample's number, tokens of a response
MAX_RECORD = 64 << 20  # of one line, archive member or JSON document


def budget_of(path: Path) -> Budget:
    """What a log may hold: as much as any file, and never more than 8 GiB."""
    way_out = "Split the log by task, or log without model calls and events."
    return Budget(path, min(MAX_BYTES, allowed(path)), way_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One graded answer of a foreign log.

    Attributes:
        problem_id: the log's own id of the problem.
        sample: 0, 1, ... among the answers to one problem.
        value: what the log's metric or scorer gave it, as it stands there.
        target: the gold answer's text.
        problem: identity of question and target: two logs are of the same problems iff these agree.
        prompt: identity of what the model was sent; empty where the log does not tell.
        responses: the texts behind the value, usually one; none where nothing was written (multiple choice).
        extracted, finish, response_tokens, outcome: as in :class:`limbeck.types.Score`.
    """

    problem_id: str
    sample: int
    value: object
    target: str
    problem: str
    prompt: str = ""
    responses: Sequence[str] = ()
    extracted: str = ""
    finish: Finish | None = None
    response_tokens: int | None = None
    outcome: Outcome | None = None


def table_of(
    answers: Iterable[Answer], *, path: Path, name: str, grader: str, decoding: str, regrade: Regrade
) -> ScoreTable:
    """The score table of a log.

    Args:
        answers: in any order.
        path: of the log, for messages.
        name: whose table this is.
        grader: who gave the values.
        decoding: how answers were made, as far as the log tells.
        regrade: judge the responses by limbeck's own grader instead of taking the values; ``last_number`` where a
            response without box or marker answers its last number.

    Raises:
        DataError: no answer, an id twice, one id for two problems, a value other than right or wrong, or several
            answers behind one value.
    """
    kept = sorted(answers, key=lambda a: (a.problem_id, a.sample))
    if not kept:
        raise DataError(f"{path} must hold at least one answer, received none. Evaluate with samples logged.")
    odd = next((a for a in kept if not all(0 <= n < MAX_COUNT for n in (a.sample, a.response_tokens or 0))), None)
    if odd:
        raise DataError(
            f"{path}: problem {odd.problem_id!r}: sample and response_tokens must lie in 0 to {MAX_COUNT - 1}, received "
            f"{odd.sample!s:.20} and {odd.response_tokens or 0!s:.20}. Number the samples 0, 1, ...."
        )
    problems: dict[str, str] = {}
    for answer in kept:
        if problems.setdefault(answer.problem_id, answer.problem) != answer.problem:
            raise DataError(
                f"{path}: an id must name one problem, received {answer.problem_id!r} for two with different text. "
                "Several tasks are in this log: give the log of one."
            )
    keys = [(a.problem_id, a.sample) for a in kept]
    twice = next((one for one, other in pairwise(keys) if one == other), None)
    if twice:
        raise DataError(
            f"{path}: (problem, sample) must be unique, received {twice[0]!r} sample {twice[1]} more than once. Results of "
            "two runs were appended to one file, or ids repeat: separate them, so that answers can be paired."
        )
    lenient = regrade == "last_number"
    prompts = sorted({(a.problem_id, a.prompt) for a in kept})
    return ScoreTable(
        name=name,
        scores=tuple(_regraded(kept, path, last_number=lenient) if regrade else (_score(a, path) for a in kept)),
        problems_digest=digest_of(sorted(problems.items())),
        grader=grader_id(last_number=lenient) if regrade else grader,
        decoding=decoding,
        template_digest=digest_of(prompts) if all(prompt for _, prompt in prompts) else "",
    )


def right_or_wrong(value: object) -> bool | None:
    """True or false where a value says so (1, 0, true, false), None where it says anything else.

    >>> [right_or_wrong(value) for value in (1.0, 0, True, 0.5, "C", float("nan"))]
    [True, False, True, None, None, None]
    """
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    return None


def _score(answer: Answer, path: Path) -> Score:
    where = f"{path}: problem {answer.problem_id!r}"
    if len(answer.responses) > 1:
        raise DataError(
            f"{where}: one value must stand for one answer, received one for {len(answer.responses)}. Pairing needs each "
            "answer's own grade: pass --regrade, which judges every response again."
        )
    correct = right_or_wrong(answer.value)
    if correct is None:
        number = isinstance(answer.value, float | int) and not math.isnan(answer.value)
        kind = "a graded value" if number else "a value"
        raise DataError(
            f"{where}: an answer must be right (1) or wrong (0) to be paired, received {kind} {answer.value!r:.60}. "
            "Choose another --metric, or pass --regrade to judge the responses again."
        )
    return Score(
        problem_id=answer.problem_id,
        sample=answer.sample,
        correct=correct,
        answer=answer.target,
        extracted=answer.extracted,
        finish=answer.finish,
        response_tokens=answer.response_tokens,
        outcome=answer.outcome,
        response=answer.responses[0] if answer.responses else "",
    )


def _regraded(answers: Sequence[Answer], path: Path, *, last_number: bool) -> list[Score]:
    empty = next((a for a in answers if not a.responses), None)
    if empty:
        raise DataError(
            f"{path}: --regrade needs the text of every response, received none for problem {empty.problem_id!r}. "
            "A multiple-choice task writes none: leave --regrade out."
        )
    width = max(len(a.responses) for a in answers)
    flat = [(a, a.sample * width + j, text) for a in answers for j, text in enumerate(a.responses)]
    golds = [extract(a.target).answer or a.target for a, _, _ in flat]
    grades = grade_all([text for _, _, text in flat], golds, last_number=last_number)
    return [
        Score(
            problem_id=answer.problem_id,
            sample=sample,
            correct=grade.outcome == Outcome.CORRECT,
            answer=gold,
            extracted=grade.extracted,
            finish=answer.finish,
            response_tokens=answer.response_tokens,
            outcome=grade.outcome,
            response=text,
        )
        for (answer, sample, text), gold, grade in zip(flat, golds, grades, strict=True)
    ]


def choose(what: str, wanted: str, found: Sequence[str], path: Path, option: str) -> str:
    """The one that was asked for, or the only one there is.

    Raises:
        ConfigError: an unknown one, or several and none was asked for.
    """
    if wanted and wanted not in found:
        raise ConfigError(f'{path} has no {what} "{wanted}". {nearest(wanted, found)}')
    if not wanted and len(found) != 1:
        listed = ", ".join(found) or "none"
        raise ConfigError(f"{path} must have one {what}, or {option} must choose; received {listed}.")
    return wanted or found[0]


def text_of(value: Any) -> str:
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else "" if value is None else str(value)
