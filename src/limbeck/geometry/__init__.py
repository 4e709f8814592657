"""Two checkpoints in, numbers out: what training did to the weights, each number beside what chance scores.

LoRA updates are measured from their factors and never formed. Start at :func:`limbeck.geometry.suite.measure`;
:data:`METRICS` says what every name in its table means. Nothing here imports training code or a model.
"""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """A row of ``METRICS``: how a number reads, what it needs, what chance is, where it comes from."""

    unit: str
    inputs: str
    null: str
    source: str
    meaning: str


_FACTORS, _PAIR = "factors", "factors of two arms"
_DIRECTIONS = "Bjoerck and Golub 1973; k = 10 in arXiv 2606.23740"
_RENYI = "Renyi entropies of the spectrum"

METRICS: dict[str, Metric] = {
    "frobenius_norm": Metric("weight", _FACTORS, "none: a scale", "standard", "length of the update"),
    "cosine": Metric(
        "none", _PAIR, "N-ROT", "arXiv 2606.23740", "whether two updates point the same way, stacked as one vector"
    ),
    "orthogonal_norm_fraction": Metric(
        "fraction", _PAIR, "N-ROT", "arXiv 2606.23740", "norm of the part of an update that the other does not explain"
    ),
    "orthogonal_energy_fraction": Metric(
        "fraction", _PAIR, "N-ROT", "square of orthogonal_norm_fraction", "the same as a share of the squared norm"
    ),
    "sign_agreement": Metric(
        "fraction", _PAIR, "arcsine law at the cosine", "standard", "share of joint entries with equal sign"
    ),
    "sign_agreement_weighted": Metric(
        "fraction", _PAIR, "arcsine law at the cosine", "standard", "the same with entries weighted by |x*y|"
    ),
    "principal_angle_smallest": Metric(
        "degree", _PAIR, "N-ISO left, N-ROW right", _DIRECTIONS, "smallest of k angles between leading subspaces"
    ),
    "principal_angle_median": Metric(
        "degree", _PAIR, "N-ISO left, N-ROW right", _DIRECTIONS, "median of k angles between leading subspaces"
    ),
    "principal_angle_largest": Metric(
        "degree", _PAIR, "N-ISO left, N-ROW right", _DIRECTIONS, "largest of k angles; near 90 for any unrelated pair"
    ),
    "mean_cos2": Metric(
        "none", _PAIR, "N-ISO left (k/out), N-ROW right", "arXiv 2606.07082 as sim_K", "overlap of leading subspaces"
    ),
    "leading_overlap": Metric(
        "none", _PAIR, "N-ISO left, N-ROW right", "arXiv 2606.23740", "|<u1, u1'>| (left) or |<v1, v1'>| (right)"
    ),
    "stable_rank": Metric("rank", _FACTORS, "N-ISO", _RENYI, "squared norm over the largest squared singular value"),
    "participation": Metric("rank", _FACTORS, "N-ISO", _RENYI, "how many equal directions would be as spread"),
    "erank_energy": Metric("rank", _FACTORS, "N-ISO", _RENYI, "exponential of the entropy of the energies"),
    "erank": Metric("rank", _FACTORS, "N-ISO", "Roy and Vetterli 2007", "exponential of the entropy of the values"),
    "topk_energy": Metric("fraction", _FACTORS, "N-ISO", "standard", "share of energy in the k largest directions"),
    "hill": Metric("exponent", _FACTORS, "N-ISO", "Hill 1975", "tail exponent of the k largest singular values"),
    "barrier": Metric(
        "nat/token or fraction",
        "losses per item on a path",
        "barrier between two seeds of one loss",
        "arXiv 2606.23740; chord form",
        "excess over the chord between two ends, at the midpoint or at its maximum",
    ),
    "cka": Metric(
        "none",
        "hidden states of two models on one text",
        "row shuffle",
        "Kornblith 2019",
        "similarity, biased at small n",
    ),
    "cka_debiased": Metric(
        "none", "hidden states of two models on one text", "row shuffle", "Song 2012", "the same without that bias"
    ),
}

NULLS: dict[str, str] = {
    "N-ISO": "isotropic: unrelated directions at this shape (left side), or random factors of this shape (ranks)",
    "N-ROT": "each arm keeps its spectrum and right frame, the left frame is turned at random",
    "N-ROW": "each arm keeps its spectrum and row space, the right frame is redrawn inside it",
    "arcsine": "sign agreement of Gaussian updates with the measured cosine",
    "row-shuffle": "states of one model paired with those of other items",
}

REASONS: dict[str, str] = {
    "zero_norm": "an update is zero, so it has no direction and no spectrum",
    "rank_lt_k": "an update has fewer than k directions",
    "k_gt_dim": "k is larger than the matrix",
    "flat_spectrum": "the k leading singular values are equal, so they have no tail",
    "empty_mask": "no entry of both updates is non-zero",
    "too_few_items": "too few items for the statistic",
    "init_mismatch": "the arms started from different factors, so this compares starting points rather than training",
    "init_unknown": "caveat: an adapter does not say which factors it started from",
    "gap_ratio": "caveat: neighbouring singular values are so close that the leading frame is arbitrary (overlap: NaN)",
    "k_over_eighth": "caveat: k is over an eighth of the matrix, where chance overlap is large",
}
