"""Random batches for any objective, built from the names in its signature, and the reduced loss and gradient of one."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.objectives import INPUTS, check_knobs, evaluate, inputs, knobs
from limbeck.objectives.contract import STUDENT_INPUTS
from limbeck.objectives.reduce import count, divisor, total
from limbeck.objectives.signature import Domain
from limbeck.types import Normalizer, Objective

VOCAB = 7
CANDIDATES = (0.3, 3.0)  # the first that a required setting's domain admits is used


class Batch(NamedTuple):
    """Tensors by name and the mask they belong to."""

    inputs: dict[str, Tensor]
    mask: Tensor


def settings(objective: Objective, **given: object) -> dict[str, object]:
    """Defaults, something admissible for what has none, and a step in the middle of a run."""
    wanted = {}
    for name, knob in knobs(objective).items():
        if knob.required:
            wanted[name] = next(c for c in CANDIDATES if Domain(knob.domain, "").admits(c))
    if "k" in knobs(objective):
        wanted["k"] = 3
    loop = {name: value for name, value in (("step", 3), ("num_steps", 10)) if name in knobs(objective)}
    return check_knobs(objective, {**wanted, **given}) | loop


def off_default(objective: Objective) -> dict[str, object]:
    """Every number moved to another place in its domain, so that no two settings or sides happen to agree."""
    moved: dict[str, object] = {}
    for index, (name, knob) in enumerate(knobs(objective).items()):
        if knob.kind is float and not knob.required:
            tries = (knob.default * (0.6 + 0.05 * index), 0.3 + 0.05 * index, 1.5 + 0.1 * index)
            moved[name] = next(x for x in tries if x != knob.default and Domain(knob.domain, "").admits(x))
    return moved


def make(objective: Objective, lengths: Sequence[int], *, seed: int = 0, width: int | None = None) -> Batch:
    """A float64 batch whose row i has ``lengths[i]`` live tokens, left-aligned; rows 2j and 2j + 1 make pair j."""
    gen = torch.Generator().manual_seed(seed)
    rows, time = len(lengths), width or max(lengths)
    mask = torch.arange(time)[None] < torch.tensor(lengths)[:, None]
    base = -torch.rand(rows, time, generator=gen, dtype=torch.float64) * 3 - 0.05
    out: dict[str, Tensor] = {}
    for name in inputs(objective):
        axes = INPUTS[name].axes
        if name == "mask":
            continue
        if name == "pairs":
            out[name] = torch.arange(rows - rows % 2).reshape(-1, 2)
        elif name == "pair_weights":
            out[name] = torch.rand(rows // 2, generator=gen, dtype=torch.float64) + 0.5
        elif axes == "batch":
            out[name] = torch.randint(0, 2, (rows,), generator=gen).double()
        elif name == "logprobs":
            out[name] = base.clone()
        elif name.endswith("logprobs"):
            out[name] = base + 0.25 * torch.randn(rows, time, generator=gen, dtype=torch.float64)
        elif name == "entropy":
            out[name] = torch.rand(rows, time, generator=gen, dtype=torch.float64)
        elif name == "advantages":
            out[name] = torch.randn(rows, 1, generator=gen, dtype=torch.float64).expand(rows, time).clone()
        elif name == "signal":
            out[name] = torch.randn(rows, time, generator=gen, dtype=torch.float64)
        else:
            out[name] = 2 * torch.randn(rows, time, VOCAB, generator=gen, dtype=torch.float64)
    return Batch(out, mask)


def normalizers(objective: Objective) -> tuple[Normalizer, ...]:
    """Those that the unit admits."""
    return ("token", "sequence", "constant") if objective.unit == "token" else ("sequence", "constant")


def pieces(objective: Objective, batch: Batch, cuts: Sequence[Sequence[int]]) -> list[Batch]:
    """The batch cut into groups of rows; a pair whose two rows are not in one group is a mistake of the test."""
    out = []
    for keep in cuts:
        index = torch.tensor(keep)
        part = {k: v[index] for k, v in batch.inputs.items() if not INPUTS[k].axes.startswith("pairs")}
        if "pairs" in batch.inputs:
            place = {row: i for i, row in enumerate(keep)}
            inside = [j for j, (w, r) in enumerate(batch.inputs["pairs"].tolist()) if w in place and r in place]
            chosen = batch.inputs["pairs"][inside].tolist()
            part["pairs"] = torch.tensor([[place[w], place[r]] for w, r in chosen])
            if "pair_weights" in batch.inputs:
                part["pair_weights"] = batch.inputs["pair_weights"][inside]
        out.append(Batch(part, batch.mask[index]))
    return out


def loss_of(
    objective: Objective,
    parts: Sequence[Batch],
    normalizer: Normalizer,
    given: dict[str, object],
    *,
    length: float = 40.0,
) -> Tensor:
    """Totals of all parts over one divisor, as a training step computes it."""
    counts = [count(p.mask, pairs=len(p.inputs.get("pairs", ()))) for p in parts]
    step = counts[0]
    for more in counts[1:]:
        step = step.plus(more)
    totals = [total(evaluate(objective, *p, given).values, objective.unit, p.mask, normalizer) for p in parts]
    return torch.stack(totals).sum() / divisor(step, objective.unit, normalizer, length=length)


def tracked(batch: Batch) -> tuple[Batch, list[Tensor]]:
    """The batch with fresh leaves for what carries a gradient."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in batch.inputs.items() if k in STUDENT_INPUTS}
    return Batch({**batch.inputs, **leaves}, batch.mask), list(leaves.values())


def gradients(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients with zeros where a leaf is not used."""
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
