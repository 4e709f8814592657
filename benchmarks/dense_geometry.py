"""The whole suite on Qwen3-0.6B-shaped checkpoints, beside the same plan written with ``torch.linalg.svd``; time and memory.

    python benchmarks/dense_geometry.py             # a quiet machine: wall time, two matrices side by side; minutes
    python benchmarks/dense_geometry.py --shared    # processor time of one thread, which other work slows least
    python benchmarks/dense_geometry.py --plot      # the plot and the tables again from the JSON

Either way the sweeps over matrix size and number of matrices are timed in processor seconds of one thread; what they say of
larger models is computed, not measured, and marked so. What is measured and by which plan: ``dense_sides.py``.
"""

from __future__ import annotations

import argparse
import math
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import Results, Row, machine, run_job, table_in_docs
from dense_sides import BLOCK, EMBEDDING, K
from scaling import panel
from scipy.optimize import nnls

from limbeck.progress import bar

SIDES = Path(__file__).parent / "dense_sides.py"
PLOT = Path(__file__).parents[1] / "docs" / "images" / "dense_geometry.svg"
PEER = "the same plan with torch.linalg.svd"
SIZES = ((256, 256), (512, 512), (1024, 1024), (2048, 2048), (4096, 4096), (4096, 1024), (16384, 1024))
COUNTS = (2, 4, 8, 16)
FIRST, FURTHER, RITZ, MEMORY = "first checkpoint", "further checkpoint", "first checkpoint, ritz", "peak memory"
Answer = tuple[Any, ...]


class Model(NamedTuple):
    """The matrices of a model: how many blocks, those of a block, those outside."""

    layers: int
    block: tuple[tuple[int, int], ...]
    rest: tuple[tuple[int, int], ...]

    def shapes(self) -> list[tuple[int, int]]:
        """Every matrix."""
        return [*self.block * self.layers, *self.rest]


def _qwen(layers: int, hidden: int, queries: int, keys: int, wide: int, words: int) -> Model:
    attention = ((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries))
    return Model(layers, (*attention, (wide, hidden), (wide, hidden), (hidden, wide)), ((151936, hidden),) * words)


MODELS = {
    "Qwen3-0.6B": _qwen(28, 1024, 2048, 1024, 3072, 1),
    "Qwen3-8B": _qwen(36, 4096, 4096, 1024, 12288, 2),
    "Qwen3-32B": _qwen(64, 5120, 8192, 1024, 25600, 2),
}


def layers(count: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of so many blocks of Qwen3-0.6B."""
    return {f"model.layers.{n}.{kind}.weight": shape for n in range(count) for kind, shape in BLOCK.items()}


def job(name: str, root: str, *, threads: int = 1, best_of: int = 1, **given: Any) -> dict[str, float]:
    """One measurement in a process of its own; of several the least of every number."""
    found = [run_job(SIDES, {"job": name, "root": root, **given}, threads=threads) for _ in range(best_of)]
    return {key: min(one[key] for one in found) for key in found[0]}


def block_rows(clock: str) -> Iterator[Answer]:
    """One block's seven matrices by either plan, frames alone, and every kind of number against fp64."""
    how = "processor" if clock == "processor" else "wall, two matrices side by side"
    workers, threads = (1, 1) if clock == "processor" else (2, 2)
    theirs_how = f"{PEER}, {'one thread' if threads == 1 else 'two threads inside each'}"
    with tempfile.TemporaryDirectory() as root:
        job("prepare", root, shapes=layers(1))
        first = job("suite", root, arms=["one"], workers=workers, best_of=2)
        both = job("suite", root, arms=["one", "two"], workers=workers, best_of=2)
        drawn = job("suite", root, arms=["one"], workers=workers, nulls="kind")
        theirs = job("suite", root, arms=["one"], svd=True, threads=threads)[clock] / len(BLOCK)
        one, rest = first[clock] / len(BLOCK), (both[clock] - first[clock]) / len(BLOCK)
        yield f"first checkpoint, a tensor: {how}", one, theirs, theirs_how, theirs / one, 4, "s"
        yield f"each further checkpoint, a tensor: {how}", rest, theirs, theirs_how, theirs / rest, 8, "s"
        null = (drawn[clock] - first[clock]) / len(BLOCK)
        yield f"a null drawn, a matrix (one of each kind and shape): {how}", null, None, None, None, None, "s"
        yield from frame_rows(root, "model.layers.0.mlp.up_proj.weight", BLOCK["mlp.up_proj"], clock, threads)
        errors = job("truth", root)
        worst = max(errors, key=lambda key: errors[key])
        what = f"largest relative difference of {len(errors)} numbers, two matrices (it is that of {worst})"
        yield what, errors[worst], None, "fp64 numpy and scipy", None, 1e-3, "relative"


def frame_rows(root: str, name: str, shape: tuple[int, int], clock: str, threads: int) -> Iterator[Answer]:
    """The leading directions of one update alone: one thread here, ``threads`` on the peer's side."""
    ours = job("frames", root, of=name, svd=False)
    theirs = job("frames", root, of=name, svd=True, repeats=3 if min(shape) <= 1024 else 1, threads=threads)[clock]
    what = f"leading {K} directions of one {shape[0]} x {shape[1]} update"
    peer = f"torch.linalg.svd, {'one thread' if threads == 1 else 'two threads'}"
    yield f"{what}: {clock}, one thread", ours[clock], theirs, peer, theirs / ours[clock], 10, "s"
    yield f"{what}: residual", ours["residual"], None, None, None, None, "of sigma_1"
    yield f"{what}: largest relative error of the values", ours["error"], None, None, None, None, "relative"


def wide_rows(clock: str) -> Iterator[Answer]:
    """Frames alone of a matrix of a 4B model, where a full decomposition takes many seconds."""
    name, shape = "model.layers.0.self_attn.q_proj.weight", (4096, 2560)
    with tempfile.TemporaryDirectory() as root:
        job("prepare", root, shapes={name: shape}, arms=2)
        yield from frame_rows(root, name, shape, clock, 1 if clock == "processor" else 2)


def tensor_rows(clock: str) -> Iterator[Answer]:
    """The embedding: the largest tensor alone, and reading without computing."""
    name, shape = EMBEDDING
    workers = 1 if clock == "processor" else 2
    largest = shape[0] * shape[1] * 2 / 1e6
    with tempfile.TemporaryDirectory() as root:
        halves = {name: shape, "model.layers.0.mlp.up_proj.weight": shape} if workers == 2 else {name: shape}
        job("prepare", root, shapes=halves, arms=2)
        seen = job("sparsity", root, workers=workers)
        ours, compare = seen[f"ours_{clock}"], seen[f"memcmp_{clock}"]
        what = f"changed codes of {shape[0]} x {shape[1]}, read from mapped files: {clock}, {workers} at a time"
        yield what, ours, compare, "memcmp of equal files of that size, as many at a time", ours / compare, 0.7, "GB/s"
        compare = seen[f"numpy_{clock}"]
        what = f"the same beside NumPy's array_equal: {clock}, {workers} at a time"
        yield (
            what,
            ours,
            compare,
            "array_equal of equal files of that size, as many at a time",
            ours / compare,
            0.7,
            "GB/s",
        )
        if workers == 1:
            alone = job("suite", root, arms=["one"])
            yield (
                f"embedding {shape[0]} x {shape[1]}, first checkpoint: processor",
                alone[clock],
                None,
                None,
                None,
                None,
                "s",
            )
            what = f"embedding alone, one worker: peak anonymous memory (largest tensor {largest:.0f} MB)"
            yield what, alone["peak_mb"], None, None, None, 3 * largest, "MB"


def whole_rows() -> Iterator[Answer]:
    """All 197 tensors with drawn nulls, two matrices side by side, in wall time."""
    name, shape = EMBEDDING
    largest = shape[0] * shape[1] * 2 / 1e6
    with tempfile.TemporaryDirectory() as root:
        count = job("prepare", root, shapes=layers(28) | {name: shape}, arms=2)["tensors"]
        found = job("suite", root, arms=["one"], nulls="kind", workers=2)
        yield f"all {count} tensors with nulls, first checkpoint: wall", found["wall"], None, None, None, None, "s"
        yield f"all {count} tensors with nulls, a tensor: wall", found["wall"] / count, None, None, None, 1, "s"
        what = f"all {count} tensors, two workers: peak anonymous memory (largest tensor {largest:.0f} MB)"
        yield what, found["peak_mb"], None, None, None, 3 * largest, "MB"


def sweep_rows(sizes: tuple[tuple[int, int], ...], at_once: int) -> Iterator[Answer]:
    """One matrix of every size, and several of one size: processor seconds of one thread, peak memory."""
    with ThreadPoolExecutor(at_once) as pool:  # each job is a process; the largest first
        by_size = pool.map(size_rows, sorted(sizes, key=lambda size: -work(size)[2]))
        by_count = pool.map(count_rows, COUNTS)
        for rows in (*by_size, *by_count):
            yield from rows


def size_rows(shape: tuple[int, int]) -> list[Answer]:
    """One matrix of one size."""
    with tempfile.TemporaryDirectory() as root:
        job("prepare", root, shapes={"model.layers.0.self_attn.k_proj.weight": shape})
        spent = job("size", root, ritz=min(shape) > 4 * (K + 16))
    found = [(FIRST, spent["first"], "s"), (FURTHER, spent["further"], "s"), (MEMORY, spent["peak_mb"], "MB")]
    found += [] if math.isnan(spent["ritz"]) else [(RITZ, spent["ritz"], "s")]
    return [(f"{shape[0]} x {shape[1]}: {what}", value, None, None, None, None, unit) for what, value, unit in found]


def count_rows(count: int) -> list[Answer]:
    """So many matrices of one size."""
    with tempfile.TemporaryDirectory() as root:
        job("prepare", root, shapes={f"model.layers.{n}.k.weight": (1024, 1024) for n in range(count)}, arms=2)
        found = job("suite", root, arms=["one"])
    pairs = (FIRST, found["processor"], "s"), (MEMORY, found["peak_mb"], "MB")
    return [(f"{count} matrices: {what}", value, None, None, None, None, unit) for what, value, unit in pairs]


# ------------------------------------------------------------------------------------------------------------- the laws


def swept(rows: list[Row], quantity: str) -> dict[tuple[int, ...], float]:
    """Points of one sweep quantity: by shape ``(m, n)``, or by number of matrices ``(count,)``."""
    out: dict[tuple[int, ...], float] = {}
    for row in rows:
        found = re.fullmatch(rf"(\d+)(?: x (\d+)| matrices): {quantity}", row["what"])
        if found:
            out[tuple(int(number) for number in found.groups() if number)] = row["ours"]
    return out


def law(points: dict[tuple[int, ...], float]) -> np.ndarray:
    """Non-negative weights of what time is made of (:func:`work`), relative errors counting alike."""
    shapes = [shape for shape in points if len(shape) == 2]
    terms = np.array([work(shape) / points[shape] for shape in shapes])
    scale = terms.max(0)
    return nnls(terms / scale, np.ones(len(shapes)))[0] / scale


def work(shape: tuple[int, ...]) -> np.ndarray:
    """What time is made of: the matrix as such, its entries, products of a Gram matrix, steps of its reduction."""
    m, n = max(shape), min(shape)
    return np.array([1, m * n, m * n * n, n**3], dtype=float)


def allocated(shape: tuple[int, int]) -> float:
    """MB that the page accounts for: two Gram matrices, four pairs of frames of K directions, the packed mask, blocks."""
    m, n = max(shape), min(shape)
    return (16 * n * n + 4 * 8 * K * (m + n) + m * n / 8 + 5 * (8 << 20)) / 1e6


def law_rows(rows: list[Row]) -> Iterator[Answer]:
    """How well the law fits, and what it says of larger models: computed."""
    for quantity in (FIRST, FURTHER, RITZ):
        points = {shape: value for shape, value in swept(rows, quantity).items() if len(shape) == 2}
        if len(points) < 4:
            continue
        weights = law(points)
        off = max(abs(work(shape) @ weights / seconds - 1) for shape, seconds in points.items())
        yield (
            f"law of {quantity}: largest relative miss over {len(points)} sizes",
            off,
            None,
            None,
            None,
            None,
            "relative",
        )
        for name, model in MODELS.items():
            hours = sum(work(shape) @ weights for shape in model.shapes()) / 3600
            yield f"computed, {name}: {quantity}", hours, None, None, None, None, "thread hours"
    for name, model in MODELS.items():
        need = max(allocated(shape) for shape in model.shapes())
        yield f"computed, {name}: allocated for its largest matrix, a worker", need, None, None, None, None, "MB"


# ------------------------------------------------------------------------------------------------------ plot and tables


def svg(rows: list[Row]) -> str:
    """Time and memory over the size of a square matrix and over the number of matrices."""
    panels = []
    for line, (quantity, name) in enumerate(((FIRST, "seconds of one thread"), (MEMORY, "MB above the start"))):
        points = swept(rows, quantity)
        squares = {float(s[0]): v for s, v in points.items() if len(s) == 2 and s[0] == s[1]}
        counts = {float(s[0]): v for s, v in points.items() if len(s) == 1}
        panels += [
            panel(squares, (0, line), "n of one n x n matrix", name),
            panel(counts, (1, line), "matrices, 1024 x 1024", name),
        ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 490" width="690" height="490" font-family="sans-serif" '
        f'font-size="11" fill="#30363d"><rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
    )


def document(rows: list[Row]) -> str:
    """What was measured, the plot, and what it says of larger models."""
    points = [f": {quantity}" for quantity in (FIRST, FURTHER, RITZ, MEMORY)]
    measured = [row for row in rows if "computed" not in row["what"] and not row["what"].endswith(tuple(points))]
    lines = ["| what | ours | peer | times | goal | unit |", "| --- | --- | --- | --- | --- | --- |"]
    for row in measured:
        cells = ("" if row[key] is None else f"{row[key]:.3g}" for key in ("ours", "theirs", "ratio", "goal"))
        lines.append(f"| {row['what']} | {' | '.join(cells)} | {row['unit']} |")
    lines += ["", "![Time and memory over matrix size and number of matrices](images/dense_geometry.svg)", ""]
    lines += [
        "| **computed** by the fitted law | first, hours | further, hours | first by `ritz`, hours | allocated a worker, MB |"
    ]
    lines += ["| --- | --- | --- | --- | --- |"]
    known = {row["what"]: row["ours"] for row in rows}
    quantities = (FIRST, FURTHER, RITZ, "allocated for its largest matrix, a worker")
    for name, model in MODELS.items():
        cells = (known.get(f"computed, {name}: {quantity}") for quantity in quantities)
        count = f"{name}, {len(model.shapes())} matrices, one thread"
        lines.append(f"| {count} | {' | '.join('' if cell is None else f'{cell:.3g}' for cell in cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write the JSON, the plot and the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", action="store_true", help="processor time of one thread, for a machine in use")
    parser.add_argument("--plot", action="store_true", help="measure nothing")
    parser.add_argument("--parts", nargs="+", choices=("block", "frames", "tensor", "whole", "sweep"), default=None)
    parser.add_argument("--largest", type=int, default=4096, help="largest short side of the sweep")
    arguments = parser.parse_args()
    clock = "processor" if arguments.shared else "wall"
    words = machine(1) + ", in processor time" if arguments.shared else machine(2)
    results = Results("dense_geometry", command="python benchmarks/dense_geometry.py", machine=words)
    sizes = tuple(size for size in SIZES if min(size) <= arguments.largest)
    parts = {
        "block": lambda: block_rows(clock), "frames": lambda: wide_rows(clock), "tensor": lambda: tensor_rows(clock),
        "whole": whole_rows, "sweep": lambda: sweep_rows(sizes, 1 if arguments.shared else 2),
    }  # fmt: skip
    chosen = arguments.parts or (["block", "frames", "tensor", "sweep"] if arguments.shared else list(parts))
    with bar("dense_geometry", len(chosen)) as advance:
        for part in () if arguments.plot else chosen:
            for row in parts[part]():
                results.add(row)
            advance(1)
    results.add(*law_rows(results.stored()))
    results.show()
    PLOT.parent.mkdir(exist_ok=True)
    PLOT.write_text(svg(results.stored()), encoding="utf-8")
    table_in_docs("dense_geometry", document(results.stored()))


if __name__ == "__main__":
    main()
