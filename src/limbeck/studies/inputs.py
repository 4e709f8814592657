"""Problems and rollouts from wherever a study's file, or a command, says they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.errors import ConfigError, nearest
from limbeck.problems.sources import FORMATS
from limbeck.rollouts.importing import import_rollouts
from limbeck.rollouts.store import read_rollouts
from limbeck.train.models import load_tokenizer, model_context
from limbeck.types import Problem, RolloutSet
from limbeck.worlds import WORLDS
from limbeck.worlds.abacus.generator import generate

SPLITS = ("train", "validation", "test")
WORLD_PROBLEMS = 1000  # of a world's endless supply, unless a number is given


def read_problems(given: dict[str, Any]) -> list[tuple[Problem, str]]:
    """Problems with a reference solution each, empty where the source has none, in a fixed order.

    Args:
        given: a ``ProblemsConfig`` as a dictionary.
    """
    if not given.get("path"):
        return generate(given["split"], given["num"] or WORLD_PROBLEMS, seed=given["seed"])
    if given["format"] not in FORMATS:
        raise ConfigError(f'there is no problem format "{given["format"]}". {nearest(given["format"], FORMATS)}')
    return FORMATS[given["format"]](Path(given["path"]))[: given["num"]]


def problems_named(name: str, file_format: str, num: int | None, seed: int) -> dict[str, Any]:
    """``world:split`` or a file, as :func:`read_problems` takes it."""
    world, sign, split = name.partition(":")
    if sign and world in WORLDS:
        if split not in SPLITS:
            raise ConfigError(f'world "{world}" has no split "{split}". {nearest(split, SPLITS)}')
        return {"world": world, "split": split, "num": num, "seed": seed}
    return {"path": name, "format": file_format, "num": num}


def read_any_rollouts(path: Path, model: str) -> RolloutSet:
    """A rollouts folder as it is, or a JSONL or Parquet file through the model's tokenizer."""
    if path.is_dir():
        return read_rollouts(path)
    return import_rollouts(path, load_tokenizer(model), max_length=model_context(model))
