"""One number of one matrix, small and plain, so that it can wait in a journal until all matrices are there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from limbeck.geometry.delta import place
from limbeck.types import Measured, Measurement, Null

NO_NULL = Null()


class Key(NamedTuple):
    """What a number is, whatever matrix it is of."""

    metric: str
    arm: str
    other: str = ""
    side: str = ""
    k: int = 0


class Cell(NamedTuple):
    """A number of one matrix with its null and label.

    Attributes:
        key: what it is.
        value: NaN with a ``reason`` where undefined.
        null: what chance scores.
        weight: what it counts for in a weighted mean over matrices; NaN where none is taken.
        delta_kind: ``dense_fp32``, ``bf16_visible`` or ``fp16_visible``.
        exactness: ``exact`` (counts, sums), ``gram`` or ``ritz``.
        residual: with ``ritz``, how far the leading directions are from singular.
        reason: why it is undefined, or a caveat.
    """

    key: Key
    value: float
    null: Null = NO_NULL
    weight: float = math.nan
    delta_kind: str = ""
    exactness: str = "exact"
    residual: float = math.nan
    reason: str = ""

    @classmethod
    def of(cls, key: Key, measured: Measured, **rest: Any) -> Cell:
        """A cell from a value that may be undefined; a null beside nothing says nothing and is left out."""
        if math.isnan(measured.value):
            rest.pop("null", None)
        return cls(key, measured.value, reason=measured.reason, **rest)

    def plain(self) -> list[Any]:
        """As a list for JSON; NaN becomes null there."""
        return [[*self.key], self.value, [self.null.id, self.null.mean, self.null.q05, self.null.q95], *self[3:]]

    @classmethod
    def read(cls, row: Sequence[Any]) -> Cell:
        """What :meth:`plain` gave, after JSON."""
        key, value, null, weight, kind, exactness, residual, reason = row
        mean, low, high = map(_number, null[1:])
        return cls(
            Key(*key), _number(value), Null(id=null[0], mean=mean, q05=low, q95=high), _number(weight), kind, exactness,
            _number(residual), reason,
        )  # fmt: skip

    def row(self, module: str, unit: str) -> Measurement:
        """The table's row of this matrix."""
        where = place(module)
        return Measurement(
            aggregation="module", module=module, layer=where.layer, kind=where.kind, unit=unit, value=self.value,
            null=self.null, delta_kind=self.delta_kind, exactness=self.exactness, residual=self.residual,
            reason=self.reason, **self.key._asdict(),
        )  # fmt: skip


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
