"""Rows of a batch side by side instead of padded: which bin each goes into, and where its states are found again.

A bin is as wide as the longest row, so attention never costs more than it did padded, and rows with whole bins of their
own cost the same. Positions restart with each row; that is what attention takes its boundaries from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Packed(NamedTuple):
    """The same tokens in bins.

    Attributes:
        ids: tokens; what a bin has left over is one more sequence of zeros that nobody reads.
        positions: from 0 in each sequence.
        places: where each cell of the padded rows lies among all cells of the bins; 0 beyond a row's length.
    """

    ids: Int[Tensor, "bins width"]
    positions: Int[Tensor, "bins width"]
    places: Int[Tensor, "batch length"]


def pack(ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], *, width: int | None = None) -> Packed:
    """Put right-padded rows into bins.

    Args:
        ids: right-padded rows.
        lengths: of each row.
        width: of a bin, at least the longest row, which is the default.

    >>> packed = pack(torch.tensor([[1, 2, 3], [4, 0, 0], [5, 6, 0]]), torch.tensor([3, 1, 2]))
    >>> packed.ids.tolist(), packed.positions.tolist()
    ([[1, 2, 3], [5, 6, 4]], [[0, 1, 2], [0, 1, 0]])
    """
    sizes, device = lengths.tolist(), ids.device
    wide = width or max(sizes)
    starts, bins = fit(sizes, wide)
    time = torch.arange(ids.shape[1], device=device)[None]
    inside = time < lengths[:, None]
    places = torch.where(inside, torch.tensor(starts, device=device)[:, None] + time, 0)
    flat, positions = ids.new_zeros(bins * wide), time.new_full((bins * wide,), -1)
    flat[places[inside]] = ids[inside]
    positions[places[inside]] = time.expand_as(ids)[inside]
    positions = positions.view(bins, wide)
    used = (positions >= 0).sum(1, keepdim=True)
    rest = torch.arange(wide, device=device)[None] - used
    return Packed(flat.view(bins, wide), torch.where(positions < 0, rest, positions), places)


def fit(sizes: Sequence[int], width: int) -> tuple[list[int], int]:
    """Where each row starts when bins of ``width`` are laid end to end, and how many bins there are.

    The longest first, each into the fullest bin that still holds it.

    >>> fit([2, 3, 1], 3)
    ([3, 0, 5], 2)
    """
    used: list[int] = []
    starts = [0] * len(sizes)
    for row in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        open_bins = [b for b in range(len(used)) if used[b] + sizes[row] <= width]
        if not open_bins:
            open_bins = [len(used)]
            used.append(0)
        chosen = max(open_bins, key=used.__getitem__)
        starts[row] = chosen * width + used[chosen]
        used[chosen] += sizes[row]
    return starts, len(used)
