"""Problems from files: any field names by a mapping, GSM8K, MATH, AIME and AMC, each with a reference solution.

A damaged file is refused with the line at fault: a missing field, control characters where a backslash was lost, two
problems of one id, an answer that the set cannot have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from limbeck.errors import ConfigError, DataError, nearest
from limbeck.problems.extract import BOX, extract
from limbeck.problems.files import Row, find_source, read_rows
from limbeck.problems.normal import choice, rational, tidy
from limbeck.types import Problem

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # Unicode's categories Cc and Cs
LOST_BACKSLASH = re.compile(r"\t(?:imes|heta|riangle|ext\{)|\r(?:ight|angle|ho\b)")
PLACE = "{problem}"  # of a problem's text in a template
CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's marks for a calculator; no model should learn to write them

Solved = list[tuple[Problem, str]]


class Fields(NamedTuple):
    """Where a file keeps what: field names, dots for nesting. Empty ``id`` or ``solution``: there is none."""

    prompt: str = "prompt"
    answer: str = "answer"
    id: str = ""
    solution: str = ""


DEFAULT_FIELDS = Fields()


def fields_named(given: Mapping[str, str]) -> Fields:
    """A mapping as a user writes it: our name to the file's.

    >>> fields_named({"prompt": "question", "answer": "reward_model.ground_truth"})
    Fields(prompt='question', answer='reward_model.ground_truth', id='', solution='')

    Raises:
        ConfigError: a name that is not ours.
    """
    for name in given:
        if name not in Fields._fields:
            raise ConfigError(f'a problem has no field "{name}". {nearest(name, Fields._fields)}')
    return Fields(**given)


def asked_by(template: str, solved: Solved) -> Solved:
    r"""Problems in the words that ask them: the template with a problem's text in place of ``{problem}``.

    >>> one = Problem(id="a", prompt="What is 2 + 2?", answer="4", source="s")
    >>> asked_by(r"{problem} Put the answer into \boxed{}.", [(one, "")])[0][0].prompt
    'What is 2 + 2? Put the answer into \\boxed{}.'

    Raises:
        ConfigError: a template without ``{problem}``, or with several.
    """
    before, place, after = template.partition(PLACE)
    if not place or PLACE in after:
        raise ConfigError(
            f"a template needs {PLACE} once, where a problem's text goes, received {template!r:.80}. Write it there."
        )
    return [(replace(problem, prompt=f"{before}{problem.prompt}{after}"), solution) for problem, solution in solved]


def gold_of(answer: str) -> str:
    r"""The bare answer of an answer field: what a worked solution boxes last or marks by ``####``, else the text.

    >>> gold_of(r"so $x = \boxed{\frac12}$."), gold_of("3 + 4 = 7\n#### 7"), gold_of(" 12 ")
    ('\\frac12', '7', '12')
    """
    if BOX.search(answer):
        return extract(answer).answer
    return answer.rpartition("####")[2].strip()


def read_problems(
    path: Path | str, fields: Fields = DEFAULT_FIELDS, *, allow: str = "\n\t\r", gold: Callable[[str], str] = gold_of
) -> Solved:
    """Problems and their reference solutions (empty where the file has none), in the file's order.

    Args:
        path: a file or folder, see :func:`limbeck.problems.files.find_source`.
        fields: which fields hold what; without an id field, ids are the file's name and the row's number.
        allow: control characters that this file legitimately contains.
        gold: makes the bare answer of the answer field's text.

    Raises:
        DataError: what :func:`read_rows` refuses, a missing or empty field, control characters, ids that repeat,
            no problem at all.
    """
    source = find_source(path).name
    out: Solved = []
    seen: dict[str, str] = {}
    for row in read_rows(path):
        name = _text(row, fields.id) if fields.id else f"{source}-{row.number:05d}"
        if name in seen:
            raise DataError(
                f"{row.where}: ids must be unique, received {name!r} again, first in {seen[name]}. Rename one."
            )
        seen[name] = row.where
        prompt, answer = _text(row, fields.prompt), _text(row, fields.answer)
        solution = _text(row, fields.solution) if fields.solution else ""
        _check_characters(row, name + prompt + answer, allow)
        try:
            problem = Problem(id=name, prompt=prompt.strip(), answer=gold(answer), source=source)
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from error
        out.append((problem, solution))
    if not out:
        raise DataError(f"{path} must hold at least one problem, received none. Check that the download finished.")
    return out


def jsonl(path: Path | str) -> Solved:
    """Fields ``prompt`` and ``answer``, and ``id`` and ``solution`` where the first row has them."""
    present = _first(path)
    return read_problems(path, Fields(**{name: name for name in ("id", "solution") if name in present}))


def gsm8k(path: Path | str) -> Solved:
    """GSM8K: ``question`` and ``answer``, a worked solution that ends in ``#### gold``.

    Solutions come without the calculator marks ``<<3+4=7>>``.
    """
    solved = read_problems(path, Fields("question", "answer", solution="answer"), gold=_after_marker)
    return [(problem, CALCULATOR.sub("", solution)) for problem, solution in solved]


def math(path: Path | str) -> Solved:
    """MATH and MATH-500: ``problem``, ``solution``, and ``answer`` and ``unique_id`` where the first row has them.

    Without ``answer``, the gold is what the solution boxes last.
    """
    present = _first(path)
    answer = "answer" if "answer" in present else "solution"
    name = "unique_id" if "unique_id" in present else ""
    return read_problems(path, Fields("problem", answer, name, "solution"), allow="\n\t")


def aime(path: Path | str) -> Solved:
    """AIME of any year: an integer from 0 to 999, zero-padded or not; 15 problems or a multiple of it."""
    solved = read_problems(path, _contest_fields(path), allow="\n")
    for problem, _ in solved:
        if not re.fullmatch(r"\d{1,3}", problem.answer, re.ASCII):
            raise DataError(f"{problem.id}: an AIME answer is an integer from 0 to 999, received {problem.answer!r}.")
    if len(solved) % 15:
        raise DataError(
            f"{path} must hold whole AIME papers of 15 problems, received {len(solved)}. Get the file again."
        )
    return solved


def amc(path: Path | str) -> Solved:
    """AMC of any year: a number, or the letter A to E of a choice."""
    solved = read_problems(path, _contest_fields(path), allow="\n\t")
    for problem, _ in solved:
        text = tidy(problem.answer)
        if rational(text) is None and choice(text) not in ("A", "B", "C", "D", "E"):
            raise DataError(f"{problem.id}: an AMC answer is a number or a letter A to E, received {problem.answer!r}.")
    return solved


FORMATS: dict[str, Callable[[Path | str], Solved]] = {
    "jsonl": jsonl,
    "gsm8k": gsm8k,
    "math": math,
    "aime": aime,
    "amc": amc,
}


def _first(path: Path | str) -> Mapping[str, object]:
    first = next(iter(read_rows(path)), None)
    return first.values if first else {}


def _contest_fields(path: Path | str) -> Fields:
    """``problem`` or ``question``, and ``answer``, as the files in circulation spell them."""
    present = _first(path)
    prompt = next((n for n in ("problem", "question", "Problem", "Question") if n in present), "problem")
    return Fields(prompt, "Answer" if "Answer" in present else "answer")


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    endless = isinstance(value, float) and not isfinite(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or endless:
        raise DataError(f'{row.where}: "{name}" must be text or a number, received {str(value)[:60]!r}. Convert it.')
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _check_characters(row: Row, text: str, allow: str) -> None:
    bad = next((found[0] for found in CONTROL.finditer(text) if found[0] not in allow), "")
    lost = LOST_BACKSLASH.search(text)
    if bad or lost:
        shown = repr(lost[0] if lost else bad)
        raise DataError(
            f"{row.where}: a problem must not contain control characters, received {shown}. "
            "A backslash was lost where the file was written: escape it again."
        )


def _after_marker(answer: str) -> str:
    return answer.rpartition("####")[2].strip() if "####" in answer else ""
