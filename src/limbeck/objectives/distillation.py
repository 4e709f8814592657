"""On-policy distillation from the log-prob that a teacher gives to the token the student sampled.

d = q - sg(s) with q = ``teacher_logprobs``: positive where the teacher likes the token more. The expected gradient on
the student's own samples is that of the exact KL(student||teacher), because sum_v P_v grad log P_v = 0; with the
current s in d it stays exact on stale rollouts, with a snapshot's it does not (law: ``test_opd_expects_reverse_kl``).
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.objectives.estimators import k2, k3, k3_plus
from limbeck.objectives.policy import ratio
from limbeck.objectives.signature import Domain
from limbeck.types import Objective, Values

Tokens = Float[Tensor, "*tokens"]
Rows = Float[Tensor, "batch time"]
Mask = Bool[Tensor, "batch time"]
Gamma = Annotated[float, Domain("[0, 1]", "discount of later tokens' advantages; 0 looks at this token alone")]
DSource = Annotated[
    Literal["current", "snapshot"],
    Domain("", "whose log-prob the teacher's is compared with: today's or the snapshot's"),
]


def preference(logprobs: Tokens, old_logprobs: Tokens, teacher_logprobs: Tokens, d_source: str = "current") -> Tokens:
    """d = teacher minus student log-prob of the sampled token, detached, nats."""
    own = logprobs if d_source == "current" else old_logprobs
    return (teacher_logprobs - own).detach()


def opd(
    logprobs: Rows,
    old_logprobs: Rows,
    teacher_logprobs: Rows,
    *,
    kappa: Annotated[float, Domain("(0, inf)", "weight of the teacher's preference")] = 1.0,
    gamma: Gamma = 0.0,
    d_source: DSource = "current",
) -> Values:
    """On-policy distillation: the teacher's preference for the sampled token as its advantage; no reward, no baseline.

    values = -u * A,   A = kappa * (q - sg(s)),   u = exp(s - o)

    Returns:
        One value per token. Metrics: ``teacher_k1``, ``teacher_k3`` (nats), two estimates of KL(student||teacher).
    """
    advantages = kappa * preference(logprobs, old_logprobs, teacher_logprobs, d_source)
    return _advantage_values(logprobs, old_logprobs, teacher_logprobs, to_go(advantages, gamma))


def gopd(
    logprobs: Tokens,
    old_logprobs: Tokens,
    reference_logprobs: Tokens,
    teacher_logprobs: Tokens,
    *,
    lam: Annotated[float, Domain("[0, inf)", "step from reference to teacher; 1 is opd, above 1 goes beyond")] = 1.25,
) -> Values:
    """Generalized on-policy distillation: imitate a point on the line from the reference through the teacher.

    values = -u * A,   A = lam * (q - f) - (sg(s) - f)

    The optimum at each state is proportional to F * (Q / F)**lam. lam 1 ignores the reference, lam 0 the teacher.
    """
    advantages = lam * (teacher_logprobs - reference_logprobs) - (logprobs.detach() - reference_logprobs)
    return _advantage_values(logprobs, old_logprobs, teacher_logprobs, advantages)


def minillm(
    logprobs: Rows,
    old_logprobs: Rows,
    teacher_logprobs: Rows,
    advantages: Rows,
    mask: Mask,
    *,
    gamma: Gamma = 1.0,
    length_norm: Annotated[bool, Domain("", "divide the sum of what is to come by the sum of its discounts")] = False,
    first: Annotated[
        Literal["this", "next"],
        Domain("", "where the sum starts; next leaves this token to a reverse_kl beside it"),
    ] = "this",
) -> Values:
    """Sequence-level on-policy distillation: each token is credited with the preferences that follow it, and the reward.

    values = -u * (G + A),   G_t = sum over k >= t of gamma**(k - t) * d_k

    With gamma 1 and no length norm the expected gradient is that of the exact sequence-level KL(student||teacher);
    so it is with ``first = "next"`` plus ``reverse_kl`` at each position, while adding that to ``first = "this"``
    counts each token twice (law: ``test_minillm_is_sequence_kl``).
    """
    d = torch.where(mask, preference(logprobs, old_logprobs, teacher_logprobs), 0.0)
    come = to_go(d, gamma)
    weight = to_go(mask.to(d.dtype), gamma)
    if first == "next":
        come, weight = come - d, weight - mask.to(d.dtype)
    if length_norm:
        come = torch.where(weight > 0, come / weight.clamp(min=1), 0.0)
    return _advantage_values(logprobs, old_logprobs, teacher_logprobs, come + advantages)


def reverse_kl_k2(logprobs: Tokens, old_logprobs: Tokens, teacher_logprobs: Tokens) -> Values:
    """KL(student||teacher) by back-propagation through sampled tokens: gradient exact in expectation, value biased.

    values = sg(u) * (s - q)**2 / 2
    """
    u = ratio(logprobs - old_logprobs).detach()
    return Values(values=u * k2(logprobs, teacher_logprobs), metrics=_estimates(logprobs, teacher_logprobs))


def reverse_kl_k3_plus(logprobs: Tokens, old_logprobs: Tokens, teacher_logprobs: Tokens) -> Values:
    """KL(student||teacher) from sampled tokens with the value of k3 and, straight through, the gradient of k2.

    values = sg(u) * k3_plus(s, q)
    """
    u = ratio(logprobs - old_logprobs).detach()
    return Values(values=u * k3_plus(logprobs, teacher_logprobs), metrics=_estimates(logprobs, teacher_logprobs))


def to_go(tokens: Rows, gamma: float) -> Rows:
    """Sum of this and all later tokens, discounted by gamma per step.

    >>> to_go(torch.tensor([[1.0, 2.0, 4.0]]), 0.5)
    tensor([[3., 4., 4.]])
    """
    if gamma == 0:
        return tokens
    if gamma == 1:
        return tokens.flip(-1).cumsum(-1).flip(-1)
    columns = list(tokens.unbind(-1))
    for t in range(len(columns) - 2, -1, -1):
        columns[t] = columns[t] + gamma * columns[t + 1]
    return torch.stack(columns, dim=-1)


def _advantage_values(logprobs: Tensor, old_logprobs: Tensor, teacher_logprobs: Tensor, advantages: Tensor) -> Values:
    u = ratio(logprobs - old_logprobs)
    metrics = {"ratio": u.detach(), **_estimates(logprobs, teacher_logprobs)}
    return Values(values=-u * advantages.detach(), metrics=metrics)


def _estimates(logprobs: Tensor, teacher_logprobs: Tensor) -> dict[str, Tensor]:
    own = logprobs.detach()
    return {"teacher_k1": own - teacher_logprobs, "teacher_k3": k3(own, teacher_logprobs)}


VERL = "code verl-project/verl"
ROWS = (
    Objective(
        name="opd", function=opd, unit="token", normalizer="token", linear=False, status="PUBLISHED",
        source="code thinking-machines-lab/tinker-cookbook, NVIDIA-NeMo/RL", formula="-u * kappa * (q - sg(s))",
        deviations="d from the current student, token normalizer; the code takes the sampler's and sums (to check)",
    ),
    Objective(
        name="gopd", function=gopd, unit="token", normalizer="token", linear=False, status="SECONDARY",
        source="arXiv 2602.12125", formula="-u * (lam * (q - f) - (sg(s) - f))",
    ),
    Objective(
        name="minillm", function=minillm, unit="token", normalizer="token", linear=False, status="PUBLISHED",
        source="arXiv 2306.08543; code huggingface/trl experimental", credit="zscore", formula="-u * (G + A)",
        deviations="compared with the code, the paper itself is to be checked",
    ),
    Objective(
        name="reverse_kl_k2", function=reverse_kl_k2, unit="token", normalizer="token", linear=False,
        status="PUBLISHED", source=VERL, formula="sg(u) * (s - q)**2 / 2",
        deviations="weighted by the ratio, so that stale rollouts stay exact; no clamp",
    ),
    Objective(
        name="reverse_kl_k3_plus", function=reverse_kl_k3_plus, unit="token", normalizer="token", linear=False,
        status="PUBLISHED", source=VERL, formula="sg(u) * (value of k3, gradient of k2)",
        deviations="weighted by the ratio, so that stale rollouts stay exact; no clamp",
    ),
)  # fmt: skip
