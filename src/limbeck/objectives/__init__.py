"""Every objective as a pure function of tensors, in one table.

Batch tensors, by the names that signatures use (``INPUTS`` holds their axes and meanings): ``logprobs``, ``entropy``
and ``logits`` come from the student and carry the gradient; ``behavior_logprobs``, ``old_logprobs``,
``reference_logprobs``, ``teacher_logprobs``, ``teacher_logits``, ``reference_logits`` and ``signal`` come from frozen
models; ``advantages``, ``rewards``, ``correct`` and ``group_all_wrong`` from credit; ``mask``, ``pairs`` and
``pair_weights`` from the batch. Everything with a time axis is aligned to the *target* token.

A caller does four things: ``check_knobs`` once, ``evaluate`` per micro-batch, ``reduce.total`` per micro-batch, and one
division by ``reduce.divisor`` of the whole step. Knobs named in ``LOOP_KNOBS`` are passed by the training loop.

To add an objective: write the function, add its row to the module's ``ROWS``, write a float64 reference for it. The law
suite picks it up by itself.
"""

from limbeck.errors import ConfigError, nearest
from limbeck.objectives import offline, preference
from limbeck.objectives.contract import INPUTS, Input, evaluate
from limbeck.objectives.signature import LOOP_KNOBS, Domain, Knob, check_knobs, inputs, knobs
from limbeck.types import Objective

OBJECTIVES: dict[str, Objective] = {row.name: row for module in (offline, preference) for row in module.ROWS}


def find(name: str) -> Objective:
    """The row of this name.

    Raises:
        ConfigError: no such row; the message names the nearest.
    """
    if name not in OBJECTIVES:
        hint = nearest(name, OBJECTIVES)
        if name == "rift":
            hint = "Three incompatible definitions exist: rift:paper-printed, rift:reward-weighted, rift:source."
        if name == "rft":
            hint = "It is a selection of right rollouts followed by sft: select correct and train sft."
        raise ConfigError(f'an objective must be a row of the table, received "{name}". {hint}')
    return OBJECTIVES[name]


__all__ = [
    "INPUTS", "LOOP_KNOBS", "OBJECTIVES", "Domain", "Input", "Knob", "check_knobs", "evaluate", "find", "inputs",
    "knobs",
]  # fmt: skip
