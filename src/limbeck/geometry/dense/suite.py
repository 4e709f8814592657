"""The whole table of any number of checkpoints of one base, matrix by matrix, several matrices side by side.

Numbers do not depend on the number of workers; every draw has a generator of its own, named by matrix and checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from limbeck.errors import ConfigError
from limbeck.geometry.delta import place
from limbeck.geometry.dense.checkpoints import Checkpoint
from limbeck.geometry.dense.layout import Piece, match
from limbeck.geometry.dense.pairs import AngleNulls
from limbeck.geometry.dense.piece import Plan, Record, count_piece, measure_piece, meet_piece
from limbeck.geometry.dense.relate import ShapeNulls
from limbeck.geometry.dense.rows import table
from limbeck.geometry.parallel import side_by_side
from limbeck.types import Measurement

SPECTRA, NULLS = ("gram", "ritz"), ("kind", "all", "none")
PARTS = {"": measure_piece, "sparsity": count_piece, "pairs": meet_piece}


def measure(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    *,
    ks: Sequence[int] = (1, 10, 64),
    spectra: str = "gram",
    nulls: str = "kind",
    pairs: bool | Sequence[tuple[int, int]] = True,
    only: str = "",
    seed: int = 0,
    workers: int | None = None,
    done: Mapping[str, dict] | None = None,
    keep: Callable[[str, dict], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Measurement]:
    """Measure what training did to the weights of ``base``.

    Args:
        base: what all were trained from.
        tuned: the checkpoints.
        ks: numbers of leading directions for angles and energies.
        spectra: ``gram`` computes every singular value; ``ritz`` the leading ones, with residuals, for large matrices.
        nulls: isotropic updates that are drawn and decomposed: in one matrix of each ``kind`` and shape, in ``all`` (which
            doubles the time), or ``none``. Closed forms cost nothing and are always there.
        pairs: also compare every two checkpoints with each other, or those whose places in ``tuned`` are given.
        only: ``sparsity`` counts changed codes and nothing else, at the speed at which memory is read, without nulls;
            ``pairs`` compares checkpoints and leaves out all that is said of one alone but its norm.
        seed: of every draw.
        workers: matrices at a time; None takes the machine's cores, at most 8.
        done: records of an interrupted measurement, by module.
        keep: called with module and record as soon as a matrix is finished.
        progress: called with the share of the work just done, of what was left to do.

    Returns:
        Rows in a fixed order.

    Raises:
        ConfigError: a k below 1, an unknown choice, names that are not distinct, or no checkpoint.
        ModelError: folders that do not match, or weights that are not finite; what was finished has been kept.
    """
    _check(base, tuned, ks, spectra, nulls, only)
    pieces = match(base, tuned)
    drawn = _drawn(pieces, nulls)
    chosen = tuple(combinations(range(len(tuned)), 2) if pairs is True else pairs or ()) if only != "sparsity" else ()
    plan = Plan(tuple(sorted(set(ks))), spectra, drawn, chosen, seed, ShapeNulls(seed), AngleNulls(seed))
    records = {name: Record.read(found) for name, found in (done or {}).items()}
    left = sorted((p for p in pieces if p.module not in records), key=_cost, reverse=True)
    total = sum(map(_cost, left))

    def one(piece: Piece) -> None:
        record = PARTS[only](piece, base, tuned, plan)
        records[piece.module] = record
        if keep is not None:
            keep(piece.module, record.plain())
        if progress is not None:
            progress(_cost(piece) / total)

    side_by_side(one, left, workers=workers)
    ordered = [records[piece.module] for piece in pieces]
    arms = [c.name for c in tuned]
    return table([p.module for p in pieces], ordered, arms, chosen, [p.shape for p in pieces])


def _check(
    base: Checkpoint, tuned: Sequence[Checkpoint], ks: Sequence[int], spectra: str, nulls: str, only: str
) -> None:
    names = [c.name for c in tuned]
    if not tuned:
        raise ConfigError(f"measure needs a base and at least one checkpoint, received {base.folder} alone.")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"checkpoints need distinct names, received {twice[0]!r} twice. Pass a name for each folder.")
    if not ks or min(ks) < 1:
        raise ConfigError(f"measure needs every k >= 1, received ks = {tuple(ks)}. The usual ones are 1, 10, 64.")
    for value, known, what in ((spectra, SPECTRA, "spectra"), (nulls, NULLS, "nulls"), (only, PARTS, "only")):
        if value not in known:
            raise ConfigError(f"{what} must be one of {', '.join(filter(None, known))}, received {value!r}.")


def _drawn(pieces: Sequence[Piece], nulls: str) -> frozenset[str]:
    """Modules whose isotropic update is drawn: the middle block's of each kind and shape, or all."""
    matrices = [piece for piece in pieces if len(piece.shape) == 2]
    if nulls == "all":
        return frozenset(piece.module for piece in matrices)
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for piece in matrices if nulls == "kind" else ():
        groups.setdefault((place(piece.module).kind, piece.shape), []).append(piece.module)
    return frozenset(sorted(names, key=lambda n: place(n).layer)[len(names) // 2] for names in groups.values())


def _cost(piece: Piece) -> float:
    """Work of one piece, roughly in operations: reading, Gram matrix, eigenvalues."""
    short = min(piece.shape) if len(piece.shape) == 2 else 1
    return piece.entries * (50 + short) + 4.0 * short**3
