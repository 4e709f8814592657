"""The whole table for any number of arms: every metric, every pair, every aggregation, each number beside its null.

Everything is computed from the factors; the (out, in) update is formed only for signs, on request and by tiles.
Numbers do not depend on the number of workers: each module draws from its own generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from limbeck.errors import ConfigError
from limbeck.geometry import nulls
from limbeck.geometry.arm_rows import norm_rows, spectrum_rows
from limbeck.geometry.compare import ModuleRecord, Plan, compare_module
from limbeck.geometry.delta import check_comparable, place
from limbeck.geometry.pair_rows import direction_rows, sign_rows, subspace_rows
from limbeck.geometry.parallel import side_by_side
from limbeck.types import Delta, Measurement

_POOL = 1000  # Haar frames per rank, paired anew for every module


def measure(
    deltas: Sequence[Delta],
    *,
    ks: Sequence[int] = (1, 10),
    draws: int = 200,
    seed: int = 0,
    signs: bool = False,
    pairs: Sequence[tuple[int, int]] | None = None,
    workers: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Measurement]:
    """Measure updates of one base, alone and in pairs, without a model.

    Args:
        deltas: the arms; equal base and modules, ranks may differ.
        ks: numbers of leading directions for principal angles.
        draws: draws of the nulls that depend on the weights (N-ROW, pooled N-ROT), at least 20.
        seed: of every null; the same seed gives the same table.
        signs: also compare signs entry by entry, which costs O(out * in * rank) per pair.
        pairs: which arms are compared, by their places in ``deltas``; every two by default.
        workers: modules compared at a time, each with one BLAS thread; None takes the machine's cores, at most 8.
        progress: called with the share of the work just done.

    Returns:
        Rows in a fixed order. Cosines, orthogonal fractions, signs and right-side numbers of a pair are NaN with
        ``init_mismatch`` when the arms are known to start from different factors, and carry ``init_unknown`` when
        either does not say.

    Raises:
        ConfigError: a k below 1, too few draws, or two arms of one name.
        ProvenanceError, ModelError, DegenerateError: see :func:`limbeck.geometry.delta.check_comparable`.
    """
    check_comparable(deltas)
    if not ks or min(ks) < 1 or draws < 20:
        raise ConfigError(f"measure needs every k >= 1 and draws >= 20, received ks = {tuple(ks)}, draws = {draws}.")
    names = sorted(deltas[0].modules)
    places = [place(name) for name in names]
    chosen = list(combinations(range(len(deltas)), 2) if pairs is None else pairs)
    plan = _plan(deltas, chosen, tuple(sorted(set(ks))), draws, seed, signs)
    records = _compare_all(deltas, names, plan, seed=seed, workers=workers, progress=progress)
    rows = norm_rows(deltas, names, places, records)
    rows += spectrum_rows(deltas, names, places, records, np.random.default_rng([seed, 1]))
    rows += direction_rows(deltas, plan, names, places, records, np.random.default_rng([seed, 2]))
    rows += subspace_rows(deltas, plan, names, places, records, np.random.default_rng([seed, 3]))
    return rows + (sign_rows(deltas, plan, names, places, records) if signs else [])


def _plan(
    deltas: Sequence[Delta], pairs: list[tuple[int, int]], ks: tuple[int, ...], draws: int, seed: int, signs: bool
) -> Plan:
    rng = np.random.default_rng([seed, 0])
    ranks = {min(*factors.shape, factors.left.shape[1]) for d in deltas for factors in d.modules.values()}
    pools = {r: nulls.haar_frames(r, min(r, ks[-1]), count=_POOL, rng=rng) for r in sorted(ranks)}
    return Plan(pairs=pairs, ks=ks, draws=draws, pools=pools, signs=signs)


def _compare_all(
    deltas: Sequence[Delta],
    names: Sequence[str],
    plan: Plan,
    *,
    seed: int,
    workers: int | None,
    progress: Callable[[float], None] | None,
) -> list[ModuleRecord]:
    def compare(index: int) -> ModuleRecord:
        rng = np.random.default_rng([seed, 4, index])
        record = compare_module([d.modules[names[index]] for d in deltas], plan, rng)
        if progress is not None:
            progress(1 / len(names))
        return record

    return side_by_side(compare, range(len(names)), workers=workers)
