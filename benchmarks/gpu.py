"""Training steps on a CUDA device at the shapes of Qwen3-0.6B and 4B beside TRL's: tokens/s, utilization, memory.

    python benchmarks/gpu.py              # both shapes; without a CUDA device it says so and ends
    python benchmarks/gpu.py --smoke      # a small shape on whatever device there is, nothing written

Random weights, bf16 products, sequences of 2,048, LoRA of rank 32 on q, k, v and o. TRL as it comes, without gradient
checkpointing, and with its Liger kernels where those are installed; what fails or runs out of memory is said, not left
out. One process runs all sides of an objective at a shape, one after another, and forgets each before the next.
Utilization is the arithmetic that the step needs (forward, and backward to every activation; nothing that was computed
twice counts) over what a bf16 product of 8,192 x 8,192 x 8,192 reaches on the same device in the same run. Memory is the
most that was allocated there.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import Results, Row, machine, number, run_job, table_in_docs
from train_vs_trl import SCORED, SMOKE, SPARING, Setting, difference

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
AGREE, STEPS = 1e-2, 3  # bf16 products
STEP, GAP = "one optimizer step", "largest difference of the losses, share of the largest"


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


def settings(objective: str, *, num: int) -> list[Setting]:
    """The first ``num`` comparisons: TRL at its fastest, with fused kernels, both sides sparing memory, as they come."""
    name, words = f"TRL {version('trl')}", "no gradient checkpointing"
    fast: dict[str, Any] = {"gradient_checkpointing": False}
    if objective == "dpo":
        fast["precompute_ref_log_probs"], words = True, words + ", reference precomputed"
    out = [Setting("", f"{name}, {words}", {}, fast)]
    if importlib.util.find_spec("liger_kernel"):
        fused = {"gradient_checkpointing": False, "use_liger_kernel": True}
        liger = f"Liger {version('liger_kernel')}"
        out.append(Setting(f", {liger} on both sides", f"{name}, no gradient checkpointing", {"liger": True}, fused))
    out.append(Setting(SPARING, f"{name}, defaults", {"gradient_checkpointing": True}, {}))
    out.append(Setting("", f"{name}, defaults", {}, {}))
    return out[:num]


def measure(
    name: str, shape: dict[str, Any], objective: str, root: str, *, run: Any, num: int, flops: float
) -> list[tuple[Any, ...]]:
    """Result rows of one objective at one shape; each side runs once however many comparisons it is in."""
    chosen = settings(objective, num=num)
    common = {"root": root, "objective": objective, "steps": STEPS, "precision": "bf16"}
    jobs = {"score": {"job": "score", "root": root, "objective": objective}} if objective in SCORED else {}
    for setting in chosen:
        jobs[f"ours {setting.ours}"] = {"job": "ours", "train": setting.ours, **common}
        jobs[f"theirs {setting.theirs}"] = {"job": "theirs", "settings": setting.theirs, **common}
    found = dict(zip(jobs, run(job="series", jobs=list(jobs.values()))["results"], strict=True))
    out: list[tuple[Any, ...]] = []
    for setting in chosen:
        ours, theirs = found[f"ours {setting.ours}"], found[f"theirs {setting.theirs}"]
        what = f"{name}, {objective}{setting.words}"
        for side, result in (("ours", ours), ("theirs", theirs)):
            if "error" in result:
                print(f"{what}; {setting.peer}: {side} did not run: {result['error']}", flush=True)
        if "error" not in ours:
            out += rows(what, ours, theirs, setting.peer, step_flops(shape, ours["tokens"]) / flops)
    return out


def rows(what: str, ours: dict[str, Any], theirs: dict[str, Any], peer: str, least: float) -> list[tuple[Any, ...]]:
    """Result rows of one objective beside one peer; a peer that did not run leaves its cells empty.

    Args:
        least: seconds that the step's arithmetic takes at the rate of a large product.
    """
    mine, tokens, memory = statistics.median(ours["seconds"]), ours["tokens"], "device_peak_mb"
    memory = memory if memory in ours else "peak_mb"
    speed, used, space, gap = (f"{what}: {name}" for name in (STEP, "utilization", "peak memory", GAP))
    if "error" in theirs:
        peer = f"{peer}: did not run"
        return [
            (speed, tokens / mine, None, peer, None, None, "tokens/s"),
            (used, least / mine, None, peer, None, None, "share"),
            (space, ours[memory], None, peer, None, None, "MB"),
        ]
    other = statistics.median(theirs["seconds"])
    return [
        (speed, tokens / mine, tokens / other, peer, other / mine, 1.0, "tokens/s"),
        (used, least / mine, least / other, peer, other / mine, None, "share"),
        (space, ours[memory], theirs[memory], peer, theirs[memory] / ours[memory], 1.0, "MB"),
        (gap, difference(ours["losses"], theirs["losses"]), None, peer, None, AGREE, "share"),
    ]


def docs_table(stored: list[Row]) -> str:
    """What was measured, a line a comparison, with the device's name; or the sentence that nothing was."""
    if not stored:
        return "No CUDA device was available: nothing on this page was measured on one."
    heads = ("case", "peer", "tokens/s", "theirs", "times", "utilization", "theirs", "GB", "theirs", "losses differ by")
    lines = [f"{stored[0]['machine']}, {stored[0]['date']}.", "", f"| {' | '.join(heads)} |"]
    lines.append(f"| {' | '.join(['---'] * len(heads))} |")
    by = {(*row["what"].split(": ", 1), row["peer"]): row for row in stored}
    for case, what, peer in by:
        if what == STEP:
            speed, used, space = (by[case, name, peer] for name in (STEP, "utilization", "peak memory"))
            cells = [number(speed["ours"]), number(speed["theirs"]), f"{speed['ratio']:.2f}" if speed["ratio"] else ""]
            cells += [number(side and round(side, 3)) for side in (used["ours"], used["theirs"])]
            cells += [number(side and side / 1e3) for side in (space["ours"], space["theirs"])]
            gap = f"{by[case, GAP, peer]['ours']:.0e}" if (case, GAP, peer) in by else ""
            lines.append(f"| {' | '.join([case, peer, *cells, gap])} |")
    return "\n".join(lines)


def main() -> None:
    """Look for a device, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--settings", type=int, default=4, help="only the first so many comparisons of an objective")
    parser.add_argument("--smoke", action="store_true", help="a small shape on whatever device there is")
    arguments = parser.parse_args()
    device = run_job(SIDES, {"job": "device", "size": 512 if arguments.smoke else 8192}, threads=arguments.threads)
    if not device["cuda"] and not arguments.smoke:
        print("No CUDA device is available here: nothing was measured. Try --smoke to see that the script runs.")
        return
    shapes = {"smoke": SMOKE | {"dtype": "bf16"}} if arguments.smoke else {n: SHAPES[n] for n in arguments.shapes}
    words = f"{device['name']}, {machine(arguments.threads)}"
    results = Results("gpu", command="python benchmarks/gpu.py", machine=words, keep=not arguments.smoke)
    with bar("gpu", len(shapes) * (1 + len(arguments.objectives))) as advance:

        def run(**job: Any) -> dict[str, Any]:
            out = run_job(SIDES, job, threads=arguments.threads)
            advance(1)
            return out

        for name, shape in shapes.items():
            with tempfile.TemporaryDirectory() as root:
                run(job="prepare", root=root, shape=shape)
                options = {"run": run, "num": arguments.settings, "flops": device["flops"]}
                for objective in arguments.objectives:
                    results.add(*measure(name, shape, objective, root, **options))
    results.show()
    if not arguments.smoke:
        table_in_docs("gpu", docs_table(results.stored()))


if __name__ == "__main__":
    main()
