"""Records of files that anybody may have written: bounded in size, in sentences where they are not what they should be."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.bounds import parse_json
from limbeck.errors import DataError
from limbeck.evals.exchange.rows import MAX_RECORD, budget_of
from limbeck.parquet import DAMAGES, parquet_batches, python_rows

ZSTD = 93  # not in Python's zipfile before 3.14; pyarrow brings a decoder
LOCAL_HEADER = 30
CHUNK = 1 << 16
UNREADABLE = (
    zipfile.BadZipFile, zlib.error, OSError, EOFError, struct.error, NotImplementedError, RuntimeError, ValueError,
    MemoryError,
)  # fmt: skip


def json_record(text: bytes | str, where: str) -> dict[str, Any]:
    """One JSON object.

    Raises:
        DataError: text that is not JSON, too deep, or no object.
    """
    try:
        record = parse_json(text)
    except ValueError as error:
        raise DataError(f"{where} must be JSON, received {error}. Copy the log again.") from None
    if not isinstance(record, dict):
        raise DataError(f"{where} must be a JSON object, received {type(record).__name__}. Is this a log of samples?")
    return record


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each object of a JSONL file stands, and the object; empty lines do not count."""
    budget = budget_of(path)
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_RECORD + 1):
            number += 1
            where = f"{path} line {number}"
            budget.spend(len(line))
            if len(line) > MAX_RECORD:
                raise DataError(f"{where} must be at most {MAX_RECORD >> 20} MiB, received more. Is this a JSONL file?")
            if line.strip():
                yield where, json_record(line, where)


def json_document(path: Path) -> dict[str, Any]:
    """A file that is one JSON object."""
    size = path.stat().st_size
    if size > 4 * MAX_RECORD:  # a document is read whole, and grows in memory
        raise DataError(
            f"{path} must be at most {4 * MAX_RECORD >> 20} MiB, received {size >> 20}. Log in the program's own archive "
            "format instead, which is read answer by answer."
        )
    return json_record(path.read_bytes(), str(path))


def parquet_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row of a Parquet file stands, and the row."""
    budget = budget_of(path)
    try:
        for number, row in enumerate(python_rows(parquet_batches(path, columns, budget=budget), budget)):
            yield f"{path} row {number}", row
    except DataError:
        raise
    except DAMAGES as error:
        raise DataError(f"{path} must be a Parquet file, received {error}. Copy the log again.") from error


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns."""
    try:
        return pq.read_schema(path).names
    except DAMAGES as error:
        raise DataError(f"{path} must be a Parquet file, received {error}. Copy the log again.") from error


class Archive:
    """A zip of JSON objects, one read at a time; what a member claims of its size is not believed."""

    def __init__(self, path: Path) -> None:
        self.path, self.budget = path, budget_of(path)
        budget_of(path).spend(path.stat().st_size)  # its list of members is read whole
        try:
            self._zip = zipfile.ZipFile(path)  # open until collected: to open it for each member costs its whole list
            self.members = {info.filename: info for info in self._zip.infolist()}
            self.num_entries = len(self._zip.infolist())
        except UNREADABLE as error:
            raise DataError(f"{path} must be a zip archive, received {error}. Copy the log again.") from error

    def record(self, name: str) -> dict[str, Any]:
        """The object in a member.

        Raises:
            DataError: no such member, one that is larger than allowed, or damaged.
        """
        where = f"{self.path}: {name}"
        if name not in self.members:
            raise DataError(f"{where} must be in the archive, and is not. The log was cut off: copy it again.")
        try:
            content = self._content(self.members[name])
        except UNREADABLE as error:
            raise DataError(f"{where} must be readable, received {error}. Copy the log again.") from error
        if len(content) > MAX_RECORD:
            raise DataError(
                f"{where} must be at most {MAX_RECORD >> 20} MiB, received more. Log without model calls and events."
            )
        self.budget.spend(len(content))
        return json_record(content, where)

    def _content(self, info: zipfile.ZipInfo) -> bytes:
        if info.compress_type != ZSTD:
            with self._zip.open(info) as member:
                return member.read(MAX_RECORD + 1)
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            name_length, extra_length = struct.unpack("<HH", file.read(LOCAL_HEADER)[26:])
            file.seek(name_length + extra_length, 1)
            packed = file.read(min(info.compress_size, MAX_RECORD))
        with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
            buffer = bytearray()
            while len(buffer) <= MAX_RECORD and (
                part := stream.read(CHUNK)
            ):  # what it fails to read, pyarrow never frees
                buffer += part
            content = bytes(buffer)
        if zlib.crc32(content) != info.CRC and len(content) <= MAX_RECORD:
            raise zipfile.BadZipFile("a wrong checksum")
        return content
