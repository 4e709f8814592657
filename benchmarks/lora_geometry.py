"""The whole geometry table of six rank-32 adapters at Qwen3-4B's attention shapes, beside dense decompositions.

    python benchmarks/lora_geometry.py

Writes six adapter folders (random factors; one shared initial A, left factors that partly agree, graded spectra),
then reads and measures them in a fresh process: norms, ranks, cosines, orthogonal fractions, principal angles and
leading overlaps of all 15 pairs with their nulls. The peer is ``torch.linalg.svd`` of the materialised update, timed on
one module of every shape and extrapolated to all 6 x 144; pairs and nulls would come on top of it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.linalg import subspace_angles

from limbeck.geometry.adapters import read_adapter
from limbeck.geometry.suite import measure
from limbeck.types import Measurement

COMMAND = "python benchmarks/lora_geometry.py"
RESULT = Path(__file__).parent / "results" / "lora_geometry.json"
ARMS, RANK, ALPHA = 6, 32, 64
SHAPES = {"q_proj": (4096, 2560), "k_proj": (1024, 2560), "v_proj": (1024, 2560), "o_proj": (2560, 4096)}
GOAL_SECONDS, GOAL_GIGABYTES, GOAL_AGREEMENT = 20.0, 1.5, 1e-5


def write_adapters(root: Path, layers: int) -> None:
    """Six folders in PEFT's format."""
    shared = torch.Generator().manual_seed(0)
    modules = {f"model.layers.{n}.self_attn.{kind}": shape for n in range(layers) for kind, shape in SHAPES.items()}
    grade = 0.93 ** torch.arange(RANK)
    initial = {m: torch.randn(RANK, cols, generator=shared) / cols**0.5 for m, (_, cols) in modules.items()}
    common = {m: torch.randn(rows, RANK, generator=shared) * grade for m, (rows, _) in modules.items()}
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "init_lora_weights": True,
        "base_model_name_or_path": "Qwen/Qwen3-4B", "target_modules": list(SHAPES),
    }  # fmt: skip
    for arm in range(ARMS):
        own, tensors = torch.Generator().manual_seed(arm + 1), {}
        for module, (rows, cols) in modules.items():
            name = f"base_model.model.{module}.lora_"
            left = common[module] + 0.5 * (arm + 1) * torch.randn(rows, RANK, generator=own) * grade
            tensors[name + "A.weight"] = initial[module] + 0.02 * torch.randn(RANK, cols, generator=own) / cols**0.5
            tensors[name + "B.weight"] = 1e-3 * left
        folder = root / f"arm{arm}"
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "limbeck.json").write_text(json.dumps({"init_digest": "shared", "base_digest": "base"}))


def measure_adapters(root: Path) -> dict[str, float]:
    """Seconds from folders to rows, and the peak memory of the process so far."""
    start, processor = time.perf_counter(), time.process_time()
    deltas = [read_adapter(root / f"arm{arm}") for arm in range(ARMS)]
    read = time.perf_counter()
    rows = measure(deltas, workers=2)
    end, processor = time.perf_counter(), time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"read": read - start, "total": end - start, "processor": processor, "rows": len(rows), "peak": peak}


def dense_seconds(root: Path) -> dict[str, float]:
    """Seconds of a full decomposition of one materialised module of each kind, fp32, one thread or all, the faster."""
    delta, by_shape = read_adapter(root / "arm0"), dict.fromkeys(SHAPES.values(), float("inf"))
    every = torch.get_num_threads()
    for shape in by_shape:
        kind = next(k for k, s in SHAPES.items() if s == shape)
        factors = delta.modules[f"model.layers.0.self_attn.{kind}"]
        for threads in {1, every}:
            torch.set_num_threads(threads)
            start = time.perf_counter()
            torch.linalg.svd(factors.left @ factors.right, full_matrices=False)
            by_shape[shape] = min(by_shape[shape], time.perf_counter() - start)
    return {kind: by_shape[shape] for kind, shape in SHAPES.items()}


def agreement(root: Path) -> float:
    """Largest relative difference between the table and a dense fp64 route, on the k_proj of one layer, two arms."""
    name = "model.layers.0.self_attn.k_proj"
    deltas = [replace(d, modules={name: d.modules[name]}) for d in (read_adapter(root / f"arm{arm}") for arm in (0, 1))]
    rows = [r for r in measure(deltas, ks=(10,), draws=20) if r.aggregation == "module"]
    x, y = (d.modules[name].left.double().numpy() @ d.modules[name].right.double().numpy() for d in deltas)
    dense = [np.linalg.svd(m, full_matrices=False) for m in (x, y)]
    expected = {
        ("frobenius_norm", "arm0", ""): np.linalg.norm(x),
        ("cosine", "arm0", ""): np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y),
        ("stable_rank", "arm0", ""): np.sum(dense[0][1] ** 2) / dense[0][1][0] ** 2,
    }
    for side, one, other in (("left", dense[0][0], dense[1][0]), ("right", dense[0][2].T, dense[1][2].T)):
        angles = np.degrees(np.sort(subspace_angles(one[:, :10], other[:, :10])))
        expected[("principal_angle_smallest", "arm0", side)] = angles[0]
        expected[("principal_angle_median", "arm0", side)] = np.median(angles)
        expected[("principal_angle_largest", "arm0", side)] = angles[-1]
        expected[("leading_overlap", "arm0", side)] = abs(one[:, 0] @ other[:, 0])
    return max(abs(_value(rows, key) / value - 1) for key, value in expected.items())


def _value(rows: list[Measurement], key: tuple[str, str, str]) -> float:
    return next(r.value for r in rows if (r.metric, r.arm, r.side) == key)


def child(root: Path, job: str) -> dict[str, float]:
    """One job in a process of its own, so that its time and memory are its own."""
    command = [sys.executable, __file__, "--job", job, "--root", str(root)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def run(layers: int) -> list[dict[str, float | str | None]]:
    """All rows of the result file."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_adapters(root, layers)
        ours = min((child(root, "measure") for _ in range(3)), key=lambda r: r["total"])
        dense = child(root, "dense")
        difference = agreement(root)
    theirs = ARMS * layers * sum(dense.values())
    pairs = ARMS * (ARMS - 1) // 2
    table = f"whole table, {ARMS} adapters, {pairs} pairs, {layers * len(SHAPES)} modules, {ours['rows']} rows"
    peer = "torch.linalg.svd of the materialised updates, one module of each kind timed, extrapolated"
    common = {
        "command": COMMAND,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }
    rows = [
        (f"{table}: wall, best of 3", ours["total"], theirs, peer, theirs / ours["total"], GOAL_SECONDS, "s"),
        ("the same in processor seconds, which other work slows less", ours["processor"], None, "", None, None, "s"),
        ("of which reading six folders", ours["read"], None, "", None, None, "s"),
        ("peak resident memory", ours["peak"], None, "", None, GOAL_GIGABYTES, "GB"),
        ("largest relative difference", difference, None, "dense fp64 route", None, GOAL_AGREEMENT, "relative"),
    ]
    keys = ("what", "ours", "theirs", "peer", "ratio", "goal", "unit")
    return [dict(zip(keys, row, strict=True)) | common for row in rows]


def main() -> None:
    """Print the table, write the JSON; with --job, be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=36, help="blocks; fewer for a quick look, which is not written")
    parser.add_argument("--job", choices=("measure", "dense"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job = measure_adapters if arguments.job == "measure" else dense_seconds
        print(json.dumps(job(arguments.root)))
        return
    rows = run(arguments.layers)
    for row in rows:
        theirs = f"{row['theirs']:10.4g}" if row["theirs"] else " " * 10
        goal = f"goal {row['goal']:g}" if row["goal"] else ""
        print(f"{row['ours']:10.4g} {theirs} {row['unit']:<9} {goal:<10} {row['what']}  {row['peer']}")
    if arguments.layers == 36:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
