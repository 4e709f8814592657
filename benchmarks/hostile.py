"""Every hostile file of the table in docs/reliability.md: what came of it, how long it took, and the most memory it took.

    python benchmarks/hostile.py           # all, and the figures in docs/reliability.md
    python benchmarks/hostile.py --smoke   # every twentieth; writes nothing

Each is opened in a fork of this process, which has opened a whole file of every kind before: memory is what the fork, and what it
starts, had at most beyond what it began with.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from common import THREAD_VARIABLES, Results, machine, table_in_docs

for name in THREAD_VARIABLES:  # forks of a process with threads may hang
    os.environ[name] = "1"
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_DEACTIVATE_ASYNC_LOAD": "1"}
sys.path[:0] = [str(Path(__file__).parents[1])]  # tests.hostile

from fuzz import prepare  # noqa: E402
from parsers import PARSERS  # noqa: E402

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
COMMAND = "python benchmarks/hostile.py"
MIB = 2**20


class Opened(NamedTuple):
    """Of one file: ``refused``, ``accepted`` or what went wrong; seconds; bytes at most beyond the start; bytes of the file."""

    case: str
    outcome: str
    seconds: float
    memory: float
    size: int


def opened(case: Any, folder: Path) -> Opened:
    """Make the file here and open it in a fork."""
    given, said = case.make(folder), folder.parent / "said.json"
    said.unlink(missing_ok=True)
    size = sum(p.stat().st_size for p in [given, *given.rglob("*")] if p.is_file()) if given.exists() else 0
    begin = time.perf_counter()
    pid = os.fork()
    if not pid:
        _open(case, given, said)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seconds = time.perf_counter() - begin
    told = json.loads(said.read_text()) if said.exists() else {"outcome": f"ended with {code}", "memory": 0.0}
    return Opened(f"{case.verb}: {case.wrong}", told["outcome"], seconds, told["memory"], size)


def resident() -> float:
    """The memory that this process has, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _open(case: Any, given: Path, said: Path) -> None:
    from tests.hostile import VERBS

    from limbeck.errors import LimbeckError

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    before = resident()
    try:
        VERBS[case.verb](given)
        outcome = "taken" if not case.sentence else "not refused"
    except LimbeckError as error:
        outcome = "refused" if case.sentence and case.sentence in str(error) else f"another sentence: {error}"
    except BaseException as error:
        outcome = repr(error)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    said.write_text(json.dumps({"outcome": outcome, "memory": max(0.0, 1024 * peak - before)}))
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="every twentieth; writes nothing")
    smoke = parser.parse_args().smoke
    warnings.simplefilter("ignore")
    from tests.hostile import CASES

    results = Results("hostile", command=COMMAND, machine=machine(1), keep=not smoke)
    with tempfile.TemporaryDirectory() as root:
        for place, kind in enumerate(PARSERS):
            (folder := Path(root) / f"whole-{place}").mkdir()
            prepare(kind, folder)
        found = []
        for place, case in enumerate(CASES[:: 20 if smoke else 1]):
            (folder := Path(root) / str(place)).mkdir()
            found.append(opened(case, folder))
    wrong = [one for one in found if one.outcome not in ("refused", "taken")]
    refused = sum(one.outcome == "refused" for one in found)
    most, longest = max(found, key=lambda one: one.memory), max(found, key=lambda one: one.seconds)
    results.add(
        ("hostile files", len(found), None, None, None, None, "files"),
        ("refused, each with its sentence", refused, None, None, None, None, "files"),
        ("taken as they stand", len(found) - refused - len(wrong), None, None, None, None, "files"),
        ("anything else", len(wrong), None, None, None, 0, "files"),
        (f"most memory: {most.case} ({most.size / MIB:.2g} MiB)", most.memory / MIB, None, None, None, None, "MiB"),
        (f"longest: {longest.case}", longest.seconds, None, None, None, None, "s"),
    )
    results.show()
    if not smoke:
        rows = [f"| {row['what']} | {row['ours']:.4g} {row['unit']} |" for row in results.fresh]
        table_in_docs("hostile figures", "\n".join(["| | |", "| --- | --- |", *rows]), page=PAGE)
    if wrong:
        raise SystemExit("\n".join(f"{one.case}: {one.outcome}" for one in wrong))


if __name__ == "__main__":
    main()
