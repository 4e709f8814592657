"""A delta on top of a base, unmerged: the base's weights are never touched, so they need no restoring.

``y = W x`` becomes ``y = W x + left (right x)`` in fp32. Interpolated and combined deltas pass here too, which PEFT's
own adapters could not express without averaging factors (a different curve).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from limbeck.errors import ModelError, ProvenanceError
from limbeck.records import read_json
from limbeck.types import Delta, LowRank

M = TypeVar("M", bound=nn.Module)


@contextmanager
def applied(model: M, delta: Delta | None) -> Iterator[M]:
    """The model with the delta added while the context is open; ``None`` is the base itself.

    Raises:
        ModelError: the delta names a module that the model has not, or of another shape.
    """
    handles = []
    try:
        for name, factors in (delta.modules if delta else {}).items():
            module = _module(model, name)
            handles.append(module.register_forward_hook(_adder(factors, module, name)))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ModelError(
            f"the adapter's module {name!r} must exist in {type(model).__name__}, and does not. "
            "The adapter was trained on another architecture."
        ) from None


def _adder(factors: LowRank, module: nn.Module, name: str) -> Callable[..., Tensor]:
    weight = module.get_parameter("weight")
    if sorted(weight.shape) != sorted(factors.shape):
        raise ModelError(
            f"the adapter's update of {name!r} must be {tuple(weight.shape)}, received {factors.shape}. "
            "The adapter was trained on a model of another size."
        )
    left, right = factors.left.to(weight), factors.right.to(weight)

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + (inputs[0] @ right.T) @ left.T

    return add


def check_base(adapter: Path, base_digest: str) -> None:
    """Refuse a run or an adapter that says it was trained on other weights; one that says nothing passes.

    Raises:
        ProvenanceError: the digests differ.
    """
    for path in (adapter / part / "limbeck.json" for part in (".", "adapter", "model")):
        stated = read_json(path).get("base_digest") if path.is_file() else None
        if stated and stated != base_digest:
            raise ProvenanceError(
                f"a run or an adapter must meet the base it was trained on, received {adapter} of base {stated[:12]} and a base "
                f"{base_digest[:12]}. Give that base."
            )
