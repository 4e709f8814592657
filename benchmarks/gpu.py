"""Training steps on a CUDA device at the shapes of Qwen3-0.6B and 4B beside TRL's: tokens/s, utilization, memory.

    python benchmarks/gpu.py              # both shapes; without a CUDA device it says so and ends
    python benchmarks/gpu.py --smoke      # a small shape on whatever device there is, nothing written

Random weights, bf16 products, sequences of 2,048, LoRA of rank 32 on q, k, v and o. Utilization is the arithmetic that
the step needs (forward, and backward to every activation; nothing that was computed twice counts) over what a bf16
product of 8,192 x 8,192 x 8,192 reaches on the same device in the same run. Memory is the most that was allocated there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import Results, Row, machine, number, run_job, table_in_docs
from train_vs_trl import ROW_BY_ROW, SCORED, SMOKE, difference, settings

from limbeck.progress import bar

SIDES = Path(__file__).parent / "sides.py"
COMMON = {"vocab": 151_936, "kv_heads": 8, "head_dim": 128, "prompt": 64, "length": 2048, "dtype": "bf16"}
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": COMMON
    | {"hidden": 1024, "intermediate": 3072, "layers": 28, "heads": 16, "rows": 8, "pairs": 4},
    "Qwen3-4B": COMMON
    | {"hidden": 2560, "intermediate": 9728, "layers": 36, "heads": 32, "rows": 4, "pairs": 2},
}  # fmt: skip
OBJECTIVES = ("sft", "dpo", "grpo", "reverse_kl")
AGREE = 1e-2  # bf16 products


def weights_used(shape: dict[str, Any]) -> int:
    """Entries of all matrices that a token passes through, head included, lookup of its embedding not."""
    attention = shape["hidden"] * shape["head_dim"] * 2 * (shape["heads"] + shape["kv_heads"])
    layer = attention + 3 * shape["hidden"] * shape["intermediate"]
    return shape["layers"] * layer + shape["vocab"] * shape["hidden"]


def step_flops(shape: dict[str, Any], tokens: int) -> float:
    """Operations of one step with a frozen base: twice a forward pass, attention over what precedes each token.

    >>> step_flops({"hidden": 1, "head_dim": 1, "heads": 1, "kv_heads": 1, "intermediate": 0, "vocab": 0} |
    ...     {"layers": 1, "length": 2}, tokens=1)
    28.0
    """
    products = 2 * weights_used(shape)
    attention = 2 * 2 * shape["layers"] * shape["heads"] * shape["head_dim"] * shape["length"] / 2
    return tokens * (2 * products + 3 * attention)


def cases(objectives: list[str]) -> list[str]:
    return [objective for objective in OBJECTIVES if objective in objectives]


def measure(
    name: str, shape: dict[str, Any], objectives: list[str], *, results: Results, job: Any, flops: float
) -> None:
    """All rows of one shape."""
    steps = 3
    with tempfile.TemporaryDirectory() as root:
        job(job="prepare", root=root, shape=shape)
        for objective in cases(objectives):
            if objective in SCORED:
                job(job="score", root=root, objective=objective)
            common = {"root": root, "objective": objective, "steps": steps, "precision": "bf16"}
            for setting in settings(objective):
                ours = job(job="ours", train=setting.ours, **common)
                theirs = job(job="theirs", settings=setting.theirs, by_row=setting.by_row, **common)
                what = f"{name}, {objective}{setting.words}"
                results.add(*rows(what, shape, ours, theirs, setting.peer, flops))


def rows(
    what: str, shape: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any], peer: str, flops: float
) -> list[tuple[Any, ...]]:
    """Result rows of one objective beside one peer."""
    mine, other = (statistics.median(side["seconds"]) for side in (ours, theirs))
    tokens, memory = ours["tokens"], "device_peak_mb" if "device_peak_mb" in ours else "peak_mb"
    needed = step_flops(shape, tokens)
    gap = difference(ours["losses"], theirs["losses"])
    return [
        (f"{what}: one optimizer step", tokens / mine, tokens / other, peer, other / mine, 1.0, "tokens/s"),
        (f"{what}: utilization", needed / mine / flops, needed / other / flops, peer, other / mine, None, "share"),
        (f"{what}: peak memory", ours[memory], theirs[memory], peer, theirs[memory] / ours[memory], 1.0, "MB"),
        (f"{what}: largest difference of the losses, share of the largest", gap, None, peer, None, AGREE, "share"),
    ]


def docs_table(stored: list[Row]) -> str:
    """What was measured, as Markdown, with the device's name; or the sentence that nothing was."""
    if not stored:
        return "No CUDA device was available: nothing on this page was measured on one."
    lines = [f"{stored[0]['machine']}, {stored[0]['date']}.", "", "| what | peer | ours | theirs | times |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for row in stored:
        cells = [row["what"], row["peer"], f"{number(row['ours'])} {row['unit']}", number(row["theirs"])]
        lines.append(f"| {' | '.join([*cells, number(row['ratio'])])} |")
    return "\n".join(lines)


def main() -> None:
    """Look for a device, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--smoke", action="store_true", help="a small shape on whatever device there is")
    arguments = parser.parse_args()
    device = run_job(SIDES, {"job": "device", "size": 512 if arguments.smoke else 8192}, threads=arguments.threads)
    if not device["cuda"] and not arguments.smoke:
        print("No CUDA device is available here: nothing was measured. Try --smoke to see that the script runs.")
        return
    shapes = {"smoke": SMOKE | {"dtype": "bf16"}} if arguments.smoke else {n: SHAPES[n] for n in arguments.shapes}
    words = f"{device['name']}, {machine(arguments.threads)}"
    results = Results("gpu", command="python benchmarks/gpu.py", machine=words, keep=not arguments.smoke)
    chosen = cases(arguments.objectives)
    with bar("gpu", len(shapes) * (1 + sum(6 + (o in SCORED) + 2 * (o in ROW_BY_ROW) for o in chosen))) as advance:

        def job(**wanted: Any) -> dict[str, Any]:
            out = run_job(SIDES, wanted, threads=arguments.threads)
            advance(1)
            return out

        for name, shape in shapes.items():
            measure(name, shape, chosen, results=results, job=job, flops=device["flops"])
    results.show()
    if not arguments.smoke:
        table_in_docs("gpu", docs_table(results.stored()))


if __name__ == "__main__":
    main()
