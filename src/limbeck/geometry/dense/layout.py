"""Which matrices two folders have in common, fused ones taken apart, each as one (out, in) matrix.

A fused projection is not one map: its largest singular directions mix q, k and v. Rows of ``qkv_proj`` and
``gate_up_proj``, columns of GPT-2's transposed ``c_attn``, the heads of ``query_key_value`` and the experts of a stacked
tensor become matrices of their own, under the names that unfused models use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from limbeck.errors import ModelError
from limbeck.geometry.dense.checkpoints import Checkpoint

Cut = Callable[[Tensor], Tensor]
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # Conv1D stores (in, out)
_STACKED_IN_OUT = ("gpt_oss", "llama4", "llama4_text")  # experts stored as (expert, in, out)


class Piece(NamedTuple):
    """One matrix or vector to measure: its module name, the tensor that holds it, and how to cut it out."""

    module: str
    tensor: str
    cut: Cut
    shape: tuple[int, ...]

    @property
    def entries(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


def match(base: Checkpoint, tuned: Sequence[Checkpoint]) -> list[Piece]:
    """The pieces that all folders share, in the order of their names.

    Raises:
        ModelError: a tensor that only one of two folders has, or with two shapes; names the tensor and the shapes.
    """
    for other in tuned:
        _check_names(base, other)
        for name, stored in base.tensors.items():
            if stored.shape != other.tensors[name].shape:
                raise _other_shape(base, other, name)
    filled = [name for name in sorted(base.tensors) if math.prod(base.tensors[name].shape)]
    pieces = [p for name in filled for p in split(name, base.tensors[name].shape, base.config)]
    return [piece for piece in pieces if piece.entries]


def _check_names(base: Checkpoint, other: Checkpoint) -> None:
    only_base, only_other = (
        sorted(set(base.tensors) - set(other.tensors)),
        sorted(set(other.tensors) - set(base.tensors)),
    )
    if not only_base and not only_other:
        return
    name, owner = (only_base[0], base.name) if only_base else (only_other[0], other.name)
    kinds = [str(c.config.get("model_type", "unknown")) for c in (base, other)]
    raise ModelError(
        f'"{base.name}" and "{other.name}" must be of one architecture with equal tensor names, received model_type '
        f"{kinds[0]} and {kinds[1]}, {len(only_base)} tensors that only the first has and {len(only_other)} that only the "
        f'second has ({name!r} is only in "{owner}"). Give checkpoints that were trained from this base.'
    )


def _other_shape(base: Checkpoint, other: Checkpoint, name: str) -> ModelError:
    one, two = base.tensors[name].shape, other.tensors[name].shape
    vocabulary = base.config.get("vocab_size"), other.config.get("vocab_size")
    rows = any(word in name for word in ("embed", "wte", "lm_head")) and one[1:] == two[1:]
    why = (
        f"Their vocabularies differ (vocab_size {vocabulary[0]} and {vocabulary[1]}): resize the tuned model's embeddings "
        "to the base's before measuring."
        if rows
        else "They are of different sizes: give checkpoints that were trained from this base."
    )
    return ModelError(
        f'"{base.name}" and "{other.name}" must have equal shapes, received {list(one)} and {list(two)} for {name!r}. {why}'
    )


def split(name: str, shape: tuple[int, ...], config: Mapping[str, object]) -> list[Piece]:
    """The pieces of one tensor, in rows of the output side.

    >>> shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_size": 16}
    >>> [(p.module, p.shape) for p in split("model.layers.0.self_attn.qkv_proj.weight", (64, 16), shape)]  # doctest: +ELLIPSIS
    [('model...qkv_proj.q_proj', (32, 16)), ('model...k_proj', (16, 16)), ('model...v_proj', (16, 16))]
    >>> split("model.norm.weight", (16,), shape)[0].module
    'model.norm'
    """
    config = _text(config)
    module = name.removesuffix(".weight")
    if len(shape) == 3 and "expert" in name:
        return _experts(module, name, shape, config)
    if len(shape) > 2:  # a convolution: one row an output channel
        return [Piece(module, name, partial(_flat, turned=False), (shape[0], math.prod(shape[1:])))]
    turned = len(shape) == 2 and config.get("model_type") in _TRANSPOSED and ".h." in name
    if turned:
        shape = shape[::-1]
    parts = _parts(module.rsplit(".", 1)[-1], shape, config) if not name.endswith(".bias") else {}
    if not parts:
        return [Piece(module, name, partial(_flat, turned=turned), shape)]
    return [
        Piece(f"{module}.{kind}", name, partial(_rows, index=index, turned=turned), (_count(index), *shape[1:]))
        for kind, index in parts.items()
    ]


class Rows(NamedTuple):
    """Rows of a fused matrix seen as (groups, members, width): some members of every group."""

    groups: int
    members: int
    width: int
    first: int
    last: int


def _count(index: Rows) -> int:
    return index.groups * (index.last - index.first) * index.width


def _parts(kind: str, shape: tuple[int, ...], config: Mapping[str, object]) -> dict[str, Rows]:
    """Where q, k and v, or gate and up, lie among the rows; nothing where the matrix is not fused or not understood."""
    if kind == "gate_up_proj" and shape[0] % 2 == 0:
        half = shape[0] // 2
        return {name: Rows(1, shape[0], 1, n * half, (n + 1) * half) for n, name in enumerate(("gate_proj", "up_proj"))}
    if kind not in ("qkv_proj", "Wqkv", "c_attn", "query_key_value", "qkv"):
        return {}
    heads = _number(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    hidden = _number(config, "hidden_size", "n_embd", "d_model")
    width = _number(config, "head_dim") or (hidden // heads if heads else 0)
    if not heads or not width:
        return {}
    grouped = config.get("new_decoder_architecture")
    shared = _number(config, "num_key_value_heads", "num_kv_heads", "kv_n_heads") or heads
    if config.get("multi_query") and not grouped:
        shared = 1
    if shape[0] != (heads + 2 * shared) * width:
        return {}
    per_head = kind == "query_key_value" and (grouped or shared == heads)
    if per_head:  # every group of heads has its queries, then its key, then its value
        queries = heads // shared
        edges, groups = (0, queries, queries + 1, queries + 2), shared
    else:
        edges, groups = (0, heads, heads + shared, heads + 2 * shared), 1
    names = ("q_proj", "k_proj", "v_proj")
    return {name: Rows(groups, edges[-1], width, edges[n], edges[n + 1]) for n, name in enumerate(names)}


def _experts(module: str, name: str, shape: tuple[int, ...], config: Mapping[str, object]) -> list[Piece]:
    turned = config.get("model_type") in _STACKED_IN_OUT
    rows, columns = shape[1:][::-1] if turned else shape[1:]
    stem, kind = module.rsplit(".", 1)
    halves: dict[str, slice] = {kind: slice(None)}
    if kind == "gate_up_proj" and rows % 2 == 0:
        gate, up = slice(0, rows // 2), slice(rows // 2, rows)
        if config.get("model_type") == "gpt_oss":
            gate, up = slice(0, rows, 2), slice(1, rows, 2)
        halves = {"gate_proj": gate, "up_proj": up}
    return [
        Piece(
            f"{stem}.{expert}.{part}", name, partial(_expert, expert=expert, rows=chosen, turned=turned),
            (len(range(*chosen.indices(rows))), columns),
        )
        for expert in range(shape[0])
        for part, chosen in halves.items()
    ]  # fmt: skip


def _flat(tensor: Tensor, *, turned: bool) -> Tensor:
    return tensor.T if turned else tensor.flatten(1) if tensor.ndim > 2 else tensor


def _rows(tensor: Tensor, *, index: Rows, turned: bool) -> Tensor:
    whole = tensor.T if turned else tensor
    rest = whole.shape[1:]
    if index.groups == 1:
        return whole[index.first * index.width : index.last * index.width]
    split = whole.reshape(index.groups, index.members, index.width, *rest)
    return split[:, index.first : index.last].reshape(-1, *rest)


def _expert(tensor: Tensor, *, expert: int, rows: slice, turned: bool) -> Tensor:
    one = tensor[expert]
    return (one.T if turned else one)[rows]


def _text(config: Mapping[str, object]) -> Mapping[str, object]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _number(config: Mapping[str, object], *names: str) -> int:
    return next((v for n in names if isinstance(v := config.get(n), int) and not isinstance(v, bool)), 0)
