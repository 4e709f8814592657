"""Problems and rollouts from wherever a study's file, or a command, says they are."""

from __future__ import annotations

from pathlib import Path

from limbeck.rollouts.importing import imported
from limbeck.rollouts.store import read_rollouts, write_rollouts, write_stream
from limbeck.train.models import load_tokenizer, model_context
from limbeck.worlds.named import problems_named, read_problems

__all__ = ["problems_named", "read_problems", "write_any_rollouts"]


def write_any_rollouts(path: Path, model: str, out: Path, *, overwrite: bool = False) -> Path:
    """A rollouts folder from another, or from a JSONL or Parquet file through the model's tokenizer."""
    if path.is_dir():
        return write_rollouts(read_rollouts(path), out, overwrite=overwrite)
    provenance: dict[str, object] = {}
    rollouts = imported(path, load_tokenizer(model), provenance, max_length=model_context(model))
    return write_stream(rollouts, out, provenance=provenance, overwrite=overwrite)
