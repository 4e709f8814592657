"""A run's update along its way, from compact snapshots: no checkpoint is kept, and every later number comes from these.

:mod:`~limbeck.geometry.trajectory.snapshot` says what is kept of a matrix, :mod:`~limbeck.geometry.trajectory.store` where;
start at :func:`limbeck.geometry.trajectory.suite.measure`. Directions are cumulative: an early and a late update share
most of what they are whatever training does, so a similarity is read beside walks of the same increments alone.
"""

from __future__ import annotations

from limbeck.geometry import Metric

_SNAPSHOTS = "two snapshots of one run"

TRAJECTORY_METRICS: dict[str, Metric] = {
    "sim_k": Metric(
        "none", _SNAPSHOTS, "N-WALK, N-EXCH, N-EXCH-NORM", "arXiv 2606.07082 (right side, against the end)",
        "mean squared cosine of the k angles between leading frames of a step and of the end, or of the snapshot before",
    ),
    "increment_norm": Metric("weight", _SNAPSHOTS, "none: a scale", "standard", "length of the update since the snapshot before"),
}  # fmt: skip

TRAJECTORY_NULLS: dict[str, str] = {
    "N-WALK": "every increment keeps its spectrum, its directions are drawn anew: do directions persist?",
    "N-WALK-ROW": "the same for adapters, whose increments stay in the row space of A",
    "N-EXCH": "the increments in another order: are the early ones special?",
    "N-EXCH-NORM": "the same, each as long as the one whose place it takes: a falling rate explains nothing",
}
