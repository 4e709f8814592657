"""Rows of a data file or of a data set's folder: JSONL, Parquet and Arrow shards, read without any data set library.

A damaged source is refused with the line at fault: a Git LFS pointer in place of data, text that is not JSON, a shard
that is missing. Row counts in a folder's ``dataset_info.json`` are not relied on: ``datasets`` leaves them as they were
before rows were selected.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.bounds import Budget, parse_json
from limbeck.digests import file_digest
from limbeck.errors import DataError, nearest
from limbeck.parquet import DAMAGES, checked, parquet_batches, python_rows
from limbeck.records import read_json
from limbeck.storage import local

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")  # train-00000-of-00002


class Row(NamedTuple):
    """One record and where it stands, in the words of an error message."""

    where: str
    number: int
    values: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """The value of a field, dots for nesting, numbers for places in a list (``prompt.0.content``).

        Raises:
            DataError: the row has no such field, or null in it.
        """
        value: Any = self.values.get(name)
        if value is None:
            value = self.values
            for part in name.split("."):
                if isinstance(value, list):
                    value = value[int(part)] if part.isdecimal() and int(part) < len(value) else None
                else:
                    value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            raise DataError(f'{self.where}: a row needs the field "{name}". {nearest(name, self.values)}')
        return value


class Source(NamedTuple):
    """The files that hold a set, in order, and a name for it."""

    name: str
    files: tuple[Path, ...]

    @property
    def digest(self) -> str:
        """That of the file, or over the names and digests of several."""
        if len(self.files) == 1:
            return file_digest(self.files[0])
        listed = [[path.name, file_digest(path)] for path in self.files]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def find_source(given: Path | str) -> Source:
    """A file, or one split of a data set's folder: ``data/gsm8k`` or, where it has several splits, ``data/gsm8k:test``.

    A folder is as ``save_to_disk`` of Hugging Face's ``datasets`` leaves it, or as it is downloaded from the hub:
    ``test-00000-of-00001.parquet``, ``main/test-00000-of-00001.parquet``, ``default/test/0000.parquet``.

    Raises:
        DataError: no such file, another ending, a folder without data, with several sets, or without that split.
    """
    path, split = local(given), ""
    if not path.exists() and ":" in str(given):
        folder, _, split = str(given).rpartition(":")
        path = Path(folder)
    if path.is_dir():
        return _in_folder(path, split)
    if split or not path.is_file():
        raise DataError(f"a data file must exist, received {given}. Check the path.")
    if path.suffix not in READERS:
        raise DataError(
            f"a data file must end in {', '.join(READERS)}, received {path.name}. Convert it to one of these."
        )
    return Source(path.stem, (path,))


def read_rows(given: Path | str) -> Iterator[Row]:
    """The records of a file or folder, in order; blank lines are skipped.

    Raises:
        DataError: what :func:`find_source` refuses, a Git LFS pointer, a line that is not a JSON object, a file that
            is not what its ending says or is cut.
    """
    source = find_source(given)
    number = 0
    for path in source.files:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise DataError(f"{path} must hold data, received a Git LFS pointer. Run: git lfs pull")
        first = number
        for row in READERS[path.suffix](path):
            number = first + row.number
            yield row._replace(number=number)


def _in_folder(folder: Path, split: str) -> Source:
    if (folder / "dataset_dict.json").is_file():
        listed = read_json(folder / "dataset_dict.json")
        splits = listed.get("splits") if isinstance(listed, dict) else None
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            raise DataError(
                f"{folder / 'dataset_dict.json'} must list splits by name, received others. Download it again."
            )
        if split not in splits:
            raise _which(folder, split, splits)
        return _in_folder(folder / split, "")._replace(name=f"{folder.name}-{split}")
    sets: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(filter(_is_data, folder.rglob("*"))):
        sets.setdefault(_set_of(path.relative_to(folder)), []).append(path)
    splits = {name for _, name in sets}
    if not sets:
        raise DataError(f"{folder} must hold {', '.join(READERS)} files, received none. Check the path.")
    if (split and split not in splits) or (not split and len(splits) > 1):
        raise _which(folder, split, splits)
    chosen = {key: files for key, files in sets.items() if not split or key[1] == split}
    if len(chosen) > 1:
        raise DataError(
            f"{folder} must hold one set of problems, received {', '.join(sorted(parent for parent, _ in chosen))}. "
            "Give one of these folders."
        )
    (_, found), files = chosen.popitem()
    _check_shards(folder, files)
    return Source(f"{folder.name}-{found}" if len(splits) > 1 else folder.name, tuple(files))


def _is_data(path: Path) -> bool:
    return path.suffix in READERS and not path.name.startswith((".", "cache-")) and path.is_file()  # no pipe, no device


def _set_of(path: Path) -> tuple[str, str]:
    """Folder and split of a shard, by the names that the hub and ``datasets`` give."""
    shard = SHARD.fullmatch(path.stem)
    if path.suffix == ".arrow" and shard and shard[1] == "data":
        return str(path.parent), path.parent.name
    if path.stem.isdecimal():
        return str(path.parent.parent), path.parent.name
    return str(path.parent), shard[1] if shard else path.stem


def _check_shards(folder: Path, files: Sequence[Path]) -> None:
    """Every shard that a name or ``state.json`` speaks of must be there."""
    expected = {file.parent / name for file in files[:1] for name in _state(file.parent)}
    for file in files:
        if shard := SHARD.fullmatch(file.stem):
            expected |= {file.with_name(f"{shard[1]}-{n:05d}-of-{shard[3]}{file.suffix}") for n in range(int(shard[3]))}
    missing = sorted(path.name for path in expected - set(files))
    if missing:
        raise DataError(f"{folder} must hold every shard, received none named {missing[0]}. Download it again.")


def _state(folder: Path) -> list[str]:
    path = folder / "state.json"
    state = read_json(path) if path.is_file() else {}
    try:
        return [str(entry["filename"]) for entry in state.get("_data_files") or []]
    except (AttributeError, TypeError, KeyError) as error:
        raise DataError(f"{path} must list its _data_files, received another content. Download it again.") from error


def _which(folder: Path, split: str, splits: Any) -> DataError:
    return DataError(
        f'a folder of several splits needs one of them, received "{split}". {nearest(split, splits)} '
        f"Write {folder}:SPLIT."
    )


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                values = parse_json(line)
            except ValueError as error:
                text = line[:60].decode("utf-8", "replace").rstrip()
                raise DataError(f"{where}: a line must be JSON, received {text!r} ({error}). Mend the line.") from error
            if not isinstance(values, dict):
                raise DataError(
                    f"{where}: a line must be a JSON object, received {line[:40].decode('utf-8', 'replace')!r}."
                )
            yield Row(where, number, values)


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        pq.read_schema(path)
    except DAMAGES as error:
        raise DataError(f"{path} must be a Parquet file, received {error}. Get the file again.") from error
    budget = Budget(path)
    yield from _batch_rows(path, parquet_batches(path, budget=budget), budget)


def _arrow_rows(path: Path) -> Iterator[Row]:
    """The stream that ``datasets`` writes; a file with a footer as well."""
    budget = Budget(path)
    with pa.memory_map(str(path)) as memory:
        for reader in (pa.ipc.open_stream, pa.ipc.open_file):
            memory.seek(0)
            try:
                batches = reader(memory)
            except DAMAGES:
                continue
            if isinstance(batches, pa.ipc.RecordBatchFileReader):
                batches = (batches.get_batch(index) for index in range(batches.num_record_batches))
            yield from _batch_rows(path, (checked(batch, budget) for batch in batches), budget)
            return
    raise DataError(f"{path} must be an Arrow file, received another. Get the file again.")


def _batch_rows(path: Path, batches: Any, budget: Budget) -> Iterator[Row]:
    number = 0
    try:
        for values in python_rows(batches, budget):
            number += 1
            yield Row(f"{path}, row {number}", number, values)
    except DataError:
        raise
    except DAMAGES as error:
        raise DataError(f"{path} is cut or damaged after row {number}: {error}. Get the file again.") from error


READERS = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows, ".arrow": _arrow_rows}
