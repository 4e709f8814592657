"""What an examination finds: a sentence with its level and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["ok", "note", "problem"]
SECTIONS = ("machine", "model", "memory", "tokenizer", "rollouts", "objectives")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: one of ``SECTIONS``.
        name: what was looked at, in a word or two.
        level: ``problem`` where a run would fail or mean something else than it seems to; ``note`` where it is worth knowing.
        says: what was found.
        remedy: what to do; never empty where the level is not ``ok``.
        facts: the numbers behind it, as JSON has them.
    """

    about: str
    name: str
    level: Level = "ok"
    says: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def size(num_bytes: float) -> str:
    """Bytes as people read them.

    >>> size(1_500), size(2_340_000_000)
    ('2 kB', '2.34 GB')
    """
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= factor:
            return (
                f"{num_bytes / factor:.3g} {unit}" if num_bytes < 1000 * factor else f"{num_bytes / factor:.0f} {unit}"
            )
    return f"{num_bytes / 1e3:.0f} kB"
