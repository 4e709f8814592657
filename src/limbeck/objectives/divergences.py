"""Divergences between the student's and the teacher's whole next-token distribution, one position at a time.

Every direction has its own name, and no knob changes it. Logits come in any leading shape, (batch, time, vocab) or a
chunk of (tokens, vocab): a position's value depends on nothing but that position. They are widened before softmax on
both sides. An id whose logit is -inf on both sides is unused and changes nothing.

P is the student, Q the teacher. Nothing is clamped: a value below -1e-6 is reported in ``negative``.
"""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.objectives.signature import Domain
from limbeck.types import Objective, Values

Logits = Float[Tensor, "*tokens vocab"]
LogProbs = Float[Tensor, "*tokens vocab"]
Cells = Float[Tensor, "*tokens"]
Tau = Annotated[float, Domain("(0, inf)", "divides both sides' logits in the divergence, not in sampling")]
TauSquared = Annotated[bool, Domain("", "multiply by kd_temperature**2, which undoes the shrinking of the gradient")]
Share = Annotated[
    float, Domain("(0, 1)", "teacher's share of the mixture; for 0 use forward_kl, for 1 use reverse_kl", "fraction")
]
Skew = Annotated[
    float, Domain("[0, 1)", "share of the first distribution in the second; 0 is the plain KL", "fraction")
]
TopK = Annotated[int, Domain("[1, inf)", "ids kept on each side; the rest is one cell", "ids")]

UNUSED = -1e30  # log-prob of an unused id: exp gives 0, differences of two give 0, and no gradient meets an infinity
NEGATIVE = -1e-6  # nats; rounding stays above


class Pair(NamedTuple):
    """Log-probs of student and teacher over the same cells, and what multiplies the divergence."""

    student: LogProbs
    teacher: LogProbs
    factor: float


def log_softmax(logits: Logits, kd_temperature: float = 1.0) -> LogProbs:
    """Log-probs in float32 or wider, ``UNUSED`` where the logit is -inf."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return (wide / kd_temperature).log_softmax(-1).masked_fill(torch.isneginf(wide), UNUSED)


def kl(first: LogProbs, second: LogProbs) -> Cells:
    """KL(first||second) of log-probs, summed over cells, nats."""
    return (first.exp() * (first - second)).sum(-1)


def mixture(first: LogProbs, second: LogProbs, share: float) -> LogProbs:
    """Log of share * first + (1 - share) * second; share in [0, 1)."""
    return second if share == 0 else torch.logaddexp(first + math.log(share), second + math.log1p(-share))


def reverse_kl(
    logits: Logits, teacher_logits: Logits, *, kd_temperature: Tau = 1.0, tau_squared: TauSquared = False
) -> Values:
    """KL(student||teacher): what the student puts its weight on must be likely for the teacher.

    values = sum over v of P * (log P - log Q)

    Returns:
        One value per position, nats, at least 0 up to rounding.

    >>> p, q = torch.tensor([[0.8, 0.15, 0.05]]).log(), torch.tensor([[0.3, 0.3, 0.4]]).log()
    >>> round(reverse_kl(p, q).values.item(), 4), round(forward_kl(p, q).values.item(), 4)
    (0.5767, 0.7455)
    """
    pair = _pair(logits, teacher_logits, kd_temperature, tau_squared)
    return _values(kl(pair.student, pair.teacher), pair)


def forward_kl(
    logits: Logits, teacher_logits: Logits, *, kd_temperature: Tau = 1.0, tau_squared: TauSquared = False
) -> Values:
    """KL(teacher||student): what the teacher finds likely must be likely for the student.

    values = sum over v of Q * (log Q - log P)

    The teacher's entropy is kept, so that equality gives 0. Metrics: ``cross_entropy`` and ``teacher_entropy`` (nats),
    whose difference is the value before ``tau_squared``.
    """
    pair = _pair(logits, teacher_logits, kd_temperature, tau_squared)
    teacher = pair.teacher.exp()
    out = _values(kl(pair.teacher, pair.student), pair)
    cross = -(teacher * pair.student.detach()).sum(-1)
    entropy = -(teacher * pair.teacher).sum(-1)
    return Values(values=out.values, metrics={**out.metrics, "cross_entropy": cross, "teacher_entropy": entropy})


def jsd(
    logits: Logits,
    teacher_logits: Logits,
    *,
    beta: Share = 0.5,
    kd_temperature: Tau = 1.0,
    tau_squared: TauSquared = False,
) -> Values:
    """Generalized Jensen-Shannon divergence; beta moves its size far more than its direction.

    values = beta * KL(Q||M) + (1 - beta) * KL(P||M),   M = beta * Q + (1 - beta) * P

    It tends to 0 at both ends, so beta 0 and 1 are refused instead of standing for a KL (law: ``test_jsd_limits``).
    """
    pair = _pair(logits, teacher_logits, kd_temperature, tau_squared)
    return _values(_jsd(pair, beta), pair)


def jsd_rescaled(
    logits: Logits,
    teacher_logits: Logits,
    *,
    beta: Share = 0.5,
    kd_temperature: Tau = 1.0,
    tau_squared: TauSquared = False,
) -> Values:
    """``jsd`` over beta * (1 - beta): tends to forward KL at beta -> 0 and to reverse KL at beta -> 1."""
    pair = _pair(logits, teacher_logits, kd_temperature, tau_squared)
    return _values(_jsd(pair, beta) / (beta * (1 - beta)), pair)


def skew_forward(
    logits: Logits,
    teacher_logits: Logits,
    *,
    skew: Skew = 0.1,
    kd_temperature: Tau = 1.0,
    tau_squared: TauSquared = False,
) -> Values:
    """KL(Q || skew * Q + (1 - skew) * P): forward KL that stays finite where the student is blind."""
    pair = _pair(logits, teacher_logits, kd_temperature, tau_squared)
    return _values(kl(pair.teacher, mixture(pair.teacher, pair.student, skew)), pair)


def skew_reverse(
    logits: Logits,
    teacher_logits: Logits,
    *,
    skew: Skew = 0.1,
    kd_temperature: Tau = 1.0,
    tau_squared: TauSquared = False,
) -> Values:
    """KL(P || skew * P + (1 - skew) * Q): reverse KL that stays finite where the teacher is blind."""
    pair = _pair(logits, teacher_logits, kd_temperature, tau_squared)
    return _values(kl(pair.student, mixture(pair.student, pair.teacher, skew)), pair)


def forward_kl_topk_tail(
    logits: Logits, teacher_logits: Logits, *, k: TopK = 64, kd_temperature: Tau = 1.0, tau_squared: TauSquared = False
) -> Values:
    """``forward_kl`` on the teacher's k likeliest ids and one cell for all others.

    At least 0, at most the full value, not falling in k, and exact at k = vocab - 1 (law: ``test_tail_bucket``).
    Metrics: ``student_mass_topk``, ``teacher_mass_topk`` (fraction).
    """
    pair = _pair(logits, teacher_logits, kd_temperature, tau_squared)
    return _coarse(pair, _top(pair.teacher, k), lambda cells: kl(cells.teacher, cells.student))


def reverse_kl_topk_tail(
    logits: Logits, teacher_logits: Logits, *, k: TopK = 64, kd_temperature: Tau = 1.0, tau_squared: TauSquared = False
) -> Values:
    """``reverse_kl`` on the union of both sides' k likeliest ids and one cell for the rest; membership is detached."""
    pair = _pair(logits, teacher_logits, kd_temperature, tau_squared)
    member = _top(pair.teacher, k) | _top(pair.student, k)
    return _coarse(pair, member, lambda cells: kl(cells.student, cells.teacher))


def jsd_topk_tail(
    logits: Logits,
    teacher_logits: Logits,
    *,
    k: TopK = 64,
    beta: Share = 0.5,
    kd_temperature: Tau = 1.0,
    tau_squared: TauSquared = False,
) -> Values:
    """``jsd`` on the union of both sides' k likeliest ids and one cell for the rest; membership is detached."""
    pair = _pair(logits, teacher_logits, kd_temperature, tau_squared)
    member = _top(pair.teacher, k) | _top(pair.student, k)
    return _coarse(pair, member, lambda cells: _jsd(cells, beta))


def _pair(logits: Tensor, teacher_logits: Tensor, kd_temperature: float, tau_squared: bool) -> Pair:
    factor = kd_temperature * kd_temperature if tau_squared else 1.0
    student = log_softmax(logits, kd_temperature)
    return Pair(student, log_softmax(teacher_logits.detach(), kd_temperature).to(student.dtype), factor)


def _values(divergence: Tensor, pair: Pair) -> Values:
    negative = (divergence.detach() < NEGATIVE).to(divergence.dtype)
    return Values(values=pair.factor * divergence, metrics={"negative": negative})


def _jsd(pair: Pair, beta: float) -> Tensor:
    middle = mixture(pair.teacher, pair.student, beta)
    return beta * kl(pair.teacher, middle) + (1 - beta) * kl(pair.student, middle)


def _top(logprobs: Tensor, k: int) -> Bool[Tensor, "*tokens vocab"]:
    ids = logprobs.detach().topk(min(k, logprobs.shape[-1])).indices
    return torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, ids, True)


def _cells(logprobs: Tensor, member: Tensor) -> Tensor:
    """Members as they are and everything else in one last cell."""
    kept = logprobs.masked_fill(~member, UNUSED)
    tail = logprobs.masked_fill(member, UNUSED).logsumexp(-1, keepdim=True)
    return torch.cat([kept, tail], dim=-1)


def _coarse(pair: Pair, member: Tensor, divergence: Callable[[Pair], Tensor]) -> Values:
    cells = Pair(_cells(pair.student, member), _cells(pair.teacher, member), pair.factor)
    out = _values(divergence(cells), pair)
    mass = {
        "student_mass_topk": 1 - cells.student.detach()[..., -1].exp(),
        "teacher_mass_topk": 1 - cells.teacher[..., -1].exp(),
    }
    return Values(values=out.values, metrics={**out.metrics, **mass})


GKD = "arXiv 2306.13649; code huggingface/trl"
TAIL = "code huggingface/trl, server distillation"
ROWS = (
    Objective(
        name="reverse_kl", function=reverse_kl, unit="token", normalizer="token", linear=False, status="PUBLISHED",
        source=GKD, formula="sum_v P * (log P - log Q)",
    ),
    Objective(
        name="forward_kl", function=forward_kl, unit="token", normalizer="token", linear=False, status="PUBLISHED",
        source=GKD, formula="sum_v Q * (log Q - log P)",
    ),
    Objective(
        name="jsd", function=jsd, unit="token", normalizer="token", linear=False, status="PUBLISHED", source=GKD,
        formula="beta * KL(Q||M) + (1 - beta) * KL(P||M),  M = beta * Q + (1 - beta) * P",
        deviations="beta 0 and 1, which the code reads as named KLs, are refused",
    ),
    Objective(
        name="jsd_rescaled", function=jsd_rescaled, unit="token", normalizer="token", linear=False,
        status="OUR READING", source="this project", formula="jsd / (beta * (1 - beta))",
    ),
    Objective(
        name="skew_forward", function=skew_forward, unit="token", normalizer="token", linear=False, status="TO CHECK",
        source="arXiv 2402.03898 (DistiLLM)", formula="KL(Q || skew * Q + (1 - skew) * P)",
    ),
    Objective(
        name="skew_reverse", function=skew_reverse, unit="token", normalizer="token", linear=False, status="TO CHECK",
        source="arXiv 2402.03898 (DistiLLM)", formula="KL(P || skew * P + (1 - skew) * Q)",
    ),
    Objective(
        name="forward_kl_topk_tail", function=forward_kl_topk_tail, unit="token", normalizer="token", linear=False,
        status="PUBLISHED", source=TAIL, formula="forward_kl on top-k ids and one tail cell",
        deviations="the teacher's tail is summed from its logits, where a server's top-k answer needs 1 - sum",
    ),
    Objective(
        name="reverse_kl_topk_tail", function=reverse_kl_topk_tail, unit="token", normalizer="token", linear=False,
        status="OUR READING", source=TAIL, formula="reverse_kl on top-k ids of both sides and one tail cell",
        deviations="more than one kept id is our extension",
    ),
    Objective(
        name="jsd_topk_tail", function=jsd_topk_tail, unit="token", normalizer="token", linear=False,
        status="OUR READING", source=TAIL, formula="jsd on top-k ids of both sides and one tail cell",
        deviations="our extension",
    ),
    Objective(
        name="opd_full", function=reverse_kl, unit="token", normalizer="token", linear=False, status="PUBLISHED",
        source="code thinking-machines-lab/tinker-cookbook", formula="reverse_kl at every visited position",
        deviations="back-propagated over the full vocabulary; the same expectation as opd, less noise",
    ),
)  # fmt: skip
