"""The student as it was some steps ago, so that it can write what today's learns from.

Copies of what is trained are kept in memory and carried by checkpoints; while the older student writes, its weights stand in
the model, and today's come back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from limbeck.train.engine import Engine
from limbeck.train.models import trained_tensors

PREFIX = "stale/"


class Past:
    """What the student was after each of the last ``age`` steps.

    Args:
        engine: the student; copies go into what its checkpoints carry.
        age: how many steps old the writer is, where the run is old enough; 0 keeps nothing.
    """

    def __init__(self, engine: Engine, age: int) -> None:
        self._engine, self._age = engine, age

    def note(self, step: int) -> None:
        """Keep the student as it is after a step, and drop who is too old to write again."""
        carried = self._engine.carried
        if not self._age:
            return
        for name, tensor in trained_tensors(self._engine.model).items():
            carried[self._name(step, name)] = tensor.clone().cpu()
        oldest = self._name(step - self._age, "")
        for name in [n for n in carried if n.startswith(PREFIX) and n < oldest]:
            del carried[name]

    def age(self, step: int) -> int:
        """How many steps old the writer of a step is."""
        return min(step - 1, self._age)

    @contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """The model with the weights of the step's writer while the context is open."""
        if not self.age(step):
            yield
            return
        own = trained_tensors(self._engine.model)
        today = {name: tensor.clone() for name, tensor in own.items()}
        written = step - 1 - self.age(step)
        try:
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(self._engine.carried[self._name(written, name)])
            yield
        finally:
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(today[name])

    @staticmethod
    def _name(step: int, name: str) -> str:
        return f"{PREFIX}{max(step, 0):09d}/{name}"
