"""Do two updates point the same way: cosine, the part of one that the other does not explain, agreement of signs.

Everything is built from one :class:`Contact` per module (a few scalars); a ``module`` number reads one contact, a
``layer`` number those of one block, a ``stacked`` number all of them, as if the updates were one long vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import DegenerateError
from limbeck.geometry.spectrum import Frames, factor
from limbeck.types import Delta, LowRank, Measured

_CANCELS = 1e-6  # below this share of the energy, |x|^2 - <x,y>^2/|y|^2 has lost too many digits


class Contact(NamedTuple):
    """What two updates X and Y of one module have to do with each other, in fp64, squares of the weights' unit.

    Attributes:
        inner: <X, Y>.
        energy: |X|^2.
        other_energy: |Y|^2.
        residual: |X - (<X,Y>/|Y|^2) Y|^2, which is |X|^2 where Y is zero.
        other_residual: the same with X and Y exchanged.
        rotated_variance: variance of <QX, Y> over Haar rotations Q of the output side (null N-ROT).
    """

    inner: float
    energy: float
    other_energy: float
    residual: float
    other_residual: float
    rotated_variance: float

    def swapped(self) -> Contact:
        """The same contact seen from Y."""
        return Contact(
            self.inner, self.other_energy, self.energy, self.other_residual, self.residual, self.rotated_variance
        )


def contact(
    x: Frames,
    y: Frames,
    left: Float[Tensor, "rank other_rank"],
    right: Float[Tensor, "rank other_rank"],
) -> Contact:
    """One module's contact from the frames and their overlaps ``left = U_x^T U_y`` and ``right = V_x^T V_y``.

    <X, Y> = sum_ij s_i t_j left_ij right_ij, and Var<QX, Y> = |diag(s) right diag(t)|^2 / out.
    """
    scales = torch.outer(x.values, y.values)
    inner = (scales * left * right).sum().item()
    energy, other_energy = x.values.square().sum().item(), y.values.square().sum().item()
    return Contact(
        inner=inner,
        energy=energy,
        other_energy=other_energy,
        residual=_residual(x, y, inner, energy, other_energy),
        other_residual=_residual(y, x, inner, other_energy, energy),
        rotated_variance=(scales * right).square().sum().item() / len(x.left),
    )


def _residual(x: Frames, y: Frames, inner: float, energy: float, other_energy: float) -> float:
    if other_energy == 0 or energy == 0:
        return energy
    residual = energy - inner * (inner / other_energy)
    if residual > _CANCELS * energy:
        return residual
    # nearly parallel: the norm of the factors [U_x s, -c U_y t] [V_x, V_y]^T, by its own QR-core
    coefficient = inner / other_energy
    left = torch.cat([x.left * x.values, -coefficient * y.left * y.values], dim=1)
    core = torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(torch.cat([x.right, y.right], dim=1), mode="r").R.T
    return core.square().sum().item()


def contact_of(x: LowRank, y: LowRank) -> Contact:
    """One module's contact straight from the factors.

    >>> x = LowRank(torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0, 0.0]]))
    >>> y = LowRank(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, 0.0]]))
    >>> round(cosine([contact_of(x, y)]).value, 6)      # 3 / (3 * sqrt 2)
    0.707107
    """
    one, other = factor(x), factor(y)
    return contact(one, other, one.left.T @ other.left, one.right.T @ other.right)


def cosine(contacts: Sequence[Contact]) -> Measured:
    """Cosine of the angle between two updates over the given modules, in [-1, 1].

    value = sum <X,Y> / sqrt(sum |X|^2 * sum |Y|^2). Invariant to positive scale of either arm, gauge, module order
    and joint orthogonal maps. NaN ``zero_norm``. Null: :func:`limbeck.geometry.nulls.rotated_cosine`.
    """
    scale = math.sqrt(sum(c.energy for c in contacts)) * math.sqrt(sum(c.other_energy for c in contacts))
    if scale == 0:
        return Measured(math.nan, "zero_norm")
    return Measured(max(-1.0, min(1.0, sum(c.inner for c in contacts) / scale)))


def inner_products(deltas: Sequence[Delta]) -> Float[np.ndarray, "arms arms"]:
    """<X, Y> of whole updates, all matrices together, for every pair of many arms: what :class:`Contact` says of two, at once.

    sum over modules of tr((L_x^T L_y) (R_y R_x^T)), in fp64, from one product of all arms' factors a side and module; the
    diagonal is the squared Frobenius norm. Ranks may differ.

    >>> x = LowRank(torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0, 0.0]]))
    >>> y = LowRank(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, 0.0]]))
    >>> inner_products([Delta(name=n, base="", init_digest="", modules={"m": f}) for n, f in (("x", x), ("y", y))])
    array([[9., 3.],
           [3., 2.]])
    """
    total = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    for name in deltas[0].modules:
        factors = [delta.modules[name] for delta in deltas]
        left = torch.cat([f.left.double() for f in factors], dim=1)
        right = torch.cat([f.right.double() for f in factors])
        ranks = torch.tensor([len(f.right) for f in factors])
        owner = torch.eye(len(deltas), dtype=torch.float64).repeat_interleave(ranks, dim=0)
        total += owner.T @ ((left.T @ left) * (right @ right.T)) @ owner
    return total.numpy()


def cosines(inner: Float[np.ndarray, "arms arms"]) -> Float[np.ndarray, "arms arms"]:
    """Cosines from inner products; NaN beside an update of zero."""
    norms = np.sqrt(np.diag(inner))
    norms = np.where(norms > 0, norms, np.nan)
    return inner / np.outer(norms, norms)


def orthogonal_fraction(contacts: Sequence[Contact], *, pooled: bool) -> Measured:
    """Norm of the part of X orthogonal to Y, over the norm of X, in [0, 1]; its square is the share of energy.

    With ``pooled`` every module has its own coefficient, else (stacked) one serves all; pooled <= stacked always,
    and for one module they are the same. Exact also for nearly parallel arms: |X - cY|^2 is the module's residual
    plus (c_module - c)^2 |Y|^2. NaN ``zero_norm`` if X is zero; 1 where Y is.

    >>> orthogonal_fraction([Contact(3.0, 9.0, 2.0, 4.5, 1.0, 0.0)], pooled=True).value    # sqrt(4.5 / 9)
    0.7071067811865476
    """
    energy, other_energy = sum(c.energy for c in contacts), sum(c.other_energy for c in contacts)
    if energy == 0:
        return Measured(math.nan, "zero_norm")
    residual = sum(c.residual for c in contacts)
    if not pooled and other_energy > 0:
        shared = sum(c.inner for c in contacts) / other_energy
        residual += sum((c.inner / c.other_energy - shared) ** 2 * c.other_energy for c in contacts if c.other_energy)
    return Measured(min(1.0, math.sqrt(residual / energy)))


class SignAgreement(NamedTuple):
    """Share of entries with equal sign where both updates are non-zero; NaN with a reason where there are none.

    Attributes:
        plain: every joint entry counts once.
        weighted: entries count by |x*y|.
        joint: how many entries of both updates are non-zero.
        reason: ``empty_mask`` when ``joint`` is 0.
    """

    plain: float
    weighted: float
    joint: int
    reason: str = ""


def sign_agreement(x: LowRank, y: LowRank, *, rows: int = 2048) -> SignAgreement:
    """Agreement of entrywise signs; forms at most ``rows`` rows of each update at a time.

    Null given the cosine c of the two updates: :func:`limbeck.geometry.nulls.arcsine_law`. Print the excess over it,
    without it the number repeats the cosine.

    >>> one = LowRank(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, 2.0]]))
    >>> other = LowRank(torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0, 0.0]]))
    >>> sign_agreement(one, other)                     # entries (3, 0) and (-3, 0) against all positive
    SignAgreement(plain=0.5, weighted=0.5, joint=2, reason='')
    """
    if rows < 1:
        raise DegenerateError(f"sign_agreement needs rows >= 1, received {rows}. 2048 is the usual tile.")
    x, y = _near_one(x), _near_one(y)
    agree, joint, weight_agree, weight = 0, 0, 0.0, 0.0
    for start in range(0, x.shape[0], rows):
        product = (x.left[start : start + rows] @ x.right).double()
        product *= (y.left[start : start + rows] @ y.right).double()
        agree += int((product > 0).sum())
        joint += int((product != 0).sum())
        weight_agree += product.clamp(min=0).sum().item()
        weight += product.abs().sum().item()
    if joint == 0:
        return SignAgreement(math.nan, math.nan, 0, "empty_mask")
    return SignAgreement(agree / joint, weight_agree / weight, joint)


def _near_one(update: LowRank) -> LowRank:
    """The update times a power of two, so that its entries stay inside fp32: a scale has no sign."""
    return LowRank(*(_scaled(part) for part in update))


def _scaled(part: Tensor) -> Tensor:
    exponent = math.frexp(part.abs().max().item())[1]
    return (part.double() * 2.0**-exponent).float()
