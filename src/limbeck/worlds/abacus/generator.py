"""Worded arithmetic problems of two to eight steps, their worked solutions, and a split that cannot leak.

A problem is a start value and a list of steps; the words around it are decoration. Which split a problem
belongs to is a hash of its arithmetic alone, so a test problem in other words never occurs in training:
the sets are disjoint by construction, not by a later check.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from limbeck.types import Problem

Split = Literal["train", "validation", "test"]

LIMIT = 99  # every intermediate value stays in 0..LIMIT, so a number has at most two digits
MIN_AMOUNT, MAX_AMOUNT = 2, 9  # what one step adds or takes
MIN_STEPS, MAX_STEPS = 2, 8

ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth")
CONTAINERS = ("basket", "box", "crate", "sack", "jar", "shelf", "cart", "drawer")
ITEMS = ("apples", "coins", "books", "shells", "stamps", "nuts", "candles", "beads")
PHRASES = {
    "+": ("{n} more are put in", "{n} are added", "someone brings {n} more"),
    "-": ("{n} are taken out", "{n} are lost", "someone removes {n}"),
    "*2": ("the number doubles", "twice as many remain after a delivery"),
    "*3": ("the number triples", "three times as many are counted after a delivery"),
    "/2": ("half of them are given away", "only half are kept"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation: ``+`` or ``-`` with an amount, or ``*2``, ``*3``, ``/2`` (amount 2 or 3)."""

    operation: str
    amount: int

    def apply(self, value: int) -> int:
        match self.operation:
            case "+":
                return value + self.amount
            case "-":
                return value - self.amount
            case "*2" | "*3":
                return value * self.amount
            case _:
                return value // self.amount

    @property
    def symbol(self) -> str:
        return self.operation[0]


def split_of(start: int, steps: tuple[Step, ...]) -> Split:
    """The split that owns this arithmetic: 80 % train, 10 % validation, 10 % test, by hash.

    >>> split_of(7, (Step(operation="*2", amount=2), Step(operation="-", amount=5)))
    'train'
    """
    key = f"{start}|" + "|".join(f"{s.operation}{s.amount}" for s in steps)
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 10
    return "train" if bucket < 8 else ("validation" if bucket == 8 else "test")


def _draw_steps(rng: random.Random, num_steps: int) -> tuple[int, tuple[Step, ...]]:
    start = value = rng.randint(2, 20)
    steps: list[Step] = []
    for _ in range(num_steps):
        choices = ["+"] if value + MIN_AMOUNT <= LIMIT else []
        choices += ["-"] if value > MIN_AMOUNT else []
        choices += ["*2"] if 1 <= value * 2 <= LIMIT else []
        choices += ["*3"] if 1 <= value * 3 <= LIMIT else []
        choices += ["/2"] if value >= 2 and value % 2 == 0 else []
        operation = rng.choice(choices)
        if operation == "+":
            amount = rng.randint(MIN_AMOUNT, min(MAX_AMOUNT, LIMIT - value))
        elif operation == "-":
            amount = rng.randint(MIN_AMOUNT, min(MAX_AMOUNT, value - 1))
        else:
            amount = int(operation[1])
        steps.append(Step(operation=operation, amount=amount))
        value = steps[-1].apply(value)
    return start, tuple(steps)


def _words(rng: random.Random, start: int, steps: tuple[Step, ...]) -> str:
    container, item = rng.choice(CONTAINERS), rng.choice(ITEMS)
    told = [rng.choice(PHRASES[step.operation]).format(n=step.amount) for step in steps]
    sentences = " ".join(f"{ordinal}, {words}." for ordinal, words in zip(ORDINALS, told, strict=False))
    return f"A {container} holds {start} {item}. {sentences} How many {item} are there now?"


def solution(start: int, steps: tuple[Step, ...]) -> str:
    """The worked solution, one equation a step, the answer after ``####``.

    >>> solution(7, (Step(operation="*2", amount=2), Step(operation="-", amount=5)))
    'Start 7. First, 7 * 2 = 14. Second, 14 - 5 = 9. #### 9'
    """
    value, lines = start, [f"Start {start}."]
    for ordinal, step in zip(ORDINALS, steps, strict=False):
        result = step.apply(value)
        lines.append(f"{ordinal}, {value} {step.symbol} {step.amount} = {result}.")
        value = result
    return " ".join(lines) + f" #### {value}"


def generate(split: Split, num: int, *, seed: int) -> list[tuple[Problem, str]]:
    """``num`` distinct problems of one split with their worked solutions, in a fixed order.

    Args:
        split: which hash bucket to draw from.
        num: how many problems.
        seed: of the draw; the split does not depend on it.

    Returns:
        Pairs of problem and reference solution; no two share their arithmetic.

    >>> (problem, text), = generate("test", 1, seed=0)
    >>> problem.answer == text.split("#### ")[1]
    True
    """
    rng = random.Random(f"abacus/{split}/{seed}")  # noqa: S311 - a seeded generator, not a secret
    seen: set[tuple[int, tuple[Step, ...]]] = set()
    out: list[tuple[Problem, str]] = []
    while len(out) < num:
        start, steps = _draw_steps(rng, rng.randint(MIN_STEPS, MAX_STEPS))
        prompt = _words(rng, start, steps)
        if (start, steps) in seen or split_of(start, steps) != split:
            continue
        seen.add((start, steps))
        text = solution(start, steps)
        problem = Problem(
            id=f"abacus-{split}-{seed}-{len(out):06d}",
            prompt=prompt,
            answer=text.rsplit(" ", 1)[1],
            source=f"abacus/{split}",
        )
        out.append((problem, text))
    return out
