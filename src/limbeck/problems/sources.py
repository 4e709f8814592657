"""Problems from files: JSONL or Parquet under any field names, GSM8K, MATH and AIME, each with a reference solution.

A damaged file is refused with the line at fault: a Git LFS pointer in place of data, text that is not JSON, a
missing field, control characters where a backslash was lost, two problems of one id.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.errors import DataError, nearest
from limbeck.types import Problem

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LOST_BACKSLASH = re.compile(r"\t(?:imes|heta|riangle|ext\{)|\r(?:ight|angle|ho\b)")
CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's marks for a calculator; no model should learn to write them

Solved = list[tuple[Problem, str]]


class Fields(NamedTuple):
    """Where a file keeps what: field names, dots for nesting. Empty ``id`` or ``solution``: there is none."""

    prompt: str = "prompt"
    answer: str = "answer"
    id: str = ""
    solution: str = ""


DEFAULT_FIELDS = Fields()


class Row(NamedTuple):
    """One record and where it stands, in the words of an error message."""

    where: str
    number: int
    values: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """The value of a field, dots for nesting.

        Raises:
            DataError: the row has no such field, or null in it.
        """
        value: Any = self.values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            raise DataError(f'{self.where}: a row needs the field "{name}". {nearest(name, self.values)}')
        return value


def read_rows(path: Path | str) -> Iterator[Row]:
    """The records of a ``.jsonl`` or ``.parquet`` file, in order; blank lines are skipped.

    Raises:
        DataError: no such file, a Git LFS pointer, another ending, a line that is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"a data file must exist, received {path}. Check the path.")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(f"{path} must hold data, received a Git LFS pointer. Run: git lfs pull")
    readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise DataError(
            f"a data file must end in .jsonl or .parquet, received {path.name}. Convert it to one of these."
        )
    return readers[path.suffix](path)


def read_problems(
    path: Path | str, fields: Fields = DEFAULT_FIELDS, *, allow: str = "\n\t\r", gold: Callable[[str], str] = str.strip
) -> Solved:
    """Problems and their reference solutions (empty where the file has none), in the file's order.

    Args:
        path: a JSONL or Parquet file.
        fields: which fields hold what; without an id field, ids are the file's name and the row's number.
        allow: control characters that this file legitimately contains.
        gold: makes the bare answer of the answer field's text.

    Raises:
        DataError: what :func:`read_rows` refuses, a missing or empty field, control characters, ids that repeat,
            no problem at all.
    """
    path = Path(path)
    out: Solved = []
    seen: dict[str, str] = {}
    for row in read_rows(path):
        name = _text(row, fields.id) if fields.id else f"{path.stem}-{row.number:05d}"
        if name in seen:
            raise DataError(
                f"{row.where}: ids must be unique, received {name!r} again, first in {seen[name]}. Rename one."
            )
        seen[name] = row.where
        prompt, answer = _text(row, fields.prompt), _text(row, fields.answer)
        solution = _text(row, fields.solution) if fields.solution else ""
        _check_characters(row, prompt + answer, allow)
        try:
            problem = Problem(id=name, prompt=prompt.strip(), answer=gold(answer), source=path.stem)
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from error
        out.append((problem, solution))
    if not out:
        raise DataError(f"{path} must hold at least one problem, received none. Check that the download finished.")
    return out


def jsonl(path: Path | str) -> Solved:
    """Fields ``prompt`` and ``answer``, and ``id`` and ``solution`` where the first row has them; JSONL or Parquet."""
    first = next(iter(read_rows(path)), None)
    present = first.values if first else {}
    return read_problems(path, Fields(**{name: name for name in ("id", "solution") if name in present}))


def gsm8k(path: Path | str) -> Solved:
    """GSM8K: ``question`` and ``answer``, a worked solution that ends in ``#### gold``.

    Solutions come without the calculator marks ``<<3+4=7>>``.
    """
    solved = read_problems(path, Fields("question", "answer", solution="answer"), gold=_after_marker)
    return [(problem, CALCULATOR.sub("", solution)) for problem, solution in solved]


def math(path: Path | str) -> Solved:
    """MATH and MATH-500: ``problem``, ``answer``, ``solution``, and ``unique_id`` where the first row has it."""
    first = next(iter(read_rows(path)), None)
    name = "unique_id" if first and "unique_id" in first.values else ""
    return read_problems(path, Fields("problem", "answer", name, "solution"), allow="\n\t")


def aime(path: Path | str) -> Solved:
    """AIME: ``problem`` and ``answer``, an integer from 0 to 999, zero-padded or not; 15 or a multiple of it."""
    solved = read_problems(path, Fields("problem", "answer"), allow="\n")
    for problem, _ in solved:
        if not re.fullmatch(r"\d{1,3}", problem.answer, re.ASCII):
            raise DataError(f"{problem.id}: an AIME answer is an integer from 0 to 999, received {problem.answer!r}.")
    if len(solved) % 15:
        raise DataError(
            f"{path} must hold whole AIME papers of 15 problems, received {len(solved)}. Get the file again."
        )
    return solved


FORMATS: dict[str, Callable[[Path], Solved]] = {"jsonl": jsonl, "gsm8k": gsm8k, "math": math, "aime": aime}


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:  # the latter: brackets nested by the thousand
                text = line[:60].decode("utf-8", "replace").rstrip()
                raise DataError(f"{where}: a line must be JSON, received {text!r} ({error}). Mend the line.") from error
            if not isinstance(values, dict):
                raise DataError(
                    f"{where}: a line must be a JSON object, received {line[:40].decode('utf-8', 'replace')!r}."
                )
            yield Row(where, number, values)


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} must be a Parquet file, received {error}. Get the file again.") from error
    number = 0
    with file:
        for batch in file.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}, row {number}", number, values)


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise DataError(f'{row.where}: "{name}" must be text or a number, received {str(value)[:60]!r}. Convert it.')
    return str(value)


def _check_characters(row: Row, text: str, allow: str) -> None:
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in allow), "")
    lost = LOST_BACKSLASH.search(text)
    if bad or lost:
        shown = repr(lost[0] if lost else bad)
        raise DataError(
            f"{row.where}: a problem must not contain control characters, received {shown}. "
            "A backslash was lost where the file was written: escape it again."
        )


def _after_marker(answer: str) -> str:
    return answer.rpartition("####")[2].strip() if "####" in answer else ""
