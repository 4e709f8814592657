"""What the processes of ``dense_geometry.py`` do: make a pair of checkpoints, measure it by either plan, compare with fp64.

Random bf16 weights and a planted update with a power-law spectrum, written as sharded safetensors. The peer is the same plan
with ``torch.linalg.svd``: three full decompositions and one of values for every checkpoint, W0's anew.
"""

from __future__ import annotations

import ctypes
import json
import math
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import answer

BLOCK = {
    "self_attn.q_proj": (2048, 1024), "self_attn.k_proj": (1024, 1024), "self_attn.v_proj": (1024, 1024),
    "self_attn.o_proj": (1024, 2048), "mlp.gate_proj": (3072, 1024), "mlp.up_proj": (3072, 1024), "mlp.down_proj": (1024, 3072),
}  # fmt: skip
EMBEDDING = "model.embed_tokens.weight", (151936, 1024)
K, SCALE, DECAY = 64, 2e-5, 0.7
ARMS = ("base", "one", "two")


def prepare(*, root: str, shapes: dict[str, tuple[int, int]], arms: int = 3) -> dict[str, int]:
    """Folders of sharded bf16 safetensors, one tensor a shard: the base and what was trained from it."""
    import torch
    from safetensors.torch import save_file

    for arm in ARMS[:arms]:
        Path(root, arm).mkdir(parents=True)
        (Path(root, arm) / "config.json").write_text(json.dumps({"model_type": "qwen3", "tie_word_embeddings": True}))
    index = {}
    for n, (name, (rows, columns)) in enumerate(shapes.items()):
        index[name] = file = f"model-{n + 1:05d}-of-{len(shapes):05d}.safetensors"
        base = torch.randn(rows, columns, generator=torch.Generator().manual_seed(n)).mul_(0.02).bfloat16()
        save_file({name: base}, Path(root, "base", file))
        for number, arm in enumerate(ARMS[1:arms]):
            save_file({name: _moved(base, 1000 * (number + 1) + n)}, Path(root, arm, file))
    for arm in ARMS[:arms]:
        (Path(root, arm) / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return {"tensors": len(shapes)}


def _moved(base: Any, seed: int) -> Any:
    """A base plus an update of rank 256 whose values fall as a power, rounded to bf16; a block of rows at a time."""
    import torch

    own, rank = torch.Generator().manual_seed(seed), min(256, *base.shape)
    right = torch.randn(rank, base.shape[1], generator=own) * (SCALE * torch.arange(1, rank + 1) ** -DECAY)[:, None]
    out = torch.empty_like(base)
    for rows in range(0, len(base), 8192):
        part = base[rows : rows + 8192]
        out[rows : rows + 8192] = part.float() + torch.randn(len(part), rank, generator=own) @ right
    return out


def _svd_plan() -> None:
    """``torch.linalg.svd`` in the place of our decompositions, W0's included for every checkpoint, one matrix at a time."""
    import torch

    from limbeck.geometry.dense import piece, suite
    from limbeck.geometry.dense.decompose import Change, Spectral
    from limbeck.geometry.dense.relate import inside_base

    def spectral(matrix: torch.Tensor, k: int) -> Spectral:
        u, s, vh = torch.linalg.svd(matrix.float(), full_matrices=False)
        energy = matrix.double().square().sum().item()
        rows, columns = matrix.shape
        return Spectral(s.double(), u[:, :k].double(), vh[:k].T.double(), energy, (rows, columns))

    def both(base: torch.Tensor, tuned: torch.Tensor, k: int, ground: Spectral, inside: int) -> Change:
        torch.linalg.svdvals(tuned.float())
        seen = inside_base(ground, base, tuned, inside)
        return Change(spectral(tuned, k), spectral(tuned.float() - base.float(), k), seen)

    piece.decompose, piece.decompose_pair = spectral, both
    suite._side_by_side = lambda one, pieces, workers: [
        one(p) for p in pieces
    ]  # with all threads inside one factorization


def suite(
    *, root: str, arms: list[str], svd: bool = False, nulls: str = "none", workers: int = 1, spectra: str = "gram", only: str = ""
) -> dict[str, float]:  # fmt: skip
    """Processor and wall seconds of the suite, and peak anonymous memory above that at the start."""
    from limbeck.geometry.dense.checkpoints import open_checkpoint
    from limbeck.geometry.dense.suite import measure

    if svd:
        _svd_plan()
    base, *tuned = (open_checkpoint(Path(root, arm)) for arm in ("base", *arms))
    with _Peak() as peak:
        start, wall = time.process_time(), time.perf_counter()
        rows = measure(
            base, tuned, ks=(1, 10, K), nulls=nulls, pairs=False, workers=workers, spectra=spectra, only=only
        )
        spent = {"processor": time.process_time() - start, "wall": time.perf_counter() - wall}
    return {**spent, "rows": len(rows), "peak_mb": peak.megabytes}


def size(*, root: str, ritz: bool) -> dict[str, float]:
    """Processor seconds of one checkpoint, of two, and of one by ``ritz``; peak memory of the first."""
    first = suite(root=root, arms=["one"])
    both = suite(root=root, arms=["one", "two"])["processor"]
    leading = suite(root=root, arms=["one"], spectra="ritz")["processor"] if ritz else math.nan
    return {
        "first": first["processor"],
        "further": both - first["processor"],
        "ritz": leading,
        "peak_mb": first["peak_mb"],
    }


def frames(*, root: str, of: str, svd: bool, repeats: int = 3) -> dict[str, float]:
    """Seconds of the leading directions of one update, the best of some repeats."""
    import torch

    from limbeck.geometry.dense.checkpoints import open_checkpoint
    from limbeck.geometry.dense.krylov import leading

    base, tuned = (open_checkpoint(Path(root, arm)).read(of) for arm in ARMS[:2])
    job = (
        (lambda: torch.linalg.svd(tuned.float() - base.float(), full_matrices=False))
        if svd
        else (lambda: leading(base, tuned, K, seed=0))
    )
    best, found = _best(job, repeats)
    if svd:
        return best
    values = torch.linalg.svdvals(tuned.double() - base.double())[:K]
    return {**best, "residual": found.residual, "error": float((found.values / values - 1).abs().max())}


def _best(job: Callable[[], Any], repeats: int = 3) -> tuple[dict[str, float], Any]:
    """Processor and wall seconds of the best repeat, and what the last returned."""
    best, out = {"processor": math.inf, "wall": math.inf}, None
    for _ in range(repeats):
        start, wall = time.process_time(), time.perf_counter()
        out = job()
        spent = {"processor": time.process_time() - start, "wall": time.perf_counter() - wall}
        best = {clock: min(best[clock], spent[clock]) for clock in best}
    return best, out


def sparsity(*, root: str, workers: int) -> dict[str, float]:
    """Bytes a second of wall and processor time: changed codes; memcmp and array_equal of equal files of that size."""
    from limbeck.geometry.dense.checkpoints import open_checkpoint
    from limbeck.geometry.dense.suite import measure

    base, tuned = (open_checkpoint(Path(root, arm)) for arm in ARMS[:2])
    files = sorted({stored.file for stored in base.tensors.values()})
    copies = [Path(shutil.copy(file, file.with_suffix(".copy"))) for file in files]
    jobs = {
        "ours": lambda: measure(base, [tuned], only="sparsity", workers=workers),
        "memcmp": lambda: _compare(list(zip(files, copies, strict=True)), workers, _memcmp),
        "numpy": lambda: _compare(list(zip(files, copies, strict=True)), workers, _array_equal),
    }
    size, rates = sum(file.stat().st_size for file in files), {}
    for name, job in jobs.items():
        best, _ = _best(job)
        rates |= {f"{name}_{clock}": 2 * size / seconds / 1e9 for clock, seconds in best.items()}
    for copy in copies:
        copy.unlink()
    return rates


def _compare(pairs: list[tuple[Path, Path]], workers: int, equal: Callable[[np.ndarray, np.ndarray], bool]) -> None:
    """Mapped files compared, as much at a time and side by side as ours."""

    def one(pair: tuple[Path, Path]) -> None:
        first, second = (np.memmap(path, np.uint8, "r") for path in pair)
        if not equal(first, second):
            raise SystemExit(f"{pair[0]} and its copy must be equal, and differ.")

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, pairs))


def _memcmp(one: np.ndarray, other: np.ndarray) -> bool:
    compare = ctypes.CDLL(None).memcmp
    compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return compare(one.ctypes.data, other.ctypes.data, len(one)) == 0


def _array_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """In pieces that stay in a cache, as a careful user would."""
    step = 1 << 19
    return all(np.array_equal(one[at : at + step], other[at : at + step]) for at in range(0, len(one), step))


def truth(*, root: str) -> dict[str, float]:
    """Largest relative difference of every number from fp64 decompositions, over a square and a wide matrix."""
    found: dict[str, float] = {}
    for kind in ("self_attn.k_proj", "self_attn.o_proj"):
        for number, error in _errors(root, f"model.layers.0.{kind}"):
            found[number] = max(found.get(number, 0.0), error)
    return found


def _errors(root: str, name: str) -> list[tuple[str, float]]:
    from scipy.linalg import subspace_angles

    from limbeck.geometry.dense.checkpoints import open_checkpoint
    from limbeck.geometry.dense.suite import measure

    base, tuned = (open_checkpoint(Path(root, arm)) for arm in ARMS[:2])
    rows = measure(base, [tuned], ks=(1, 10, K), nulls="none", workers=1)
    found = {(r.metric, r.side, r.k): r.value for r in rows if r.module == name}
    before, after = (c.read(f"{name}.weight").double().numpy() for c in (base, tuned))
    delta = after - before
    w0, w1, d = (np.linalg.svd(m, full_matrices=False) for m in (before, after, delta))
    q, p = d[1] ** 2 / np.sum(d[1] ** 2), d[1] / d[1].sum()
    left, right = (np.degrees(subspace_angles(a[:, :K], b[:, :K])) for a, b in ((w0[0], w1[0]), (w0[2].T, w1[2].T)))
    rank = min(K, min(delta.shape) // 8)
    leading = np.abs((w0[0][:, :rank] * w0[1][:rank]) @ w0[2][:rank])
    principal = leading >= np.quantile(leading, 0.7)
    changed = before != after
    expected = {
        ("frobenius_norm", "", 0): np.linalg.norm(delta),
        ("relative_norm", "", 0): np.linalg.norm(delta) / np.linalg.norm(before),
        ("stable_rank", "", 0): 1 / q[0], ("participation", "", 0): 1 / np.sum(q**2), ("topk_energy", "", 16): q[:16].sum(),
        ("erank_energy", "", 0): np.exp(-np.sum(q * np.log(q))), ("erank", "", 0): np.exp(-np.sum(p * np.log(p))),
        ("hill", "", 10): 9 / np.sum(np.log(d[1][:9] / d[1][9])), ("hill", "", 64): 63 / np.sum(np.log(d[1][:63] / d[1][63])),
        ("nss", "", 0): np.linalg.norm(w1[1] - w0[1]) / np.linalg.norm(w0[1]),
        ("spectrum_share", "", 0): np.linalg.norm(w1[1] - w0[1]) / np.linalg.norm(d[1]),
        ("principal_energy", "PP", K): np.sum((w0[0][:, :K].T @ delta @ w0[2][:K].T) ** 2) / np.sum(d[1] ** 2),
        ("base_mean_cos2", "left", K): np.mean(np.cos(np.radians(left)) ** 2),
        ("base_angle_smallest", "left", K): left.min(), ("base_angle_median", "left", K): np.median(left),
        ("base_angle_largest", "right", K): right.max(), ("base_angle_median", "right", K): np.median(right),
        ("sparsity_visible", "", 0): 1 - changed.mean(), ("sparsity_abs", "", 5): np.mean(np.abs(delta) <= 1e-5),
        ("mask_overlap_principal", "", 0): principal[changed].mean(),
        ("mask_energy_principal", "", 0): np.sum(delta[principal] ** 2) / np.sum(delta**2),
    }  # fmt: skip
    return [(":".join(map(str, key)), abs(found[key] / value - 1)) for key, value in expected.items()]


class _Peak:
    """Highest anonymous memory while open, above that at the start, looked at every hundredth of a second."""

    def __enter__(self) -> _Peak:
        self._first, self.megabytes, self._open = self._now(), 0.0, True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()

    def _watch(self) -> None:
        while self._open:
            self.megabytes = max(self.megabytes, self._now() - self._first)
            time.sleep(0.01)

    @staticmethod
    def _now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


if __name__ == "__main__":
    answer({"prepare": prepare, "suite": suite, "size": size, "frames": frames, "sparsity": sparsity, "truth": truth})
