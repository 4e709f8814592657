"""Singular values and frames of a low-rank update, and over how many directions it spreads.

The QR-core route: left = Q_b R_b, right^T = Q_a R_a, SVD of R_b R_a^T (rank x rank), frames rotated back. Cost
O((out + in) rank^2); the (out, in) product is never formed. Every rank below is a Renyi entropy of the spectrum,
and they are ordered: 1 <= stable_rank <= participation <= erank_energy <= erank <= rank. All take ``(*batch, rank)``
so that one function serves a module and the draws of its null.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.types import LowRank

RANK_FLOOR = 1e-7  # sigma_k below this share of sigma_1 spans nothing that fp32 factors can carry


class Frames(NamedTuple):
    """Singular value decomposition of an update in fp64: ``left * values @ right.T``, values descending."""

    left: Float[Tensor, "out rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "in rank"]


def factor(update: LowRank) -> Frames:
    """The exact singular value decomposition of ``update.left @ update.right`` from its factors.

    >>> factor(LowRank(torch.tensor([[3.0], [4.0]]), torch.tensor([[2.0, 0.0, 0.0]]))).values.tolist()
    [10.0]
    """
    left, left_core = torch.linalg.qr(update.left.double())
    right, right_core = torch.linalg.qr(update.right.double().T)
    u, values, vh = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return Frames(left @ u, values, right @ vh.T)


def singular_values(update: LowRank) -> Float[Tensor, " rank"]:
    """The singular values alone, descending, fp64: no frame is formed."""
    left_core = torch.linalg.qr(update.left.double(), mode="r").R
    right_core = torch.linalg.qr(update.right.double().T, mode="r").R
    return torch.linalg.svdvals(left_core @ right_core.T)


def frobenius_norm(values: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch"]:
    """Length of the update, in the unit of the weights; 0 for a zero update. Unlike the trace form it cannot cancel."""
    return torch.linalg.vector_norm(values, dim=-1)


def stable_rank(values: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch"]:
    """``sum(s**2) / s[0]**2``: led by the largest direction, far less inflated by rounding than the others.

    NaN for a zero update. Null (iid Gaussian m x n): m*n / (sqrt(m) + sqrt(n))**2.

    >>> stable_rank(torch.tensor([2.0, 2.0, 1.0])).item()    # (4 + 4 + 1) / 4
    2.25
    """
    return (values / values[..., :1]).square().sum(-1)  # divide first: squares of tiny updates underflow


def participation(values: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch"]:
    """``1 / sum(q**2)`` with q the shares of energy: how many equal directions would be as spread. NaN for zero."""
    return 1 / energy_shares(values).square().sum(-1)


def erank_energy(values: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch"]:
    """``exp(-sum(q log q))`` with q = s**2 / sum(s**2): the entropy rank of the energies. NaN for a zero update."""
    return torch.special.entr(energy_shares(values)).sum(-1).exp()


def erank(values: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch"]:
    """``exp(-sum(p log p))`` with p = s / sum(s), as Roy and Vetterli (2007) define it. NaN for a zero update.

    >>> round(erank(torch.tensor([1.0, 1.0, 1.0, 1.0])).item(), 6)
    4.0
    """
    return torch.special.entr(values / values.sum(-1, keepdim=True)).sum(-1).exp()


def topk_energy(values: Float[Tensor, "*batch rank"], *, k: int) -> Float[Tensor, "*batch"]:
    """Share of the squared norm in the ``k`` largest directions, in [0, 1]; 1 from k = rank on. NaN for zero."""
    return energy_shares(values)[..., :k].sum(-1)


def hill(values: Float[Tensor, "*batch rank"], *, k: int) -> Float[Tensor, "*batch"]:
    """Tail exponent ``(k-1) / sum_{i<k} log(s_i / s_k)`` of the ``k`` largest values; NaN if rank < k, or flat.

    For Pareto(a) values its mean is a*(k-1)/(k-2) with a relative sd of 1/sqrt(k-3): 38 % per matrix at k = 10.

    Raises:
        ConfigError: k must be at least 2.
    """
    if k < 2:
        raise ConfigError(f"hill needs k >= 2, received {k}. One value has no tail; the usual choice is 10.")
    if values.shape[-1] < k:
        return torch.full(values.shape[:-1], math.nan, dtype=values.dtype)
    logs = (values[..., : k - 1] / values[..., k - 1 : k]).log().sum(-1)
    defined = (values[..., k - 1] > RANK_FLOOR * values[..., 0]) & (logs > 0)
    return torch.where(defined, (k - 1) / logs, math.nan)


def energy_shares(values: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch rank"]:
    """``s**2 / sum(s**2)``, NaN for a zero update."""
    relative = (values / values[..., :1]).square()
    return relative / relative.sum(-1, keepdim=True)


def undefined(values: Float[Tensor, " rank"], *, k: int = 1) -> str:
    """Why the leading ``k`` directions do not exist: ``zero_norm``, ``rank_lt_k`` or the empty string.

    >>> undefined(torch.tensor([1.0, 0.0]), k=2), undefined(torch.tensor([1.0, 0.5]), k=2)
    ('rank_lt_k', '')
    """
    if not values[0] > 0:
        return "zero_norm"
    if len(values) < k or not values[k - 1] > RANK_FLOOR * values[0]:
        return "rank_lt_k"
    return ""


def gap_ratio(values: Float[Tensor, " rank"], *, k: int) -> float:
    """sigma_k / sigma_{k+1}: near 1 the leading frame is an arbitrary choice. Infinite where nothing follows."""
    following = values[k].item() if len(values) > k else 0.0
    return values[k - 1].item() / following if following > 0 else math.inf
