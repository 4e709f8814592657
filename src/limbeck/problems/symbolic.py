"""Math-Verify in processes of its own, killed from outside when they hang.

The library guards itself by an alarm signal, which a long power does not heed and a thread may not set. So it runs
here without: in a child with a memory limit, a minimal environment and a clock kept by the parent. One process, the
nursery, imports it once and forks every worker, so that replacing a killed one takes milliseconds and not an import.
Only text that :func:`limbeck.problems.normal.admits` let through is sent. Neither process imports torch or anything
else of ours. POSIX only.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from types import TracebackType
from typing import Any, cast

MEMORY_BYTES = 2 << 30
START_SECONDS = 120.0  # importing sympy on a busy machine
MAX_PART = 16  # questions in a pipe, which holds 64 KiB; the grammar admits 400 characters
MAX_STARTS = 3  # of the nursery, for one list of questions
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
NURSERY = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from limbeck.problems.symbolic import serve; serve(*json.loads(sys.argv[2]))"
)


class LostError(Exception):
    """The nursery is gone, and its workers with it."""


class Judges:
    """Worker processes, started when first asked and kept until closed; safe in any thread, one caller at a time.

    Args:
        workers: processes.
        limit_seconds: for one comparison.
    """

    def __init__(self, workers: int, limit_seconds: float) -> None:
        self._workers, self._limit = workers, limit_seconds
        self._nursery: subprocess.Popen[bytes] | None = None
        self._slots: list[Slot] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Judges:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask_all(self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], None] = lambda num: None) -> list[str]:
        """``correct``, ``wrong``, ``unparsed``, ``timed_out`` or ``errored`` for each (gold, answer), in order."""
        out = ["errored"] * len(pairs)
        todo: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for part in _parts(pairs, 4 * self._workers):
            todo.put(part)
        counting = threading.Lock()

        def work(slot: Slot) -> None:
            part: list[int] = []
            try:
                while part := part or todo.get_nowait():
                    for outcome in slot.ask([pairs[index] for index in part]):
                        out[part.pop(0)] = outcome
                        with counting:
                            advance(1)
            except queue.Empty:
                return
            except LostError:  # the first of the part was being asked: it may be the reason, and is not asked again
                if part[1:]:
                    todo.put(part[1:])

        with self._lock:
            for _ in range(MAX_STARTS):
                if todo.empty():
                    break
                self._run(work, min(self._workers, len(pairs)), todo)
        return out

    def close(self) -> None:
        """End every process; nothing is left behind."""
        if self._nursery is None:
            return
        for slot in self._slots:
            slot.close()
        try:
            self._nursery.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._nursery.pid, signal.SIGKILL)
            self._nursery.wait()
        self._nursery, self._slots = None, []

    def _run(self, work: Callable[[Slot], None], num: int, todo: queue.SimpleQueue[list[int]]) -> None:
        """``work`` in a thread a worker; an interrupt ends the processes at once."""
        if self._nursery is None or self._nursery.poll() is not None:
            self.close()
            self._nursery = self._start()
        with ThreadPoolExecutor(num) as pool:
            try:
                for done in [pool.submit(work, slot) for slot in self._slots[:num]]:
                    done.result()
            except BaseException:
                while not todo.empty():
                    todo.get_nowait()
                os.killpg(self._nursery.pid, signal.SIGKILL)  # the pipes stay open for the threads to see their end
                self._nursery.wait()
                raise

    def _start(self) -> subprocess.Popen[bytes]:
        pipes = [(*os.pipe(), *os.pipe()) for _ in range(self._workers)]
        theirs = [(questions, answers) for questions, _, _, answers in pipes]
        path = json.dumps([os.path.abspath(entry) for entry in sys.path if entry])
        nursery = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-c", NURSERY, path, json.dumps([self._limit, theirs])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[descriptor for pair in theirs for descriptor in pair],
            start_new_session=True,  # an interrupt at the terminal is for us to pass on
            env={name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"OMP_NUM_THREADS": "1"},
        )
        for descriptor in (descriptor for pair in theirs for descriptor in pair):
            os.close(descriptor)
        self._slots = [Slot(nursery, write, read, self._limit) for _, write, read, _ in pipes]
        return nursery


def _parts(pairs: Sequence[tuple[str, str]], num: int) -> list[list[int]]:
    """Places of the pairs, those of one gold together so that one worker reads it once; about ``num`` parts or more."""
    size = min(MAX_PART, -(-len(pairs) // num))
    parts: list[list[int]] = []
    for index in sorted(range(len(pairs)), key=lambda i: pairs[i][0]):
        if parts and len(parts[-1]) < size and pairs[parts[-1][-1]][0] == pairs[index][0]:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts


class Slot:
    """Our side of one worker's two pipes. The process behind them may be another after each kill."""

    def __init__(self, nursery: subprocess.Popen[bytes], questions: int, answers: int, limit_seconds: float) -> None:
        self._nursery, self._questions, self._answers, self._limit = nursery, questions, answers, limit_seconds
        self._buffer = b""
        self._number = 0
        self._busy = False
        self.pid = 0
        """Of the worker behind the pipes, 0 while none is known."""

    def ask(self, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
        """Outcomes in order, each within the limit after the one before; ends early where the worker was lost.

        The questions are written at once, so that the worker never waits for us; they must fit into a pipe.

        Raises:
            LostError: the nursery died.
        """
        self._await_worker()
        first, self._busy = self._number + 1, True
        self._number += len(pairs)
        lines = [json.dumps([first + n, *pair]) + "\n" for n, pair in enumerate(pairs)]
        try:
            os.write(self._questions, "".join(lines).encode())
            for expected in range(first, self._number + 1):
                number, outcome = self._answer(expected)
                if number == 0:  # a successor greets: the one we asked died, out of memory or killed
                    self.pid = int(outcome)
                yield str(outcome) if number else "errored"
                if number == 0:
                    break
            self._busy = False
        except TimeoutError:
            self._kill()
            yield "timed_out"
        except OSError as error:
            raise LostError from error

    def close(self) -> None:
        """Let an idle worker end at the end of its questions, and kill a busy one."""
        for descriptor in (self._questions, self._answers):
            os.close(descriptor)
        if self._busy:
            self._kill()

    def _answer(self, expected: int) -> list[Any]:
        """The answer of this number or a greeting, past the answers that a successor gave to what we asked before."""
        deadline = time.monotonic() + self._limit
        while (line := self._line(deadline))[0] not in (0, expected):
            pass
        return line

    def _await_worker(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        try:
            while not self.pid:
                number, pid = self._line(deadline)
                self.pid = int(pid) if number == 0 else 0  # else a late answer of the one that was killed
        except TimeoutError as error:
            raise LostError from error

    def _kill(self) -> None:
        if not self.pid:
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.pid, self._busy = 0, False

    def _line(self, deadline: float) -> list[Any]:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            waiting = select.poll()
            waiting.register(self._answers, select.POLLIN)
            if waiting.poll(1000 * min(left, 0.5)):
                received = os.read(self._answers, 65536)
                if not received:
                    raise LostError
                self._buffer += received
            elif self._nursery.poll() is not None:
                raise LostError
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


def serve(limit_seconds: float, pipes: Sequence[tuple[int, int]]) -> None:
    """The nursery: a worker for each (questions, answers) pair of pipes, and another whenever one was killed."""
    judge("x+1", "1+x")  # imports Math-Verify and warms its parser, before any clock starts
    parent = os.getppid()
    workers = {_fork(limit_seconds, pair): pair for pair in pipes}
    while workers:
        pid, status = os.wait()
        pair = workers.pop(pid)
        if status != 0 and os.getppid() == parent:  # 0: no more questions
            _drain(pair[0])
            workers[_fork(limit_seconds, pair)] = pair


def _drain(questions: int) -> None:
    """Take away what a killed worker was not asked any more; we are asked again after the greeting."""
    while select.select([questions], [], [], 0)[0] and os.read(questions, 65536):
        pass


def _fork(limit_seconds: float, pair: tuple[int, int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        with suppress(BrokenPipeError):  # nobody is there to read: as good as the end of the questions
            _work(limit_seconds, *pair)
        os._exit(0)
    finally:
        os._exit(1)


def _work(limit_seconds: float, questions: int, answers: int) -> None:
    """A worker: ``[number, gold, answer]`` a line in, ``[number, outcome]`` a line out, after a greeting."""
    _limit_memory()
    os.write(answers, f"[0, {os.getpid()}]\n".encode())
    with os.fdopen(questions, encoding="utf-8") as lines:
        for line in lines:
            _arm(limit_seconds)
            number, gold, answer = json.loads(line)
            try:
                outcome = judge(gold, answer)
            except Exception:
                outcome = "errored"
            _arm(None)
            os.write(answers, f'[{number}, "{outcome}"]\n'.encode())


def judge(gold: str, answer: str) -> str:
    """Math-Verify's verdict on LaTeX alone, made stricter where it is lenient; without any clock of its own."""
    from math_verify import verify

    expected, received = _read(gold), _read(answer)
    if not expected:
        return "errored"
    if not received:
        return "unparsed"
    one, other = cast(Any, expected[0]), cast(Any, received[0])
    if _other_kind(one, other) or _other_kind(other, one) or _differ(one, other):
        return "wrong"
    try:
        return "correct" if verify(one, other, timeout_seconds=None, raise_on_error=True) else "wrong"
    except (MemoryError, RecursionError):
        return "errored"
    except Exception:  # two things that have no common comparison
        return "wrong"


@lru_cache(maxsize=4096)
def _read(text: str) -> tuple[Any, ...]:
    """What the text says; a gold answer is read once for all samples of its problem.

    In two stages, as ANTLR advises for speed: its simple prediction first, which reads as the full one does or fails,
    and the full one where it fails.
    """
    with _simple_prediction():
        found = _parsed(text)
    return found or _parsed(text)


def _parsed(text: str) -> tuple[Any, ...]:
    from math_verify import LatexExtractionConfig, parse
    from math_verify.parser import parse_latex_cached

    parse_latex_cached.cache_clear()  # of either stage
    config = [LatexExtractionConfig()]  # never the plain-expression reader: it evaluates Python
    return tuple(parse(f"${text}$", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None))  # pyright: ignore[reportArgumentType]


@contextmanager
def _simple_prediction() -> Iterator[None]:
    from antlr4.atn.ParserATNSimulator import ParserATNSimulator
    from antlr4.atn.PredictionMode import PredictionMode

    simulator: Any = ParserATNSimulator  # its calls inside the grammar take no mode, so its own default is changed
    full = simulator.__init__

    def simple(self: Any, *args: Any) -> None:
        full(self, *args)
        self.predictionMode = PredictionMode.SLL

    simulator.__init__ = simple
    try:
        yield
    finally:
        simulator.__init__ = full


def _other_kind(one: Any, other: Any) -> bool:
    """What Math-Verify lets pass: an ordered pair for a set (it reads (1, 2) as an interval too), 2x = 5 for 5."""
    from sympy import Eq, Expr, FiniteSet, Interval, Tuple

    if isinstance(one, FiniteSet) and isinstance(other, (Tuple, Interval)):
        return True
    return isinstance(one, Eq) and isinstance(other, Expr) and not cast(Any, one).lhs.is_Symbol


def _differ(gold: Any, answer: Any) -> bool:
    """Whether two expressions have values at one point that differ by more than a part in a million.

    That proves them different without the simplification that makes Math-Verify slow on wrong answers, and holds
    for numbers that it takes for equal only because both are tiny.
    """
    from sympy import Expr, N, Rational

    if not (isinstance(gold, Expr) and isinstance(answer, Expr)):
        return False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    point: Any = {symbol: Rational(1009 + 331 * n, 1013 + 97 * n * n) for n, symbol in enumerate(symbols)}
    value, other = N(gold.subs(point), 30), N(answer.subs(point), 30)
    if not (value.is_finite and other.is_finite):
        return False
    return bool(N(abs(value - other), 30) > max(abs(value), abs(other)) / 10**6)  # sympy's floats do not overflow


def _limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _arm(limit_seconds: float | None) -> None:
    """Let the kernel end this process should the parent die before it could: no handler, so nothing can delay it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(0 if limit_seconds is None else int(limit_seconds) + 10)
