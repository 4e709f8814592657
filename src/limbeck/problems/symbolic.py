"""Math-Verify in processes of its own, killed from outside when they hang.

The library guards itself by an alarm signal, which a long power does not heed and a thread may not set. So it runs
here without: in a child with a memory limit, a minimal environment and a clock kept by the parent. Only text that
:func:`limbeck.problems.normal.admits` let through is sent. The child imports neither torch nor anything else of ours.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, cast

MEMORY_BYTES = 2 << 30
START_SECONDS = 120.0  # importing sympy on a busy machine
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")
CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from limbeck.problems.symbolic import serve; serve(float(sys.argv[2]))"
)


def judge_all(pairs: Sequence[tuple[str, str]], *, workers: int, limit_seconds: float) -> list[str]:
    """``correct``, ``wrong``, ``unparsed``, ``timed_out`` or ``errored`` for each (gold, answer), in order."""
    num = max(1, min(workers, len(pairs)))
    out = [""] * len(pairs)

    def work(first: int) -> None:
        with Judge(limit_seconds) as judge:
            for index in range(first, len(pairs), num):
                out[index] = judge.ask(*pairs[index])

    with ThreadPoolExecutor(num) as pool:
        list(pool.map(work, range(num)))
    return out


class Judge:
    """One child process, started when first asked and again after it was killed."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit = limit_seconds
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, gold: str, answer: str) -> str:
        """The outcome; within the limit, whatever the child does."""
        try:
            process = self._process or self._start()
            assert process.stdin is not None
            process.stdin.write(json.dumps([gold, answer]) + "\n")
            process.stdin.flush()
            line = self._lines.get(timeout=self._limit)
        except queue.Empty:
            self.close()
            return "timed_out"
        except OSError:
            line = ""
        if not line:  # the child died: out of memory, or killed
            self.close()
            return "errored"
        return str(json.loads(line))

    def close(self) -> None:
        """End the child; nothing is left behind."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue
        self._process = None

    def _start(self) -> subprocess.Popen[str]:
        path = json.dumps([os.path.abspath(entry) for entry in sys.path if entry])
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-c", CHILD, path, str(self._limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"OMP_NUM_THREADS": "1"},
        )
        self._lines = queue.SimpleQueue()
        threading.Thread(target=_forward, args=(self._process, self._lines), daemon=True).start()
        if not self._lines.get(timeout=START_SECONDS):
            raise OSError("the grading process did not start")
        return self._process


def _forward(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    """Lines as they come, then an empty one."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.put(line)
    except (OSError, ValueError):  # closed under our hands
        pass
    lines.put("")


def serve(limit_seconds: float) -> None:
    """The child's loop: one JSON pair a line in, one JSON outcome a line out."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr
    import math_verify  # noqa: F401  before the clock starts

    _limit_memory()
    answers.write('"ready"\n')
    answers.flush()
    for line in sys.stdin:
        _arm(limit_seconds)
        gold, answer = json.loads(line)
        try:
            outcome = judge(gold, answer)
        except Exception:
            outcome = "errored"
        _arm(None)
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()


def judge(gold: str, answer: str) -> str:
    """Math-Verify's verdict on LaTeX alone, made stricter where it is lenient; without any clock of its own."""
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list[Any]:
        config = [LatexExtractionConfig()]  # never the plain-expression reader: it evaluates Python
        return parse(f"${text}$", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)  # pyright: ignore[reportArgumentType]

    expected, received = read(gold), read(answer)
    if not expected:
        return "errored"
    if not received:
        return "unparsed"
    agree = verify(expected, received, timeout_seconds=None) and _agrees(cast(Any, expected[0]), cast(Any, received[0]))
    return "correct" if agree else "wrong"


def _agrees(gold: Any, answer: Any) -> bool:
    """What Math-Verify lets pass: an ordered pair for a set, and numbers that are close only because tiny."""
    from sympy import FiniteSet, Interval, N, Tuple

    for one, other in ((gold, answer), (answer, gold)):  # (1, 2) is read as an interval, (2, 1) as a pair
        if isinstance(one, FiniteSet) and isinstance(other, (Tuple, Interval)):
            return False
    if getattr(gold, "is_number", False) and getattr(answer, "is_number", False):
        size = N(abs(gold), 30)  # in sympy's floats, which do not overflow
        return bool(N(abs(gold - answer), 30) <= size / 10**6)
    return True


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on this system; the clock still holds
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _arm(limit_seconds: float | None) -> None:
    """Let the kernel end this process should the parent die before it could: no handler, so nothing can delay it."""
    import signal

    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(0 if limit_seconds is None else int(limit_seconds) + 10)
