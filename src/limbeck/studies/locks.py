"""One maker at a time for each step of a folder of steps, whatever study, process or machine it belongs to."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCKS = ".locks"


@contextmanager
def sole(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether ``path`` is this process's alone to make, from here to the end of the context or of the process.

    What is locked is one byte of ``.locks`` beside it, at a place given by its name: nothing is left behind, and machines that
    share the folder know of each other where its file system keeps POSIX locks (NFS does). A file system without locks says
    yes to everybody. A process may be inside one of these at a time: POSIX drops all that it holds of a file with the first
    descriptor it closes.

    Args:
        path: a folder or file, there or not.
        wait: until it is free, so that the answer is yes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = int(hashlib.sha256(path.name.encode("utf-8", "surrogatepass")).hexdigest()[:15], 16)
    file = os.open(path.parent / LOCKS, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _locked(file, place, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(file)


def _locked(file: int, place: int, how: int) -> bool:
    try:
        fcntl.lockf(file, how, 1, place)
    except (BlockingIOError, PermissionError):  # POSIX leaves open which
        return False
    except OSError:
        return True
    return True
