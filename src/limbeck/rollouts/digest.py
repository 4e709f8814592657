"""The digest of a rollout set, from its columns and a few rows at a time.

The definition is :attr:`limbeck.types.RolloutSet.digest`, which writes every row as JSON. Here the same bytes are made from
whole columns: a number is put together from cells of up to four characters that are looked up, and the blanks between go.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

THOUSANDS = 1000
MILLIONS = 1_000_000
LARGEST = 99.9  # the largest magnitude whose sign, whole part and point fit a cell


class Digest:
    """sha256 over the rows of tables in the store's columns, one table after another.

    Law: equal to ``RolloutSet.digest`` of the same rows, however they are cut into tables.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"[")
        self._separator = b""

    def update(self, table: pa.Table) -> None:
        """Add the rows of a table.

        Raises:
            ValueError: a log-prob that is infinite.
        """
        if len(table):
            self._hash.update(self._separator + b",".join(_rows(table)))
            self._separator = b","

    def hexdigest(self) -> str:
        """Of the rows so far."""
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()


def _rows(table: pa.Table) -> Iterable[bytes]:
    columns = (
        [json.dumps(name, ensure_ascii=False).encode() for name in table["problem_id"].to_pylist()],
        table["sample"].to_pylist(),
        _ids(*ragged(table["prompt_ids"])),
        _ids(*ragged(table["response_ids"])),
        _logprobs(*ragged(table["behavior_logprobs"])),
        [repr(reward).encode() for reward in table["reward"].to_pylist()],
        [finish.encode() for finish in table["finish"].to_pylist()],
    )
    for row in zip(*columns, strict=True):
        yield b'[%b,%d,[%b],[%b],[%b],%b,"%b"]' % row


def ragged(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The entries of a column of lists, one list behind the other, and how many each list has."""
    lists = column.combine_chunks()
    return lists.flatten().to_numpy(zero_copy_only=False), lists.value_lengths().to_numpy(zero_copy_only=False)


def _cells(texts: Iterable[str], end: str = "") -> np.ndarray:
    """Texts of up to four characters as one number each, blanks before ``end``."""
    return np.frombuffer(b"".join((t.ljust(4 - len(end), "\0") + end).encode() for t in texts), dtype=np.uint32)


def _wide(texts: Iterable[str]) -> np.ndarray:
    """Texts of up to eleven characters and a comma as three cells each."""
    return np.frombuffer(b"".join((t.ljust(11, "\0") + ",").encode() for t in texts), np.uint32).reshape(-1, 3)


_DIGITS = [f"{n:03d}" for n in range(THOUSANDS)]
_BARE = [str(n) for n in range(THOUSANDS)]
_HIGH = _cells(["", *_BARE[1:]])  # thousands of an id: nothing where there are none
_LOW = _cells(_BARE + _DIGITS, ",")  # what is below them: bare where it stands alone
_WHOLE = _cells([f"{sign}{n}." for sign in ("", "-") for n in range(100)])
_MIDDLE = _cells(["0", *(d.rstrip("0") for d in _DIGITS[1:]), *_DIGITS])  # decimals 1 to 3: first half where they end
_LAST = _cells([d.rstrip("0") for d in _DIGITS], ",")  # decimals 4 to 6
_TINY = _wide([f"{sign}{n / MILLIONS!r}" for sign in ("", "-") for n in range(100)])  # with an exponent, most of them
_NULL = _wide(["null"])


def _ids(flat: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """Each row's ids with commas between them."""
    if not len(flat) or flat.min() < 0 or flat.max() >= MILLIONS:
        return _plain(flat.tolist(), lengths, str)
    high, low = np.divmod(flat, THOUSANDS)
    return _joined(np.stack([_HIGH[high], _LOW[low + THOUSANDS * (high > 0)]], axis=1), lengths)


def _logprobs(flat: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """Each row's log-probs, rounded to six decimals as Python rounds and writes them, with commas between them."""
    size, negative = np.abs(flat), np.signbit(flat)
    scaled = np.where(size < LARGEST, size, 0.0) * MILLIONS
    micro = np.rint(scaled).astype(np.int64)
    whole, part = np.divmod(micro, MILLIONS)
    middle, last = np.divmod(part, THOUSANDS)
    cells = np.stack([_WHOLE[whole + 100 * negative], _MIDDLE[middle + THOUSANDS * (last > 0)], _LAST[last]], axis=1)
    tiny = np.flatnonzero(micro < 100)
    cells[tiny] = _TINY[micro[tiny] + 100 * negative[tiny]]
    cells[np.isnan(flat)] = _NULL
    # the product may have crossed a tie that the value itself did not
    tie = np.abs(scaled - np.floor(scaled) - 0.5) < 1e-6
    for place in np.flatnonzero(tie | (size >= LARGEST)).tolist():
        text = _number(flat[place].item())
        if len(text) > 11:
            return _plain(flat.tolist(), lengths, _number)
        cells[place] = _wide([text])
    return _joined(cells, lengths)


def _number(value: float) -> str:
    return json.dumps(None if math.isnan(value) else round(value, 6), allow_nan=False)


def _joined(cells: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    cells.view(np.uint8)[np.cumsum(lengths) - 1, -1] = ord("\n")  # in place of the last comma of a row
    return cells.tobytes().translate(None, b"\0").split(b"\n")[:-1]


def _plain(values: Sequence, lengths: np.ndarray, text) -> list[bytes]:
    """Any numbers, one at a time."""
    ends = np.cumsum(lengths).tolist()
    return [",".join(map(text, values[end - n : end])).encode() for end, n in zip(ends, lengths.tolist(), strict=True)]
