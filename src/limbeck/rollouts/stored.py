"""Rollouts that stay on disk: their outline in memory, a row read when it is asked for."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
import pyarrow as pa

from limbeck.errors import DataError
from limbeck.rollouts.digest import ragged
from limbeck.types import Finish, Outline, Rollout, outline

IN_MEMORY = 64 * 2**20  # bytes of rows that are kept without a file


class Records:
    """Bytes that were appended, read back from any place: in memory while they are few, else in a file without a name.

    The file lies where ``tempfile`` puts it (``TMPDIR``) and ends with the process, however that ends.
    """

    def __init__(self) -> None:
        self.size = 0
        self._bytes = bytearray()
        self._file: IO[bytes] | None = None

    def append(self, data: bytes | bytearray) -> None:
        """Put ``data`` behind what is there."""
        self.size += len(data)
        if self._file is None:
            self._bytes += data
            if self.size <= IN_MEMORY:
                return
            self._file, data = tempfile.TemporaryFile(buffering=0), self._bytes  # noqa: SIM115  it lives as long as this
            self._bytes = bytearray()
            weakref.finalize(self, self._file.close)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]  # which may write a part
        except OSError as error:
            raise DataError(
                f"rollouts beyond {IN_MEMORY >> 20} MiB need a file of about 12 bytes a token in "
                f"{tempfile.gettempdir()}, received {error}. Set TMPDIR to a folder with room."
            ) from error

    def read(self, begin: int, size: int) -> bytes:
        """``size`` bytes from ``begin`` on."""
        if self._file is None:
            return bytes(self._bytes[begin : begin + size])
        return os.pread(self._file.fileno(), size, begin)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredRollouts(Sequence[Rollout]):
    """A sequence of rollouts whose tokens are read a row at a time.

    Attributes:
        outline: what is known of each row without its tokens; it has the last word on names, rewards and endings.
        records: prompt ids, response ids, log-probs and text of every row, see :func:`append`.
        starts: where in ``records`` each row begins.
        sizes: its bytes there.
        digest: of the set, where it is known.
    """

    outline: Outline
    records: Records
    starts: np.ndarray
    sizes: np.ndarray
    digest: str = ""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row = range(len(self))[index]
        told = self.outline
        prompt, response = int(told.prompt_tokens[row]), int(told.response_tokens[row])
        record = self.records.read(int(self.starts[row]), int(self.sizes[row]))
        ids = np.frombuffer(record, np.int32, prompt + response).tolist()
        logprobs = np.frombuffer(record, np.float64, response, offset=4 * (prompt + response)).tolist()
        problem_id, sample = told.key(row)
        return Rollout(
            problem_id=problem_id,
            sample=sample,
            prompt_ids=tuple(ids[:prompt]),
            response_ids=tuple(ids[prompt:]),
            behavior_logprobs=tuple(logprobs),
            reward=float(told.reward[row]),
            finish=Finish.LENGTH if told.truncated[row] else Finish.STOP,
            response=record[4 * prompt + 12 * response :].decode(),
        )

    def with_rewards(self, rewards: np.ndarray) -> StoredRollouts:
        """The same rows with other rewards, one a row."""
        return replace(self, outline=replace(self.outline, reward=rewards), digest="")

    def take(self, rows: np.ndarray) -> StoredRollouts:
        """These rows alone, as they are on disk."""
        return StoredRollouts(
            outline=self.outline.take(rows), records=self.records, starts=self.starts[rows], sizes=self.sizes[rows]
        )


def append(records: Records, table: pa.Table) -> np.ndarray:
    """Put the rows of a table in the store's columns behind the others; the bytes of each."""
    columns = [ragged(table[name]) for name in ("prompt_ids", "response_ids", "behavior_logprobs")]
    texts = table["response"].cast(pa.binary()).to_pylist()
    parts = [_split(flat, lengths) for flat, lengths in columns]
    rows = [b"".join(row) for row in zip(*parts, texts, strict=True)]
    records.append(b"".join(rows))
    return np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))


def _split(flat: np.ndarray, lengths: np.ndarray) -> list[memoryview]:
    view = np.ascontiguousarray(flat).data.cast("B")
    ends = (np.cumsum(lengths, dtype=np.int64) * flat.itemsize).tolist()
    return [view[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


class Outliner:
    """Collects an outline from tables in the store's columns, one after another."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._columns: list[tuple[np.ndarray, ...]] = []

    def add(self, table: pa.Table) -> None:
        """Add the rows of a table.

        Raises:
            DataError: a row that no rollout can be.
        """
        _, prompts = ragged(table["prompt_ids"])
        _, responses = ragged(table["response_ids"])
        logprobs, lengths = ragged(table["behavior_logprobs"])
        reward = table["reward"].to_numpy()
        finish = table["finish"].to_pylist()
        good = (prompts > 0) & (responses > 0) & (lengths == responses) & np.isfinite(reward)
        if not good.all():
            told = table.slice(int(np.argmin(good)), 1).to_pylist()[0]
            told = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
            Rollout(**{**told, "finish": Finish(told["finish"])})  # says what is wrong with it
        unknown = np.add.reduceat(np.isnan(logprobs), np.cumsum(lengths) - lengths) if len(lengths) else lengths
        names = [self._names.setdefault(name, len(self._names)) for name in table["problem_id"].to_pylist()]
        self._columns.append(
            (
                np.array(names, dtype=np.int32),
                table["sample"].to_numpy(),
                reward,
                np.array([Finish(f) == Finish.LENGTH for f in finish], dtype=bool),
                prompts,
                responses,
                unknown == 0,
            )
        )

    def outline(self) -> Outline:
        """Of the rows so far."""
        if not self._columns:
            return outline(())
        names = ("problem", "sample", "reward", "truncated", "prompt_tokens", "response_tokens", "known")
        columns = map(np.concatenate, zip(*self._columns, strict=True))
        return Outline(problems=tuple(self._names), **dict(zip(names, columns, strict=True)))
