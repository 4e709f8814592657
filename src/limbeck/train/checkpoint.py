"""Resumable state, atomic: trained weights, optimizers and schedules as of one step. The newest whole one is found.

Where every process holds all of the weights, the main one writes them whole; sharded ones are written shard by shard
(:mod:`limbeck.train.shards`). A run resumes from either on another number of processes, sharded or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from limbeck.digests import MANIFEST, file_digest
from limbeck.errors import LimbeckError
from limbeck.folders import publish, read_manifest
from limbeck.leftovers import remove
from limbeck.train import shards
from limbeck.train.engine import Engine
from limbeck.train.models import trained_tensors
from limbeck.train.processes import gathered

T = TypeVar("T")

KEEP = 2  # older checkpoints of a run are removed
WEIGHTS, STATE, CARRIED = "weights.safetensors", "state.pt", "carried.safetensors"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


def trained_weights(engine: Engine) -> dict[str, Tensor]:
    """The trained tensors, whole, on the CPU, by the model's own names, tied ones once; on the main process only."""
    student = _student(engine)
    found, once = get_model_state_dict(student, options=WHOLE), trained_tensors(student)
    return {n.removeprefix("model."): t for n, t in sorted(found.items()) if n in once and isinstance(t, Tensor)}


def save(folder: Path, step: int, engine: Engine) -> None:
    """Write ``step-NNNNNN`` beside its place and rename it in; every process must call it."""
    processes, place, facts = engine.accelerator, folder / f"step-{step:06d}", {"step": step}
    main = processes.is_main_process
    with publish(place, kind="checkpoint", facts=facts, overwrite=True) if main else nullcontext() as opened:
        out = Path(_from_main(processes, str(opened)))
        facts |= (_write_sharded if engine.sharded else _write_whole)(out, engine)
        if main and engine.carried:
            save_file({name: t.contiguous() for name, t in engine.carried.items()}, out / CARRIED)
    if main:
        _remove_old(folder, place.name)
    processes.wait_for_everyone()


def _remove_old(folder: Path, newest: str) -> None:
    """Those before the newest whole one; later ones are damaged and are written again."""
    for old in sorted(path for path in folder.glob("step-*") if path.name <= newest)[:-KEEP]:
        remove(old)


def _write_whole(out: Path, engine: Engine) -> dict[str, Any]:
    weights = trained_weights(engine)
    optimizer = get_optimizer_state_dict(_student(engine), _optimizers(engine), options=WHOLE)
    if engine.accelerator.is_main_process:
        save_file({name: t.contiguous() for name, t in weights.items()}, out / WEIGHTS)
        _write_state(out / STATE, engine, optimizer)
    return {}


def _write_sharded(out: Path, engine: Engine) -> dict[str, Any]:
    """What the manifest gets: digests of the shards, which every process reads a share of."""
    numbers = shards.write(out / shards.FOLDER, _student(engine), _optimizers(engine))
    if engine.accelerator.is_main_process:
        _write_state(out / STATE, engine, numbers)
    names = [f"{shards.FOLDER}/{file.name}" for file in sorted((out / shards.FOLDER).iterdir())]
    names = _from_main(engine.accelerator, names)
    return {"files": dict(zip(names, _digests(out, names, engine.accelerator), strict=True))}


def _write_state(path: Path, engine: Engine, optimizer: Mapping[str, Any]) -> None:
    state = {"optimizer": _listed(optimizer), "schedules": [w.schedule.state_dict() for w in engine.walkers]}
    with path.open("wb") as file:  # given a path, torch would not say why it cannot write
        torch.save(state, file)


def _listed(value: Any) -> Any:
    """Tuples as the lists that they come back as, so that a run that was killed leaves the same bytes."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def resume(folder: Path, engine: Engine) -> int:
    """Load the newest checkpoint whose files are whole; the step it was taken after, or 0. Every process must call it."""
    processes = engine.accelerator
    for name in _from_main(processes, [path.name for path in sorted(folder.glob("step-*"), reverse=True)]):
        path = folder / name
        if wrong := damaged(path, processes):
            warnings.warn(f"checkpoint {path} is damaged ({wrong}) and was skipped", RuntimeWarning, stacklevel=2)
            continue
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        if (path / shards.FOLDER).is_dir():
            shards.read(path / shards.FOLDER, _student(engine), _optimizers(engine), state["optimizer"])
        else:
            _read_whole(path, engine, state["optimizer"])
        for walker, saved in zip(engine.walkers, state["schedules"], strict=True):
            walker.schedule.load_state_dict(saved)
        if processes.is_main_process and (path / CARRIED).is_file():
            engine.carried.update(load_file(path / CARRIED))
        if processes.is_main_process:
            _remove_old(folder, name)  # killed before it was, and no other checkpoint may come
        return int(read_manifest(path, kind="checkpoint")["step"])
    return 0


def _read_whole(path: Path, engine: Engine, optimizer: Any) -> None:
    student = _student(engine)
    # optimizers first: a state that does not exist yet is made by a step of size zero
    set_optimizer_state_dict(student, _optimizers(engine), optimizer, options=WHOLE)
    weights: dict[str, Any] = {f"model.{name}": t for name, t in load_file(path / WEIGHTS).items()}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)
    set_model_state_dict(student, weights, options=options)


def _student(engine: Engine) -> nn.Module:
    return engine.accelerator.unwrap_model(engine.student)


def _optimizers(engine: Engine) -> list[torch.optim.Optimizer]:
    return [getattr(w.optimizer, "optimizer", w.optimizer) for w in engine.walkers]


def damaged(path: Path, processes: Accelerator) -> str:
    """A file that is missing or not what was written; empty for a whole checkpoint. Each process reads a share."""
    files: dict[str, str] = _from_main(processes, _stated(path))
    found = _digests(path, list(files), processes)
    wrong = [name for name, digest in zip(files, found, strict=True) if digest != files[name]]
    return next(iter(wrong), "" if files else MANIFEST)


def _stated(path: Path) -> dict[str, str]:
    try:
        return read_manifest(path)["files"]
    except LimbeckError:
        return {}


def _digests(folder: Path, names: Sequence[str], processes: Accelerator) -> list[str]:
    """Of these files, in their order; empty for one that is not there."""
    mine = [folder / name for name in names[processes.process_index :: processes.num_processes]]
    return gathered(processes, [file_digest(file) if file.is_file() else "" for file in mine], len(names))


def _from_main(processes: Accelerator, value: T) -> T:
    """What the main process holds, on every process: a shared file system may show the others yesterday's names."""
    return broadcast_object_list([value])[0] if processes.num_processes > 1 else value
