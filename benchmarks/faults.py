"""Kills and faults: what comes of a study, a training, a rollout set and a score table that are disturbed and run again.

    python benchmarks/faults.py                  # 50 kills of a whole study; faults at every operation of the smaller units
    python benchmarks/faults.py --kills 8
    python benchmarks/faults.py --parts faults   # or kills
    python benchmarks/faults.py --smoke          # one kill and a few faults, nothing written
    python benchmarks/faults.py --docs           # the table in docs/reliability.md from the JSON

`kills`: the smallest study (two arms, one seed, two steps, the embedded world, its report) runs once undisturbed. Then it is
started, killed with -9 at a random moment, its process group with it, and started again, until it ends; and all of that again,
until there were as many kills as asked for. Each study that ends must have the files of the undisturbed one and no others, in it
or beside it. Compared are contents without what a clock says: times in manifests and records, `seconds.json`, pages that print
times.

`faults`: a unit dies (or finds no room on the disk) at its n-th operation on files, a write half done, for every n, or for a
seeded choice of them where there are many; then it runs again, undisturbed, and its files are compared in the same way.

Every try is a fork of this process, which has imported and run everything once.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from common import THREAD_VARIABLES, Results, Row, machine, number, table_in_docs

for name in THREAD_VARIABLES:  # forks of a process with threads may hang
    os.environ[name] = "1"
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # a fork may not start a pool of threads

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
from faultpoints import SMALLEST, Found, Unit, differences, ended, everywhere, forked  # noqa: E402

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
COMMAND = "python benchmarks/faults.py"
CLOCKS = {"created", "started", "seconds", "wall_seconds", "self"}  # "self": a manifest's digest, its times included
TIMED = ("seconds.json", "report.html")  # the page prints how long steps took
STEPS, MOST = 2, 60  # of the training; operations tried where there are more


# ---------------------------------------------------------------------------------------------------------------- look


def look(out: Path) -> dict[str, Any]:
    """Every name below a folder, and what must be equal behind it."""
    return {path.relative_to(out).as_posix(): _content(path) for path in sorted(out.rglob("*"))}


def _content(path: Path) -> Any:
    from limbeck.digests import MARKER, file_digest

    if path.is_dir():
        return "a folder"
    if path.name in TIMED or path.name == MARKER or path.name == ".locks":
        return "a file"
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        return [_timeless(row) for row in csv.DictReader(path.read_text().splitlines())]
    return file_digest(path)


def _timeless(value: Any) -> Any:
    """Without what a clock says, and without the digests of files that may say it, which are compared themselves."""
    if isinstance(value, dict):
        return {
            key: "a digest" if isinstance(item, str) and _says_times(key) else _timeless(item)
            for key, item in value.items()
            if key not in CLOCKS
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _says_times(name: str) -> bool:
    return bool(re.search(r"\.(jsonl?|csv)$", name)) or name.endswith(TIMED) or name.endswith(".locks")


# --------------------------------------------------------------------------------------------------------------- kills


class Killed(NamedTuple):
    """Kills that hit a running study; studies that ended, those equal to the undisturbed one, and how the others differ."""

    kills: int
    studies: int
    equal: int
    survived: int
    wrong: list[str]


def study(out: Path) -> None:
    """``limbeck study run``, in this process."""
    from limbeck.report import build
    from limbeck.studies.config import load_study
    from limbeck.studies.study import finish, run_study

    results = run_study(load_study(str(out.parent.parent / "study.toml")), out)
    finish(out, {"report": build(results, out).name})


def kill(root: Path, kills: int, seed: int) -> Killed:
    """Kill the study as often as asked, over as many studies as that takes."""
    (root / "study.toml").write_text(SMALLEST)
    place, said, rng = root / "place", root / "said", random.Random(seed)
    place.mkdir()
    study(place / "out")  # in this process: what it imports, forks need not
    shutil.rmtree(place)
    begin = time.monotonic()
    _run(place, said)
    whole, expected = time.monotonic() - begin, _seen(place)
    print(f"undisturbed: {whole:.1f} s, {len(expected)} files and folders", file=sys.stderr)
    done = studies = equal = survived = 0
    wrong: list[str] = []
    while done < kills:
        shutil.rmtree(place)
        hits, code = 0, -signal.SIGKILL
        while code == -signal.SIGKILL:
            code = _run(place, said, after=rng.uniform(0, whole) if done + hits < kills else None)
            hits += code == -signal.SIGKILL
        found = [said.read_text()[-300:]] if code else differences(expected, _seen(place))
        done, studies, equal = done + hits, studies + 1, equal + (not found)
        survived += 0 if found else hits
        wrong += [f"study {studies}, {hits} kills: {', '.join(found)}"] if found else []
        print(f"{done} kills, {equal} of {studies} studies equal", file=sys.stderr, flush=True)
    return Killed(done, studies, equal, survived, wrong)


def _run(place: Path, said: Path, after: float | None = None) -> int:
    place.mkdir(exist_ok=True)
    pid = forked(lambda: study(place / "out"), said)
    if after is not None:
        time.sleep(after)
        os.killpg(pid, signal.SIGKILL)  # a child that has ended and was not waited for is still there to be killed
    return ended(pid)


def _seen(place: Path) -> dict[str, Any]:
    return {**{path.name: "beside" for path in place.iterdir()}, **look(place / "out")}


# -------------------------------------------------------------------------------------------------------------- faults


def units(root: Path) -> dict[str, Unit]:
    """What is disturbed; models and rollouts that they read lie in ``root``."""
    from tests.unit.train.toy import tiny_model, tiny_rollouts

    from limbeck.config import LoraConfig, RunConfig, TrainConfig
    from limbeck.digests import is_complete
    from limbeck.evals.tables import write_table
    from limbeck.folders import refuse_existing
    from limbeck.rollouts.store import write_rollouts
    from limbeck.train.run import train
    from limbeck.types import Finish, Outcome, Score, ScoreTable

    tiny_model().save_pretrained(root / "base")
    write_rollouts(tiny_rollouts(), root / "rollouts")
    settings = TrainConfig(
        method="lora", batch_size=4, num_steps=STEPS, checkpoint_every=1, trajectory=2, trajectory_k=4, keep=(1,),
        lora=LoraConfig(rank=2, alpha=4.0, dropout=0.1),
    )  # fmt: skip
    run = RunConfig(base=str(root / "base"), rollouts=str(root / "rollouts"), train=settings)
    scores = tuple(
        Score(
            problem_id=f"p{i}", sample=0, correct=bool(i % 2), answer="1", extracted="1", finish=Finish.STOP,
            response_tokens=1, outcome=Outcome.CORRECT if i % 2 else Outcome.WRONG, response="1",
        )
        for i in range(20)
    )  # fmt: skip
    table = ScoreTable(name="t", problems_digest="", grader="g", decoding="", template_digest="", scores=scores)

    def once(work: Callable[[Path], object]) -> Callable[[Path], object]:
        """As a study, which finds what is finished."""

        def checked(out: Path) -> None:
            if not is_complete(out):
                refuse_existing(out)
                work(out)

        return checked

    return {
        f"training of {STEPS} steps, a checkpoint each": Unit(once(lambda out: train(run, out)), look),
        "rollout set": Unit(once(lambda out: write_rollouts(tiny_rollouts(), out, shard_rows=8)), look),
        "score table": Unit(once(lambda out: write_table(table, out)), look),
    }


def fault(root: Path, most: int, seed: int, add: Callable[[str, Found], None]) -> None:
    """Every unit, killed and without room."""
    for number_of, (name, unit) in enumerate(units(root).items()):
        unit.work(root / f"first-{number_of}" / "out")  # in this process: what it imports, forks need not
        for what, full in (("killed", False), ("no room", True)):
            place = root / f"{number_of}-{full}"
            found = everywhere(unit, place, full=full, most=most, seed=seed)
            print(
                f"{name}, {what}: {found.operations} operations, {found.tried} tried, {len(found.wrong)} wrong",
                file=sys.stderr,
            )
            add(f"{name}: {what} at an operation on files", found)


# ---------------------------------------------------------------------------------------------------------------- main


def docs_table(rows: list[Row]) -> str:
    """Markdown of the stored rows."""
    lines = [
        "| what was disturbed | disturbed | ended as if undisturbed | operations there are |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        what, _, of = row["what"].partition("; of ")
        lines.append(f"| {what} | {number(row['theirs'])} | {number(row['ours'])} | {of} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--most", type=int, default=MOST, help="operations tried of a unit that has more")
    parser.add_argument("--seed", type=int, default=0, help="of moments and of operations")
    parser.add_argument("--parts", default="kills,faults")
    parser.add_argument("--smoke", action="store_true", help="one kill and a few faults, nothing written")
    parser.add_argument("--docs", action="store_true", help="only write the table into docs/reliability.md")
    arguments = parser.parse_args()
    kills, most = (1, 2) if arguments.smoke else (arguments.kills, arguments.most)
    results = Results(
        "faults", command=" ".join([COMMAND, *sys.argv[1:]]), machine=machine(1), keep=not arguments.smoke
    )
    if arguments.docs:
        table_in_docs("faults", docs_table(results.stored()), page=PAGE)
        return
    wrong: list[str] = []

    def add(what: str, found: Found) -> None:
        wrong.extend(f"{what}: {line}" for line in found.wrong)
        equal = found.tried - len(found.wrong)
        results.add((f"{what}; of {found.operations}", equal, found.tried, None, None, found.tried, "operations"))

    with tempfile.TemporaryDirectory() as root:
        if "kills" in arguments.parts:
            found = kill(Path(root), kills, arguments.seed)
            wrong += found.wrong
            what = "study of two arms: killed with -9 at a random moment"
            results.add((what, found.survived, found.kills, None, None, found.kills, "kills"))
        if "faults" in arguments.parts:
            fault(Path(root), most, arguments.seed, add)
    results.show()
    if wrong:
        raise SystemExit("not as undisturbed:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
