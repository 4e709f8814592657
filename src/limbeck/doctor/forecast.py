"""How much memory a run will need, added up before it starts from the engine that would run it.

What a run holds is counted on its real objects: tensors of the model, entries of the optimizer, bytes that a token keeps until
backward. What it makes on the way, and what a CPU's heap cannot reuse, is estimated; docs/doctor.md has how near that comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.batches.collate import TrainingData, live_tokens, micro_batches, plan
from limbeck.batches.forward import computed_cells, head_of, hidden_states, unwrapped
from limbeck.batches.whole import FROZEN_LOGITS
from limbeck.config import TrainConfig
from limbeck.doctor.stored import Stored
from limbeck.heads.blocks import ACCELERATOR_BYTES, CACHE_BYTES
from limbeck.objectives import inputs
from limbeck.train.engine import Engine, precision, trainable
from limbeck.train.memory import kept_per_token
from limbeck.types import Objective

# Of what a pass makes and does not keep: on a CPU its freed pieces lie between kept ones, too small for what comes next, and
# the heap grows instead. Between 0.5 and 0.7 was measured; docs/doctor.md has the runs.
HEAP_SHARE = 0.6
PROBE_TOKENS = 8  # a row
# parts that fewer tokens make smaller
OF_ROWS = ("kept until backward", "made on the way", "heap", "heap after backward")

# entries that an optimizer keeps of a tensor
STATE: dict[type[Optimizer], Callable[[nn.Parameter, Mapping], int]] = {
    torch.optim.AdamW: lambda p, group: 2 * p.numel(),
    torch.optim.SGD: lambda p, group: p.numel() if group["momentum"] else 0,
    torch.optim.Adafactor: lambda p, group: _factored(p),
}
if hasattr(torch.optim, "Muon"):
    STATE[torch.optim.Muon] = lambda p, group: p.numel()


class Passes(NamedTuple):
    """The largest micro-batch of a run.

    Attributes:
        cells: tokens that it computes, padding included.
        scored: tokens of it that meet the head.
        several: whether any step has more than one, so that gradients of the first lie beside the second.
        asked: tokens of the largest pass that scores a frozen model, before training.
    """

    cells: int
    scored: int
    several: bool
    asked: int


class Forecast(NamedTuple):
    """Bytes by stage of the run and part; a run's peak is that of its largest stage."""

    stages: dict[str, dict[str, int]]
    kept_per_token: int

    @property
    def peak(self) -> int:
        return sum(self.largest.values())

    @property
    def stage(self) -> str:
        return max(self.stages, key=lambda name: sum(self.stages[name].values()))

    @property
    def largest(self) -> dict[str, int]:
        return self.stages[self.stage]


def passes_of(data: TrainingData, config: TrainConfig, engine: Engine) -> Passes:
    """The largest micro-batch among the steps of one epoch, or of the run where that is shorter.

    Args:
        data: what the run would train on.
        config: as it was set.
        engine: knows the budget that was decided on, and what packing computes.
    """
    budget = engine.config.pass_tokens
    epoch = -(-len(data.items) // config.batch_size)
    steps = plan(data.keys, batch_size=config.batch_size, num_steps=min(config.num_steps, epoch), seed=config.seed)
    cells = scored = 0
    several = False
    for items in steps:
        cuts = micro_batches(data, items, token_budget=budget)
        several |= len(cuts) > 1
        for cut in cuts:
            sizes = [size for item in cut for size in data.sizes(item)]
            cells = max(cells, computed_cells(engine.model, sizes, packing=config.packing))
            scored = max(scored, sum(live_tokens(data, row) for row in data.rows_of(cut)))
    whole = sum(size for item in range(len(data.items)) for size in data.sizes(item))
    return Passes(cells, scored, several, min(config.pass_tokens, whole))


def full_passes(config: TrainConfig, engine: Engine) -> Passes:
    """Where there are no rollouts yet: micro-batches as large as the budget, every token scored."""
    budget = engine.config.pass_tokens
    return Passes(budget, budget, True, config.pass_tokens)


def forecast(
    engine: Engine, objective: Objective, passes: Passes, *, stored: Stored, teacher_head: int = 0
) -> Forecast:
    """Bytes that a run needs on the device that it trains on, beyond the process with its libraries.

    Args:
        engine: as the run would make it; nothing is trained.
        objective: the row of ``OBJECTIVES``.
        passes: the largest micro-batch.
        stored: the base as it lies on disk.
        teacher_head: bytes of the teacher's output head, read only where the objective reads its logits.
    """
    config, device = engine.config, engine.accelerator.device
    model, on_cpu = unwrapped(engine.model), device.type == "cpu"
    trained = trainable(engine)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision(config, device) == "bf16"):
        kept, made = kept_per_token(engine.model), made_per_token(engine.model) if on_cpu else 0
    layer = kept // max(1, model.config.get_text_config().num_hidden_layers)  # type: ignore[union-attr]
    weights, largest = _bytes(chain(model.parameters(), model.buffers())), max(map(_size, trained))
    held = {
        "weights": weights,
        "weights at the start": _bytes(engine.start.values()),
        "optimizer": _optimizer_bytes(engine),
        "kept for a KL budget": _bytes(trained) if config.kl_budget is not None else 0,
        "head of a frozen model": _frozen_head(objective, model, teacher_head),
    }
    backward = {
        "kept until backward": kept * passes.cells,
        "made on the way": layer * passes.cells,
        "head": _head(model, passes.scored, on_cpu),
        "heap": int(HEAP_SHARE * max(0, made - kept) * passes.cells),
    }
    gradients = {"gradients": _bytes(trained)}
    update = {"optimizer, on the way": largest if on_cpu else _bytes(trained)}
    stages = {
        "a micro-batch": held | backward | (gradients if passes.several else {}),
        "the optimizer's step": held | gradients | update,
        "the norm of the update": held | {"norm, in fp64": 4 * largest if config.method == "full" else 0},
    }
    if "reference_logprobs" in inputs(objective):
        stages["scoring the reference"] = {"weights": weights, "made on the way": layer * passes.asked}
    if on_cpu and config.save_visible:  # what backward gave back stays with the heap
        stages["saving"] = held | {"heap after backward": sum(backward.values())} | _saving(engine, stored)
    return Forecast({name: {part: n for part, n in stage.items() if n} for name, stage in stages.items()}, kept)


def loaded_as(config: TrainConfig) -> torch.dtype:
    """The type that a run holds its base in: what is trained is fp32, a frozen base under bf16 products is bf16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frozen = config.method == "lora" and precision(config, device) == "bf16"
    return torch.bfloat16 if frozen else torch.float32


def least(stored: Stored, config: TrainConfig) -> int:
    """Bytes that a run of this model needs whatever its rows are, known without loading it: the weights and, of full training,
    what trains them."""
    copies = {"adamw": 2, "muon": 1, "sgd": int(config.momentum > 0), "adafactor": 0}[config.optimizer]
    return loaded_as(config).itemsize * stored.entries * (2 + copies if config.method == "full" else 1)


def _saving(engine: Engine, stored: Stored) -> dict[str, int]:
    """Base and result are read again, and the trained matrices of them laid down as bf16."""
    whole = stored.size if stored.alike else 4 * stored.entries
    if engine.config.method == "full":
        return {"base and result, read again": whole + 4 * stored.entries, "bf16 copy": 2 * stored.entries}
    adapted = (m.get_submodule("base_layer") for m in engine.model.modules() if hasattr(m, "lora_A"))
    touched = sum(module.get_parameter("weight").numel() for module in adapted)
    if stored.alike:  # mapped, and no more of it touched than is read
        return {"base, read again": touched * stored.size // stored.entries, "bf16 copy": 2 * touched}
    return {"base, read again": whole + max(stored.size, 2 * touched)}


class _Made(TorchDispatchMode):
    """Counts the bytes of new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        storages = [t.untyped_storage() for t in tree_leaves(out) if isinstance(t, Tensor)]
        new = {storage.data_ptr(): storage.nbytes() for storage in storages if storage.data_ptr() not in given}
        self.total += sum(new.values())
        return out


def made_per_token(model: nn.Module) -> int:
    """Bytes that a pass through the decoder allocates for every token, whether kept until backward or not."""
    device = next(model.parameters()).device
    found = []
    for rows in (1, 2):
        ids = torch.arange(rows * PROBE_TOKENS, device=device).reshape(rows, PROBE_TOKENS) % 13
        with torch.enable_grad(), _Made() as made:
            hidden_states(model, ids, torch.full((rows,), PROBE_TOKENS, device=device))
        found.append(made.total)
    return (found[1] - found[0]) // PROBE_TOKENS


def _head(model: nn.Module, scored: int, on_cpu: bool) -> int:
    """Blocks of logits, states and their gradients at scored tokens, and a trained head's own gradient as it is made."""
    weight = head_of(model).weight
    states = 3 * 4 * scored * weight.shape[1]  # fp32
    block = CACHE_BYTES if on_cpu else 3 * min(ACCELERATOR_BYTES, 4 * scored * len(weight))
    return states + block + (_size(weight) if weight.requires_grad else 0)


def _frozen_head(objective: Objective, model: nn.Module, teacher_head: int) -> int:
    read = [name for name in FROZEN_LOGITS if name in inputs(objective)]
    return sum(teacher_head if name.startswith("teacher") else 4 * head_of(model).weight.numel() for name in read)


def _optimizer_bytes(engine: Engine) -> int:
    return sum(
        STATE[type(own)](p, group) * p.element_size()
        for own in (getattr(walker.optimizer, "optimizer", walker.optimizer) for walker in engine.walkers)
        for group in own.param_groups
        for p in group["params"]
    )


def _factored(parameter: nn.Parameter) -> int:
    """One entry a row and one a column of each matrix; all entries of a vector."""
    if parameter.dim() < 2:
        return parameter.numel()
    return parameter.numel() // parameter.shape[-1] + parameter.numel() // parameter.shape[-2]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Tied ones once."""
    return sum({t.data_ptr(): _size(t) for t in tensors}.values())


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
