"""Where snapshots lie: ``trajectory/`` in a run's folder, one safetensors file a step, and the numbers in ``scalars.jsonl``.

A snapshot that is taken again, after a crash, replaces what was written from it on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.digests import sound
from limbeck.errors import FolderError
from limbeck.geometry.dense.codes import codes, histogram
from limbeck.geometry.trajectory.snapshot import GRID, Kept
from limbeck.leftovers import whole
from limbeck.records import plain

FOLDER, SCALARS, BASE = "trajectory", "scalars.jsonl", "base.safetensors"
Tensors = dict[str, dict[str, Tensor]]


def write(folder: Path, step: int, kept: Mapping[str, Kept]) -> None:
    """Put one snapshot on record; what an earlier attempt wrote of this step or later ones counts no longer."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}/{part}": t.cpu().contiguous() for name, one in kept.items() for part, t in one.tensors.items()}
    _save(tensors, _file(folder, step))
    lines = [line for line in read_scalars(folder) if line["step"] < step]
    lines += [{"step": step, "module": name, **one.facts} for name, one in kept.items()]
    temporary = folder / f".{SCALARS}"
    temporary.write_text("".join(json.dumps(plain(line), allow_nan=False) + "\n" for line in lines), encoding="utf-8")
    temporary.replace(folder / SCALARS)


def write_base(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Keep how often each magnitude occurs in the base, which is what rounding alone does depends on."""
    folder.mkdir(parents=True, exist_ok=True)
    out: dict[str, Tensor] = {}
    for name, weight in weights.items():
        counts = histogram(codes(weight.to(GRID).cpu(), GRID))
        found = np.flatnonzero(counts)
        out[f"{name}/codes"], out[f"{name}/counts"] = torch.from_numpy(found), torch.from_numpy(counts[found])
        out[f"{name}/on_grid"] = (weight.to(GRID).to(weight.dtype) == weight).all().cpu()
    _save(out, folder / BASE)


def read_before(folder: Path, step: int) -> Tensors:
    """The tensors of the newest snapshot before a step, by module; nothing before the first."""
    earlier = [s for s in steps_in(folder) if s < step]
    return _read(_file(folder, earlier[-1])) if earlier else {}


def cut_back(folder: Path, step: int) -> None:
    """Drop the snapshots after a step, of a run that went further once than it did in the end, and what a crash left half."""
    for file in [*(_file(folder, s) for s in steps_in(folder) if s > step), *folder.glob(".*")]:
        file.unlink()


def read_scalars(folder: Path) -> list[dict[str, Any]]:
    """The record: one line for every snapshot and matrix."""
    file = folder / SCALARS
    return [json.loads(line) for line in sound(file).read_text(encoding="utf-8").splitlines()] if file.is_file() else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """The snapshots of one run, opened and not read.

    Attributes:
        name: of the run, as rows call it.
        folder: ``trajectory/``.
        steps: of the snapshots, ascending.
        facts: module to the record's numbers, one dictionary a step.
    """

    name: str
    folder: Path
    steps: Sequence[int]
    facts: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def matrices(self) -> list[str]:
        """Modules that have directions."""
        return [name for name, found in self.facts.items() if len(found[0]["shape"]) == 2]

    @property
    def delta_kind(self) -> str:
        """What full-parameter updates are made from: fp32 weights of a run, or what a checkpoint stored of them."""
        return str(next(iter(self.facts.values()))[0].get("delta_kind", "dense_fp32"))

    def tensors(self, module: str) -> list[dict[str, Tensor]]:
        """What is kept of one matrix, step by step."""
        return [_read(_file(self.folder, step), f"{module}/")[module] for step in self.steps]

    def base(self, module: str) -> dict[str, Tensor]:
        """Magnitudes of one matrix of the base, ``codes`` and ``counts``, and whether all its entries are such (``on_grid``)."""
        return _read(self.folder / BASE, f"{module}/")[module]


def open_trajectory(run: Path | str, name: str = "") -> Trajectory:
    """The snapshots of a run folder.

    Raises:
        FolderError: the run has none, or files and record do not agree.
    """
    run = Path(run)
    folder = run / FOLDER
    lines, steps = read_scalars(folder), steps_in(folder)
    if not lines or not steps:
        raise FolderError(
            f"a run must hold snapshots in {FOLDER}/, received {run} without. Train it with train.trajectory = 20."
        )
    facts: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        facts.setdefault(line["module"], []).append(line)
    wrong = sorted(module for module, found in facts.items() if [line["step"] for line in found] != steps)
    if wrong:
        raise FolderError(
            f"{folder} must have every matrix at every one of its {len(steps)} snapshots, received {wrong[0]!r} at "
            f"{len(facts[wrong[0]])}. The run is unfinished: continue it, or copy the folder again."
        )
    return Trajectory(name=name or run.resolve().name, folder=folder, steps=steps, facts=facts)


def steps_in(folder: Path) -> list[int]:
    """The steps that have a snapshot file, ascending."""
    return sorted(int(file.stem.removeprefix("step-")) for file in folder.glob("step-*.safetensors"))


def _file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.safetensors"


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    with whole(file) as temporary:
        save_file(tensors, temporary)


def _read(file: Path, prefix: str = "") -> Tensors:
    out: Tensors = {}
    sound(file)
    try:
        if prefix:
            with safe_open(file, framework="pt") as handle:
                found = {key: handle.get_tensor(key) for key in handle.keys() if key.startswith(prefix)}  # noqa: SIM118
        else:
            found = load_file(file)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise FolderError(f"{file} must be a complete safetensors file, received {error}. Copy it again.") from error
    for key, tensor in found.items():
        module, _, part = key.rpartition("/")
        out.setdefault(module, {})[part] = tensor
    return out
