"""ERPD-style training (extreme region policy distillation): squeeze fixed data, read the result as a token signal, and
distil that into the base under a trust region. The stage losses are not published: all of this is OUR READING.

Stage 1 trains a policy on fixed rollouts with no KL term, and an unlearned twin on mirrored rewards. The signal is the
log-ratio of two such policies on the same tokens. Stage 2 starts again at the base f and follows the signal.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from limbeck.errors import DegenerateError, ShapeError
from limbeck.objectives import policy
from limbeck.objectives.divergences import kl, log_softmax
from limbeck.objectives.estimators import k3
from limbeck.objectives.policy import ClipHigh, ClipLow, DualClip, ratio, surrogate
from limbeck.objectives.signature import Domain
from limbeck.objectives.sums import row_length, row_mean, row_sum
from limbeck.types import Normalizer, Objective, Unit, Values

Tokens = Float[Tensor, "*tokens"]
Grid = Float[Tensor, "batch time"]
Rows = Float[Tensor, " batch"]
Mask = Bool[Tensor, "batch time"]
Logits = Float[Tensor, "*tokens vocab"]
Beta = Annotated[float, Domain("(0, inf)", "nats of implicit reward count as this much", "1/nat")]
Pull = Annotated[float, Domain("[0, inf)", "pull back to the base, per nat of log-ratio; above 1 stays nearer")]
Eta = Annotated[float, Domain("[0, inf)", "weight of the reward's advantage beside the signal; 0 is off")]
LengthNorm = Annotated[bool, Domain("", "mean instead of summed implicit reward")]


def erpd_sapo(
    logprobs: Tokens,
    behavior_logprobs: Tokens,
    advantages: Tokens,
    *,
    tau_positive: Annotated[float, Domain("(0, inf)", "steepness of the gate where the advantage is positive")] = 1.0,
    tau_negative: Annotated[float, Domain("(0, inf)", "steepness of the gate where it is not")] = 1.05,
) -> Values:
    """Stage 1, strong: ``sapo`` with the ratio against the sampler and never re-anchored."""
    return policy.sapo(logprobs, behavior_logprobs, advantages, tau_positive=tau_positive, tau_negative=tau_negative)


def erpd_ce(
    logprobs: Grid,
    reference_logprobs: Grid,
    rewards: Rows,
    mask: Mask,
    *,
    beta: Beta = 0.1,
    length_norm: LengthNorm = False,
) -> Values:
    """Stage 1, strong: cross-entropy of right against wrong with the implicit reward as its logit.

    values = -(r * log sigmoid(h) + (1 - r) * log sigmoid(-h)),   h = beta * R,   r = 1 on right rollouts, else 0
    """
    h = beta * _implicit_reward(logprobs, reference_logprobs, mask, length_norm)
    values = -torch.where(rewards > 0, logsigmoid(h), logsigmoid(-h))
    return Values(values=values, metrics={"implicit_reward": h.detach() / beta})


def erpd_mse(
    logprobs: Grid,
    reference_logprobs: Grid,
    advantages: Grid,
    mask: Mask,
    *,
    beta: Beta = 0.1,
    length_norm: LengthNorm = False,
) -> Values:
    """Stage 1, weak: regress the implicit reward on the centred reward, its optimum under a KL penalty.

    values = (beta * R - A)**2
    """
    h = beta * _implicit_reward(logprobs, reference_logprobs, mask, length_norm)
    values = (h - row_mean(advantages, mask).to(h.dtype)).square()
    return Values(values=values, metrics={"implicit_reward": h.detach() / beta})


def erpd_forget(logprobs: Tokens) -> Values:
    """Unlearning by descent on probability: values = p, for a selection of right rollouts; bounded, unlike +s."""
    return Values(values=logprobs.exp(), metrics={"nll": -logprobs.detach()})


def mirrored(rewards: Rows) -> Rows:
    """Rewards of the unlearned twin, 1 - r: odd credits (centred, zscore, loo) turn into their negatives exactly.

    >>> mirrored(torch.tensor([1.0, 0.0]))
    tensor([0., 1.])
    """
    return 1 - rewards


def drift(logprobs: Grid, reference_logprobs: Grid, mask: Mask) -> float:
    """How far a policy has moved from the base on the data, nats per token: the mean of exp(D) - D - 1, D = s - f.

    On samples of the base this estimates KL(base||policy); on other data it is drift and not a KL.
    """
    if not bool(mask.any()):
        raise DegenerateError("drift needs at least one live token, received none. Check the mask.")
    return float(k3(reference_logprobs.detach(), logprobs.detach())[mask].double().mean())


def token_signal(
    stage1_logprobs: Grid,
    reference_logprobs: Grid,
    mask: Mask,
    *,
    scale: float = 1.0,
    limit: float = 5.0,
    length: Literal["none", "inverse"] = "none",
) -> Grid:
    """What stage 1 learned about each token: log-ratio of two policies on it, scaled, clamped, nats; 0 outside the mask.

    signal = clamp((log pi_1 - log pi_ref) / scale, -limit, limit), over the rollout's length where ``inverse``

    Args:
        stage1_logprobs: scores of the stage-1 policy.
        reference_logprobs: of the base (strong stage 1) or of the unlearned twin (weak).
        mask: true where a token is scored.
        scale: divides; 1 or one standard deviation over all the data, from ``signal_scale``. Nothing is centred.
        limit: nats after scaling.
        length: ``inverse`` gives every rollout the same total influence.
    """
    difference = torch.where(mask, stage1_logprobs - reference_logprobs, 0.0).detach()
    signal = (difference / scale).clamp(-limit, limit)
    return signal / row_length(mask).to(signal.dtype)[:, None] if length == "inverse" else signal


def signal_scale(stage1_logprobs: Grid, reference_logprobs: Grid, mask: Mask) -> float:
    """Standard deviation of the raw signal over live tokens, nats, to be computed once over all the data."""
    spread = float((stage1_logprobs - reference_logprobs).detach()[mask].double().std(correction=0))
    if not spread > 0:
        raise DegenerateError(
            "a signal needs some spread to be scaled by, received a standard deviation of 0 nats. The two policies are "
            "equal; train stage 1 or use scale 1."
        )
    return spread


def combined(signals: Sequence[Grid], *, rule: Literal["mean", "agree"] = "mean") -> Grid:
    """Mean of several stage-1 signals; ``agree`` gives 0 where signs differ. Scale each by its own spread first."""
    if not signals or any(s.shape != signals[0].shape for s in signals):
        shapes = [tuple(s.shape) for s in signals]
        raise ShapeError(f"signals must be one or more of one shape, received {shapes}. Score the same rollouts.")
    stacked = torch.stack(list(signals))
    mean = stacked.mean(0)
    agree = (stacked >= 0).all(0) | (stacked <= 0).all(0)
    return torch.where(agree, mean, 0.0) if rule == "agree" else mean


def erpd_kl(
    logprobs: Tokens,
    old_logprobs: Tokens,
    reference_logprobs: Tokens,
    signal: Tokens,
    advantages: Tokens,
    *,
    beta: Pull = 1.0,
    eta: Eta = 0.0,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 3.0,
) -> Values:
    """Stage 2 with a KL pull: surrogate(exp(s - o), signal - beta * (s - f) + eta * A), today's s in the advantage.

    Without scale or clamp of the signal this is beta times ``gopd`` with lam = 1 / beta and the stage-1 policy as
    teacher (law: ``test_erpd_kl_is_gopd``). A snapshot in place of today's s would delete the pull on fixed rollouts.
    """
    u = ratio(logprobs - old_logprobs)
    total = _pulled(logprobs, reference_logprobs, signal, advantages, beta, eta)
    return surrogate(u, total, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def erpd_kl_full(
    logprobs: Tokens,
    old_logprobs: Tokens,
    logits: Logits,
    reference_logits: Logits,
    signal: Tokens,
    *,
    beta: Pull = 1.0,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 3.0,
) -> Values:
    """Stage 2 with the exact pull: surrogate(exp(s - o), signal) + beta * KL(student||base) over the vocabulary."""
    u = ratio(logprobs - old_logprobs)
    out = surrogate(u, signal, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    divergence = kl(log_softmax(logits), log_softmax(reference_logits.detach()))
    metrics = {**out.metrics, "kl_student_reference_exact": divergence.detach()}
    return Values(values=out.values + beta * divergence, metrics=metrics)


def erpd_clip(
    logprobs: Tokens,
    reference_logprobs: Tokens,
    signal: Tokens,
    *,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 3.0,
) -> Values:
    """Stage 2 gated from the base: surrogate(exp(s - f), signal). The gate stops gradients and bounds nothing."""
    u = ratio(logprobs - reference_logprobs)
    return surrogate(u, signal, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def erpd_kl_clip(
    logprobs: Tokens,
    reference_logprobs: Tokens,
    signal: Tokens,
    advantages: Tokens,
    *,
    beta: Pull = 1.0,
    eta: Eta = 0.0,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 3.0,
) -> Values:
    """Stage 2, default: gate and pull, surrogate(exp(s - f), signal - beta * (s - f) + eta * A)."""
    u = ratio(logprobs - reference_logprobs)
    total = _pulled(logprobs, reference_logprobs, signal, advantages, beta, eta)
    return surrogate(u, total, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def _implicit_reward(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, length_norm: bool) -> Tensor:
    reward = row_sum(logprobs - reference_logprobs, mask)
    return reward / row_length(mask).to(reward.dtype) if length_norm else reward


def _pulled(
    logprobs: Tensor, reference_logprobs: Tensor, signal: Tensor, advantages: Tensor, beta: float, eta: float
) -> Tensor:
    return (signal - beta * (logprobs - reference_logprobs) + eta * advantages).detach()


PAPER = "arXiv 2605.25582; code ChangyuChen347/ERPD"
SILENT = "the source does not give this loss: ERPD-style"
STAGE_2 = "surrogate(exp(s - o), signal - beta * (s - f) + eta * A)"


def _row(
    name: str, function: Callable[..., Values], unit: Unit, normalizer: Normalizer, formula: str, credit: str = ""
) -> Objective:
    return Objective(
        name=name, function=function, unit=unit, normalizer=normalizer, linear=False, status="OUR READING",
        source=PAPER, formula=formula, credit=credit, deviations=SILENT,
    )  # fmt: skip


ROWS = (
    _row("erpd_sapo", erpd_sapo, "token", "sequence", "sapo with u = exp(s - b)", "zscore"),
    _row("erpd_ce", erpd_ce, "sequence", "sequence", "-log sigmoid(+-beta * R)"),
    _row("erpd_mse", erpd_mse, "sequence", "sequence", "(beta * R - A)**2", "centred"),
    _row("erpd_forget", erpd_forget, "token", "token", "p"),
    _row("erpd_kl", erpd_kl, "token", "token", STAGE_2, "zscore"),
    _row("erpd_kl_full", erpd_kl_full, "token", "token", "surrogate(exp(s - o), signal) + beta * KL(P||F)"),
    _row("erpd_clip", erpd_clip, "token", "token", "surrogate(exp(s - f), signal)"),
    _row("erpd_kl_clip", erpd_kl_clip, "token", "token", STAGE_2.replace("s - o", "s - f"), "zscore"),
)
