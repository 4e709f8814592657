"""Several comparisons at once: p-values adjusted so that alpha keeps its meaning over the whole family."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import false_discovery_control

from limbeck.errors import DataError


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that bound the chance of any false call (family-wise error), in the order given.

    Source: Holm 1979. Differs from source: none.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = _checked(p_values)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)).clip(
        max=1
    )  # the k-th smallest times how many are left
    return adjusted[np.argsort(order)].tolist()


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that bound the expected share of false calls among the calls made, in the order given.

    Source: Benjamini and Hochberg 1995, as in scipy. Differs from source: none.

    >>> [round(p, 3) for p in benjamini_hochberg([0.01, 0.04, 0.03])]
    [0.03, 0.04, 0.04]
    """
    p = _checked(p_values)
    return false_discovery_control(p).tolist() if p.size else []


def _checked(p_values: Sequence[float]) -> np.ndarray:
    if not all(0 <= p <= 1 for p in p_values):
        raise DataError(
            f"p-values must lie in [0, 1], received {list(p_values)}. Leave out comparisons without a p-value."
        )
    return np.asarray(p_values, dtype=float)
