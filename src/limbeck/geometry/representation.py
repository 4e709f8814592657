"""How alike two models read the same fixed text: linear CKA of hidden states, debiased, in one pass over chunks.

Pure tensors of shape (items, dim): whoever runs the models selects the tokens (``select`` and its siblings drop
padding) and keeps the text, not the answer, the same for all arms. Report the debiased form; the biased one is for
comparison with published figures: independent states score dim/(items + dim) there. A CKA between two arms says
nothing without each arm's CKA to the base.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import ModelError, ShapeError
from limbeck.geometry.nulls import summarize_draws
from limbeck.types import Measured, Null

MIN_ITEMS = 4


def select(hidden: Float[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "items dim"]:
    """Every token under the mask as one item, fp64; padding never enters."""
    return hidden[mask].double()


def mean_by_row(
    hidden: Float[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch dim"]:
    """One item per row: the mean over its masked tokens, fp64. NaN-safe under the mask; every row needs a token."""
    _need_tokens(mask)
    kept = torch.where(mask.unsqueeze(-1), hidden.double(), 0.0)
    return kept.sum(1) / mask.sum(1, keepdim=True)


def last_by_row(
    hidden: Float[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch dim"]:
    """One item per row: its last masked token, fp64; with the prompt's mask this is ``last_prompt``."""
    _need_tokens(mask)
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
    return hidden[torch.arange(len(hidden)), last].double()


def _need_tokens(mask: Bool[Tensor, "batch time"]) -> None:
    empty = int((~mask.any(1)).sum())
    if empty:
        raise ShapeError(f"every row needs at least one masked token, received {empty} rows without. Drop those rows.")


@dataclass(slots=True)
class Moments:
    """Sums over items that determine both HSIC forms of X and Y; the moments of two chunks simply add.

    ``cross`` = X^T Y; ``x``, ``y`` column sums; with a_i = |x_i|^2, b_i = |y_i|^2: ``a``, ``b``, ``ab`` their sums and
    ``xb`` = X^T b, ``ya`` = Y^T a.
    """

    count: int
    cross: Float[Tensor, "dim other_dim"]
    x: Float[Tensor, " dim"]
    y: Float[Tensor, " other_dim"]
    a: Float[Tensor, ""]
    b: Float[Tensor, ""]
    ab: Float[Tensor, ""]
    xb: Float[Tensor, " dim"]
    ya: Float[Tensor, " other_dim"]

    def __iadd__(self, more: Moments) -> Moments:
        self.count += more.count
        for name in ("cross", "x", "y", "a", "b", "ab", "xb", "ya"):
            getattr(self, name).add_(getattr(more, name))
        return self


def moments(x: Float[Tensor, "items dim"], y: Float[Tensor, "items other_dim"]) -> Moments:
    """The sums of one chunk, fp64. Subtract one and the same pilot mean from all chunks first: CKA ignores it,
    while outlying channels would cancel badly without it."""
    x, y = x.double(), y.double()
    a, b = x.square().sum(1), y.square().sum(1)
    return Moments(len(x), x.T @ y, x.sum(0), y.sum(0), a.sum(), b.sum(), a @ b, x.T @ b, y.T @ a)


def hsic(sums: Moments, *, debiased: bool) -> float:
    """Hilbert-Schmidt independence criterion of linear kernels; up to a constant factor in the biased form.

    Debiased: zeroed diagonals, [tr(KL) + (1K1)(1L1)/((n-1)(n-2)) - 2/(n-2) 1KL1] / (n(n-3)); may be negative.
    """
    n = sums.count
    if not debiased:
        return (sums.cross - torch.outer(sums.x, sums.y) / n).square().sum().item()
    trace = sums.cross.square().sum() - sums.ab
    ones = (sums.x.square().sum() - sums.a) * (sums.y.square().sum() - sums.b)
    through = sums.x @ sums.cross @ sums.y - sums.x @ sums.xb - sums.y @ sums.ya + sums.ab
    return ((trace + ones / ((n - 1) * (n - 2)) - 2 / (n - 2) * through) / (n * (n - 3))).item()


class StreamingCKA:
    """CKA over chunks of items, exact in any chunking; memory three (dim, dim) matrices in fp64.

    >>> x = torch.arange(12, dtype=torch.float64).reshape(6, 2).square()
    >>> stream = StreamingCKA()
    >>> for chunk in x.split(4):
    ...     stream.update(chunk, 3 * chunk + 1)
    >>> round(stream.value(debiased=True).value, 9)
    1.0
    """

    def __init__(self) -> None:
        self._pilots: tuple[Tensor, Tensor] | None = None
        self._sums: list[Moments] = []

    def update(self, x: Float[Tensor, "items dim"], y: Float[Tensor, "other_items other_dim"]) -> None:
        """Take in more items; rows of ``x`` and ``y`` are the same tokens of the same text."""
        _check_finite(x, y)
        if len(x) == 0:
            return
        if self._pilots is None:
            self._pilots = x[0].double(), y[0].double()  # an item, so that constant states cancel exactly
        x, y = x.double() - self._pilots[0], y.double() - self._pilots[1]
        chunk = [moments(x, y), moments(x, x), moments(y, y)]
        if not self._sums:
            self._sums = chunk
        else:
            for total, more in zip(self._sums, chunk, strict=True):
                total += more

    def value(self, *, debiased: bool) -> Measured:
        """CKA of everything seen so far; NaN with ``too_few_items`` or ``zero_norm``."""
        count = self._sums[0].count if self._sums else 0
        if count < MIN_ITEMS:
            return Measured(math.nan, "too_few_items")
        return _ratio(*(hsic(sums, debiased=debiased) for sums in self._sums))


def cka(x: Float[Tensor, "items dim"], y: Float[Tensor, "other_items other_dim"], *, debiased: bool) -> Measured:
    """Linear CKA of two sets of states in memory: at most 1; at least 0 in the biased form.

    hsic(X,Y) / sqrt(hsic(X,X) hsic(Y,Y)). Uses items x items kernels for items <= dim, else the streaming sums; both
    are exact. Invariant to orthogonal maps, scale and shift of either side, and to the order of items.

    Source: Kornblith et al. (2019); Song et al. (2012) for the debiased HSIC; Nguyen et al. (2021).
    """
    _check_finite(x, y)
    if len(x) < MIN_ITEMS:
        return Measured(math.nan, "too_few_items")
    if len(x) > max(x.shape[1], y.shape[1]):
        stream = StreamingCKA()
        stream.update(x, y)
        return stream.value(debiased=debiased)
    k, m = (_centred_kernel(z, debiased=debiased) for z in (x, y))
    return _ratio((k * m).sum().item(), (k * k).sum().item(), (m * m).sum().item())


def row_shuffle_null(
    x: Float[Tensor, "items dim"],
    y: Float[Tensor, "other_items other_dim"],
    *,
    debiased: bool,
    rng: np.random.Generator,
    draws: int = 100,
) -> Null:
    """CKA after pairing every item of X with a random item of Y: what two models score that share only their spread.

    Empty where the CKA is undefined. Kernels are built once; each draw permutes one of them.
    """
    _check_finite(x, y)
    if len(x) < MIN_ITEMS:
        return Null()
    k, m = (_centred_kernel(z, debiased=debiased) for z in (x, y))
    own, other = (k * k).sum().item(), (m * m).sum().item()
    values = []
    for _ in range(draws):
        order = torch.from_numpy(rng.permutation(len(m)))
        values.append(_ratio((k * m[order][:, order]).sum().item(), own, other).value)
    return Null() if any(map(math.isnan, values)) else summarize_draws("row-shuffle", np.array(values)[None])[0]


def _centred_kernel(x: Float[Tensor, "items dim"], *, debiased: bool) -> Float[Tensor, "items items"]:
    """HKH, or its U-centred form with a zero diagonal, in which <K, L> is the debiased HSIC up to n(n-3)."""
    x = x.double() - x[0].double()  # first, so that constant states cancel exactly
    x -= x.mean(0)
    kernel = x @ x.T
    if not debiased:
        return kernel
    n = len(kernel)
    kernel.fill_diagonal_(0)
    rows = kernel.sum(0) / (n - 2)
    kernel += kernel.sum() / ((n - 1) * (n - 2)) - rows - rows.unsqueeze(1)
    return kernel.fill_diagonal_(0)


def _ratio(between: float, own: float, other: float) -> Measured:
    if own == 0 or other == 0:
        return Measured(math.nan, "zero_norm")
    if own < 0 or other < 0:
        return Measured(math.nan, "too_few_items")
    return Measured(between / (math.sqrt(own) * math.sqrt(other)))


def _check_finite(x: Float[Tensor, "items dim"], y: Float[Tensor, "other_items other_dim"]) -> None:
    if len(x) != len(y):
        raise ShapeError(
            f"both models must give one state per item, received {len(x)} and {len(y)} rows. Read one text with both."
        )
    bad = int((~torch.isfinite(x)).sum()) + int((~torch.isfinite(y)).sum())
    if bad:
        raise ModelError(
            f"hidden states must be finite, received {bad} NaN or infinite entries. Select tokens by the attention "
            "mask, or run the model in fp32."
        )
