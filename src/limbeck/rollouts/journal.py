"""Finished work of a long job, one JSON line each, appended as it comes, so that a killed job asks nothing twice.

The first line says what the job is. A line is written whole or, after a crash, torn: a torn line was never finished and
is cut off. Knows nothing of what the records mean.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from limbeck.errors import FolderError
from limbeck.records import digest_of, plain

JOURNAL = "journal.jsonl"
SYNC_SECONDS = 1.0  # at most this much finished work is lost with the machine; a killed process loses none


class Journal:
    """Records by key, in the order in which they were finished; the first of equal keys counts.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / JOURNAL
    >>> with Journal(path, {"model": "m"}) as journal:
    ...     journal.append("p/0", {"ids": [4, 1]})
    >>> Journal(path, {"model": "m"}).done
    {'p/0': {'ids': [4, 1]}}
    """

    def __init__(self, path: Path | str, identity: Mapping[str, Any], *, restart: bool = False) -> None:
        """Open or begin the journal of the job that ``identity`` names.

        Args:
            path: the file.
            identity: settings that must agree for records to belong together, as plain values.
            restart: begin anew where the journal is that of another job.

        Raises:
            FolderError: the journal is that of another job; names the settings that differ.
        """
        self.path = Path(path)
        self.done: dict[str, dict[str, Any]] = {}
        identity = json.loads(json.dumps(plain(identity), ensure_ascii=True))
        lines = _whole_lines(self.path)
        found = (_record(lines[0]) or {}).get("identity") if lines else None
        if digest_of(found) != digest_of(identity):
            if len(lines) > 1 and not restart:
                raise _other_job(self.path, found, identity, num_done=len(lines) - 1)
            lines = []
        for record in filter(None, map(_record, lines[1:])):
            key = record.pop("key", None)
            if isinstance(key, str):
                self.done.setdefault(key, record)
        size = sum(map(len, lines))
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self._file, size)
        os.lseek(self._file, size, os.SEEK_SET)
        if not lines:
            self._write({"identity": identity})
            os.fsync(self._file)
        self._synced = time.monotonic()

    def append(self, key: str, record: Mapping[str, Any]) -> None:
        """Put a finished piece of work on record; it survives the end of this process from here on."""
        self.done[key] = dict(record)
        self._write({"key": key, **record})
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Flush to the disk and let go of the file; closing twice is fine."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)

    def _write(self, record: Mapping[str, Any]) -> None:
        line = memoryview(json.dumps(plain(record), separators=(",", ":"), allow_nan=False).encode() + b"\n")
        while line:  # a full disk raises; a signal may cut a write short
            line = line[os.write(self._file, line) :]


def _whole_lines(path: Path) -> list[bytes]:
    """Lines that end in a newline; what follows the last one was torn by a crash."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # a disk that lost power may leave anything: that work is done again
        return None
    return record if isinstance(record, dict) else None


def _other_job(path: Path, found: Any, wanted: Mapping[str, Any], *, num_done: int) -> FolderError:
    found = found if isinstance(found, dict) else {}
    differing = sorted(k for k in {*found, *wanted} if digest_of(found.get(k)) != digest_of(wanted.get(k)))
    pairs = ", ".join(f"{k} = {_short(wanted.get(k))} (there: {_short(found.get(k))})" for k in differing)
    return FolderError(
        f"{path.parent} holds {num_done} finished answers of an interrupted job with other settings: asked for {pairs}. "
        "Give the former settings to continue it, another --out to keep both, or --overwrite to drop those answers."
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}..."


def num_finished(path: Path | str) -> int:
    """How many records a journal holds, of whatever job; 0 where there is none."""
    return max(len(_whole_lines(Path(path))) - 1, 0)
