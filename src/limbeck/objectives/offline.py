"""Objectives of one fixed rollout set: likelihood, its reward-weighted forms, and offline GRPO.

Rejection-sampling fine-tuning is not here: it is a selection of rollouts followed by ``sft``.
``s`` is ``logprobs``, ``p = exp(s)``, ``sg`` stops the gradient. The study they come from writes sums per sequence and
no reduction; the normalizers recorded here are our reading except where the row says otherwise.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.objectives.estimators import k3
from limbeck.objectives.signature import Domain
from limbeck.objectives.sums import per_token, row_length, row_sum
from limbeck.types import Objective, Values

Tokens = Float[Tensor, "batch time"]
Rows = Float[Tensor, " batch"]
WrongReward = Annotated[float, Domain("(-inf, inf)", "reward of a rollout that was graded 0", "reward")]


def sft(logprobs: Tokens) -> Values:
    """Supervised fine-tuning: cross-entropy on every rollout, right or wrong.

    values = -s

    Returns:
        One value per token, nats; its own ``nll``.

    >>> sft(torch.tensor([[0.5, 0.25]]).log()).values.exp()
    tensor([[2., 4.]])
    """
    return Values(values=-logprobs, metrics={"nll": -logprobs.detach()})


def dft(logprobs: Tokens) -> Values:
    """Dynamic fine-tuning: cross-entropy with each token weighted by the student's own belief in it.

    values = -sg(p) * s

    Against ``sft``: gradient times p, so what the student finds unlikely barely pulls (law:
    ``test_dft_gradient_is_p_times_sft``). Values are 10 to 1000 times smaller by design; compare arms on ``nll``.

    Returns:
        One value per token, nats. Metrics: ``nll`` (nats), ``probability`` (fraction).

    >>> out = dft(torch.tensor([[0.5, 0.25]]).log())     # 0.5 * ln 2 and 0.25 * ln 4 agree
    >>> [round(v, 4) for v in out.values[0].tolist()]
    [0.3466, 0.3466]
    """
    probability = logprobs.exp().detach()
    return Values(values=-probability * logprobs, metrics={"nll": -logprobs.detach(), "probability": probability})


def rift_paper_printed(
    logprobs: Tokens,
    rewards: Rows,
    *,
    lam: Annotated[float, Domain("(-inf, inf)", "the paper's lambda: how much a reward lowers a rollout's weight")],
) -> Values:
    """Reward-informed fine-tuning as the study prints it; for replication only.

    values = (1 - lam * rewards) * -s

    For any lam > 0 wrong rollouts weigh more than right ones, the reverse of the intent (law:
    ``test_paper_printed_rift_weighs_wrong_rollouts_more``).
    """
    weight = 1 - lam * rewards
    return Values(values=-per_token(weight, logprobs) * logprobs, metrics={"nll": -logprobs.detach()})


def rift_reward_weighted(logprobs: Tokens, rewards: Rows, *, wrong_reward: WrongReward = -0.2) -> Values:
    """Reward-informed fine-tuning: cross-entropy weighted by the reward; unbounded below on negatives.

    values = -r * s,   r = wrong_reward where rewards is 0, else rewards
    """
    reward = _graded(rewards, wrong_reward)
    return Values(values=-per_token(reward, logprobs) * logprobs, metrics={"nll": -logprobs.detach()})


def rift_source(
    logprobs: Tokens,
    rewards: Rows,
    mask: Tensor,
    *,
    wrong_reward: WrongReward = -0.2,
    length_norm: Annotated[bool, Domain("", "mean instead of summed log-probs, so that exp does not underflow")] = True,
) -> Values:
    """Reward-informed fine-tuning of the original paper: log-probability on right, probability on wrong rollouts.

    values = -r * S where r > 0,  -r * exp(S) where r < 0;   S = sum of s, or its mean (``length_norm``)

    A negative's value lies in [0, |r|]. Summed, exp(S) underflows and negatives give no gradient: 1000 tokens at
    -0.3 nats are 5e-131. Metrics: ``score`` (S, nats).
    """
    score = row_sum(logprobs, mask)
    if length_norm:
        score = score / row_length(mask).to(score.dtype)
    reward = _graded(rewards, wrong_reward)
    # The branch not taken must stay finite: exp of a positive score cannot occur, log-probs are at most 0.
    values = torch.where(reward > 0, -reward * score, -reward * score.exp())
    return Values(values=values, metrics={"score": score.detach()})


def rift_source_token(logprobs: Tokens, rewards: Rows, *, wrong_reward: WrongReward = -0.2) -> Values:
    """The original reward-informed fine-tuning applied per token: log p on right, p on wrong rollouts.

    values = -r * s where r > 0,  -r * p where r < 0
    """
    reward = per_token(_graded(rewards, wrong_reward), logprobs)
    values = torch.where(reward > 0, -reward * logprobs, -reward * logprobs.exp())
    return Values(values=values, metrics={"nll": -logprobs.detach()})


def offline_grpo_advantage_nll(logprobs: Tokens, advantages: Tokens) -> Values:
    """Offline GRPO as the study writes it: cross-entropy weighted by the advantage.

    values = -advantages * s

    No deviation, ratio, clip or KL; unbounded below where the advantage is negative.
    """
    return Values(values=-advantages * logprobs, metrics={"nll": -logprobs.detach()})


def offline_grpo_krafton(
    logprobs: Tokens,
    reference_logprobs: Tokens,
    advantages: Tokens,
    entropy: Tokens,
    *,
    beta_kl: Annotated[float, Domain("[0, inf)", "weight of the k3 penalty to the reference")] = 0.2,
    entropy_bonus: Annotated[float, Domain("[0, inf)", "weight of the student's entropy, read as a bonus")] = 0.001,
) -> Values:
    """Offline GRPO of krafton-ai/Offline-GRPO: the token's probability instead of its logarithm.

    values = -advantages * p + beta_kl * k3(s, reference) - entropy_bonus * entropy

    Against ``dft``: with advantage 1 and no penalties the gradients are equal (law:
    ``test_dft_and_krafton_descend_probability``). Offline, k3 is a penalty and no estimate of a KL.
    Metrics: ``nll``, ``reference_k3`` (nats).
    """
    penalty = k3(logprobs, reference_logprobs)
    values = -advantages * logprobs.exp() + beta_kl * penalty - entropy_bonus * entropy
    return Values(values=values, metrics={"nll": -logprobs.detach(), "reference_k3": penalty.detach()})


def _graded(rewards: Rows, wrong_reward: float) -> Rows:
    """Rewards with 0, a grader's word for wrong, replaced; rewards that are already signed stay as they are."""
    return torch.where(rewards == 0, wrong_reward, rewards)


STUDY = "arXiv 2606.23740"
ROWS = (
    Objective(
        name="sft", function=sft, unit="token", normalizer="token", linear=True, status="PUBLISHED", source=STUDY,
        formula="-s", deviations="the study writes sums per sequence and no reduction; token is our reading",
    ),
    Objective(
        name="dft", function=dft, unit="token", normalizer="token", linear=False, status="PUBLISHED",
        source="arXiv 2508.05629; code yongliang-wu/DFT", formula="-sg(p) * s",
        deviations="none; the study's prose says that it down-weights confident tokens, the formula does the reverse",
    ),
    Objective(
        name="rift:paper-printed", function=rift_paper_printed, unit="token", normalizer="token", linear=True,
        status="PUBLISHED, unreliable", source=STUDY, formula="(1 - lam * r) * -s",
        deviations="lam must be given; normalizer is our reading",
    ),
    Objective(
        name="rift:reward-weighted", function=rift_reward_weighted, unit="token", normalizer="token", linear=True,
        status="SECONDARY", source=f"companion page of {STUDY}", formula="-r * s",
        deviations="normalizer is our reading",
    ),
    Objective(
        name="rift:source", function=rift_source, unit="sequence", normalizer="sequence", linear=False,
        status="SECONDARY", source="arXiv 2601.09253", formula="r > 0: -r * S;  r < 0: -r * exp(S)",
        deviations="length_norm is our reading and on by default; one joint denominator for both signs",
    ),
    Objective(
        name="rift:source-token", function=rift_source_token, unit="token", normalizer="token", linear=False,
        status="OUR READING", source="arXiv 2601.09253", formula="r > 0: -r * s;  r < 0: -r * p",
        deviations="per token instead of per sequence, against underflow",
    ),
    Objective(
        name="offline_grpo:advantage-nll", function=offline_grpo_advantage_nll, unit="token", normalizer="token",
        linear=True, status="PUBLISHED", source=STUDY, formula="-A * s", credit="centred_bias",
        deviations="normalizer is our reading",
    ),
    Objective(
        name="offline_grpo:krafton", function=offline_grpo_krafton, unit="token", normalizer="constant", linear=False,
        status="PUBLISHED", source="code krafton-ai/Offline-GRPO", credit="krafton",
        formula="-A * p + beta_kl * k3(s, f) - entropy_bonus * H", deviations="sign of the entropy term is our reading",
    ),
)  # fmt: skip
