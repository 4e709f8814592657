"""The directions that a subspace run is held to: of another run's update, of the start's weights, or random.

They are found once, before the first step, and kept in the run's folder: a run that goes on reads what it began with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from limbeck.config import FRAMES_OF_NONE, RunConfig, SubspaceConfig
from limbeck.errors import ConfigError, DegenerateError, ModelError
from limbeck.evals.checkpoints import Location, locate
from limbeck.geometry.adapters import read_adapter
from limbeck.geometry.dense.decompose import decompose
from limbeck.geometry.dense.krylov import leading
from limbeck.records import digest_of, read_json
from limbeck.storage import local
from limbeck.train.models import load_model
from limbeck.train.subspace import Frame, Subspace, hidden_matrices

FILE = "subspace.safetensors"
WHOLE = 1024  # matrices with a longer short side are decomposed by Krylov steps, to a residual of 1e-4 of each value
Sides = tuple[Tensor, Tensor]  # left (out, k) and right (in, k)


class Origin(NamedTuple):
    """An update: where the weights after it lie, and those before it."""

    after: Location
    before: str


def origin(config: SubspaceConfig) -> Origin | None:
    """Where the update lies whose frame is taken; None for directions that need none.

    Raises:
        ConfigError: a model that does not say what it was trained from.
        ModelError: there is no checkpoint.
    """
    if config.of in FRAMES_OF_NONE:
        return None
    before = config.against or _stated(local(config.of))
    after = locate(config.of, before)
    if not before and after.adapter is None:
        raise ConfigError(
            f"the update of {config.of} must be counted from a model, received one that does not say which. Give it as "
            "train.subspace.against."
        )
    return Origin(after, before or after.weights)


def identity(config: SubspaceConfig | None) -> dict[str, object]:
    """The settings with digests for paths: a moved checkpoint is the same one."""
    if config is None:
        return {}
    found = origin(config)
    if found is None:
        return config.model_dump(mode="json")
    digests = {"of": digest_of(list(found.after.identity)), "against": locate(found.before).identity.model_digest}
    return {**config.model_dump(mode="json"), **digests}


def keep_frames(config: RunConfig, model: nn.Module, out: Path) -> None:
    """Find the directions of a run, unless its folder has them, and put them there.

    Args:
        config: with ``train.subspace``.
        model: the start, before any step.
        out: the run folder.

    Raises:
        DegenerateError: an update that is zero has no direction.
    """
    if (out / FILE).is_file():
        return
    frames = _found(config, model)
    stored = {f"{name}/{side}": t for name, f in frames.items() for side, t in f._asdict().items() if t is not None}
    save_file({name: t.contiguous() for name, t in stored.items()}, out / f"{FILE}.part")
    (out / f"{FILE}.part").replace(out / FILE)


def read_subspace(config: SubspaceConfig, model: nn.Module, out: Path) -> Subspace:
    """The subspace of a run, on the device of the model."""
    device, stored = next(model.parameters()).device, load_file(out / FILE)
    sides = {name: t.to(device) for name, t in stored.items()}
    frames = {name: Frame(sides.get(f"{name}/rows"), sides.get(f"{name}/columns")) for name in hidden_matrices(model)}
    return Subspace(frames, config.how == "update", config.complement)


def facts(subspace: Subspace, model: nn.Module) -> dict[str, object]:
    """What the record says of it: a subspace of few directions still has many numbers."""
    shapes = {name: tuple(p.shape) for name, p in hidden_matrices(model).items()}
    inside = {name: frame.free(shapes[name]) for name, frame in subspace.frames.items()}
    entries = {name: shape[0] * shape[1] for name, shape in shapes.items()}
    free = {name: entries[name] - num if subspace.complement else num for name, num in inside.items()}
    return {
        "matrices": len(inside),
        "without_direction": sum(num == 0 for num in inside.values()),
        "free_parameters": sum(free.values()),
        "constrained_parameters": sum(entries.values()),
    }


def _found(config: RunConfig, model: nn.Module) -> dict[str, Frame]:
    given = config.train.subspace
    assert given is not None  # the caller asked
    matrices = hidden_matrices(model)
    turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    source = _source(given, matrices, turned, seed=config.train.seed)
    frames = {}
    for name in matrices:
        left, right = (_orthonormal(side) for side in source(name))
        stored = (right, left) if name in turned else (left, right)
        wanted = (("right", "both"), ("left", "both")) if name in turned else (("left", "both"), ("right", "both"))
        frames[name] = Frame(
            *(s if given.side in w and s.shape[1] < s.shape[0] else None for s, w in zip(stored, wanted, strict=True))
        )
    if all(frame.free(tuple(matrices[name].shape)) == 0 for name, frame in frames.items()):
        raise DegenerateError(
            f"a subspace needs an update that is not zero, received {given.of} equal to what it is counted from. Name "
            "another checkpoint, or what it was trained from as train.subspace.against."
        )
    return frames


def _source(
    config: SubspaceConfig, matrices: Mapping[str, Tensor], turned: set[str], *, seed: int
) -> Callable[[str], Sides]:
    """Left and right directions of one matrix by name, in the order (out, in) whatever is stored."""

    def facing(name: str, weight: Tensor) -> Tensor:
        weight = weight.detach().cpu()
        return weight.T if name in turned else weight

    def random(name: str) -> Sides:
        rows, columns = facing(name, matrices[name]).shape
        name = f"{config.seed}/{seed}/{name}"
        return _random(rows, config.k, f"{name}/left"), _random(columns, config.k, f"{name}/right")

    def own(name: str) -> Sides:
        return _leading(facing(name, matrices[name]), None, config.k)

    found = origin(config)
    if found is None:
        return random if config.of == "random" else own
    if found.after.adapter is not None:
        updates = read_adapter(found.after.adapter).modules

        def low_rank(name: str) -> Sides:
            factors, shape = updates.get(name.removesuffix(".weight")), facing(name, matrices[name]).shape
            update = torch.zeros(shape) if factors is None else factors.left @ factors.right
            _same_shape(config.of, name, shape, update.shape)
            return _leading(update, None, config.k)

        return low_rank
    before, after = (dict(load_model(name).named_parameters()) for name in (found.before, found.after.weights))

    def dense(name: str) -> Sides:
        for weights in (before, after):
            _same_shape(config.of, name, matrices[name].shape, weights[name].shape if name in weights else ())
        return _leading(facing(name, before[name]), facing(name, after[name]), config.k)

    return dense


def _same_shape(of: str, name: str, own: Sequence[int], other: Sequence[int]) -> None:
    if tuple(own) != tuple(other):
        raise ModelError(
            f"directions must come from a model of this architecture, received {of}, whose {name} is {list(other)} and not "
            f"{list(own)}. Name a checkpoint that was trained from a model of the same shapes."
        )


def _leading(base: Tensor, tuned: Tensor | None, k: int) -> Sides:
    if min(base.shape) > WHOLE:
        spectral = leading(base, tuned, k, seed=0, tolerance=1e-4)
    else:
        spectral = decompose(base if tuned is None else tuned.double() - base.double(), k)
    return spectral.left[:, :k], spectral.right[:, :k]


def _random(size: int, k: int, name: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return torch.randn(size, min(k, size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _orthonormal(side: Tensor) -> Tensor:
    return torch.linalg.qr(side).Q.float() if side.shape[1] else side.float()


def _stated(checkpoint: Path) -> str:
    """The base that the run of a result or of a kept step says; nothing where there is no run."""
    for folder in (checkpoint, checkpoint.parent.parent):
        if (folder / "config.json").is_file():
            config = read_json(folder / "config.json")
            if isinstance(config, dict) and "train" in config and "base" in config:
                return str(config["base"])
    return ""
