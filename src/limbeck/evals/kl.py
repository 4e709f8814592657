"""How far two policies are apart, with everything that a KL is nothing without: direction, sampler, estimator and unit.

KL(sampler||other) on rollouts that the sampler wrote at temperature 1 without truncation. ``exact`` sums over the whole
vocabulary at every visited token, in blocks (``heads.reverse_kl``): the same expectation as the sequences' KL by the chain
rule, with the least noise. ``k1`` and ``k3`` read the sampled tokens alone. Intervals resample problems.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.batches.forward import head_of, unwrapped
from limbeck.batches.score import FLOOR, frozen_passes
from limbeck.errors import DegenerateError, ShapeError
from limbeck.heads import cut, reverse_kl, score_tokens
from limbeck.objectives import estimators
from limbeck.stats.intervals import ratio_of_items, undefined
from limbeck.types import Estimate, Finish, Rollout

Unit = Literal["nats/token", "nats/sequence"]
ESTIMATORS = ("exact", "k1", "k3")
NEVER = -1e20  # nats; an id that a head leaves out scores below this
UNITS: tuple[Unit, ...] = ("nats/token", "nats/sequence")


class TokenDivergence(NamedTuple):
    """One rollout, one entry per response token, nats.

    Attributes:
        exact: KL(sampler||other) at the token's prefix, over the whole vocabulary.
        log_ratio: the sampler's minus the other's log-prob of the token; k1.
        entropy: of the sampler at the prefix.
        floored: tokens that the other gives probability 0; their log-prob counts as -20 nats.
    """

    exact: Float[Tensor, " tokens"]
    log_ratio: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]
    floored: int

    def values(self, estimator: str) -> Float[Tensor, " tokens"]:
        """One estimate of the KL at every token."""
        if estimator == "exact":
            return self.exact
        return estimators.k3(self.log_ratio, torch.zeros_like(self.log_ratio)) if estimator == "k3" else self.log_ratio


@torch.no_grad()
def token_divergences(
    sampler: nn.Module,
    other: nn.Module,
    rollouts: Sequence[Rollout],
    *,
    token_budget: int = 16384,
    advance: Callable[[int], None] = lambda num: None,
) -> list[TokenDivergence]:
    """Both models on every rollout, one forward pass each, never a (tokens, vocabulary) tensor.

    Args:
        sampler: the policy that the KL is an expectation under; it wrote the rollouts unless that is said otherwise.
        other: what it is held against, over the same token ids.
        rollouts: which fit both contexts.
        token_budget: padded tokens a pass.
        advance: called with the number of rollouts just done.

    Raises:
        ShapeError: a rollout that does not fit a context.
        ModelError: log-probs that cannot be had from hidden states.
    """
    heads = [head_of(unwrapped(model)) for model in (sampler, other)]
    width = min(len(head.weight) for head in heads)  # further rows are padding of equal token maps
    own_head, other_head = (cut(head, width) for head in heads)
    found: dict[int, TokenDivergence] = {}
    passes = (frozen_passes(model, rollouts, token_budget=token_budget) for model in (sampler, other))
    for (index, own), (again, theirs) in zip(*passes, strict=True):
        if own is None or theirs is None or index != again:
            raise ShapeError(
                f"a KL needs rollouts that fit both contexts, received {len(index)} that do not. Lower max_new_tokens."
            )
        targets = torch.tensor([t for i in index for t in rollouts[i].response_ids], device=own_head.weight.device)
        hidden, other_hidden = torch.cat(list(own)), torch.cat(list(theirs))
        out = reverse_kl(hidden, own_head, other_hidden, other_head, targets)
        theirs_of_tokens = score_tokens(other_hidden, other_head, targets).logprobs
        never = torch.isneginf(theirs_of_tokens) | (theirs_of_tokens < NEVER)
        log_ratio = out.metrics["student_logprobs"] - torch.where(never, FLOOR, theirs_of_tokens)
        sizes = [len(part) for part in own]
        columns = (out.values, log_ratio, out.metrics["student_entropy"], never)
        parts = zip(*(column.cpu().split(sizes) for column in columns), strict=True)
        for i, (exact, ratio, entropy, zero) in zip(index, parts, strict=True):
            found[i] = TokenDivergence(exact.double(), ratio.double(), entropy.double(), int(zero.sum()))
        advance(len(index))
    return [found[i] for i in range(len(rollouts))]


def account(
    divergences: Sequence[TokenDivergence],
    rollouts: Sequence[Rollout],
    *,
    direction: str,
    facts: Mapping[str, Any],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Every estimator in both units, one record each, with what it must be read with.

    Args:
        divergences: of the rollouts, in their order.
        rollouts: all written by the policy that the expectation is under.
        direction: ``student_reference`` for KL(student||reference), ``reference_student`` for the other.
        facts: what else a reader must know: models, temperature, longest answer, arithmetic.
        seed: of the bootstrap over problems.
    """
    if not rollouts:
        raise DegenerateError("a KL needs at least one rollout, received none. Sample some problems first.")
    floored = sum(d.floored for d in divergences)
    common = {
        "direction": direction,
        "sampler": direction.partition("_")[0],
        "problems": len({r.problem_id for r in rollouts}),
        "rollouts": len(rollouts),
        "tokens": sum(len(r.response_ids) for r in rollouts),
        "truncated_share": sum(r.finish == Finish.LENGTH for r in rollouts) / len(rollouts),
        "floored": floored,
        **facts,
    }
    return [
        {"estimator": name, "unit": unit, **common, **asdict(estimate(divergences, rollouts, name, unit, seed=seed))}
        for unit in UNITS
        for name in ESTIMATORS
    ]


def estimate(
    divergences: Sequence[TokenDivergence],
    rollouts: Sequence[Rollout],
    estimator: str,
    unit: Unit,
    *,
    seed: int = 0,
) -> Estimate:
    """A KL with its interval over problems.

    Per token: summed over all tokens, divided by their number. Per sequence: divided by the number of rollouts, k3 summed
    over tokens and never taken of a sequence's sum, whose variance explodes.
    """
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for divergence, rollout in zip(divergences, rollouts, strict=True):
        sums[rollout.problem_id] = sums.get(rollout.problem_id, 0.0) + float(divergence.values(estimator).sum())
        size = len(rollout.response_ids) if unit == "nats/token" else 1
        counts[rollout.problem_id] = counts.get(rollout.problem_id, 0) + size
    numbers = list(sums.values())
    if not all(abs(x) < -NEVER and math.isfinite(x) for x in numbers):
        reason = "the other policy gives probability 0 to what the sampler does"
        return undefined("ratio_bootstrap", len(numbers), 0.95, reason, seed)
    found = ratio_of_items(numbers, list(counts.values()), seed=seed)
    return found if estimator == "k1" else _at_least_zero(found)


def _at_least_zero(found: Estimate) -> Estimate:
    """A KL is not negative, and neither are its exact and k3 estimates up to rounding."""
    if math.isnan(found.value):
        return found
    value, low = max(found.value, 0.0), max(found.low, 0.0)
    return Estimate(
        value=value, low=low, high=max(found.high, value), level=found.level, method=found.method, n=found.n,
        seed=found.seed, reason=found.reason,
    )  # fmt: skip
