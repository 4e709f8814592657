"""A model's weights as they lie on disk, read off the headers of their files: nothing is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from limbeck.errors import ModelError


class Stored(NamedTuple):
    """What the safetensors files of a folder hold.

    Attributes:
        entries: parameters, tied ones as often as they are stored.
        size: bytes.
        dtypes: names as safetensors has them, ``F32``, ``BF16``, ..., the most frequent first.
    """

    entries: int
    size: int
    dtypes: tuple[str, ...]

    @property
    def alike(self) -> bool:
        """Whether all weights have one type that a run can read them in, so that the files are mapped instead of copied."""
        return self.dtypes in (("F32",), ("BF16",), ("F16",))


def stored(folder: Path) -> Stored:
    """Look into every safetensors file of a model's folder.

    Raises:
        ModelError: a file that is none, or is cut.
    """
    count: dict[str, int] = {}
    size = 0
    for path in sorted(folder.glob("*.safetensors")):
        size += path.stat().st_size
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  not a mapping
                    part = file.get_slice(name)
                    count[part.get_dtype()] = count.get(part.get_dtype(), 0) + math.prod(part.get_shape())
        except SafetensorError as error:
            raise ModelError(f"{path} must be a safetensors file, received: {error}. Copy it again.") from error
    return Stored(sum(count.values()), size, tuple(sorted(count, key=lambda name: -count[name])))
