"""Training whose update stays inside a subspace of every hidden matrix, and what of it got out.

``gradient`` is the published form: the gradient is projected before the optimizer sees it (after clipping, OUR CHOICE).
It holds plain SGD inside and nothing else: Adam divides entry by entry and decay pulls on all of the weight. ``update`` is
exact: after every step W <- W_a + P(W - W_a) on the fp32 weights, with W_a the weights that the run started from. What is left
outside then is one rounding of W to fp32, ``leak_floor``, which does not add up over steps.

Not offered: W = W_a + C V^T with C trained, which keeps the optimizer's moments on C and so walks another path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.train.optimizer import outer_parameters


class Frame(NamedTuple):
    """Orthonormal directions of one matrix as it is stored; None for a side that is not constrained."""

    rows: Float[Tensor, "rows k"] | None
    columns: Float[Tensor, "columns k"] | None

    def inside(self, update: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """The part of an update in the span of the directions: U U^T D, D V V^T, or both.

        >>> Frame(None, torch.tensor([[1.0], [0.0]])).inside(torch.tensor([[3.0, 4.0]]))
        tensor([[3., 0.]])
        """
        if self.columns is not None:
            columns = self.columns.to(update.dtype)
            update = (update @ columns) @ columns.T
        if self.rows is not None:
            rows = self.rows.to(update.dtype)
            update = rows @ (rows.T @ update)
        return update

    def free(self, shape: tuple[int, ...]) -> int:
        """How many numbers an update inside is made of."""
        sides = zip(shape, (self.rows, self.columns), strict=True)
        return math.prod(size if frame is None else frame.shape[1] for size, frame in sides)


class Subspace(NamedTuple):
    """Where the update of a run may go.

    Attributes:
        frames: name of each constrained matrix to its directions.
        exact: project the update after the step instead of the gradient before it.
        complement: stay outside of the directions instead of inside.
    """

    frames: Mapping[str, Frame]
    exact: bool
    complement: bool = False

    def project(self, name: str, update: Tensor) -> Tensor:
        """The admitted part of one matrix's update or gradient."""
        inside = self.frames[name].inside(update)
        return update - inside if self.complement else inside

    def constrains(self, name: str) -> bool:
        """Whether there is anything that the matrix may not do."""
        return self.complement or any(side is not None for side in self.frames[name])


def hidden_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a subspace is about: the 2-D weights that are neither embedding nor head, by name, sorted."""
    outer = outer_parameters(model)
    return dict(sorted((n, p) for n, p in model.named_parameters() if p.dim() == 2 and id(p) not in outer))


@torch.no_grad()
def project_gradients(subspace: Subspace, model: nn.Module) -> None:
    """Leave only the admitted part of every constrained matrix's gradient."""
    for name, weight in _constrained(subspace, model).items():
        if weight.grad is not None:
            weight.grad.copy_(subspace.project(name, weight.grad))


@torch.no_grad()
def confine(subspace: Subspace, model: nn.Module, start: Mapping[str, Tensor]) -> None:
    """Take the step back as far as it leads outside: W <- W_a + P(W - W_a).

    Args:
        subspace: where the update may go.
        model: just after a step of its optimizer.
        start: W_a by name.
    """
    for name, weight in _constrained(subspace, model).items():
        anchor = start[name].to(weight.dtype)
        weight.copy_(anchor + subspace.project(name, weight - anchor))


@torch.no_grad()
def leak(subspace: Subspace, model: nn.Module, start: Mapping[str, Tensor]) -> dict[str, float]:
    """How much of the constrained matrices' update lies outside, all of them together, in fp64.

    Returns:
        ``leak`` is the share of the norm, ``leak_energy`` of its square; ``leak_floor`` the share that storing an exact update
        as fp32 weights would leave outside; ``leak_bf16`` and ``leak_bf16_energy`` are of the update as bf16 storage shows it.
        Empty before anything moved.
    """
    names = ("all", "outside", "rounding", "all_bf16", "outside_bf16")
    sums = dict.fromkeys(names, 0.0)
    for name, parameter in _matrices(subspace, model).items():
        weight, anchor = parameter.detach(), start[name].to(parameter.dtype)
        update = weight.double() - anchor.double()
        inside = subspace.project(name, update)
        exact = anchor.double() + inside
        rounding = exact.to(weight.dtype).double() - exact
        shown = weight.bfloat16().double() - anchor.bfloat16().double()
        parts = (update, update - inside, rounding - subspace.project(name, rounding))
        parts = (*parts, shown, shown - subspace.project(name, shown))
        for key, part in zip(names, parts, strict=True):
            sums[key] += float(part.square().sum())
    if not sums["all"]:
        return {}
    out = {"leak_energy": sums["outside"] / sums["all"], "leak_floor": math.sqrt(sums["rounding"] / sums["all"])}
    out["leak"] = math.sqrt(out["leak_energy"])
    if sums["all_bf16"]:
        out["leak_bf16_energy"] = sums["outside_bf16"] / sums["all_bf16"]
        out["leak_bf16"] = math.sqrt(out["leak_bf16_energy"])
    return dict(sorted(out.items()))


def _matrices(subspace: Subspace, model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if name in subspace.frames}


def _constrained(subspace: Subspace, model: nn.Module) -> dict[str, nn.Parameter]:
    """Those that may not go everywhere: what nothing constrains is not even rounded."""
    return {name: p for name, p in _matrices(subspace, model).items() if subspace.constrains(name)}
