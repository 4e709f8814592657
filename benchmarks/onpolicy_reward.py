"""A reward for answers of random words: right or wrong by the parity of a digest, so that groups have signal."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from limbeck.types import Problem


def by_digest(problem: Problem, texts: Sequence[str]) -> list[float]:
    """1 or 0 for each text, the same wherever it is asked.

    >>> by_digest(Problem(id="p", prompt="w2", answer="0", source=""), ["w3 w4", "w3 w5", "w3 w6"])
    [1.0, 1.0, 0.0]
    """
    return [float(hashlib.sha256(f"{problem.prompt}/{text}".encode()).digest()[0] % 2) for text in texts]
