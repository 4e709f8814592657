"""Files that are whole, changed at random: by what their structure says where it can be read, else byte by byte."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Files = dict[str, bytes]


HOSTILE: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "\0", "\ud800", "x" * 300, "../..",
    "=1+1", [], {}, [[]], [None], {"": None}, "p", "stop", [0] * 50,
]  # fmt: skip
TOKENS = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"[", b"]",
    b"{", b"}", b",", b"NaN", b"1e999", b"-1", b"9" * 30, b"\xed\xa0\x80",
    b"[" * 2000, b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\xff" * 8, b"null", b"''", b"=", b".",
    b"PAR1", b"PK\x03\x04",
]  # fmt: skip


def changed(whole: Mapping[str, bytes], choose: random.Random) -> Files:
    """The files with one of them changed, by its structure where it has one that reads, else by its bytes."""
    files = dict(whole)
    name = choose.choice(sorted(name for name in files if len(files[name]) < 1 << 20))
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        structured = STRUCTURED.get(Path(name).suffix)
        data = files[name]
        if structured and choose.random() < 0.6:
            try:
                data = structured(data, choose)
            except Exception:  # changed before, and no longer of that structure
                data = by_bytes(data, choose)
        else:
            data = by_bytes(data, choose)
        files[name] = data
    return files


def by_bytes(data: bytes, choose: random.Random) -> bytes:
    """One change that knows nothing of what the bytes mean."""
    at, length = choose.randrange(len(data) + 1), choose.choice((1, 2, 4, 8, 64, 512))
    cut = data[at : at + length]
    match choose.randrange(7):
        case 0:
            return data[:at] + bytes(byte ^ (1 << choose.randrange(8)) for byte in cut) + data[at + length :]
        case 1:
            return data[:at] + data[at + length :]
        case 2:
            return data[:at] + cut * choose.choice((2, 16)) + data[at + length :]
        case 3:
            return data[:at]
        case 4:
            token = choose.choice(TOKENS)
            return data[:at] + token + data[at + choose.choice((0, len(token))) :]
        case 5:
            other = choose.randrange(len(data) + 1)
            return data[:at] + data[other : other + length] + data[at + length :]
        case _:
            return data[:at] + choose.randbytes(length) + data[at + length :]


def by_json(data: bytes, choose: random.Random) -> bytes:
    """A value of a JSON text, or a key, is another."""
    return json.dumps(put(json.loads(data), choose)).encode("utf-8", "surrogatepass")


def by_line(data: bytes, choose: random.Random) -> bytes:
    """One record of JSON lines is changed, left out, or doubled."""
    rows = data.splitlines()
    at = choose.randrange(len(rows))
    match choose.randrange(6):
        case 0:
            del rows[at]
        case 1:
            rows.insert(at, rows[choose.randrange(len(rows))])
        case _:
            rows[at] = by_json(rows[at], choose)
    return b"\n".join(rows) + b"\n"


def put(value: Any, choose: random.Random) -> Any:
    """The value with something else in one place of it."""
    if isinstance(value, dict) and value and choose.random() < 0.9:
        key = choose.choice(sorted(value))
        match choose.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {("x" + k if k == key else k): v for k, v in value.items()}
            case _:
                return {**value, key: put(value[key], choose)}
    if isinstance(value, list) and value and choose.random() < 0.8:
        at = choose.randrange(len(value))
        return [*value[:at], put(value[at], choose), *value[at + choose.randrange(2) :]]
    return choose.choice(HOSTILE)


def by_column(data: bytes, choose: random.Random) -> bytes:
    """A Parquet file with a column of another type, name or content."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    at = choose.randrange(table.num_columns)
    name, rows = table.column_names[at], table.column(at).to_pylist()
    match choose.randrange(5):
        case 0:
            table = table.remove_column(at)
        case 1:
            table = table.rename_columns(
                [choose.choice(table.column_names) if n == name else n for n in table.column_names]
            )
        case 2:
            value = choose.choice(HOSTILE)
            table = table.set_column(at, name, pa.array([value] * len(rows)))
        case 3:
            table = table.set_column(
                at, name, pa.array([put(row, choose) if choose.random() < 0.5 else row for row in rows])
            )
        case _:
            table = pa.concat_tables([table] * choose.choice((2, 50)))
    out = io.BytesIO()
    pq.write_table(table, out, compression=choose.choice(("zstd", "none")))
    return out.getvalue()


def by_header(data: bytes, choose: random.Random) -> bytes:
    """A safetensors file whose header says something else."""
    size = int.from_bytes(data[:8], "little")
    header = by_json(data[8 : 8 + size], choose)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def by_member(data: bytes, choose: random.Random) -> bytes:
    """An archive with one member changed, left out or renamed."""
    import io
    import zipfile

    from tests.hostile.making import archive

    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    name = choose.choice(sorted(members))
    content = members.pop(name)
    if choose.random() < 0.8:
        members[name if choose.random() < 0.9 else choose.choice(("../x", "samples/\0.json", ""))] = by_json(
            content, choose
        )
    return archive(members)


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": by_json, ".jsonl": by_line, ".parquet": by_column, ".safetensors": by_header, ".eval": by_member,
}  # fmt: skip
