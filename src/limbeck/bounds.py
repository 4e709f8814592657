"""How much a file may become when it is read: a small one never fills the machine, whoever made it.

A JSON value takes up to 40 times its text in memory, a short line that is a record of its own up to 200 times. Files that are
compressed or may repeat a value without end are counted before and while they are read, as what their rows take once they are
Python's: that may be a fixed multiple of their size.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.errors import DataError, LimbeckError

FLOOR = 64 << 20  # bytes that any file may become
RATIO = 1000  # and how many times its own size
FAULTS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)  # of code that met other types


def allowed(path: Path) -> int:
    """How many bytes the content of a file may take: 64 MiB, or a thousand times its size where that is more."""
    return max(FLOOR, RATIO * path.stat().st_size)


class Budget:
    """Counts what was read of a file, so that a small one cannot become an endless one."""

    def __init__(self, path: Path, limit: int | None = None, way_out: str = "") -> None:
        self.path, self.limit, self.spent = path, allowed(path) if limit is None else limit, 0
        self.way_out = way_out or "Split it, or write it uncompressed if that is what it really holds."

    def spend(self, num_bytes: int) -> None:
        """Book so many more bytes.

        Raises:
            DataError: more than the limit.
        """
        self.spent += num_bytes
        if self.spent > self.limit:
            raise DataError(
                f"{self.path} must hold at most {self.limit >> 20} MiB of records, received more in a file of "
                f"{self.path.stat().st_size} bytes. {self.way_out}"
            )


@contextmanager
def content_of(path: Path) -> Iterator[None]:
    """Refuse a folder whose files read as JSON or Parquet and say what no verb writes there.

    Raises:
        DataError: with the first fault that was met; our own errors pass.
    """
    try:
        yield
    except LimbeckError:
        raise
    except FAULTS as error:
        raise DataError(
            f"{path} must hold what limbeck writes there, received other content ({type(error).__name__}: {error!s:.200}). "
            "Copy the folder again, or make it anew with this version."
        ) from error


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Do what may end or fill a process in a child of this one, which says nothing on the terminal. POSIX only.

    Args:
        work: takes no lock that another thread may hold; what it returns must be JSON.

    Returns:
        The exit code, negative where a signal ended the child, and what the work returned, None unless the code is 0.
    """
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: the child uses none of theirs
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            faulthandler.disable()  # where it is on, it speaks through a descriptor of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with os.fdopen(write, "wb") as pipe:
                pipe.write(json.dumps(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, json.loads(said) if code == 0 else None


def parse_json(text: bytes | str) -> Any:
    """A JSON value in which no object names a key twice: which of the two is meant, the file does not say.

    Raises:
        ValueError: text that is not JSON, nests too deeply, or names a key twice.

    >>> parse_json('{"a": 1, "b": [true]}')
    {'a': 1, 'b': [True]}
    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ...
    ValueError: the key 'a' stands twice
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nesting too deep to read") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r:.60} stands twice")
    return out
