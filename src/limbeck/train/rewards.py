"""What each answer of a live run is worth: our grader's verdict, or a function of the user's in a process of its own.

A function of the user's may raise, hang, die or answer with the wrong number of rewards: that costs its group, which
is counted and left out, and never the run. POSIX only.
"""

from __future__ import annotations

import math
import multiprocessing
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import NamedTuple, Protocol, runtime_checkable

from limbeck.errors import ConfigError
from limbeck.problems.grading import Grader, Outcome
from limbeck.types import Problem

RewardFunction = Callable[[Problem, Sequence[str]], Sequence[float]]
"""A problem and the texts of its answers in, one finite number for each out. Must be importable: defined in a module."""

START_SECONDS = 120.0  # importing what the function needs, on a busy machine


class Rewarded(NamedTuple):
    """Rewards of one group in the order of its answers; or none, and why."""

    rewards: tuple[float, ...]
    failure: str = ""


@runtime_checkable
class Rewards(Protocol):
    """Groups of answers in, their rewards out; processes behind it, if any, end with the context."""

    def __call__(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[Rewarded]: ...

    def __enter__(self) -> Rewards: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Right:
    """1 for an answer that the grader takes for right, else 0. No process is started where arithmetic decides."""

    def __init__(self) -> None:
        self._grader = Grader()

    def __call__(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[Rewarded]:
        """Grade every answer; a failed grade is a wrong answer, never a failure."""
        texts = [text for _, answers in groups for text in answers]
        gold = [problem.answer for problem, answers in groups for _ in answers]
        grades = iter(self._grader.grade_all(texts, gold))
        return [Rewarded(tuple(float(next(grades).outcome == Outcome.CORRECT) for _ in group)) for _, group in groups]

    def __enter__(self) -> Right:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._grader.close()


class Isolated:
    """A reward function in a process of its own, asked one group at a time and killed when it takes too long.

    Args:
        function: the user's; it must be importable by another process.
        limit_seconds: for one group.

    Raises:
        ConfigError: the function cannot be sent to another process.
    """

    def __init__(self, function: RewardFunction, *, limit_seconds: float) -> None:
        try:
            pickle.dumps(function)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"a reward function must be one that another process can import, received {function!r} ({error}). Define "
                "it at the top of a module, without a closure."
            ) from error
        self._function, self._limit = function, limit_seconds
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __call__(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[Rewarded]:
        """Ask for every group, whatever became of the others."""
        return [self._ask(problem, list(answers)) for problem, answers in groups]

    def __enter__(self) -> Isolated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _ask(self, problem: Problem, answers: list[str]) -> Rewarded:
        try:
            pipe = self._pipe or self._start()
            pipe.send((problem, answers))
            if not pipe.poll(self._limit):
                self._end()
                return Rewarded((), f"it took longer than {self._limit:g} s")
            said = pipe.recv()
        except (EOFError, OSError):
            self._end()
            return Rewarded((), "its process died")
        return Rewarded((), said) if isinstance(said, str) else _checked(said, len(answers))

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._function, self._limit), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(START_SECONDS):
            raise EOFError
        self._pipe.recv()
        return self._pipe

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def rewards_of(function: RewardFunction | None, *, limit_seconds: float) -> Rewards:
    """The grader, or a function of the user's, isolated."""
    return Right() if function is None else Isolated(function, limit_seconds=limit_seconds)


def _checked(said: list[float], num: int) -> Rewarded:
    if len(said) != num:
        return Rewarded((), f"it returned {len(said)} rewards for {num} answers")
    if not all(map(math.isfinite, said)):
        return Rewarded((), "it returned a reward that is not finite")
    return Rewarded(tuple(said))


def _serve(pipe: Connection, function: RewardFunction, limit_seconds: float) -> None:
    """The process: a group in, its rewards or a sentence out, after a greeting, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is for the parent
    sys.stdout = sys.stderr  # a verb's stdout is its result
    pipe.send("ready")
    while True:
        try:
            problem, answers = pipe.recv()
        except EOFError:
            return
        signal.alarm(int(limit_seconds) + 10)  # should the parent die before it could kill
        try:
            said: list[float] | str = [float(x) for x in function(problem, answers)]
        except Exception as error:
            said = f"it raised {type(error).__name__}: {error}"
        signal.alarm(0)
        pipe.send(said)
