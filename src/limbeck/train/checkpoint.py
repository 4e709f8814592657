"""Resumable state, atomic: trained weights, optimizers and schedules as of one step. The newest whole one is found.

Tensors are saved whole, whatever the processes hold of them, so that a run resumes on another number of processes.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from limbeck.folders import file_digest, is_complete, publish, read_manifest
from limbeck.train.engine import Engine
from limbeck.train.models import trained_tensors

KEEP = 2  # older checkpoints of a run are removed
CARRIED = "carried.safetensors"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


def trained_weights(engine: Engine) -> dict[str, Tensor]:
    """The trained tensors, whole, on the CPU, by the model's own names, tied ones once; on the main process only."""
    student = engine.accelerator.unwrap_model(engine.student)
    found, once = get_model_state_dict(student, options=WHOLE), trained_tensors(student)
    return {n.removeprefix("model."): t for n, t in sorted(found.items()) if n in once and isinstance(t, Tensor)}


def save(folder: Path, step: int, engine: Engine) -> None:
    """Write ``step-NNNNNN`` beside its place and rename it in; every process must call it."""
    weights = trained_weights(engine)
    state = {"optimizer": _optimizer_state(engine), "schedules": [w.schedule.state_dict() for w in engine.walkers]}
    if engine.accelerator.is_main_process:
        with publish(folder / f"step-{step:06d}", kind="checkpoint", facts={"step": step}, overwrite=True) as out:
            save_file({name: t.contiguous() for name, t in weights.items()}, out / "weights.safetensors")
            torch.save(state, out / "state.pt")
            if engine.carried:
                save_file({name: t.contiguous() for name, t in engine.carried.items()}, out / CARRIED)
        for old in sorted(folder.glob("step-*"))[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    engine.accelerator.wait_for_everyone()


def resume(folder: Path, engine: Engine) -> int:
    """Load the newest checkpoint whose files are whole; the step it was taken after, or 0."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if not _whole(path):
            warnings.warn(f"checkpoint {path} is damaged and was skipped", RuntimeWarning, stacklevel=2)
            continue
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        student = engine.accelerator.unwrap_model(engine.student)
        # optimizers first: a state that does not exist yet is made by a step of size zero
        set_optimizer_state_dict(student, _optimizers(engine), state["optimizer"], options=WHOLE)
        weights: dict[str, Any] = {f"model.{name}": t for name, t in load_file(path / "weights.safetensors").items()}
        set_model_state_dict(
            student, weights, options=StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)
        )
        for walker, saved in zip(engine.walkers, state["schedules"], strict=True):
            walker.schedule.load_state_dict(saved)
        if engine.accelerator.is_main_process and (path / CARRIED).is_file():
            engine.carried.update(load_file(path / CARRIED))
        return int(read_manifest(path, kind="checkpoint")["step"])
    return 0


def _optimizers(engine: Engine) -> list[torch.optim.Optimizer]:
    return [getattr(w.optimizer, "optimizer", w.optimizer) for w in engine.walkers]


def _optimizer_state(engine: Engine) -> dict[str, Any]:
    student = engine.accelerator.unwrap_model(engine.student)
    return get_optimizer_state_dict(student, _optimizers(engine), options=WHOLE)


def _whole(path: Path) -> bool:
    if not is_complete(path):
        return False
    files = read_manifest(path)["files"]
    return all((path / name).is_file() and file_digest(path / name) == digest for name, digest in files.items())
