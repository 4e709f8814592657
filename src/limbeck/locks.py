"""One process at a time writes a folder in place: it holds a lock on the marker, which ends with it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from limbeck.digests import MARKER
from limbeck.errors import FolderError

_claims: dict[Path, int] = {}  # folder to the descriptor by which this process holds its marker locked


def lock(out: Path) -> None:
    """Hold the lock on a folder's marker; again by the same process is fine.

    Raises:
        FolderError: another process holds it.
    """
    if _is_ours(out):
        return
    marker = os.open(out / MARKER, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _flock(marker, fcntl.LOCK_EX, out)
        if not _is_file(marker, out / MARKER):  # moved aside between opening and locking
            raise _taken(out, "")
    except FolderError:
        os.close(marker)
        raise
    os.ftruncate(marker, 0)
    os.pwrite(marker, str(os.getpid()).encode(), 0)
    unlock(out)  # of a folder that was here before and is moved or removed
    _claims[out.resolve()] = marker


def unlock(out: Path) -> None:
    """Give the lock back, if this process holds it."""
    marker = _claims.pop(out.resolve(), None)
    if marker is not None:
        os.ftruncate(marker, 0)
        os.close(marker)


def refuse_locked(out: Path) -> None:
    """Refuse a folder that another process is writing in place.

    Raises:
        FolderError: names the process.
    """
    if not (out / MARKER).exists() or _is_ours(out):
        return
    marker = os.open(out / MARKER, os.O_RDONLY)
    try:
        _flock(marker, fcntl.LOCK_SH, out)  # shared: two that only look do not meet
    finally:
        os.close(marker)


def _is_ours(out: Path) -> bool:
    marker = _claims.get(out.resolve())
    return marker is not None and _is_file(marker, out / MARKER)


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _flock(marker: int, kind: int, out: Path) -> None:
    try:
        fcntl.flock(marker, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _taken(out, os.pread(marker, 20, 0).decode("ascii", "replace")) from error
    except OSError:
        return  # a file system without locks: there the user has to take care


def _taken(out: Path, pid: str) -> FolderError:
    return FolderError(
        f"--out must be written by one process at a time: another process (pid {pid or 'unknown'}) is writing {out}. "
        "Wait for it, or give another --out."
    )
