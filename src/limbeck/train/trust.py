"""A trust region that is measured, not only penalized: after a step the student is held against its reference.

KL(student||reference) is summed over the whole vocabulary at every token of a few fixed rollouts, so it has no sampling
noise of its own; the prefixes are the rollouts', not the student's. The reference's hidden states are made once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limbeck.batches.collate import TrainingData, collate, micro_batches
from limbeck.batches.forward import Scored, head_of, unwrapped
from limbeck.batches.score import frozen_passes
from limbeck.batches.whole import Whole
from limbeck.config import TrainConfig
from limbeck.errors import DegenerateError
from limbeck.heads import score_tokens
from limbeck.objectives import find
from limbeck.objectives.estimators import k3
from limbeck.train.engine import Engine, precision, trainable, update_norm
from limbeck.train.live_draw import evaluating

KL, DRIFT = "kl_measured", "drift"  # names in metrics.jsonl


class Probe(NamedTuple):
    """A few rollouts with what the reference says of them.

    Attributes:
        data: the rollouts, the reference's hidden states and log-probs among their columns.
        whole: the divergence, with the reference's head.
    """

    data: TrainingData
    whole: Whole


@torch.no_grad()
def make_probe(reference: nn.Module, data: TrainingData, config: TrainConfig) -> Probe:
    """Ask the reference once, before the student moves.

    Args:
        reference: the frozen model; its head is copied where training would change it.
        data: the rollouts to measure on; every row fits the model's context.
        config: precision and what a pass may hold.
    """
    hidden: dict[int, Tensor] = {}
    logprobs: dict[int, list[float]] = {}
    head, device = head_of(unwrapped(reference)), next(reference.parameters()).device
    if config.method == "full":
        head = head._replace(weight=head.weight.clone(), bias=None if head.bias is None else head.bias.clone())
    with torch.autocast(device.type, torch.bfloat16, enabled=precision(config, device) == "bf16"):
        for index, parts in frozen_passes(reference, data.rollouts, token_budget=config.pass_tokens):
            for i, part in zip(index, parts or (), strict=True):
                targets = torch.tensor(data.rollouts[i].response_ids, device=device)
                hidden[i], logprobs[i] = part.cpu(), score_tokens(part, head, targets).logprobs.tolist()
    rows = range(len(data.rollouts))
    columns = {"teacher_hidden": [hidden[i] for i in rows], "reference_logprobs": [logprobs[i] for i in rows]}
    probed = TrainingData(rollouts=data.rollouts, items=data.items, weights=data.weights, columns=columns)
    return Probe(probed, Whole(find("reverse_kl"), {}, head, "teacher_logits"))


@torch.no_grad()
def measure(engine: Engine, probe: Probe) -> dict[str, float]:
    """How far the student is from its reference, nats a token, over all tokens of the probe.

    ``kl_measured`` is KL(student||reference), exact over the vocabulary. ``drift`` is the mean of exp(D) - D - 1 with D the
    student's minus the reference's log-prob of the token; where the reference wrote the rollouts, it estimates the
    other direction.
    """
    divergence, drift, tokens = 0.0, 0.0, 0
    items = range(len(probe.data.items))
    bf16 = precision(engine.config, engine.accelerator.device) == "bf16"
    with evaluating(engine.student), torch.autocast(engine.accelerator.device.type, torch.bfloat16, enabled=bf16):
        for cut in micro_batches(probe.data, items, token_budget=engine.config.pass_tokens):
            batch = collate(probe.data, cut, ("teacher_logits", "reference_logprobs"))
            batch = batch.to(engine.accelerator.device)
            scored: Scored = engine.student(batch, probe.whole)
            assert scored.values is not None  # a whole objective was asked for
            divergence += scored.values[batch.mask].double().sum().item()
            moved = k3(batch.inputs["reference_logprobs"], scored.logprobs)
            drift += moved[batch.mask].double().sum().item()
            tokens += int(batch.mask.sum())
    return {KL: divergence / tokens, DRIFT: drift / tokens}


def due(config: TrainConfig, step: int) -> bool:
    """Whether the KL is measured after this step."""
    last = step == config.num_steps
    return config.kl_budget is not None or (config.kl_every > 0 and (step % config.kl_every == 0 or last))


class Undo:
    """The weights before a step that a budget may take back."""

    def __init__(self, engine: Engine, budget: float) -> None:
        self._engine, self._budget, self._moved = engine, budget, update_norm(engine) > 0
        self._kept = [p.detach().clone() for p in trainable(engine)]

    @torch.no_grad()
    def spent(self, step: int, found: Mapping[str, float]) -> bool:
        """Whether the step went over the budget; if so the weights are as they were before it.

        Raises:
            DegenerateError: nothing had moved before: the budget is smaller than one step.
        """
        if found[KL] <= self._budget:
            return False
        for parameter, old in zip(trainable(self._engine), self._kept, strict=True):
            parameter.copy_(old)
        if not self._moved:
            raise DegenerateError(
                f"a KL budget must last for more than one step, received train.kl_budget = {self._budget:g} nats a token, "
                f"spent in the first step that moves, step {step}: {found[KL]:.3g}. Raise it, or lower "
                "train.learning_rate."
            )
        return True
