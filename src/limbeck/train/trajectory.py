"""Snapshots of the update while a run goes on: what :mod:`limbeck.geometry.trajectory` keeps of every trained matrix.

Every process takes part, because sharded weights are put together, and the main one measures and writes. A snapshot is
made from the weights now, at the start and at the snapshot before; the last are carried by checkpoints, so a run that was
killed ends with the same trajectory, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from limbeck.config import TrainConfig
from limbeck.geometry.dense.layout import Piece, split
from limbeck.geometry.parallel import one_blas_thread
from limbeck.geometry.trajectory import store
from limbeck.geometry.trajectory.snapshot import Kept, of_factors, of_weights
from limbeck.train.engine import Engine
from limbeck.train.models import trained_tensors
from limbeck.train.processes import whole
from limbeck.types import LowRank

_PEFT = "base_model.model."


def snapshot_steps(num_steps: int, count: int) -> list[int]:
    """The steps of ``count`` equally spaced snapshots, the last step among them.

    >>> snapshot_steps(100, 4), snapshot_steps(7, 3), snapshot_steps(10, 0)
    ([25, 50, 75, 100], [2, 5, 7], [])
    """
    return [round(num_steps * (index + 1) / count) for index in range(count)]


class Recorder:
    """Takes the snapshots of one run."""

    def __init__(self, engine: Engine, config: TrainConfig, out: Path) -> None:
        """Get ready, before the first step and before anything is resumed.

        Args:
            engine: the student as it starts.
            config: how many snapshots, of how many directions; its steps are the run's, not the optimizer's.
            out: the run folder; ``trajectory/`` in it is written.
        """
        self._engine, self._config, self._folder = engine, config, out / store.FOLDER
        self._due = frozenset(snapshot_steps(config.num_steps, config.trajectory))
        self._main = engine.accelerator.is_main_process
        self._last, self._seconds = 0, 0.0
        self._start: dict[str, Tensor] = dict(engine.start)
        if self._due and engine.sharded and config.method == "full":  # each process has a part of the start alone
            self._start = {name: tensor.cpu() for name, tensor in self._weights()}

    def after(self, step: int) -> None:
        """Take a snapshot if one is due after this step. Every process must call it."""
        if step in self._due:
            self._take(step)

    def finish(self, step: int) -> dict[str, Any]:
        """Take the last snapshot of a run that ended before its time; what the manifest says of them."""
        if not self._due:
            return {}
        if self._last != step:
            self._take(step)
        if self._main:
            store.cut_back(self._folder, step)
        facts = {"snapshots": len(store.steps_in(self._folder)), "k": self._config.trajectory_k}
        return {"trajectory": {**facts, "seconds": round(self._seconds, 2)}}

    def _take(self, step: int) -> None:
        clock = time.monotonic()
        with one_blas_thread():
            kept = dict(self._of_adapters(step) if self._config.method == "lora" else self._of_weights(step))
        if self._main:
            store.write(self._folder, step, kept)
        self._last = step
        self._seconds += time.monotonic() - clock

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        student = self._engine.accelerator.unwrap_model(self._engine.student)
        for name, tensor in trained_tensors(student).items():
            yield name, whole(tensor)

    def _of_weights(self, step: int) -> Iterator[tuple[str, Kept]]:
        """Every matrix and vector, fused ones taken apart, under the names that ``limbeck measure`` gives them."""
        near = store.read_before(self._folder, step) if self._main else {}
        if self._main and not (self._folder / store.BASE).exists():
            start = {p.module: p.cut(w) for name, w in self._start.items() for p in self._pieces(name, w)}
            store.write_base(self._folder, start)
        carried = self._engine.carried
        for name, weight in self._weights():
            if not self._main:
                continue
            start = self._start[name].to(weight.device)
            before = carried.get(name, start).to(weight.device)
            for piece in self._pieces(name, weight):
                base, tuned, last = (piece.cut(tensor) for tensor in (start, weight, before))
                yield piece.module, of_weights(base, tuned, last, self._config.trajectory_k, near.get(piece.module, {}))
            carried[name] = weight.clone()

    def _pieces(self, name: str, weight: Tensor) -> list[Piece]:
        return split(name.removeprefix("model."), tuple(weight.shape), self._engine.model.config.to_dict())  # type: ignore[union-attr,operator]

    def _of_adapters(self, step: int) -> Iterator[tuple[str, Kept]]:
        """Every adapted matrix, from its factors."""
        near = store.read_before(self._folder, step) if self._main else {}
        bases: dict[str, Tensor] = {}
        threads = torch.get_num_threads()
        for module, base, factors in self._factors():
            if not self._main:
                continue
            bases[module] = base
            before = LowRank(near[module]["left"], near[module]["right"]) if module in near else None
            torch.set_num_threads(1)  # a thin QR is many times slower on two
            yield module, of_factors(base, factors, before)
            torch.set_num_threads(threads)
        if self._main and not (self._folder / store.BASE).exists():
            store.write_base(self._folder, bases)

    def _factors(self) -> Iterator[tuple[str, Tensor, LowRank]]:
        """Module, frozen weight and update of every adapter, on the CPU."""
        model, lora = self._engine.model, self._config.lora
        tensors = {name: whole(tensor) for name, tensor in trained_tensors(model).items()}
        for name, right in tensors.items():
            module, found, _ = name.partition(".lora_A.")
            if not found:
                continue
            layer: Any = model.get_submodule(module).base_layer
            base = whole(layer.weight.detach()).cpu()
            left = (tensors[name.replace(".lora_A.", ".lora_B.")].double() * (lora.alpha / lora.rank)).float()
            factors = LowRank(left.cpu(), right.float().cpu().clone())
            yield module.removeprefix(_PEFT), base.T if isinstance(layer, Conv1D) else base, factors
