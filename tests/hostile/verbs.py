"""What a case is, and the functions behind the verbs that open its file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tests.hostile.making import Make


class Case(NamedTuple):
    """What is wrong in words, the verb, how the file is made, and what its sentence must hold; empty: it is taken."""

    wrong: str
    verb: str
    make: Make
    sentence: str = ""


@cache
def _tokenizer() -> Any:
    from limbeck.train.models import load_tokenizer

    return load_tokenizer("abacus:base")


def import_rollouts(path: Path) -> None:
    from limbeck.rollouts.importing import import_rollouts
    from limbeck.rollouts.store import write_rollouts

    write_rollouts(import_rollouts(path, _tokenizer(), workers=1), path.parent / "out")


def read_rollouts(path: Path) -> None:
    from limbeck.rollouts.store import read_rollouts

    read_rollouts(path)


def read_problems(path: Path) -> None:
    from limbeck.worlds.named import problems_named, read_problems

    read_problems(problems_named(str(path), "jsonl", None, 0))


def import_scores(path: Path) -> None:
    from limbeck.evals.exchange import read_log
    from limbeck.evals.tables import write_table

    write_table(read_log(path), path.parent / "out")


def read_scores(path: Path) -> None:
    from limbeck.evals.tables import read_table

    read_table(path)


def measure(path: Path) -> None:
    from limbeck.geometry.adapters import read_adapter
    from limbeck.geometry.dense.checkpoints import is_checkpoint, open_checkpoint
    from limbeck.geometry.dense.layout import match
    from limbeck.geometry.suite import measure
    from limbeck.geometry.table import write_measurements

    if is_checkpoint(path):
        opened = open_checkpoint(path)
        for piece in match(opened, [opened]):
            piece.cut(opened.read(piece.tensor))
        return
    write_measurements(path / "out.parquet", measure([read_adapter(path)], ks=[1], draws=20, seed=0, workers=1))


def load_model(path: Path) -> None:
    from limbeck.problems.prompts import prompt_ids, stop_ids
    from limbeck.train.models import load_model, load_tokenizer, model_context

    tokenizer = load_tokenizer(str(path))
    prompt_ids(tokenizer, "1 + 1?")
    model = load_model(str(path))
    stop_ids(tokenizer, model.generation_config)
    model_context(str(path))


def load_study(path: Path) -> None:
    from limbeck.studies.config import load_study

    load_study(str(path))


def report(path: Path) -> None:
    from limbeck.report import build

    build(path, path)


def watch(path: Path) -> None:
    from limbeck.watch.planned import Watch

    with Watch(path) as watching:
        watching.state()


VERBS: dict[str, Callable[[Path], None]] = {
    "import": import_rollouts,
    "train --rollouts": read_rollouts,
    "eval --problems": read_problems,
    "scores import": import_scores,
    "compare": read_scores,
    "measure": measure,
    "eval --base": load_model,
    "study run": load_study,
    "report": report,
    "watch": watch,
}
