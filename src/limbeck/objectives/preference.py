"""Preference objectives: a chosen and a rejected rollout of one problem, compared by implicit reward.

R = sum over live tokens of (s - f) with f = ``reference_logprobs``, the untouched base. Pairs are row indices, so the
order of rows means nothing; ``pair_weights`` scale values and never enter a divisor.
"""

from typing import Annotated

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


def _gap(rows: Tensor, pairs: Pairs) -> Tensor:
    return rows[pairs[:, 0]] - rows[pairs[:, 1]]


def _smoothed(margin: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def _metrics(score: Tensor, mask: Mask, pairs: Pairs) -> dict[str, Tensor]:
    """Both margins, accuracy and both lengths, from summed scores."""
    score, length = score.detach(), row_length(mask).to(score.dtype)
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
    ),
)  # fmt: skip
