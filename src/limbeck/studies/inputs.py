"""Problems and rollouts from wherever a study's file, or a command, says they are."""

from __future__ import annotations

from pathlib import Path

from limbeck.rollouts.importing import import_rollouts
from limbeck.rollouts.store import read_rollouts
from limbeck.train.models import load_tokenizer, model_context
from limbeck.types import RolloutSet
from limbeck.worlds.named import problems_named, read_problems

__all__ = ["problems_named", "read_any_rollouts", "read_problems"]


def read_any_rollouts(path: Path, model: str) -> RolloutSet:
    """A rollouts folder as it is, or a JSONL or Parquet file through the model's tokenizer."""
    if path.is_dir():
        return read_rollouts(path)
    return import_rollouts(path, load_tokenizer(model), max_length=model_context(model))
