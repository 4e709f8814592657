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
from limbeck.objectives import distillation, divergences, erpd, joint, offline, policy, preference
from limbeck.objectives.contract import INPUTS, Input, evaluate
from limbeck.objectives.signature import LOOP_KNOBS, Domain, Knob, check_knobs, inputs, knobs
from limbeck.types import Objective

MODULES = (offline, preference, policy, distillation, divergences, joint, erpd)
OBJECTIVES: dict[str, Objective] = {row.name: row for module in MODULES for row in module.ROWS}
REFUSED = {
    "rft": "It is a selection of right rollouts followed by sft: select correct and train sft.",
    "rift": "Three incompatible definitions exist: rift:paper-printed, rift:reward-weighted, rift:source.",
    "offline_grpo": "Two definitions exist: offline_grpo:advantage-nll, offline_grpo:krafton.",
    "kl": "A direction is part of the name: reverse_kl is KL(student||teacher), forward_kl is KL(teacher||student).",
    "gkd": "Its beta changes the objective at 0 and 1: name forward_kl, reverse_kl or jsd.",
    "reverse_kl_k1": "Back-propagated, k1 has expected gradient zero: use opd, which is k1 as a policy-gradient cost.",
    "reverse_kl_k3": "Back-propagated, k3 follows the forward direction: use reverse_kl_k3_plus or reverse_kl_k2.",
    "forward_kl_topk": "Truncated, it goes negative: use forward_kl_topk_tail.",
    "reverse_kl_topk": "Truncated, it falls when the student leaves the set: use reverse_kl_topk_tail.",
    "jsd_topk": "Truncated, it is no divergence: use jsd_topk_tail.",
    "erpd_ce_sft": "It is a selection of right rollouts followed by sft: select correct and train sft.",
}


def find(name: str) -> Objective:
    """The row of this name.

    Raises:
        ConfigError: no such row; the message names the nearest.
    """
    if name not in OBJECTIVES:
        hint = REFUSED.get(name) or nearest(name, OBJECTIVES)
        raise ConfigError(f'an objective must be a row of the table, received "{name}". {hint}')
    return OBJECTIVES[name]


__all__ = [
    "INPUTS",
    "LOOP_KNOBS",
    "MODULES",
    "OBJECTIVES",
    "REFUSED",
    "Domain",
    "Input",
    "Knob",
    "check_knobs",
    "evaluate",
    "find",
    "inputs",
    "knobs",
]  # fmt: skip
