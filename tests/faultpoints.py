"""A process that dies, or finds the disk full, at the n-th thing it does to files; and what comes of it when it is run again.

Works by forks of this process, which should have no threads. What libraries do natively (safetensors, Parquet) is seen as far as
Python opens or renames the file; kills at random moments are for the rest.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

KILLED = 137
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.symlink")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
Work = Callable[[Path], object]
SMALLEST = """
name = "faults"
question = "Is what was killed the same in the end?"
student = "abacus:base"
teacher = "abacus:teacher"
workers = 1
train = { num_steps = 2, batch_size = 4, checkpoint_every = 1, learning_rate = 1e-3, lora = { rank = 2 } }
eval = { max_new_tokens = 24, problems = { world = "abacus", num = 6 } }
geometry = { cka_problems = 0, draws = 20 }
arms = [{ name = "sft" }, { name = "dft", train = { objective = "dft" } }]

[rollouts]
max_new_tokens = 24
problems = { world = "abacus", split = "train", num = 4 }
"""


class Unit(NamedTuple):
    """Something that writes.

    Attributes:
        work: writes the folder; run again, it goes on or does it anew.
        look: what of the folder must not depend on what happened, by name.
        prepare: makes what is there before.
        between: raises where something that was finished is lost; run after the fault, before the second run.
    """

    work: Work
    look: Callable[[Path], dict[str, Any]]
    prepare: Work = lambda out: None
    between: Work = lambda out: None


class Found(NamedTuple):
    """Of a unit: how many operations it has, how many were tried, and a line for each that ended otherwise than undisturbed."""

    operations: int
    tried: int
    wrong: list[str]


def forked(work: Callable[[], object], said: Path) -> int:
    """Start ``work`` in a process, and a session, of its own; its id. What it says goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        to = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(to, 1)
        os.dup2(to, 2)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for it; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def arm(at: int, below: Path, *, full: bool = False) -> list[int]:
    """From here on this process dies before the ``at``-th change that it makes to files below a folder; a write is half done.

    Args:
        at: from 1; 0 for never.
        below: where changes count.
        full: do not die: from then on there is no room for anything new.

    Returns:
        A list whose only item is the number of changes so far.
    """
    done, root = [0], os.fspath(below.resolve())

    def strike(grows: bool, torn: Callable[[], object] = lambda: None) -> None:
        done[0] += 1
        if full and grows and 0 < at <= done[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), root)
        if not full and done[0] == at:
            torn()
            os._exit(KILLED)

    def counts(path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(root)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and counts(args[0]) and args[2] & WRITES:
            strike(grows=True)
        elif event in CHANGES and (
            counts(args[0]) or args[-1] not in (-1, None)
        ):  # the latter: by a folder's descriptor
            strike(grows=event in ("os.mkdir", "os.symlink"))

    def opened(path: Any, *args: Any, **options: Any) -> Any:
        file = plain_open(path, *args, **options)
        if counts(path) and file.writable():
            write = file.write

            def written(data: Any) -> int:
                strike(grows=True, torn=lambda: (write(data[: len(data) // 2]), file.flush()))
                return write(data)

            file.write = written
        return file

    plain_open = io.open
    builtins.open = io.open = opened
    sys.addaudithook(hook)
    return done


def everywhere(unit: Unit, root: Path, *, full: bool = False, most: int | None = None, seed: int = 0) -> Found:
    """Disturb the unit at each of its operations, or at ``most`` of them, each time run it again, and look.

    Args:
        unit: what writes.
        root: an empty folder; ``root/place/out`` is written.
        full: a disk without room in place of a death.
        most: how many operations are tried; all by default.
        seed: of their choice.
    """
    place, said = root / "place", root / "said"
    out = place / "out"

    def fresh() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        _well(lambda: unit.prepare(out), said)

    def counted() -> None:
        done = arm(0, place)
        unit.work(out)
        said.with_suffix(".count").write_text(json.dumps(done[0]))

    fresh()
    _well(counted, said)
    operations, expected = json.loads(said.with_suffix(".count").read_text()), _seen(unit, place)
    points: Collection[int] = range(1, operations + 1)
    if most is not None and most < operations:
        points = sorted(random.Random(seed).sample(points, most))
    wrong = []
    for at in points:
        fresh()
        code = ended(forked(lambda at=at: (arm(at, place, full=full), unit.work(out)), said))  # type: ignore[misc]
        words = said.read_text()
        if not full and code != KILLED:
            wrong.append(f"operation {at}: ended with {code}: {words[-300:]}")
            continue
        if full and code and "No space left" not in words:
            wrong.append(f"operation {at}: not told: {words[-300:]}")
        try:
            _well(lambda: unit.between(out), said)
            if not full or code:
                _well(lambda: unit.work(out), said)
        except RuntimeError as error:
            wrong.append(f"operation {at}: {error}")
            continue
        differs = differences(expected, _seen(unit, place))
        if differs:
            wrong.append(f"operation {at}: {', '.join(differs)}")
    return Found(operations, len(points), wrong)


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names that are there on one side alone, or that stand for something else."""
    return [
        f"{name} ({'missing' if name not in found else 'stray' if name not in expected else 'differs'})"
        for name in sorted(expected.keys() | found.keys())
        if name not in found or name not in expected or expected[name] != found[name]
    ]


def _seen(unit: Unit, place: Path) -> dict[str, Any]:
    beside = {path.name: "beside" for path in place.iterdir() if path.name != "out"}
    return {**beside, **unit.look(place / "out")}


def _well(work: Callable[[], object], said: Path) -> None:
    if ended(forked(work, said)):
        raise RuntimeError(f"must end well, said {said.read_text()[-300:]}")
