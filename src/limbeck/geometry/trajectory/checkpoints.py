"""The trajectory that a run would have recorded, from the checkpoints that it left: anyone's, nothing but the weights needed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.geometry.dense.checkpoints import Checkpoint
from limbeck.geometry.dense.layout import Piece, match
from limbeck.geometry.dense.piece import not_finite, storage
from limbeck.geometry.parallel import side_by_side
from limbeck.geometry.trajectory import store
from limbeck.geometry.trajectory.snapshot import Kept, of_weights

_NUMBER = re.compile(r"(\d+)\D*$")


def steps_of(folders: Sequence[Path]) -> list[int]:
    """The steps that names like ``checkpoint-500`` or ``global_step_40`` give, or else 1, 2, 3.

    >>> steps_of([Path("run/checkpoint-500"), Path("run/checkpoint-1000")]), steps_of([Path("early"), Path("late")])
    ([500, 1000], [1, 2])

    Raises:
        ConfigError: numbers that do not rise.
    """
    found = [_NUMBER.search(folder.name) for folder in folders]
    if not all(found):
        return list(range(1, len(folders) + 1))
    steps = [int(match[1]) for match in found if match]
    if any(later <= before for before, later in pairwise(steps)):
        raise ConfigError(
            f"successive checkpoints must come in the order of their steps, received {steps}, read off the folders' names. "
            "Give them in order, each once."
        )
    return steps


def record(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    steps: Sequence[int],
    out: Path,
    *,
    k: int = 32,
    workers: int | None = None,
    done: Mapping[str, dict] | None = None,
    keep: Callable[[str, dict], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write a snapshot of every checkpoint, as ``train.trajectory`` writes them, into ``out/trajectory``.

    Args:
        base: what the run started from.
        tuned: its checkpoints in the order of the run.
        steps: of the checkpoints, ascending.
        out: a folder; what :func:`limbeck.geometry.trajectory.store.open_trajectory` opens afterwards.
        k: leading directions to keep of each matrix.
        workers: matrices at a time, each with one BLAS thread and 20 bytes an entry; None takes the machine's cores.
        done: the snapshots that an interrupted measurement has finished, by step.
        keep: called with the step of a finished snapshot.
        progress: called with the share of the work just done.

    Raises:
        ConfigError: fewer than two checkpoints.
        ModelError: folders that do not match, or weights that are not finite.
    """
    if len(tuned) < 2:
        raise ConfigError(
            f"a trajectory needs a base and two checkpoints or more, received {len(tuned)}. Give the others."
        )
    pieces, folder = match(base, tuned), out / store.FOLDER
    left = [index for index, step in enumerate(steps) if str(step) not in (done or {})]
    if len(left) == len(steps):
        shutil.rmtree(folder, ignore_errors=True)  # of another measurement that was begun here and given up
        store.write_base(folder, {piece.module: piece.cut(base.read(piece.tensor)) for piece in pieces})
    total = sum(piece.entries for piece in pieces) * max(len(left), 1)
    for index in left:
        near = store.read_before(folder, steps[index])
        before = tuned[index - 1] if index else base

        def one(piece: Piece, near: store.Tensors = near, before: Checkpoint = before, index: int = index) -> Kept:
            kept = _snapshot(piece, base, tuned[index], before, k, near.get(piece.module, {}))
            if progress is not None:
                progress(piece.entries / total)
            return kept

        found = side_by_side(one, pieces, workers=workers)
        store.write(folder, steps[index], {p.module: kept for p, kept in zip(pieces, found, strict=True)})
        if keep is not None:
            keep(str(steps[index]), {})


def _snapshot(
    piece: Piece, base: Checkpoint, tuned: Checkpoint, before: Checkpoint, k: int, near: Mapping[str, Tensor]
) -> Kept:
    start, now, last = (piece.cut(one.read(piece.tensor)) for one in (base, tuned, before))
    if not bool(now.isfinite().all() & start.isfinite().all()):
        raise not_finite(piece, [base, tuned], [start, now])
    kept = of_weights(start, now.float(), last, k, near)
    kind = storage(base.tensors[piece.tensor].dtype, tuned.tensors[piece.tensor].dtype)[2]
    return kept._replace(facts=kept.facts | {"delta_kind": kind})
