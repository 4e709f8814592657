"""Reward and teacher together: one clipped surrogate, each method a choice of (ratio, advantage).

A = ``advantages`` from the reward, d = q - sg(s) the teacher's preference for the sampled token. The clip side follows
the sign of the total advantage. Where ``teacher_mask`` is false (an end token that only one side knows) d is 0 and the
token stays in the count.
"""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.objectives.distillation import preference
from limbeck.objectives.estimators import k2
from limbeck.objectives.policy import ClipHigh, ClipLow, DualClip, ratio, surrogate
from limbeck.objectives.signature import Domain
from limbeck.objectives.sums import per_token
from limbeck.types import Objective, Values

Tokens = Float[Tensor, "batch time"]
Rows = Float[Tensor, " batch"]
Mask = Bool[Tensor, "batch time"]
Beta = Annotated[float, Domain("[0, inf)", "weight of the teacher's preference beside the reward's advantage")]
Step = Annotated[int, Domain("[0, inf)", "optimizer step, from 0", "steps")]
NumSteps = Annotated[int, Domain("[1, inf)", "optimizer steps of the whole run", "steps")]


def opd_clipped(
    logprobs: Tokens,
    old_logprobs: Tokens,
    teacher_logprobs: Tokens,
    teacher_mask: Mask,
    *,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 0.0,
) -> Values:
    """``opd`` inside the clipped surrogate: surrogate(u, d)."""
    d = _preference(logprobs, old_logprobs, teacher_logprobs, teacher_mask)
    u = ratio(logprobs - old_logprobs)
    return surrogate(u, d, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def kdrl(
    logprobs: Tokens,
    old_logprobs: Tokens,
    teacher_logprobs: Tokens,
    teacher_mask: Mask,
    advantages: Tokens,
    *,
    beta: Beta = 0.002,
    kd_path: Annotated[
        Literal["advantage", "k2"],
        Domain("", "teacher term inside the clip, or back-propagated beside it as beta * k2"),
    ] = "advantage",
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 0.0,
) -> Values:
    """Knowledge distillation and reinforcement learning in one loss: surrogate(u, A + beta * d).

    On fresh rollouts both paths have the same gradient (law: ``test_kdrl_paths_agree_on_fresh_rollouts``); later the
    advantage path is clipped and the k2 path is not.
    """
    d = beta * _preference(logprobs, old_logprobs, teacher_logprobs, teacher_mask)
    u = ratio(logprobs - old_logprobs)
    total = advantages + d if kd_path == "advantage" else advantages
    out = surrogate(u, total, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    if kd_path == "advantage":
        return out
    penalty = u.detach() * torch.where(teacher_mask, k2(logprobs, teacher_logprobs), 0.0)
    return Values(values=out.values + beta * penalty, metrics=out.metrics)


def opd_rlvr(
    logprobs: Tokens,
    old_logprobs: Tokens,
    teacher_logprobs: Tokens,
    teacher_mask: Mask,
    advantages: Tokens,
    *,
    alpha: Annotated[
        float, Domain("[0, 1]", "teacher's share of the advantage; 1 is opd, 0 the reward alone", "fraction")
    ] = 0.5,
    clip: Annotated[float, Domain("[0, inf)", "how far the ratio may leave 1 on either side; 0 is off", "ratio")] = 0.0,
) -> Values:
    """Teacher and reward mixed into one advantage, each on its own scale.

    values = -u * (alpha * d + (1 - alpha) * A)

    At alpha 1 it is ``opd``, at 0 ``dr_grpo`` inside the clip. The scales differ from data to data, so alpha is no dose that two
    data sets share: compare the root mean squares of the two terms.

    Returns:
        One value per token. Metrics: ``ratio``, ``clipped``, and the squares of both terms as they enter,
        ``teacher_term_square`` and ``reward_term_square``, whose root means stand in the record as ``..._rms``.
    """
    teacher = alpha * _preference(logprobs, old_logprobs, teacher_logprobs, teacher_mask)
    reward = (1 - alpha) * advantages
    u = ratio(logprobs - old_logprobs)
    out = surrogate(u, teacher + reward, clip_low=min(clip or 1.0, 1.0), clip_high=clip or math.inf)
    squares = {"teacher_term_square": teacher.square(), "reward_term_square": reward.square()}
    return Values(values=out.values, metrics={**out.metrics, **squares})


def kdrl_mask(
    logprobs: Tokens,
    old_logprobs: Tokens,
    teacher_logprobs: Tokens,
    teacher_mask: Mask,
    advantages: Tokens,
    correct: Rows,
    *,
    beta: Beta = 0.002,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 0.0,
) -> Values:
    """``kdrl`` with the teacher on wrong rollouts only: surrogate(u, A + (1 - correct) * beta * d)."""
    d = beta * _preference(logprobs, old_logprobs, teacher_logprobs, teacher_mask)
    total = advantages + (1 - per_token(correct, d)) * d
    u = ratio(logprobs - old_logprobs)
    return surrogate(u, total, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def kdrl_annealing(
    logprobs: Tokens,
    old_logprobs: Tokens,
    teacher_logprobs: Tokens,
    teacher_mask: Mask,
    advantages: Tokens,
    *,
    step: Step,
    num_steps: NumSteps,
    beta_first: Annotated[float, Domain("[0, inf)", "weight of the teacher's preference at the first step")] = 0.2,
    beta_last: Annotated[float, Domain("[0, inf)", "weight of the teacher's preference at the last step")] = 0.002,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 0.0,
) -> Values:
    """``kdrl`` whose beta moves linearly from the first step to the last."""
    beta = annealed(step, num_steps, first=beta_first, last=beta_last)
    d = beta * _preference(logprobs, old_logprobs, teacher_logprobs, teacher_mask)
    u = ratio(logprobs - old_logprobs)
    return surrogate(u, advantages + d, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def annealed(step: int, num_steps: int, *, first: float, last: float) -> float:
    """The linear schedule from ``first`` at step 0 to ``last`` at step num_steps - 1.

    >>> [round(annealed(step, 101, first=0.2, last=0.002), 4) for step in (0, 50, 100)]
    [0.2, 0.101, 0.002]
    """
    return first + (last - first) * step / max(num_steps - 1, 1)


def srpo(
    logprobs: Tokens,
    old_logprobs: Tokens,
    teacher_logprobs: Tokens,
    teacher_mask: Mask,
    advantages: Tokens,
    correct: Rows,
    *,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 0.0,
) -> Values:
    """Reward on right rollouts, teacher on wrong ones: surrogate(u, correct * A + (1 - correct) * d)."""
    d = _preference(logprobs, old_logprobs, teacher_logprobs, teacher_mask)
    right = per_token(correct, d)
    u = ratio(logprobs - old_logprobs)
    total = right * advantages + (1 - right) * d
    return surrogate(u, total, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def hdpo(
    logprobs: Tokens,
    old_logprobs: Tokens,
    teacher_logprobs: Tokens,
    teacher_mask: Mask,
    advantages: Tokens,
    group_all_wrong: Rows,
    *,
    beta: Beta,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 0.0,
) -> Values:
    """The teacher where reward says nothing: surrogate(u, A + group_all_wrong * beta * d)."""
    d = beta * _preference(logprobs, old_logprobs, teacher_logprobs, teacher_mask)
    u = ratio(logprobs - old_logprobs)
    total = advantages + per_token(group_all_wrong, d) * d
    return surrogate(u, total, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def rlsd(
    logprobs: Tokens,
    old_logprobs: Tokens,
    teacher_logprobs: Tokens,
    teacher_mask: Mask,
    advantages: Tokens,
    *,
    share: Annotated[float, Domain("[0, 1]", "how much of the advantage the teacher modulates", "fraction")] = 1.0,
    spread: Annotated[float, Domain("[0, 1]", "how far from 1 the teacher's factor may move", "ratio")] = 0.2,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 0.0,
) -> Values:
    """The teacher scales the reward's advantage, token by token, and never turns it.

    values = surrogate(u, ((1 - share) + share * clip(exp(sign(A) * d), 1 - spread, 1 + spread)) * A)
    """
    d = _preference(logprobs, old_logprobs, teacher_logprobs, teacher_mask)
    factor = ratio(advantages.sign() * d).clamp(1 - spread, 1 + spread)
    total = ((1 - share) + share * factor) * advantages
    u = ratio(logprobs - old_logprobs)
    return surrogate(u, total, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def trrd(
    logprobs: Tokens,
    old_logprobs: Tokens,
    teacher_logprobs: Tokens,
    teacher_mask: Mask,
    advantages: Tokens,
    *,
    alpha: Annotated[
        float, Domain("[0, 1]", "old policy's share of the anchor; 1 is grpo, 0 the teacher alone", "fraction")
    ] = 0.5,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 3.0,
) -> Values:
    """Trust-region ratio distillation (RLAD): the ratio is taken against a mixture of old policy and teacher.

    values = surrogate(exp(alpha * (s - o) + (1 - alpha) * (s - q)), A)

    The anchor P_old**alpha * Q**(1 - alpha) is no policy and is not normalized. Clipping acts from the first step on:
    at alpha 0.5 and clip 0.2 a positive advantage stops once P / Q > 1.44, a negative one once P / Q < 0.64; blame is
    bounded by the dual clip alone, at P / Q > 9 (law: ``test_trrd_edges``). No trust region is claimed.
    """
    anchor = torch.where(teacher_mask, teacher_logprobs, old_logprobs)
    u = ratio(alpha * (logprobs - old_logprobs) + (1 - alpha) * (logprobs - anchor))
    return surrogate(u, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def opd_then_rl(
    logprobs: Tokens,
    old_logprobs: Tokens,
    teacher_logprobs: Tokens,
    teacher_mask: Mask,
    advantages: Tokens,
    *,
    step: Step,
    switch_step: Annotated[int, Domain("[0, inf)", "first step that follows the reward", "steps")] = 60,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 0.0,
) -> Values:
    """First the teacher, then the reward: surrogate(u, d) before ``switch_step``, surrogate(u, A) from it on."""
    teacher_only = step < switch_step
    total = _preference(logprobs, old_logprobs, teacher_logprobs, teacher_mask) if teacher_only else advantages
    u = ratio(logprobs - old_logprobs)
    return surrogate(u, total, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def _preference(logprobs: Tensor, old_logprobs: Tensor, teacher_logprobs: Tensor, teacher_mask: Tensor) -> Tensor:
    return torch.where(teacher_mask, preference(logprobs, old_logprobs, teacher_logprobs), 0.0)


COMPARISON = "arXiv 2609.04108; code StringNLPLAB/opd-rlvr"
KDRL = "arXiv 2506.02208"
ROWS = (
    Objective(
        name="opd:clipped", function=opd_clipped, unit="token", normalizer="token", linear=False, status="PUBLISHED",
        source=COMPARISON, formula="surrogate(u, d)",
    ),
    Objective(
        name="kdrl", function=kdrl, unit="token", normalizer="token", linear=False, status="SECONDARY",
        credit="zscore", source=KDRL, formula="surrogate(u, A + beta * d)",
        deviations="its own study favors k2 over k3; the full-vocabulary path is not offered",
    ),
    Objective(
        name="opd_rlvr", function=opd_rlvr, unit="token", normalizer="token", linear=False, status="PUBLISHED",
        credit="centred", source="arXiv 2606.07082", formula="-u * (alpha * d + (1 - alpha) * A)",
        deviations="the ratio's clip of 1.0 that is reported is never met on fresh rollouts and is off here; token normalizer",
    ),
    Objective(
        name="kdrl_mask", function=kdrl_mask, unit="token", normalizer="token", linear=False, status="SECONDARY",
        credit="zscore", source=KDRL, formula="surrogate(u, A + (1 - correct) * beta * d)",
    ),
    Objective(
        name="kdrl_annealing", function=kdrl_annealing, unit="token", normalizer="token", linear=False,
        status="SECONDARY", credit="zscore", source=KDRL, formula="surrogate(u, A + beta(step) * d)",
    ),
    Objective(
        name="srpo", function=srpo, unit="token", normalizer="token", linear=False, status="SECONDARY",
        credit="zscore", source=COMPARISON, formula="surrogate(u, correct * A + (1 - correct) * d)",
    ),
    Objective(
        name="hdpo", function=hdpo, unit="token", normalizer="token", linear=False, status="SECONDARY",
        credit="zscore", source=COMPARISON, formula="surrogate(u, A + group_all_wrong * beta * d)",
        deviations="beta must be given",
    ),
    Objective(
        name="rlsd", function=rlsd, unit="token", normalizer="token", linear=False, status="SECONDARY",
        credit="zscore", source=COMPARISON,
        formula="surrogate(u, ((1 - share) + share * clip(exp(sign(A) * d), 1 -+ spread)) * A)",
    ),
    Objective(
        name="trrd", function=trrd, unit="token", normalizer="token", linear=False, status="SECONDARY",
        credit="zscore", source=f"arXiv 2602.22495 (RLAD); {COMPARISON}",
        formula="surrogate(exp(alpha * (s - o) + (1 - alpha) * (s - q)), A)",
        deviations="no KL to the reference, dual clip on; alpha follows the equation, the prose has it reversed",
    ),
    Objective(
        name="opd_then_rl", function=opd_then_rl, unit="token", normalizer="token", linear=False, status="PUBLISHED",
        credit="zscore", source=COMPARISON, formula="surrogate(u, d) while step < switch_step, then surrogate(u, A)",
        deviations="the optimizer is not reset at the switch (our reading)",
    ),
)  # fmt: skip
