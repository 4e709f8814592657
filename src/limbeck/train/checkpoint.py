"""Resumable state, atomic: adapter, optimizer, schedule and generator as of one step. The newest whole one is found."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from limbeck.folders import file_digest, is_complete, publish, read_manifest
from limbeck.train.models import adapter_tensors

KEEP = 2  # older checkpoints of a run are removed


def save(folder: Path, step: int, model: torch.nn.Module, optimizer: Any, schedule: Any) -> None:
    """Write ``step-NNNNNN`` beside its place and rename it in."""
    with publish(folder / f"step-{step:06d}", kind="checkpoint", facts={"step": step}, overwrite=True) as out:
        save_file(adapter_tensors(model), out / "adapter.safetensors")
        state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "rng": torch.get_rng_state()}
        torch.save(state, out / "state.pt")
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def resume(folder: Path, model: torch.nn.Module, optimizer: Any, schedule: Any) -> int:
    """Load the newest checkpoint whose files are whole; the step it was taken after, or 0."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if not _whole(path):
            warnings.warn(f"checkpoint {path} is damaged and was skipped", RuntimeWarning, stacklevel=2)
            continue
        own = adapter_tensors(model)
        for name, tensor in load_file(path / "adapter.safetensors").items():
            own[name].copy_(tensor)
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        return int(read_manifest(path, kind="checkpoint")["step"])
    return 0


def _whole(path: Path) -> bool:
    if not is_complete(path):
        return False
    files = read_manifest(path)["files"]
    return all((path / name).is_file() and file_digest(path / name) == digest for name, digest in files.items())
