"""One run on one or several processes: who does which share of a step, and how sums become everybody's.

`accelerate` starts the processes, wraps the model (DistributedDataParallel or FSDP2) and moves it. What is ours is the
division of the work: the divisor of a step is counted over all processes from data alone, each process takes every
n-th micro-batch, and one that has none left runs one of weight zero, because sharded weights are gathered together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object, parse_flag_from_env
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def make_accelerator() -> Accelerator:
    """What this process is among the others; on the GPU where there is one, alone where nobody launched more.

    Processes without a GPU that were launched with ``--use_fsdp`` shard their weights as those with one do, over gloo.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    asked = parse_flag_from_env("ACCELERATE_USE_FSDP")
    if asked and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate would replicate, and not say so
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # both hold it: each is read, and the one is filled from the other
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    return accelerator


class Share(NamedTuple):
    """One micro-batch of this process; ``weight`` 0 where it only keeps the others company."""

    items: Sequence[int]
    weight: int


def shares(cuts: Sequence[Sequence[int]], index: int, num: int) -> list[Share]:
    """This process's micro-batches of a step, equally many on each.

    >>> [shares([[0], [1], [2]], index, 2) for index in (0, 1)][1]
    [Share(items=[1], weight=1), Share(items=[0], weight=0)]
    """
    rounds = -(-len(cuts) // num)
    places = [turn * num + index for turn in range(rounds)]
    return [Share(cuts[place], 1) if place < len(cuts) else Share(cuts[0], 0) for place in places]


def summed(accelerator: Accelerator, values: Mapping[str, float]) -> dict[str, float]:
    """Each value added over all processes, which must have the same names."""
    if accelerator.num_processes == 1:
        return dict(values)
    names = sorted(values)
    flat = torch.tensor([values[name] for name in names], dtype=torch.float64, device=accelerator.device)
    return dict(zip(names, accelerator.reduce(flat, "sum").tolist(), strict=True))  # type: ignore[union-attr]


def gathered(accelerator: Accelerator, own: list[T], num: int) -> list[T]:
    """What every process made of ``items[index::num_processes]``, back in the order of the ``num`` items."""
    if accelerator.num_processes == 1:
        return own
    together: list[list[T]] = gather_object([own])
    return [together[i % len(together)][i // len(together)] for i in range(num)]


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, put together where processes hold a part each."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
