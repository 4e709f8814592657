"""Policy-gradient objectives on verifiable reward: one clipped surrogate, one ratio, six recipes.

u = exp(s - o) with s = ``logprobs`` and o = ``old_logprobs``, the trainer's own score under the snapshot that wrote the
rollouts; where there is none, give the sampler's, and the ratio mixes staleness with engine error. Advantages are
data. Gradient of the surrogate: -u * A * grad s where active, zero where clipped; on fresh rollouts it is that of
``offline_grpo:advantage-nll`` with the same advantages (law: ``test_fresh_surrogate_is_advantage_nll``).
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.objectives.estimators import LOG_RATIO_LIMIT, k3
from limbeck.objectives.signature import Domain
from limbeck.objectives.sums import per_token, row_mean
from limbeck.types import Objective, Values

Tokens = Float[Tensor, "*tokens"]
Rows = Float[Tensor, "batch time"]
Mask = Bool[Tensor, "batch time"]
ClipLow = Annotated[float, Domain("[0, 1]", "how far below 1 it may fall before a negative advantage stops", "ratio")]
ClipHigh = Annotated[
    float, Domain("[0, inf)", "how far above 1 it may rise before a positive advantage stops", "ratio")
]
DualClip = Annotated[float, Domain("0 or (1, inf)", "ratio above which a negative advantage stops; 0 is off", "ratio")]
BetaKL = Annotated[float, Domain("[0, inf)", "weight of the k3 penalty to the reference")]

GATE = 4.0  # makes SAPO's gate have slope 1 at ratio 1 for every temperature


def ratio(log_ratio: Tokens) -> Tokens:
    """exp of a log-ratio, without gradient beyond +-20 nats."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def surrogate(
    ratios: Tokens, advantages: Tokens, *, clip_low: float, clip_high: float, dual_clip: float = 0.0
) -> Values:
    """The clipped surrogate with pluggable ratio and advantage; the clip side follows the sign of the advantage.

    values = max(-u * A, -clip(u, 1 - clip_low, 1 + clip_high) * A);  A < 0, dual_clip: at most -dual_clip * A

    Returns:
        One value per token. Metrics: ``ratio``, ``clipped`` (1 where no gradient flows).

    >>> u, A = torch.tensor([1.1, 1.3, 0.7, 4.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    >>> surrogate(u, A, clip_low=0.2, clip_high=0.2, dual_clip=3.0).values
    tensor([-1.1000, -1.2000,  0.8000,  3.0000])
    """
    advantages = advantages.detach()
    values = torch.maximum(-ratios * advantages, -ratios.clamp(1 - clip_low, 1 + clip_high) * advantages)
    clipped = (advantages > 0) & (ratios > 1 + clip_high) | (advantages < 0) & (ratios < 1 - clip_low)
    if dual_clip:
        values = torch.where(advantages < 0, torch.minimum(values, -dual_clip * advantages), values)
        clipped = clipped | (advantages < 0) & (ratios > dual_clip)
    return Values(values=values, metrics={"ratio": ratios.detach(), "clipped": clipped.to(values.dtype)})


def ppo(
    logprobs: Tokens,
    old_logprobs: Tokens,
    advantages: Tokens,
    *,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 3.0,
) -> Values:
    """Proximal policy optimization with dual clip: ``surrogate`` of u and A."""
    u = ratio(logprobs - old_logprobs)
    return surrogate(u, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def grpo(
    logprobs: Tokens,
    old_logprobs: Tokens,
    advantages: Tokens,
    *,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 0.0,
) -> Values:
    """Group-relative policy optimization without a KL penalty: ``surrogate`` of u and the group's z-score.

    ``dr_grpo`` is this function with centred advantages and the constant normalizer.
    """
    u = ratio(logprobs - old_logprobs)
    return surrogate(u, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def grpo_kl(
    logprobs: Tokens,
    old_logprobs: Tokens,
    reference_logprobs: Tokens,
    advantages: Tokens,
    *,
    beta_kl: BetaKL,
    ratio_weighted: Annotated[bool, Domain("", "multiply the penalty by the ratio, gradient and all")] = False,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 0.0,
) -> Values:
    """``grpo`` plus the customary penalty, beta_kl * k3(s, reference), back-propagated.

    The penalty's gradient follows KL(reference||student), not the direction it is named for: kept for replication.
    Multiplied by u (``ratio_weighted``) its expected gradient is that of KL(student||reference), on stale rollouts
    too (law: ``test_a_ratio_weighted_penalty_follows_the_named_direction``).
    Metrics: those of ``surrogate`` and ``reference_k3`` (nats).
    """
    out = grpo(logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    penalty = k3(logprobs, reference_logprobs)
    metrics = {**out.metrics, "reference_k3": penalty.detach()}
    if ratio_weighted:
        penalty = ratio(logprobs - old_logprobs) * penalty
    return Values(values=out.values + beta_kl * penalty, metrics=metrics)


def dapo(
    logprobs: Tokens,
    old_logprobs: Tokens,
    advantages: Tokens,
    *,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.28,
    dual_clip: DualClip = 0.0,
) -> Values:
    """``grpo`` with a higher upper clip and the token normalizer; drop all-right and all-wrong groups beforehand."""
    u = ratio(logprobs - old_logprobs)
    return surrogate(u, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def gspo(
    logprobs: Rows,
    old_logprobs: Rows,
    advantages: Rows,
    mask: Mask,
    *,
    clip_low: ClipLow,
    clip_high: ClipHigh,
    dual_clip: DualClip = 0.0,
) -> Values:
    """Group sequence policy optimization: one ratio per rollout, exp of its mean log-ratio.

    values = surrogate(sg(U) * exp(s - sg(s)), A),   U = exp(mean over live tokens of s - o)

    Clipping acts on U, which moves far less than u: the clips have no default and must be far smaller.
    """
    sequence = per_token(ratio(row_mean(logprobs - old_logprobs, mask)).detach(), logprobs)
    u = sequence * (logprobs - logprobs.detach()).exp()
    return surrogate(u, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def sapo(
    logprobs: Tokens,
    old_logprobs: Tokens,
    advantages: Tokens,
    *,
    tau_positive: Annotated[float, Domain("(0, inf)", "steepness of the gate where the advantage is positive")] = 1.0,
    tau_negative: Annotated[float, Domain("(0, inf)", "steepness of the gate where it is not")] = 1.05,
) -> Values:
    """Soft adaptive policy optimization: a sigmoid gate in place of the clip.

    values = -A * (4 / tau) * sigmoid(tau * (u - 1));   slope in u is A at u = 1 for every tau
    """
    advantages = advantages.detach()
    u = ratio(logprobs - old_logprobs)
    tau = torch.where(advantages > 0, torch.full_like(u, tau_positive), torch.full_like(u, tau_negative))
    values = -advantages * (GATE / tau) * torch.sigmoid(tau * (u - 1))
    return Values(values=values, metrics={"ratio": u.detach()})


def grpo_corrected(
    logprobs: Tokens,
    old_logprobs: Tokens,
    behavior_logprobs: Tokens,
    advantages: Tokens,
    *,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    form: Annotated[
        Literal["truncate", "mask"], Domain("", "cap the weight, or drop tokens outside a band")
    ] = "truncate",
    cap: Annotated[float, Domain("[1, inf)", "largest weight when truncating", "ratio")] = 2.0,
    band_low: Annotated[float, Domain("[0, 1]", "smallest weight kept when masking", "ratio")] = 0.5,
    band_high: Annotated[float, Domain("[1, inf)", "largest weight kept when masking", "ratio")] = 2.0,
) -> Values:
    """``grpo`` with each token weighted by how far the trainer's snapshot and the sampling engine disagree.

    values = sg(w) * surrogate,   w = min(exp(o - b), cap)   or   w = exp(o - b) inside the band, else 0

    Metrics: those of ``surrogate`` and ``mismatch_weight``.
    """
    out = grpo(logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high)
    weight = mismatch_weight(
        old_logprobs, behavior_logprobs, form=form, cap=cap, band_low=band_low, band_high=band_high
    )
    return Values(values=weight * out.values, metrics={**out.metrics, "mismatch_weight": weight})


def mismatch_weight(
    old_logprobs: Tokens, behavior_logprobs: Tokens, *, form: str, cap: float, band_low: float, band_high: float
) -> Tokens:
    """Importance weight of the trainer's snapshot over the sampling engine, detached; 1 where they agree."""
    weight = ratio(old_logprobs - behavior_logprobs).detach()
    if form == "truncate":
        return weight.clamp(max=cap)
    return torch.where((weight >= band_low) & (weight <= band_high), weight, 0.0)


VERL = "code verl-project/verl, trainer/ppo/core_algos.py"
SURROGATE = "max(-u * A, -clip(u, 1 - clip_low, 1 + clip_high) * A)"
ROWS = (
    Objective(
        name="ppo", function=ppo, unit="token", normalizer="token", linear=False, status="PUBLISHED", credit="centred",
        source=f"arXiv 1707.06347; {VERL}", formula=f"{SURROGATE}; A < 0: at most -dual_clip * A",
        deviations="no critic: advantages come from the group, centred unless set otherwise",
    ),
    Objective(
        name="grpo", function=grpo, unit="token", normalizer="sequence", linear=False, status="PUBLISHED",
        credit="zscore", source=f"arXiv 2402.03300; {VERL}", formula=SURROGATE,
        deviations="no KL penalty; grpo:kl has it",
    ),
    Objective(
        name="grpo:kl", function=grpo_kl, unit="token", normalizer="sequence", linear=False, status="PUBLISHED",
        credit="zscore", source=f"arXiv 2402.03300; {VERL}", formula=f"{SURROGATE} + beta_kl * k3(s, f)",
        deviations="beta_kl must be given; TRL 1.16 sets ratio_weighted",
    ),
    Objective(
        name="grpo:mismatch-corrected", function=grpo_corrected, unit="token", normalizer="sequence", linear=False,
        status="SECONDARY", credit="zscore", source=VERL, formula="sg(w) * grpo,  w = min(exp(o - b), cap)",
        deviations="cap 2 and the band are our reading",
    ),
    Objective(
        name="dapo", function=dapo, unit="token", normalizer="token", linear=False, status="PUBLISHED",
        credit="zscore", source=f"arXiv 2503.14476; {VERL}", formula=SURROGATE,
        deviations="dropping constant groups is a selection and not part of the function (to check)",
    ),
    Objective(
        name="dr_grpo", function=grpo, unit="token", normalizer="constant", linear=False, status="PUBLISHED",
        credit="centred", source=f"arXiv 2503.20783; {VERL}", formula=SURROGATE,
        deviations="length of the constant normalizer: longest response allowed; no deviation in the credit (to check)",
    ),
    Objective(
        name="gspo", function=gspo, unit="token", normalizer="sequence", linear=False, status="PUBLISHED",
        credit="zscore", source=f"arXiv 2507.18071; {VERL}", formula="surrogate(sg(U) * exp(s - sg(s)), A)",
        deviations="clips must be given; 3e-4 and 4e-4 are reported for the paper (to check)",
    ),
    Objective(
        name="sapo", function=sapo, unit="token", normalizer="sequence", linear=False, status="PUBLISHED",
        credit="zscore", source=f"arXiv 2511.20347; {VERL}", formula="-A * (4 / tau) * sigmoid(tau * (u - 1))",
    ),
)  # fmt: skip
