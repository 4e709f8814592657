"""How hostile files are made: each maker takes a new folder, writes into it, and returns what the verb is given."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.worlds import resolve

Make = Callable[[Path], Path]
DEEP = "[" * 100_000
ROLLOUT = {"problem_id": "p", "prompt": "1 + 1?", "response": "2. #### 2", "reward": 1}


def file(name: str, content: str | bytes) -> Make:
    """One file of this content; lone surrogates pass."""

    def make(folder: Path) -> Path:
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        (folder / name).write_bytes(data)
        return folder / name

    return make


def lines(name: str, *rows: Mapping[str, Any]) -> Make:
    """A JSONL file; a lone surrogate travels as its escape."""
    return file(name, "".join(json.dumps(row) + "\n" for row in rows))


def files(**contents: str | bytes) -> Make:
    """A folder of files; ``__`` in a name stands for a dot."""

    def make(folder: Path) -> Path:
        for name, content in contents.items():
            file(name.replace("__", "."), content)(folder)
        return folder

    return make


def table(name: str, columns: Mapping[str, Any], **how: Any) -> Make:
    """A Parquet file."""

    def make(folder: Path) -> Path:
        pq.write_table(pa.table(dict(columns)), folder / name, **how)
        return folder / name

    return make


def repeated(name: str, row: Mapping[str, Any], num: int) -> Make:
    """A Parquet file of kilobytes that says one row over and over."""

    def make(folder: Path) -> Path:
        columns = {
            key: pa.DictionaryArray.from_arrays(pa.array(np.zeros(num, np.int8)), pa.array([value]))
            if isinstance(value, str)
            else pa.array(np.full(num, value))
            for key, value in row.items()
        }
        pq.write_table(pa.table(columns), folder / name, compression="zstd", store_schema=False)
        return folder / name

    return make


def not_text(name: str, column: str) -> Make:
    """A Parquet file whose text is not UTF-8."""
    data = b"\xff\xfe\xfd"
    array = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, len(data))), pa.py_buffer(data)]
    )
    return table(name, {key: array if key == column else pa.array([str(v)]) for key, v in ROLLOUT.items()})


def outside(name: str) -> Make:
    """An Arrow file whose text begins far outside of the file."""

    def make(folder: Path) -> Path:
        sink = io.BytesIO()
        batch = pa.record_batch({"prompt": pa.array(["1" * 12_345]), "answer": pa.array(["2"])})
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        data, good = sink.getvalue(), struct.pack("<ii", 0, 12_345)
        begin = data.rindex(good)  # the offsets; the header before them has the length too
        wild = struct.pack("<ii", 1 << 29, (1 << 29) + 12_345)
        (folder / name).write_bytes(data[:begin] + wild + data[begin + len(wild) :])
        return folder / name

    return make


def tensors(header: Any, data: bytes = b"", *, size: int | None = None) -> bytes:
    """A safetensors file of any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


A, B = "base_model.model.layers.0.q_proj.lora_A.weight", "base_model.model.layers.0.q_proj.lora_B.weight"
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "base"}
FACTORS = {A: entry([2, 4], 0, 32), B: entry([4, 2], 32, 64)}
NUMBERS = np.linspace(0.1, 1, 16, dtype=np.float32).tobytes()


def adapter(
    header: Any = FACTORS, data: bytes = NUMBERS, *, size: int | None = None, text: str = "", **config: Any
) -> Make:
    """An adapter's folder: a whole one but for what is said."""
    return files(
        adapter_config__json=text or json.dumps(LORA | config),
        adapter_model__safetensors=tensors(header, data, size=size),
    )


def named(module: str, **config: Any) -> Make:
    """An adapter on a module of this name."""
    return adapter({f"{module}.lora_A.weight": FACTORS[A], f"{module}.lora_B.weight": FACTORS[B]}, **config)


WEIGHT = {"model.norm.weight": entry([4], 0, 16)}


def checkpoint(
    header: Any = WEIGHT, data: bytes = NUMBERS[:16], *, size: int | None = None, config: str = "{}"
) -> Make:
    """A model's folder with whole weights, which are never put into a model."""
    return files(config__json=config, model__safetensors=tensors(header, data, size=size))


def indexed(weight_map: Any, *, text: str = "") -> Make:
    """A model's folder with an index of this content, and one good shard."""
    return files(
        config__json="{}",
        model__safetensors__index__json=text or json.dumps({"weight_map": weight_map}),
        a__safetensors=tensors(WEIGHT, NUMBERS[:16]),
    )


def linked(make: Make, name: str, target: str) -> Make:
    """A folder in which one file is a link."""

    def linking(folder: Path) -> Path:
        out = make(folder)
        (folder / name).unlink(missing_ok=True)
        os.symlink(target, folder / name)
        return out

    return linking


def pipe(make: Make, name: str) -> Make:
    """A folder in which one file is a pipe that nobody writes to."""

    def piping(folder: Path) -> Path:
        out = make(folder)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        return out

    return piping


def model(*, config: Mapping[str, Any] | None = None, drop: tuple[str, ...] = (), **contents: str | bytes) -> Make:
    """The embedded base model, with settings of its config changed, files left out and others put in."""

    def make(folder: Path) -> Path:
        for path in resolve("abacus:base").iterdir():
            if path.name not in drop and path.name != "config.json":
                shutil.copy(path, folder / path.name)
        settings = json.loads((resolve("abacus:base") / "config.json").read_text()) | dict(config or {})
        (folder / "config.json").write_text(json.dumps(settings))
        return files(**contents)(folder)

    return make


def tokenizer(change: Callable[[dict[str, Any]], None]) -> Make:
    """The embedded base model with another ``tokenizer.json``."""

    def make(folder: Path) -> Path:
        content = json.loads((resolve("abacus:base") / "tokenizer.json").read_text())
        change(content)
        return model(tokenizer__json=json.dumps(content))(folder)

    return make


MANIFEST = {"kind": "", "files": {}, "versions": {}}


def sealed(
    kind: str, name: str, columns: Mapping[str, Any] | bytes | None = None, text: str = "", **facts: Any
) -> Make:
    """A folder that claims to be one of ours."""

    def make(folder: Path) -> Path:
        (folder / "manifest.json").write_text(text or json.dumps({**MANIFEST, "kind": kind, **facts}))
        if isinstance(columns, bytes):
            (folder / name).write_bytes(columns)
        elif columns is not None:
            table(name, columns)(folder)
        return folder

    return make


def newer(packed: bytes) -> bytes:
    """An archive that asks for a program which is yet to be written."""
    at = packed.index(b"PK\1\2") + 6
    return packed[:at] + bytes([173]) + packed[at + 1 :]


def found(name: str, source: str) -> Make:
    """A file that was met, or made by changing bytes, and is kept beside the tests."""
    return lambda folder: Path(shutil.copy(Path(__file__).parents[1] / "data" / "hostile" / source, folder / name))


def archive(members: Mapping[str, bytes | str]) -> bytes:
    """A zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return out.getvalue()
