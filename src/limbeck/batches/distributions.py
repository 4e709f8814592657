"""Whole distributions of a frozen model, scored once and shared by all arms: hidden states with the head, or likeliest ids.

One safetensors file has a row for each response token of every rollout, in the order of the rollouts, and ``offsets``:
rollout i has rows ``offsets[i]`` to ``offsets[i + 1]``. It is written and read a few rollouts at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.batches.forward import head_of, unwrapped
from limbeck.batches.score import check_rollouts, frozen_passes
from limbeck.batches.whole import Top, frozen_inputs
from limbeck.digests import sound
from limbeck.errors import ConfigError, ProvenanceError
from limbeck.folders import publish, read_manifest
from limbeck.heads import Head, cut, likeliest
from limbeck.types import RolloutSet

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int32: "I32", torch.int64: "I64"}  # safetensors' names
ROWS_FILE, HEAD_FILE = "rows.safetensors", "head.safetensors"
Advance = Callable[[int], None]


class Frozen(NamedTuple):
    """What a frozen model says of the rollouts: columns of ``TrainingData``, and what turns them into distributions."""

    columns: dict[str, Sequence[Tensor]]
    model: Head | Top


def write_hidden(
    out: Path,
    rollout_set: RolloutSet,
    model: nn.Module,
    *,
    model_digest: str,
    dtype: str = "fp32",
    num_ids: int | None = None,
    facts: Mapping[str, Any] | None = None,
    token_budget: int = 16384,
    overwrite: bool = False,
    advance: Advance = lambda num: None,
) -> Path:
    """Store a model's final hidden states at the predicting positions of response tokens, and its head.

    Exact in fp32; bf16 takes half the room and rounds the states to 8 bits. Rollouts longer than the model's context
    are NaN: they are dropped, and counted, where training selects its rows.

    Args:
        out: the folder to make, of kind "hidden".
        rollout_set: what to score; the folder is refused for any other.
        model: the frozen model.
        model_digest: which model it is.
        dtype: of the states on disk, fp32 or bf16; the head stays as the model has it.
        num_ids: the head's first ids to keep: one more than the largest id of the token map. All by default.
        facts: more for the manifest.
        token_budget: padded tokens a forward pass.
        overwrite: replace a complete folder of ours.
        advance: called with the number of rollouts just done.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, received {dtype!r}. bf16 takes half the room.")
    head = _head(model, num_ids)
    offsets = _offsets(rollout_set)
    size = head.weight.shape[1]
    stated = {"dtype": dtype, "hidden_size": size, "num_ids": len(head.weight)}
    stated |= {"scale": head.scale, "softcap": head.softcap, "tokens": offsets[-1]}
    manifest = _facts(rollout_set, model_digest, stated, facts)
    with publish(out, kind="hidden", facts=manifest, overwrite=overwrite) as folder:
        rows = create_rows(folder / ROWS_FILE, {"hidden": (DTYPES[dtype], size)}, offsets)["hidden"]
        for index, hidden in frozen_passes(model, rollout_set.rollouts, token_budget=token_budget, advance=advance):
            _put(rows, offsets, index, hidden)
        tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / HEAD_FILE)
    return out


def write_likeliest(
    out: Path,
    rollout_set: RolloutSet,
    model: nn.Module,
    *,
    model_digest: str,
    k: int = 64,
    num_ids: int | None = None,
    facts: Mapping[str, Any] | None = None,
    token_budget: int = 16384,
    overwrite: bool = False,
    advance: Advance = lambda num: None,
) -> Path:
    """Store a model's ``k`` likeliest ids at each response token with their log-probs and the tail's, fp32, nats.

    Enough, and exact, for ``forward_kl_topk_tail`` at temperature 1 with that k or a smaller one; objectives that
    choose ids by the student too need ``write_hidden``. Arguments as there; the folder is of kind "topk".
    """
    if k < 1:
        raise ConfigError(f"k must be at least 1 id, received {k}. The published default is 64.")
    head = _head(model, num_ids)
    offsets, k = _offsets(rollout_set), min(k, len(head.weight))
    stated = {"k": k, "num_ids": len(head.weight), "tokens": offsets[-1]}
    manifest = _facts(rollout_set, model_digest, stated, facts)
    with publish(out, kind="topk", facts=manifest, overwrite=overwrite) as folder:
        kinds = {"ids": (torch.int32, k), "logprobs": (torch.float32, k + 1)}
        rows = create_rows(folder / ROWS_FILE, kinds, offsets)
        for index, hidden in frozen_passes(model, rollout_set.rollouts, token_budget=token_budget, advance=advance):
            if hidden is None:
                _put(rows["logprobs"], offsets, index, None)
                continue
            sizes = [len(part) for part in hidden]
            found = likeliest(torch.cat(list(hidden)), head, k)
            _put(rows["ids"], offsets, index, found.ids.split(sizes))
            _put(rows["logprobs"], offsets, index, found.logprobs.split(sizes))
    return out


def read_hidden(path: Path, rollout_set: RolloutSet) -> tuple[Sequence[Tensor], Head]:
    """Hidden states of each rollout, (tokens, hidden), read when they are asked for, and the head they belong to.

    Raises:
        FolderError: no complete folder of kind "hidden".
        ProvenanceError: it was made for other rollouts.
    """
    manifest = check_rollouts(path, "hidden", rollout_set)
    tensors = load_file(sound(path / HEAD_FILE))
    head = Head(tensors["weight"], tensors.get("bias"), manifest["scale"], manifest["softcap"])
    return StoredRows(path / ROWS_FILE, "hidden", rollout_set), head


def read_frozen(path: Path, rollout_set: RolloutSet, name: str) -> Frozen:
    """Whatever of a model's distributions a folder holds, under the names that a batch gives them.

    Args:
        path: a folder of kind "hidden" or "topk".
        rollout_set: which it must belong to.
        name: ``teacher_logits`` or ``reference_logits``, the input that it stands for.

    Raises:
        ProvenanceError: it was made for other rollouts.
    """
    if read_manifest(path)["kind"] != "topk":
        rows, head = read_hidden(path, rollout_set)
        return Frozen(dict(zip(frozen_inputs(name, head), [rows], strict=True)), head)
    manifest = check_rollouts(path, "topk", rollout_set)
    top = Top(k=manifest["k"], num_ids=manifest["num_ids"])
    stored = [StoredRows(path / ROWS_FILE, column, rollout_set) for column in ("ids", "logprobs")]
    return Frozen(dict(zip(frozen_inputs(name, top), stored, strict=True)), top)


class StoredRows(Sequence[Tensor]):
    """One (tokens, size) tensor per rollout, out of a memory-mapped file, in the type that it was stored in."""

    def __init__(self, path: Path, name: str, rollout_set: RolloutSet) -> None:
        self._file = safe_open(sound(path), framework="pt")
        self._rows, self._offsets = self._file.get_slice(name), self._file.get_tensor("offsets").tolist()
        if self._offsets != _offsets(rollout_set):
            raise ProvenanceError(
                f"{path} must have one row per response token = {len(rollout_set)} rollouts with {_offsets(rollout_set)[-1]} "
                f"tokens, received {len(self._offsets) - 1} with {self._offsets[-1]}. Score the rollouts again."
            )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return self._rows[self._offsets[at] : self._offsets[at + 1]]


def create_rows(path: Path, kinds: Mapping[str, tuple[torch.dtype, int]], offsets: Sequence[int]) -> dict[str, Tensor]:
    """A safetensors file of zeros with ``offsets`` in it, and its other tensors as memory maps to be filled in any order."""
    shapes = {"offsets": (torch.int64, [len(offsets)])}
    shapes |= {name: (dtype, [offsets[-1], size]) for name, (dtype, size) in kinds.items()}
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in sorted(shapes.items(), key=lambda kind: -kind[1][0].itemsize):  # keeps each aligned
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    flat = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="r+", offset=8 + len(text)))
    out = {}
    for name, (dtype, shape) in shapes.items():
        start, end = header[name]["data_offsets"]
        out[name] = flat[start:end].view(dtype).view(shape)
    out.pop("offsets").copy_(torch.tensor(offsets))
    return out


def _put(rows: Tensor, offsets: Sequence[int], index: Sequence[int], parts: Sequence[Tensor] | None) -> None:
    for place, i in enumerate(index):
        rows[offsets[i] : offsets[i + 1]] = math.nan if parts is None else parts[place]


def _offsets(rollout_set: RolloutSet) -> list[int]:
    return [0, *accumulate(rollout_set.outline.response_tokens.tolist())]


def _head(model: nn.Module, num_ids: int | None) -> Head:
    head = head_of(unwrapped(model))
    return head if num_ids is None else cut(head, min(num_ids, len(head.weight)))


def _facts(
    rollout_set: RolloutSet, model_digest: str, stated: Mapping[str, Any], more: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {"rollouts_digest": rollout_set.digest, "model_digest": model_digest, **stated, **(more or {})}
