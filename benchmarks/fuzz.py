"""Each parser of files that strangers make, given broken ones: is every refusal a sentence, quick and small?

    python benchmarks/fuzz.py --minutes 10           # each parser, in a process of its own
    python benchmarks/fuzz.py --only "a study" --seed 7  # one, with other inputs
    python benchmarks/fuzz.py --docs                 # the table in docs/reliability.md from the JSON

Whole files of each kind are changed (``mutations.py``): bytes are flipped, cut, doubled and moved, values and columns are put in
place of others. With atheris (``pip install atheris``) inputs that reach lines of limbeck that none had reached are kept and
changed further; without it every input is made of the whole files. Minutes are by the clock; those of the processor, without the
processes that a parser starts, are told beside them.

A finding is an exception that is none of limbeck's, more than ten seconds of the processor (or two minutes) for one input, more
memory than the limit, or a process that died; its files are kept under ``--keep``, with the traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]  # tests.hostile: the same verbs, and whole files to begin with

from common import Results, Row, machine, number, table_in_docs  # noqa: E402 - needs no path
from mutations import Files, changed  # noqa: E402
from parsers import PARSERS  # noqa: E402

COMMAND = "python benchmarks/fuzz.py"
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
SECONDS, WAIT = 10, 120  # of the processor for one input, and by the clock
MEMORY_BYTES = 2 << 30  # beyond what the process has before its first input
LARGEST = 1 << 20  # bytes of an input that is kept to be changed further
KINDS = ("inputs", "refused", "accepted", "findings", "minutes", "CPU minutes")


class HangError(BaseException):
    """One input took too long; no handler of a parser may take it for its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="for each parser")
    parser.add_argument("--only", nargs="+", default=list(PARSERS), help="some parsers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "limbeck-fuzz", help="for findings")
    parser.add_argument("--smoke", action="store_true", help="twenty inputs each; writes no result")
    parser.add_argument("--docs", action="store_true", help="only write the table into docs/reliability.md")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS, metavar=("PARSER", "FOLDER", "SECONDS"))
    asked = parser.parse_args()
    if asked.child:
        name, folder, seconds = asked.child
        work(name, Path(folder), float(seconds), asked.seed, most=20 if asked.smoke else None)
        return
    results = Results(
        "fuzz", command=f"{COMMAND} --minutes {asked.minutes:g}", machine=machine(1), keep=not asked.smoke
    )
    if asked.docs:
        table_in_docs("fuzz", docs_table(results.stored()), page=PAGE)
        return
    for name in asked.only:
        found = fuzz(name, 60 * asked.minutes, asked.seed, asked.keep, smoke=asked.smoke)
        for kind in KINDS:
            goal = 0.0 if kind == "findings" else None
            results.add((f"{name}: {kind}", found[kind], None, None, None, goal, kind))
    results.show()
    if any(row["ours"] for row in results.fresh if row["goal"] == 0.0):
        raise SystemExit(f"there are findings: see {asked.keep}")


def docs_table(rows: list[Row]) -> str:
    """Markdown of the stored rows, a parser a line."""
    stored = {row["what"]: row["ours"] for row in rows}
    head = [f"| parser | {' | '.join(KINDS)} |", "| --- " * (len(KINDS) + 1) + "|"]
    return "\n".join(head + [f"| {name} | {' | '.join(_cells(stored, name))} |" for name in PARSERS])


def _cells(stored: dict[str, Any], name: str) -> list[str]:
    return [number(stored.get(f"{name}: {kind}")) for kind in KINDS]


def fuzz(name: str, seconds: float, seed: int, keep: Path, *, smoke: bool = False) -> dict[str, float]:
    """By kind, of one parser over its time; a process that died is a finding, and another takes its place."""
    counts, used, busy = Counter[str](), 0.0, 0.0
    while used < seconds:
        with tempfile.TemporaryDirectory() as scratch:
            begun = seed + sum(counts.values())
            command = [sys.executable, __file__, "--seed", str(begun), *(["--smoke"] * smoke)]
            environment = os.environ | {
                "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            }  # fmt: skip
            left = str(seconds - used)
            done = subprocess.run([*command, "--child", name, scratch, left], env=environment, check=False)
            told = json.loads((Path(scratch) / "told.json").read_text())
            if not told:
                raise SystemExit(f"{name} died before its first input")
            counts.update(told["counts"])
            used, busy = used + told["seconds"], busy + told["busy"]
            found = sorted(Path(scratch).glob("finding-*"))
            if done.returncode:
                counts["findings"] += 1
                found.append(Path(scratch) / "input")
            for place, folder in enumerate(found):
                shutil.copytree(folder, keep / f"{name}-{begun}-{place}", dirs_exist_ok=True)
        if smoke:
            break
    measured = {"minutes": used / 60, "CPU minutes": busy / 60}
    return {"inputs": sum(counts.values()), **{kind: counts[kind] for kind in KINDS[1:4]}, **measured}


# ------------------------------------------------------------------------------------------------------ the child's side


def work(name: str, scratch: Path, seconds: float, seed: int, *, most: int | None) -> None:
    """Change, open, count, until the time is over."""
    warnings.simplefilter("ignore")
    (scratch / "told.json").write_text("{}")
    guided = most is None and importlib.util.find_spec("atheris") is not None
    with instrumented() if guided else contextlib.nullcontext():
        wholes, opened, target = prepare(name, scratch)
    begin, busy = time.monotonic(), time.process_time()
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY_BYTES, pages + MEMORY_BYTES))
    counts = Counter[str]()

    def one(files: Files) -> bool:
        """Open one input; whether there is time for another."""
        folder = scratch / "input"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file, data in files.items():
            (folder / file).write_bytes(data)
        counts[outcome(name, opened, folder / target if target else folder, scratch)] += 1
        used = time.monotonic() - begin
        told = {"counts": counts, "seconds": used, "busy": time.process_time() - busy}
        (scratch / "told.json").write_text(json.dumps(told))
        return used < seconds and sum(counts.values()) != most

    if guided:
        guide(wholes, one, scratch / "corpus", seed)
    choose = random.Random(seed)
    while one(changed(choose.choice(wholes), choose)):
        pass


def outcome(name: str, opened: Callable[[Path], None], path: Path, scratch: Path) -> str:
    """Which kind of input this was; the first of each kind of finding is kept."""
    from limbeck.errors import LimbeckError

    _limit(SECONDS, WAIT)
    try:
        opened(path)
        return "accepted"
    except LimbeckError as error:
        if len(str(error)) < 5000:
            return "refused"
        text = str(error)
    except BaseException:
        _limit(0, 0)
        text = traceback.format_exc()
    finally:
        _limit(0, 0)
    if (last := text.splitlines()[-1][:60]) not in KNOWN:
        KNOWN.add(last)
        kept = scratch / f"finding-{len(KNOWN)}"
        shutil.copytree(scratch / "input", kept)
        (kept / "traceback.txt").write_text(text)
        print(f"{name}: {text[-1500:]}", file=sys.stderr, flush=True)
    return "findings"


KNOWN: set[str] = set()  # findings that were kept: one of a kind is enough


def _limit(seconds: float, wait: float) -> None:
    """Raise after so many seconds of the processor, or by the clock; 0 for never."""
    for name, timer, limit in (
        (signal.SIGPROF, signal.ITIMER_PROF, seconds),
        (signal.SIGALRM, signal.ITIMER_REAL, wait),
    ):
        signal.signal(name, _hang)
        signal.setitimer(timer, limit)


def _hang(*_: object) -> None:
    raise HangError(f"more than {SECONDS} seconds of the processor, or {WAIT} in all")


def instrumented() -> Any:
    """Where limbeck's modules are imported so that atheris sees which of their lines are reached."""
    import atheris

    return atheris.instrument_imports(include=["limbeck"])


def guide(wholes: list[Files], one: Callable[[Files], bool], corpus: Path, seed: int) -> None:
    """Inputs by atheris: what reached something new is kept and changed further. Ends this process."""
    import atheris

    corpus.mkdir()
    for place, whole in enumerate(wholes):
        (corpus / str(place)).write_bytes(packed(whole))

    def mutate(data: bytes, largest: int, seed: int) -> bytes:
        found = packed(changed(unpacked(data), random.Random(seed)))
        return found if len(found) <= largest else data

    def test(data: bytes) -> None:
        if data and not one(unpacked(data)):  # it begins with an empty one
            os._exit(0)

    settings = [
        f"-seed={seed + 1}",
        f"-max_len={LARGEST}",
        "-len_control=0",
        "-rss_limit_mb=0",
        "-timeout=0",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *settings, str(corpus)], test, custom_mutator=mutate)
    atheris.Fuzz()


def packed(files: Files) -> bytes:
    """Several files as one input.

    >>> unpacked(packed({"a": b"1", "b": b""}))
    {'a': b'1', 'b': b''}
    """
    sizes = json.dumps({name: len(data) for name, data in files.items()}).encode()
    return b"\n".join([sizes, b"".join(files.values())])


def unpacked(data: bytes) -> Files:
    """The files of :func:`packed`."""
    sizes, _, content = data.partition(b"\n")
    files, at = {}, 0
    for name, size in json.loads(sizes).items():
        files[name], at = content[at : at + size], at + size
    return files


def prepare(name: str, scratch: Path) -> tuple[list[Files], Callable[[Path], None], str]:
    """Whole files to change, the verb that opens them, and which file it is given; the verb has run on each once."""
    from tests.hostile.cases import VERBS

    verb, target, makes = PARSERS[name]
    opened, wholes = VERBS[verb], []
    for place, make in enumerate(makes()):
        folder = scratch / f"whole-{place}"
        folder.mkdir()
        make(folder)
        wholes.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        opened(folder / target if target else folder)
    return wholes, opened, target


if __name__ == "__main__":
    main()
