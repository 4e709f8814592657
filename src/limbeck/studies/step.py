"""A step of a study, and the plan that steps are collected in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from limbeck import __version__
from limbeck.records import digest_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One unit of work: a function's name, its settings, and the steps whose folders it reads.

    ``manner`` is how it is done, which changes nothing of what is made: the function is given it beside ``params``, the digest
    leaves it out. ``cost`` is a guess at seconds, for the progress bar alone.
    """

    name: str
    kind: str
    params: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    digest: str
    cost: float
    manner: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return f"{self.name.replace('/', '-')}-{self.digest[:12]}"


class Plan:
    """Collects steps in an order in which each comes after what it reads."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}

    def add(
        self,
        name: str,
        kind: str,
        params: dict[str, Any],
        inputs: dict[str, str],
        cost: float,
        manner: dict[str, Any] | None = None,
    ) -> str:
        digest = self._digest(kind, params, inputs)
        self.steps[name] = Step(
            name=name, kind=kind, params=params, inputs=inputs, digest=digest, cost=cost, manner=manner or {}
        )
        return name

    def once(
        self,
        name: str,
        kind: str,
        params: dict[str, Any],
        inputs: dict[str, str],
        cost: float,
        manner: dict[str, Any] | None = None,
    ) -> str:
        """As :meth:`add`, but what is already there is not added again; another step of that name gets a longer one."""
        known = self.steps.get(name)
        if known is None:
            return self.add(name, kind, params, inputs, cost, manner)
        digest = self._digest(kind, params, inputs)
        if known.digest == digest:
            return name
        return self.once(f"{name}-{digest[:8]}", kind, params, inputs, cost, manner)

    def _digest(self, kind: str, params: dict[str, Any], inputs: dict[str, str]) -> str:
        return digest_of([__version__, kind, params, {role: self.steps[step].digest for role, step in inputs.items()}])
