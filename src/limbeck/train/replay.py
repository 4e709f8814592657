"""A step that is not finite: what it read is kept beside the run, so that it can be looked at and computed again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file

from limbeck.batches.collate import TrainingData
from limbeck.batches.forward import Scored
from limbeck.errors import DivergedError
from limbeck.types import Objective, TokenBatch

SHOWN = 4  # rows named in the message; the file names all


class Read(NamedTuple):
    """What a micro-batch was computed from.

    Attributes:
        data: where the rows come from.
        batch: ids, mask and the objective's inputs.
        scored: what the student said of them, if it came so far.
        objective: which reads them.
        settings: its knobs, those of the loop included.
    """

    data: TrainingData
    batch: TokenBatch
    scored: Scored | None
    objective: Objective
    settings: Mapping[str, Any]


def diverged(folder: Path, name: str, why: str, read: Read) -> DivergedError:
    """Write what was read as ``NAME.safetensors`` and say where it is.

    Args:
        folder: gets the file.
        name: of the step, and of the process where there are several.
        why: what was not finite, at which step.
        read: the tensors; names of objective and rows and the knobs go into the file's metadata.
    """
    batch, scored = read.batch, read.scored
    tensors = {"ids": batch.ids, "mask": batch.mask, "row_index": batch.row_index, **batch.inputs}
    if scored is not None:
        tensors |= {"logprobs": scored.logprobs.detach(), "entropy": scored.entropy.detach()}
    rows = ["/".join(map(str, read.data.outline.key(row))) for row in batch.row_index.tolist()]
    facts = {"objective": read.objective.name, "knobs": json.dumps(dict(read.settings)), "rows": json.dumps(rows)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, path, metadata=facts)
    shown = ", ".join(rows[:SHOWN]) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
    return DivergedError(
        f"{why.rstrip('.')}. The batch (rows {shown}) is in {path}; lower train.learning_rate, or look there for the row that "
        "caused it."
    )
