"""Full checkpoints in, numbers out: streamed matrix by matrix, each number with a null and a label of how exact it is.

Start at :func:`limbeck.geometry.dense.suite.measure`. :data:`DENSE_METRICS` says what the names mean that whole weights add to
those of :data:`limbeck.geometry.METRICS`.
"""

from __future__ import annotations

from limbeck.geometry import Metric

_PAIR, _STORED = "base and tuned weights", "stored codes of base and tuned"
_ROTATION = "Bjoerck and Golub 1973; arXiv 2511.08567, 2606.07082 (k = 512)"

DENSE_METRICS: dict[str, Metric] = {
    "relative_norm": Metric("fraction", _PAIR, "none: a scale", "standard", "length of the update over that of the base"),
    "energy_share": Metric(
        "fraction", _PAIR, "N-ISO (share of entries)", "standard", "share of the whole update's squared norm that lies here"
    ),
    "sparsity_visible": Metric(
        "fraction", _STORED, "N-ROUND at equal norm", "arXiv 2511.08567, 2606.07082", "share of entries with the same 16-bit code"
    ),
    "sparsity_abs": Metric(
        "fraction", _PAIR, "N-ROUND at equal norm", "arXiv 2505.11711", "share within 10**-k of the base; k = 0: exactly equal"
    ),
    "sparsity_rel": Metric(
        "fraction", _PAIR, "N-ROUND at equal norm", "this project", "share within 10**-k times the base's root mean square"
    ),
    "density_gini": Metric(
        "none", _STORED, "N-PERM", "standard", "how unevenly changed entries spread over rows (left) or columns (right)"
    ),
    "mask_overlap_low": Metric(
        "fraction", _STORED, "N-ROUND at equal density", "arXiv 2511.08567, 2606.07082",
        "share of the changed entries that are among the 30 % smallest of the base",
    ),
    "mask_overlap_principal": Metric(
        "fraction", _STORED, "N-ROUND at equal density", "arXiv 2511.08567, 2606.07082",
        "share of the changed entries that are among the 30 % largest of the base's rank-64 reconstruction (at most an eighth)",
    ),
    "mask_energy_low": Metric("fraction", _PAIR, "N-ISO or N-ROUND", "this project", "share of its energy in the first mask"),
    "mask_energy_principal": Metric(
        "fraction", _PAIR, "N-ISO or N-ROUND", "this project", "share of its energy in the second mask"
    ),
    "mask_jaccard": Metric(
        "fraction", "stored codes of base and two tuned", "independent masks", "standard", "changed in both over in either"
    ),
    "nss": Metric(
        "fraction", _PAIR, "N-ISO", "arXiv 2511.08567", "distance of the spectra over the norm of the base; at most relative_norm"
    ),
    "spectrum_share": Metric(
        "fraction", _PAIR, "N-ISO (1/sqrt(max(m, n)))", "Mirsky 1960", "distance of the two spectra over the norm of the update"
    ),
    "base_angle_smallest": Metric("degree", _PAIR, "N-ISO", _ROTATION, "smallest angle between leading frames of base and tuned"),
    "base_angle_median": Metric("degree", _PAIR, "N-ISO", _ROTATION, "median of these angles"),
    "base_angle_largest": Metric("degree", _PAIR, "N-ISO", _ROTATION, "largest of these angles"),
    "base_mean_cos2": Metric("none", _PAIR, "N-ISO", _ROTATION, "mean squared cosine of these angles"),
    "principal_energy": Metric(
        "fraction", _PAIR, "N-ISO (k**2/(m n), ...)", "github SydCS/OPD-Param-Analysis",
        "share of the update's energy by (leading k, rest) of the base, output side first: PP, PQ, QP, QQ",
    ),
    "intruders": Metric(
        "count", _PAIR, "N-ISO", "arXiv 2410.21228", "leading 10 left vectors of the tuned matrix with no base vector within 0.5"
    ),
    "intruder_capture": Metric(
        "none", _PAIR, "N-ISO", "this project", "of those 10, the least that the base's leading 20 hold of one"
    ),
}  # fmt: skip

DENSE_NULLS: dict[str, str] = {
    "N-ISO": "an isotropic update of equal norm, rounded as the checkpoint is stored; or its closed form",
    "N-ISO-KIND": "the same, drawn in one block's matrix of this kind and shape, at that matrix's norm",
    "N-ROUND": "each entry moved by a Gaussian step and rounded, on the base's real magnitudes; closed form",
    "N-PERM": "the changed entries, anywhere in the matrix",
    "independent": "two masks of the observed densities that know nothing of each other",
}

DENSE_REASONS: dict[str, str] = {
    "spectrum_truncated": "needs every singular value, and only the leading ones were computed",
    "zero_base": "the base weight is zero, so nothing is relative to it",
    "beyond_frame": "caveat: a leading vector lies outside the base's kept frame; a base vector further down may resemble it",
}
