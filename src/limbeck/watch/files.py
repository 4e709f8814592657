"""What is read of a folder that others write: a file again only where it changed, of a large one a few lines."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from limbeck.digests import MARKER, is_complete
from limbeck.errors import LimbeckError
from limbeck.records import read_json

KEPT = ("step", "loss", "reward", "grad_norm", "update_norm", "tokens", "seconds")  # of a line of metrics.jsonl
POINTS = 120  # lines read of a large file, and points of a curve
WHOLE = 1 << 18  # bytes up to which a file is read in whole
TAIL = 1 << 15  # bytes read at the end of a large one
LARGEST = 1e300  # of numbers that are shown; not NaN either
LOCKS = Path("/proc/locks")

T = TypeVar("T")
Line = dict[str, float]


def remembered(read: Callable[[Path], T]) -> Callable[[Path], T | None]:
    """The reading, done again only where the file has changed; None where there is no file, or half of one."""
    known: dict[Path, tuple[tuple[int, int, int], T]] = {}

    def again(path: Path) -> T | None:
        try:
            facts = path.stat()
            stamp = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
            if path not in known or known[path][0] != stamp:
                known[path] = stamp, read(path)
        except (OSError, LimbeckError):
            return None
        return known[path][1]

    return again


@remembered
def table(path: Path) -> dict[str, Any]:
    """A JSON file that holds a table; an empty one where it holds something else."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


@remembered
def sealed(manifest: Path) -> bool:
    """Whether the folder of a manifest is complete; a study's manifest is long."""
    return is_complete(manifest.parent)


@remembered
def metrics(path: Path) -> list[Line]:
    """Lines of ``metrics.jsonl`` by step, each with what is shown of it; at least the last ones, torn ones left out."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        texts = file.read(WHOLE).splitlines() if size <= WHOLE else _some_lines(file, size)
    found = {line["step"]: line for line in map(_line, texts) if "step" in line}
    return [found[step] for step in sorted(found)]


def _some_lines(file: Any, size: int) -> list[bytes]:
    """Lines at even distances, then all of the end; the first of each place is half a line and is passed over."""
    texts = []
    for i in range(POINTS):
        file.seek(size * i // POINTS)
        if i:
            file.readline()
        texts.append(file.readline())
    file.seek(size - TAIL)
    return [*texts, *file.read(TAIL).splitlines()[1:]]


def _line(text: bytes) -> Line:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    numbers = {key: value.get(key) for key in KEPT} if isinstance(value, dict) else {}
    return {key: float(x) for key, x in numbers.items() if isinstance(x, (int, float)) and abs(x) < LARGEST}


def thinned(points: list[T]) -> list[T]:
    """At most so many points as a curve has, the first and the last among them.

    >>> len(thinned(list(range(1000)))), thinned([1, 2, 3])
    (120, [1, 2, 3])
    """
    if len(points) <= POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]


def lock_holders() -> set[int] | None:
    """Processes that hold a lock on any file, as the system lists them; None where it does not say.

    To try the lock of a marker would be surer and is out of the question: whoever came to claim it meanwhile would fail.
    """
    try:
        rows = [row.split() for row in LOCKS.read_text().splitlines()]
    except OSError:
        return None
    return {int(row[4]) for row in rows if len(row) > 4 and row[4].isdecimal()}


def writer(folder: Path, holders: set[int] | None) -> int | None:
    """The process of this machine that has claimed a folder and still lives; None where there is none."""
    try:
        text = (folder / MARKER).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        return None
    pid = int(text)
    return pid if (_lives(pid) if holders is None else pid in holders) else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
