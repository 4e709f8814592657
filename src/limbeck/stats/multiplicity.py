"""Several comparisons at once: p-values adjusted so that alpha keeps its meaning over the whole family."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from statsmodels.stats.multitest import multipletests

from limbeck.errors import DataError


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that bound the chance of any false call (family-wise error), in the order given.

    Source: Holm 1979, as in statsmodels. Differs from source: none.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    return _adjusted(p_values, "holm")


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that bound the expected share of false calls among the calls made, in the order given.

    Source: Benjamini and Hochberg 1995, as in statsmodels. Differs from source: none.

    >>> [round(p, 3) for p in benjamini_hochberg([0.01, 0.04, 0.03])]
    [0.03, 0.04, 0.04]
    """
    return _adjusted(p_values, "fdr_bh")


def _adjusted(p_values: Sequence[float], method: str) -> list[float]:
    if not all(0 <= p <= 1 for p in p_values):
        raise DataError(
            f"p-values must lie in [0, 1], received {list(p_values)}. Leave out comparisons without a p-value."
        )
    return np.asarray(multipletests(list(p_values), method=method)[1]).tolist() if p_values else []
