"""Single bits flipped in what the verbs write: is each found before the file is used, and named?

    python benchmarks/corruption.py            # 1,000 bits, the line in docs/reliability.md
    python benchmarks/corruption.py --smoke    # 40 of them; writes nothing

A folder of every kind is made with a student of a few thousand weights. Files are drawn evenly, then one bit of a file. Asked are
``limbeck verify``, and what the verbs call to read such a folder. In every second case the file's times are put back to what they
were; some cases are asked in a process that has not seen the file before, with its times put back too.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]  # tests.unit.train.toy

from common import Results, answer, machine, run_job, table_in_docs  # noqa: E402 - needs no path

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
FLIPS, FRESH = 1000, 8
STUDY, KILLED = "study", "killed"
# For the record or other programs, no verb reads them; nor the checkpoints of a finished run, which is not resumed.
UNREAD = (
    "*/visible.safetensors",
    "*/identity.json",
    "*/README.md",
    f"{STUDY}/*/checkpoints/*",
    "*/selection.json",
)


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        answer({"use": use})
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=FLIPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="forty bits; writes nothing")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make(root)
        counts = flip_all(root, 40 if asked.smoke else asked.flips, asked.seed, tell=True)
        fresh = 0 if asked.smoke else sum(found_afresh(root, asked.seed + number) for number in range(FRESH))
    command = " ".join(["python benchmarks/corruption.py", *sys.argv[1:]])
    results = Results("corruption", command=command, machine=machine(1), keep=not asked.smoke)
    rows = [("bits flipped and found by limbeck verify", counts["verify"], counts["flips"])]
    rows += [("of these in files that a verb reads: refused there, and named", counts["refused"], counts["read"])]
    rows += (
        [] if asked.smoke else [("asked in a new process, the file's times put back: refused, and named", fresh, FRESH)]
    )
    for what, found, goal in rows:
        results.add((what, float(found), None, None, None, float(goal), "bits"))
    results.show()
    if not asked.smoke:
        lines = [f"| {what} | {found:,} of {goal:,} |" for what, found, goal in rows]
        table_in_docs("corruption", "\n".join(["| | |", "| --- | --- |", *lines]), page=PAGE)
    if any(found < goal for _, found, goal in rows):
        raise SystemExit("bits were flipped and not found")


def make(root: Path) -> None:
    """A study with a folder of every kind in it, and a run that was killed."""
    from tests.unit.train.toy import tiny_model, tiny_rollouts

    from limbeck.batches.distributions import write_hidden, write_likeliest
    from limbeck.batches.score import score_rollouts, write_scores
    from limbeck.config import LoraConfig, RunConfig, TrainConfig
    from limbeck.evals.tables import write_table
    from limbeck.folders import claim, publish, seal
    from limbeck.geometry.adapters import read_adapter
    from limbeck.geometry.suite import measure
    from limbeck.geometry.table import write_measurements
    from limbeck.records import write_json
    from limbeck.rollouts.store import write_rollouts
    from limbeck.stats.compare import compare
    from limbeck.train.models import model_digest
    from limbeck.train.run import train
    from limbeck.types import Score, ScoreTable

    study = claim(root / STUDY)
    steps, rollouts, model = study / "steps", tiny_rollouts(), tiny_model()
    with publish(steps / "base", kind="model") as folder:
        model.save_pretrained(folder)
    base = str(steps / "base")
    write_rollouts(rollouts, steps / "rollouts", shard_rows=10)
    facts = {"model_digest": model_digest(base)}
    write_scores(steps / "logprobs", rollouts, score_rollouts(model, rollouts.rollouts), **facts)
    write_hidden(steps / "hidden", rollouts, model, **facts)
    write_likeliest(steps / "topk", rollouts, model, k=4, **facts)
    for method in ("lora", "full"):
        settings = TrainConfig(
            method=method, batch_size=4, num_steps=4, checkpoint_every=2, keep=(2,), trajectory=2, trajectory_k=4,
            lora=LoraConfig(rank=2, alpha=4.0),
        )  # fmt: skip
        train(RunConfig(base=base, rollouts=str(steps / "rollouts"), train=settings), steps / method)
    tables = [
        ScoreTable(
            name=name, problems_digest="p", grader="exact", decoding="greedy",
            scores=tuple(
                Score(
                    problem_id=f"p{i}", sample=0, correct=i % by == 0, answer="1", extracted="1", finish=None,
                    response_tokens=3, response="one",
                )
                for i in range(24)
            ),
        )
        for name, by in (("lora", 2), ("full", 3))
    ]  # fmt: skip
    for table in tables:
        write_table(table, steps / f"eval-{table.name}")
    rows = measure([read_adapter(steps / "lora")], ks=[1], draws=20, workers=1)
    for place, kind in (
        (steps / "compare", "comparison"),
        (steps / "measure", "measurements"),
        (study / "results", "results"),
    ):
        with publish(place, kind=kind) as folder:
            write_json(folder / "comparison.json", compare(tables))
            write_measurements(folder / "measurements.parquet", rows)
            write_json(folder / "study.json", {"name": "toy", "question": "which?"})
    write_json(study / "config.json", {"name": "toy"})
    seal(study, kind="study")
    shutil.copytree(
        steps / "full" / "checkpoints", claim(root / KILLED) / "checkpoints"
    )  # as a run before its manifest


def flip_all(root: Path, flips: int, seed: int, *, tell: bool = False) -> Counter[str]:
    """Flip so many bits one after another and count which were found, by ``verify`` and where the file is used."""
    from limbeck.progress import bar
    from limbeck.verify import verify

    counts: Counter[str] = Counter()
    choose, files, readers = random.Random(seed), files_of(root), readers_of(root)
    missed = []
    each = {place: name for name in files for place in readers if name.startswith(f"{place}/")}.values()
    if refused := [text for name in each if (text := said(readers, name))]:  # whole files must pass
        raise SystemExit(f"nothing was flipped yet, and is refused: {refused[0]}")
    with bar("bits", flips) if tell else _silent() as advance:
        for number in range(flips):
            name = choose.choice(files)
            with flipped(root / name, choose, times_back=number % 2 == 0) as bit:
                place = root / looked_at(name, whole=number % 10 == 0)
                told = {problem.file for problem in verify(place).problems}
                seen = (root / name).relative_to(place).as_posix() in told
                refused = is_read(name) and named(root, name, said(readers, name))
            counts.update(flips=1, verify=seen, read=is_read(name), refused=refused)
            if not seen or (is_read(name) and not refused):
                missed.append(f"bit {bit} of {name}")
            advance(1)
    for line in missed:
        print(line, file=sys.stderr)
    return counts


def found_afresh(root: Path, seed: int) -> bool:
    """Whether a new process refuses a file with one bit flipped and its times put back."""
    choose = random.Random(f"afresh {seed}")
    name = choose.choice([name for name in files_of(root) if is_read(name)])
    with flipped(root / name, choose, times_back=True):
        return named(
            root, name, run_job(Path(__file__), {"job": "use", "root": str(root), "name": name}, threads=1)["said"]
        )


def use(*, root: str, name: str) -> dict[str, str]:
    """The child's side of :func:`found_afresh`."""
    return {"said": said(readers_of(Path(root)), name)}


def files_of(root: Path) -> list[str]:
    """Every file that has bits and is not the mark of whoever writes a folder."""
    found = (path for path in root.rglob("*") if path.is_file() and path.stat().st_size and path.name != ".limbeck")
    return sorted(path.relative_to(root).as_posix() for path in found)


def looked_at(name: str, *, whole: bool) -> Path:
    """The folder that is verified: the step that has the file, or all of the study."""
    parts = Path(name).parts
    return Path(*parts[:3]) if parts[:2] == (STUDY, "steps") and not whole else Path(parts[0])


def is_read(name: str) -> bool:
    """Whether a verb reads the file."""
    return not any(fnmatch(name, pattern) for pattern in UNREAD)


def named(root: Path, name: str, text: str) -> bool:
    """Whether a refusal names the file."""
    return str(root / name) in text


def said(readers: dict[str, Callable[[Path], Any]], name: str) -> str:
    """How the verbs that read a file's folder refuse it; empty where they read it without a word."""
    from limbeck.errors import LimbeckError

    place = max((place for place in readers if f"{name}/".startswith(f"{place}/")), key=len)
    try:
        return readers[place](Path(name)) or ""
    except LimbeckError as error:
        return str(error)


def readers_of(root: Path) -> dict[str, Callable[[Path], Any]]:
    """By folder what the verbs do to read it; some say what they found, the others raise."""
    from tests.unit.train.toy import tiny_rollouts

    from limbeck.batches.distributions import read_frozen
    from limbeck.batches.score import read_scores
    from limbeck.evals.tables import read_table
    from limbeck.folders import read_manifest
    from limbeck.geometry.adapters import read_adapter
    from limbeck.geometry.dense.checkpoints import open_checkpoint
    from limbeck.geometry.trajectory.store import open_trajectory
    from limbeck.records import read_json
    from limbeck.report.load import load
    from limbeck.rollouts.store import read_rollouts
    from limbeck.train.checkpoint import damaged
    from limbeck.train.models import load_model
    from limbeck.train.processes import make_accelerator
    from limbeck.train.record import read_metrics
    from limbeck.train.run import load_run_config

    processes = make_accelerator()
    warnings.simplefilter("ignore")
    steps, rollouts = f"{STUDY}/steps", tiny_rollouts()

    def run(folder: Path) -> None:
        load_run_config(folder)
        read_metrics(folder / "metrics.jsonl")
        for result in (folder, *(folder / "kept").iterdir()):
            if (result / "adapter").is_dir():
                read_adapter(result)
            else:
                load_model(str(result / "model"))
                open_checkpoint(result)
                read_json(result / "model" / "limbeck.json")
        found = open_trajectory(folder)
        for module in found.matrices:
            found.tensors(module)
            found.base(module)

    def checkpoint(name: Path) -> str:
        folder = root / Path(*name.parts[:3])
        wrong = damaged(folder, processes)
        return f"{folder / wrong}" if wrong else ""

    def any_of(kind: Callable[[Path], Any]) -> Callable[[Path], None]:
        """A reader of the step that a file is in, whose answer is of no interest."""

        def read(name: Path) -> None:
            read_manifest(root / Path(*name.parts[:3]))
            kind(root / Path(*name.parts[:3]))

        return read

    return {
        STUDY: lambda name: (read_manifest(root / STUDY), read_json(root / STUDY / "config.json"))[:0],
        f"{STUDY}/results": lambda name: (read_manifest(root / STUDY / "results"), load(root / STUDY / "results"))[:0],
        f"{steps}/base": any_of(lambda folder: load_model(str(folder))),
        f"{steps}/rollouts": any_of(read_rollouts),
        f"{steps}/logprobs": any_of(lambda folder: read_scores(folder, rollouts)),
        f"{steps}/hidden": any_of(lambda folder: read_frozen(folder, rollouts, "teacher_logits")),
        f"{steps}/topk": any_of(lambda folder: read_frozen(folder, rollouts, "teacher_logits")),
        f"{steps}/lora": any_of(run),
        f"{steps}/full": any_of(run),
        f"{steps}/eval-lora": any_of(read_table),
        f"{steps}/eval-full": any_of(read_table),
        f"{steps}/compare": any_of(load),
        f"{steps}/measure": any_of(load),
        KILLED: checkpoint,
    }


@contextmanager
def flipped(path: Path, choose: random.Random, *, times_back: bool) -> Iterator[int]:
    """One bit of a file the other way round, for as long as the context is open; yields its place."""
    facts, bit = path.stat(), choose.randrange(8 * path.stat().st_size)
    _flip(path, bit)
    if times_back:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    try:
        yield bit
    finally:
        _flip(path, bit)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _flip(path: Path, bit: int) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


@contextmanager
def _silent() -> Iterator[Callable[[float], None]]:
    yield lambda num: None


if __name__ == "__main__":
    main()
