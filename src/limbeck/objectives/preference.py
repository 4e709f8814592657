"""Preference objectives: a chosen and a rejected rollout of one problem, compared by implicit reward.

R = sum over live tokens of (s - f) with f = ``reference_logprobs``, the untouched base. Pairs are row indices, so the
order of rows means nothing; ``pair_weights`` scale values and never enter a divisor.
"""

from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from limbeck.objectives.signature import Domain
from limbeck.objectives.sums import row_length, row_sum
from limbeck.types import Objective, Values

Tokens = Float[Tensor, "batch time"]
Mask = Bool[Tensor, "batch time"]
Pairs = Int[Tensor, "pairs 2"]
Weights = Float[Tensor, " pairs"]
Beta = Annotated[float, Domain("(0, inf)", "slope of the preference in the implicit reward", "1/nat")]
Smoothing = Annotated[float, Domain("[0, 0.5)", "share of pairs taken to be labeled the wrong way round", "fraction")]


def dpo(
    logprobs: Tokens,
    reference_logprobs: Tokens,
    mask: Mask,
    pairs: Pairs,
    pair_weights: Weights,
    *,
    beta: Beta = 0.1,
    label_smoothing: Smoothing = 0.0,
) -> Values:
    """Direct preference optimization.

    values = w * -log sigmoid(beta * (R_chosen - R_rejected));   label_smoothing mixes in the swapped pair

    At student = reference it is ln 2 (law: ``test_preference_start_values``).

    Returns:
        One value per pair, nats. Metrics: ``margin_sum`` and ``margin_mean`` (nats, reward gap by sum and by mean),
        ``accuracy`` (fraction), ``length_chosen``, ``length_rejected`` (tokens).
    """
    reward = row_sum(logprobs - reference_logprobs, mask)
    margin = beta * _gap(reward, pairs)
    values = pair_weights * _smoothed(margin, label_smoothing)
    return Values(values=values, metrics=_metrics(reward, mask, pairs))


def dpo_norm(
    logprobs: Tokens,
    reference_logprobs: Tokens,
    mask: Mask,
    pairs: Pairs,
    pair_weights: Weights,
    *,
    beta: Beta = 5.0,
    label_smoothing: Smoothing = 0.0,
) -> Values:
    """Length-normalized DPO: the mean implicit reward per token in place of the sum, with its own beta.

    values = w * -log sigmoid(beta * (R_chosen / T_chosen - R_rejected / T_rejected))

    Against ``dpo``: repeating every token of an answer leaves the margin unchanged, where ``dpo`` doubles it (law:
    ``test_repeating_tokens_doubles_the_sum_and_not_the_mean``). Metrics and unit as ``dpo``.
    """
    reward = row_sum(logprobs - reference_logprobs, mask)
    margin = beta * _gap(reward / _length(mask, reward), pairs)
    return Values(values=pair_weights * _smoothed(margin, label_smoothing), metrics=_metrics(reward, mask, pairs))


def ipo(
    logprobs: Tokens,
    reference_logprobs: Tokens,
    mask: Mask,
    pairs: Pairs,
    pair_weights: Weights,
    *,
    beta: Beta = 0.1,
    length_norm: Annotated[bool, Domain("", "mean instead of summed implicit reward; libraries differ")] = False,
) -> Values:
    """Identity preference optimization: a squared distance of the reward gap from 1 / (2 * beta).

    values = w * (R_chosen - R_rejected - 1 / (2 * beta))**2

    Zero at a gap of 1 / (2 * beta), 25 at the start for beta 0.1. One value per pair, nats squared.
    """
    reward = row_sum(logprobs - reference_logprobs, mask)
    gap = _gap(reward / _length(mask, reward) if length_norm else reward, pairs)
    return Values(values=pair_weights * (gap - 0.5 / beta).square(), metrics=_metrics(reward, mask, pairs))


def simpo(
    logprobs: Tokens,
    mask: Mask,
    pairs: Pairs,
    pair_weights: Weights,
    *,
    beta: Beta = 2.0,
    gamma: Annotated[float, Domain("[0, inf)", "margin that the chosen rollout must lead by", "nats")] = 1.0,
) -> Values:
    """Simple preference optimization: mean log-probs, no reference, a target margin.

    values = w * -log sigmoid(beta * (mean s_chosen - mean s_rejected) - gamma)

    Against ``dpo_norm``: equal at reference 0 and gamma 0 (law: ``test_simpo_is_dpo_norm_without_reference``).
    """
    score = row_sum(logprobs, mask)
    margin = beta * _gap(score / _length(mask, score), pairs) - gamma
    return Values(values=-pair_weights * logsigmoid(margin), metrics=_metrics(score, mask, pairs))


def cal_dpo(
    logprobs: Tokens,
    reference_logprobs: Tokens,
    mask: Mask,
    pairs: Pairs,
    pair_weights: Weights,
    *,
    beta: Beta = 0.1,
) -> Values:
    """Calibrated DPO: the preference plus a pull of both implicit rewards to +-1 / (2 * beta).

    values = w * (-log sigmoid(R_chosen - R_rejected) + (R_chosen - 1/(2 beta))**2 + (R_rejected + 1/(2 beta))**2)
    """
    reward = row_sum(logprobs - reference_logprobs, mask)
    chosen, rejected = reward[pairs[:, 0]], reward[pairs[:, 1]]
    calibration = (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()
    values = pair_weights * (calibration - logsigmoid(chosen - rejected))
    return Values(values=values, metrics=_metrics(reward, mask, pairs))


def kto(
    logprobs: Tokens,
    reference_logprobs: Tokens,
    rewards: Float[Tensor, " batch"],
    mask: Mask,
    *,
    beta: Beta = 0.1,
    reference_point: Annotated[float, Domain("[0, inf)", "implicit reward that is neither good nor bad", "nats")] = 0.0,
    weight_right: Annotated[float, Domain("[0, inf)", "weight of right rollouts")] = 1.0,
    weight_wrong: Annotated[float, Domain("[0, inf)", "weight of wrong rollouts")] = 1.0,
) -> Values:
    """Kahneman-Tversky optimization: single rollouts, right or wrong, against a reference point.

    values = weight * (1 - sigmoid(h)),   h = beta * (R - z) on right rollouts, beta * (z - R) on wrong

    z is ``reference_point``; it is a number and not a mean over the batch, so that no value depends on other rows.
    The source estimates z = max(0, mean R over mismatched prompts and answers); pass such an estimate per step.

    Returns:
        One value per rollout in [0, weight]. Metrics: ``implicit_reward`` (nats).
    """
    reward = row_sum(logprobs - reference_logprobs, mask)
    right = rewards > 0
    lead = torch.where(right, reward - reference_point, reference_point - reward)
    weight = torch.where(right, torch.full_like(reward, weight_right), torch.full_like(reward, weight_wrong))
    return Values(values=weight * torch.sigmoid(-beta * lead), metrics={"implicit_reward": reward.detach()})


def _gap(rows: Tensor, pairs: Pairs) -> Tensor:
    return rows[pairs[:, 0]] - rows[pairs[:, 1]]


def _length(mask: Mask, like: Tensor) -> Tensor:
    return row_length(mask).to(like.dtype)


def _smoothed(margin: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def _metrics(score: Tensor, mask: Mask, pairs: Pairs) -> dict[str, Tensor]:
    """Both margins, accuracy and both lengths, from summed scores."""
    score = score.detach()
    length = _length(mask, score)
    margin = _gap(score, pairs)
    return {
        "margin_sum": margin,
        "margin_mean": _gap(score / length, pairs),
        "accuracy": (margin > 0).to(score.dtype),
        "length_chosen": length[pairs[:, 0]],
        "length_rejected": length[pairs[:, 1]],
    }


ROWS = (
    Objective(
        name="dpo", function=dpo, unit="pair", normalizer="sequence", linear=False, status="PUBLISHED",
        source="arXiv 2305.18290", formula="-log sigmoid(beta * (R_w - R_l))",
        deviations="label_smoothing is an addition, off by default",
    ),
    Objective(
        name="dpo_norm", function=dpo_norm, unit="pair", normalizer="sequence", linear=False, status="PUBLISHED",
        source="code allenai/open-instruct", formula="-log sigmoid(beta * (R_w / T_w - R_l / T_l))",
    ),
    Objective(
        name="ipo", function=ipo, unit="pair", normalizer="sequence", linear=False, status="TO CHECK",
        source="arXiv 2310.12036; means equal TRL 1.16 (tested)", formula="(R_w - R_l - 1 / (2 * beta))**2",
        deviations="sums by default; TRL takes means (length_norm) and says that the paper's results did too",
    ),
    Objective(
        name="simpo", function=simpo, unit="pair", normalizer="sequence", linear=False, status="TO CHECK",
        source="arXiv 2405.14734; equal to TRL 1.16 (tested)", formula="-log sigmoid(beta * (S_w / T_w - S_l / T_l) - gamma)",
    ),
    Objective(
        name="kto", function=kto, unit="sequence", normalizer="sequence", linear=False, status="TO CHECK",
        source="arXiv 2402.01306; equal to TRL 1.16 at the same z (tested)", formula="w * (1 - sigmoid(+-beta * (R - z)))",
        deviations="the reference point z is a setting, 0 unless given, not estimated from mismatched rows",
    ),
    Objective(
        name="cal_dpo", function=cal_dpo, unit="pair", normalizer="sequence", linear=False, status="TO CHECK",
        source="arXiv 2412.14516",
        formula="-log sigmoid(R_w - R_l) + (R_w - 1 / (2 * beta))**2 + (R_l + 1 / (2 * beta))**2",
    ),
)  # fmt: skip
