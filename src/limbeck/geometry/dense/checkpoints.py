"""Any local Hugging Face folder of safetensors, opened by its headers; a tensor is read when it is asked for.

Sharded or not, bf16, fp16 or fp32; a run folder of full-parameter training is opened at its ``model/``. Nothing is
unpickled, downloaded or executed, and no tensor outlives the caller's reference to it: mapped reads are pages of the
file, eager ones (for network file systems, where mapping crawls) one sequential read of the tensor's bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limbeck.bounds import parse_json
from limbeck.digests import sound
from limbeck.errors import ModelError

INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_BYTES = {torch.bfloat16: 2, torch.float16: 2, torch.float32: 4}
_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.safetensors$")
_BUFFER = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias|\.attention\.(masked_)?bias|position_ids)$")
_INTEGERS = {"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"}
RESUMED = (("state.pt", "weights.safetensors"), ("state.pt", "shards"))  # what a run of limbeck goes on from
LONGEST = 128  # characters of a file's name: what any file system takes
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Stored(NamedTuple):
    """One tensor of a folder: the file that has it, its shape, its type as safetensors names it, where its bytes lie."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model's weights by name, none of them loaded.

    Attributes:
        name: how rows call it.
        folder: where ``config.json`` and the weights lie.
        config: the content of ``config.json``; empty where there is none.
        tensors: canonical name to where it is stored, tied weights once, buffers left out.
        aliases: names that were left out because another name holds the same weight.
        eager: read tensors instead of mapping them.
    """

    name: str
    folder: Path
    config: Mapping[str, object]
    tensors: Mapping[str, Stored]
    aliases: Mapping[str, str] = field(default_factory=dict)
    eager: bool = False

    def read(self, name: str) -> Tensor:
        """One tensor in its stored type; read-only where it is mapped.

        Raises:
            ModelError: the file changed since it was opened.
        """
        where = self.tensors[name]
        if self.eager:
            return _read_bytes(where)
        try:
            with safe_open(where.file, framework="pt") as handle:
                return handle.get_tensor(where.key)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise _damaged(where.file, error) from error

    def identity(self) -> dict[str, object]:
        """What tells these files from others without reading them: names, sizes and times of change."""
        files = sorted({stored.file for stored in self.tensors.values()})
        return {"name": self.name, "files": [[f.name, (s := f.stat()).st_size, s.st_mtime_ns] for f in files]}


def is_checkpoint(folder: Path | str) -> bool:
    """Whether a folder holds whole weights (or is a run with ``model/`` in it) rather than an adapter."""
    root = _root(Path(folder))
    if any((root / name).is_file() for name in (INDEX, SINGLE)) or any(root.glob("*-of-*.safetensors")):
        return True
    return not is_adapter(root) and ((root / CONFIG).is_file() or bool(_pickles(root)))


def is_adapter(folder: Path | str) -> bool:
    """Whether a folder holds an adapter, or is a run that does."""
    return any((place / "adapter_config.json").is_file() for place in (Path(folder), Path(folder) / "adapter"))


def open_checkpoint(folder: Path | str, *, name: str = "", eager: bool = False) -> Checkpoint:
    """Read the headers of a folder's weights.

    Args:
        folder: a Hugging Face folder, or a run folder that has one under ``model/``.
        name: how rows call it; the folder's name when empty.
        eager: read tensors with plain sequential reads instead of mapping the files.

    Raises:
        ModelError: no weights, pickled ones, a missing or truncated shard, an index that names what is not there.
    """
    root = _root(Path(folder))
    if not root.is_dir():
        raise ModelError(
            f"a checkpoint must be a local folder of safetensors, received {folder}, which is none. Nothing is "
            "downloaded: fetch it first, then give its path."
        )
    config = _json(root / CONFIG) if (root / CONFIG).is_file() else {}
    stored = {_canonical(key): where for key, where in _stored(root) if _is_weight(root, key, where)}
    if not stored:
        raise ModelError(f"{root} must hold at least one floating-point tensor, received none. Point at a model.")
    tensors, aliases = _untied(root, config, stored, eager)
    named = name or (root.resolve().parent.name if root.name == "model" else root.resolve().name)
    return Checkpoint(name=named, folder=root, config=config, tensors=tensors, aliases=aliases, eager=eager)


def _root(folder: Path) -> Path:
    return folder / "model" if (folder / "model" / CONFIG).is_file() else folder


def _canonical(key: str) -> str:
    """The name without what wrappers put before it.

    >>> _canonical("_orig_mod.module.model.norm.weight")
    'model.norm.weight'
    """
    return re.sub(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+", "", key)


def _is_weight(root: Path, key: str, where: Stored) -> bool:
    if _BUFFER.search(key) or where.dtype in _INTEGERS:
        return False
    if where.dtype not in DTYPES:
        raise ModelError(
            f"{where.file}: weights must be stored as bf16, fp16 or fp32, received {where.dtype} for {key!r}. Dequantize "
            f"the model of {root.name} and save it again."
        )
    return True


def _stored(root: Path) -> Iterator[tuple[str, Stored]]:
    if (root / INDEX).is_file():
        yield from _indexed(root)
        return
    shards = sorted(root.glob("*-of-*.safetensors"))
    _all_shards(root, shards)
    for file in [root / SINGLE] if (root / SINGLE).is_file() else shards:
        yield from _header(file).items()
        shards = shards or [file]
    if not shards:
        raise _no_weights(root)


def _indexed(root: Path) -> Iterator[tuple[str, Stored]]:
    index = _json(root / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(
        isinstance(v, str) and Path(v).name == v and len(v) < LONGEST for v in index.values()
    ):
        raise ModelError(
            f"{root / INDEX} must hold a weight_map of tensor names to files beside it, received another content. Copy the "
            "index again."
        )
    files = sorted(set(index.values()))
    for file in files:
        if not (root / file).is_file():
            lost = sorted(key for key, value in index.items() if value == file)
            raise ModelError(
                f"{root / INDEX} names {file}, which must be beside it and is not there: {len(lost)} tensors are missing, "
                f"{lost[0]!r} among them. Copy that shard."
            )
    headers = {file: _header(root / file) for file in files}
    for key, file in index.items():
        if key not in headers[file]:
            raise ModelError(
                f"{root / INDEX} says that {key!r} is in {file}, which must then hold it and does not. The index and the "
                "shards come from different saves: copy all of them again."
            )
        yield key, headers[file][key]


def _all_shards(root: Path, shards: list[Path]) -> None:
    found = [match for match in (_SHARD.match(path.name) for path in shards) if match]
    if not found:
        return
    total = int(found[0][3])
    missing = sorted(set(range(1, total + 1)) - {int(match[2]) for match in found})
    if missing:
        raise ModelError(
            f"{root} must hold all {total} shards, received {len(found)}; "
            f"{found[0][1]}-{missing[0]:05d}-of-{total:05d}.safetensors is not there. Copy the missing shards."
        )


def _header(file: Path) -> dict[str, Stored]:
    """Where each tensor of a file lies; opening it with safetensors checks that the file is complete."""
    sound(file)
    try:
        with safe_open(file, framework="pt"):
            pass
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            content = parse_json(handle.read(size))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _damaged(file, error) from error
    return {
        key: Stored(file, key, tuple(entry["shape"]), entry["dtype"], 8 + size + entry["data_offsets"][0])
        for key, entry in content.items()
        if key != "__metadata__"
    }


def _read_bytes(where: Stored) -> Tensor:
    dtype = DTYPES[where.dtype]
    count = int(np.prod(where.shape, dtype=np.int64))
    data = np.fromfile(where.file, dtype=np.uint8, count=count * _BYTES[dtype], offset=where.start)
    if len(data) != count * _BYTES[dtype]:
        raise _damaged(where.file, f"{len(data)} of the {count * _BYTES[dtype]} bytes of {where.key!r}")
    return torch.from_numpy(data).view(dtype).reshape(where.shape)


def _untied(
    root: Path, config: Mapping[str, object], stored: dict[str, Stored], eager: bool
) -> tuple[dict[str, Stored], dict[str, str]]:
    """Leave out an output head that is the embedding, by the configuration's word or because it was not stored."""
    text = config.get("text_config")
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, dict) else None)
    head = next((n for n in stored if n.endswith(("lm_head.weight", "embed_out.weight"))), "")
    embedding = next((n for n in stored if re.search(r"(embed_tokens|wte|embed_in|word_embeddings)\.weight$", n)), "")
    if not embedding or (tied is False and head):
        return stored, {}
    if not head:
        return stored, {"lm_head.weight": embedding}
    if not tied or stored[head].shape != stored[embedding].shape:
        return stored, {}
    whole = Checkpoint(name="", folder=root, config=config, tensors=stored, eager=eager)
    if not torch.equal(whole.read(head), whole.read(embedding)):
        raise ModelError(
            f"{root}: tie_word_embeddings says that {head!r} is {embedding!r}, so they must be equal, and the stored ones "
            "differ. Set it to false in config.json if both were trained, or save the model again."
        )
    return {name: where for name, where in stored.items() if name != head}, {head: embedding}


def _json(path: Path) -> dict[str, object]:
    sound(path)
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} must be readable JSON, received {error}. Copy it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object, received {type(content).__name__}. Copy it again.")
    return content


def _pickles(root: Path) -> list[Path]:
    return sorted(path for pattern in _PICKLES for path in root.glob(pattern) if path.name != "training_args.bin")


def _no_weights(root: Path) -> ModelError:
    if any(all((root / name).exists() for name in form) for form in RESUMED):
        return ModelError(
            f"a checkpoint must be a model that can be loaded, received {root}, from which a run of limbeck goes on. "
            "Train with --set train.trajectory=20 and measure the run with --trajectory, or give whole runs."
        )
    pickled = _pickles(root)
    if pickled:
        return ModelError(
            f"{root} must hold safetensors, received {pickled[0].name}, which is a pickle and is never opened. On a machine "
            'where its code may run, convert it: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{root}', dtype='auto').save_pretrained('{root}-safetensors')\""
        )
    return ModelError(
        f"a checkpoint must hold {SINGLE}, or shards with {INDEX}, received {root} with neither. Point at what "
        "save_pretrained wrote, or at a run of full-parameter training."
    )


def _damaged(file: Path, error: object) -> ModelError:
    return ModelError(
        f"{file} must be a complete safetensors file, received one that is truncated or damaged ({error}). Copy it again."
    )
