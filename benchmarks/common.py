"""What the benchmarks share: one process for each measurement, the machine in words, result rows, a printed table.

A parent stays small and imports no torch: a child's peak memory is counted from its own start, and its threads are
fixed before its libraries load.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
KEYS = ("what", "ours", "theirs", "peer", "ratio", "goal", "unit")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Row = dict[str, Any]


class JobError(RuntimeError):
    """A measured process ended without a result; the message ends with what it said last."""


def run_job(script: Path, job: Mapping[str, Any], *, threads: int) -> dict[str, Any]:
    """One job in a process of its own; what it printed as its last line, read as JSON.

    Raises:
        JobError: the process failed or was killed.
    """
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "HF_HUB_OFFLINE": "1"}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    command = [sys.executable, str(script), json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise JobError(f"{script.name} {json.dumps(job)} ended with code {done.returncode}:\n{last}")
    return json.loads(done.stdout.splitlines()[-1])


def answer(jobs: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """The child's side: run the job named in the one argument and print its result as the last line."""
    import torch

    job = json.loads(sys.argv[1])
    torch.set_num_threads(int(os.environ[THREAD_VARIABLES[0]]))
    print(json.dumps(jobs[job.pop("job")](**job)), flush=True)


def memory() -> dict[str, float]:
    """Resident memory of this process in MB, now and at its highest; on a GPU also the highest allocated there."""
    import torch

    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(status[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    out = {"now_mb": now, "peak_mb": peak}
    if torch.cuda.is_available():
        out["device_now_mb"] = torch.cuda.memory_allocated() / 1e6
        out["device_peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return out


class Clock:
    """Times of day and of the processor at the ends of steps; the first step warms up and is not counted."""

    def __init__(self) -> None:
        self._stamps: list[tuple[float, float]] = []

    def stamp(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._stamps.append((time.perf_counter(), time.process_time()))

    def result(self) -> dict[str, list[float]]:
        pairs = list(zip(self._stamps, self._stamps[1:], strict=False))
        return {
            "seconds": [after[0] - before[0] for before, after in pairs],
            "processor_seconds": [after[1] - before[1] for before, after in pairs],
        }


def timing(parser: argparse.ArgumentParser, *, threads: int) -> None:
    """Add what decides how steps are timed."""
    parser.add_argument("--steps", type=int, default=3, help="timed steps after the warm-up")
    parser.add_argument("--threads", type=int, default=threads)
    text = "one thread, timed by the processor's own clock: for a machine that other work uses too"
    parser.add_argument("--shared", action="store_true", help=text)


def timed(arguments: argparse.Namespace) -> Timing:
    """Threads and clock as asked for."""
    return Timing(1, "processor_seconds") if arguments.shared else Timing(arguments.threads, "seconds")


class Timing(NamedTuple):
    """How many threads a job has, and which of a clock's results counts."""

    threads: int
    key: str

    def median(self, found: Mapping[str, Any]) -> float:
        """Seconds of the median step."""
        return statistics.median(found[self.key])

    @property
    def machine(self) -> str:
        """The machine in words, and whether other work was on it."""
        return machine(self.threads) + (", in processor time" if self.key == "processor_seconds" else "")


def machine(threads: int) -> str:
    """Processor, threads and library versions in one line."""
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    libraries = ", ".join(f"{library} {version(library)}" for library in ("torch", "transformers", "peft"))
    return f"{name}, {os.cpu_count()} cores, {threads} threads, {libraries}"


class Results:
    """Rows of one result file, written after each so that nothing that was measured is lost.

    A row that is measured again replaces the one of the same ``what``, ``peer`` and ``unit``; the others stay, each
    with its own date and machine.
    """

    def __init__(self, name: str, *, command: str, machine: str, keep: bool = True) -> None:
        self.path = RESULTS / f"{name}.json"
        self._common = {
            "command": command,
            "machine": machine,
            "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        }
        self._keep = keep
        self.fresh: list[Row] = []

    def add(self, *rows: Sequence[Any]) -> None:
        """Add rows given as (what, ours, theirs, peer, ratio, goal, unit)."""
        new = [dict(zip(KEYS, row, strict=True)) | self._common for row in rows]
        self.fresh += new
        if not self._keep:
            return
        names = {self._name(row) for row in new}
        kept = [row for row in self.stored() if self._name(row) not in names]
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(kept + new, indent=2) + "\n")

    def stored(self) -> list[Row]:
        """What the result file holds."""
        return json.loads(self.path.read_text()) if self.path.is_file() else []

    @staticmethod
    def _name(row: Row) -> tuple[str, str | None, str]:
        return row["what"], row["peer"], row["unit"]

    def show(self) -> None:
        """Print what this run measured."""
        print(f"{'ours':>10} {'theirs':>10} {'ratio':>7} {'goal':>7}  unit      what; peer")
        for row in self.fresh:
            ours, theirs, ratio, goal = (number(row[key]) for key in ("ours", "theirs", "ratio", "goal"))
            peer = f"; {row['peer']}" if row["peer"] else ""
            print(f"{ours:>10} {theirs:>10} {ratio:>7} {goal:>7}  {row['unit']:<9} {row['what']}{peer}")


def table_in_docs(name: str, text: str, *, page: Path | None = None) -> None:
    """Put ``text`` between the two comments that carry ``name`` in a page, by default docs/benchmarks.md."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = page or DOCS
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} must hold the comments {begin} and {end}; they are not there. Put them in.")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def number(value: float | None) -> str:
    """Four digits, empty for None.

    >>> number(1234.5678), number(0.00012345), number(None)
    ('1235', '0.0001234', '')
    """
    return "" if value is None else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
