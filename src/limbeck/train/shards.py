"""The state of a run whose weights are sharded, written shard by shard: no process ever holds the whole of it.

``torch.distributed.checkpoint`` plans who writes and who reads which part; its safetensors form is used, because its own
keeps its index as a pickle. The parts fit any number of processes, one plain process too. All must see the same folder.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from limbeck.errors import ConfigError
from limbeck.train.models import trained_tensors

FOLDER = "shards"
PARTS = StateDictOptions(ignore_frozen_params=True, flatten_optimizer_state_dict=True)
FILE_BYTES = 4 << 30  # of whole tensors a file: a process has one file's part in memory as it writes
Optimizers = list[torch.optim.Optimizer]


def check_torch() -> None:
    """Refuse, before the first step, a torch that cannot write the shards.

    Raises:
        ConfigError: it is too old.
    """
    if not hasattr(dcp, "HuggingFaceStorageWriter"):
        raise ConfigError(
            f"checkpoints of sharded weights need torch 2.9 or newer, received torch {torch.__version__}. Update torch, or "
            "launch without FSDP."
        )


def write(folder: Path, student: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    """Write every tensor, each process its part; every process must call it.

    Args:
        folder: exists, and is the same one for all processes.
        student: with sharded or whole weights.
        optimizers: of its trained tensors.

    Returns:
        The rest of the optimizers' state: numbers, the same on every process.
    """
    tensors, numbers = _state(student, optimizers)
    settings: dict[str, Any] = {"save_distributed": True, "fqn_to_index_mapping": files(tensors)}
    dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), **settings))  # type: ignore[attr-defined]
    return numbers


def read(folder: Path, student: nn.Module, optimizers: Optimizers, numbers: Mapping[str, Any]) -> None:
    """Put what :func:`write` wrote into a student and its optimizers, on any number of processes; all must call it."""
    # optimizers first: a state that does not exist yet is made by a step of size zero
    tensors, _ = _state(student, optimizers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)  # one plain process is fine
        # in place
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))  # type: ignore[attr-defined]
    whole: dict[str, Any] = {**tensors, **numbers}
    set_optimizer_state_dict(student, optimizers, whole, options=PARTS)


def files(tensors: Mapping[str, Tensor], size: int = FILE_BYTES) -> dict[str, int]:
    """Name of each tensor to the number of its file, from 1; a file is full once it has ``size`` bytes.

    >>> files({"a": torch.zeros(3), "b": torch.zeros(1), "c": torch.zeros(1)}, size=12)
    {'a': 1, 'b': 2, 'c': 2}
    """
    out: dict[str, int] = {}
    held = 0
    for name, tensor in tensors.items():
        out[name] = 1 + held // size
        held += tensor.numel() * tensor.element_size()
    return out


def _state(student: nn.Module, optimizers: Optimizers) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trained weights and the optimizers' state by name: tensors as the processes hold them, and numbers."""
    flat: dict[str, Any] = dict(get_optimizer_state_dict(student, optimizers, options=PARTS))
    moments: dict[str, Tensor] = {
        name: value for name, value in flat.items() if isinstance(value, Tensor) and value.dim()
    }
    once = trained_tensors(student)  # of tied weights
    found: dict[str, Any] = get_model_state_dict(student, options=PARTS)
    weights = {name: found[name] for name in once}
    return {**weights, **moments}, {name: value for name, value in flat.items() if name not in moments}
