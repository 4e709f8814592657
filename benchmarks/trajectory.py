"""What snapshots along a run add to its training time.

    python benchmarks/trajectory.py            # the embedded world, full parameters and adapters; one layer of hidden size 1,024
    python benchmarks/trajectory.py --smoke    # a small shape, nothing written
    python benchmarks/trajectory.py --docs     # the table in docs/benchmarks.md from the JSON

`limbeck train` as a user runs it, with `train.trajectory = 20`, k = 32: processor time of one thread from the end of the
first step to the end of the last, and within it the time of the snapshots (gathering, decompositions, codes, writing). On the
large shape a step is long, so few steps are timed and the share is that of 20 snapshots in a run of 100 such steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Results, Row, Timing, answer, number, run_job, table_in_docs

SIDES = Path(__file__).parent / "sides.py"
GOAL = 0.05
LAYER = {"vocab": 2000, "hidden": 1024, "intermediate": 3072, "layers": 1, "heads": 16, "kv_heads": 8, "head_dim": 128} | {
    "rows": 16, "pairs": 8, "prompt": 16, "length": 512,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "the embedded world": {"world": "abacus", "rows": 64, "pairs": 32, "problems": 96, "max_new_tokens": 96},
    "one layer, hidden 1,024, steps of 2,048 tokens": LAYER,
}
SMOKE = {
    "smoke": {"vocab": 500, "hidden": 32, "intermediate": 64, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16}
    | {"rows": 4, "pairs": 2, "prompt": 6, "length": 40}
}
# steps and snapshots that are timed, rows a step, steps of the run that the share is of
RUNS = {"the embedded world": (200, 20, 32, 200), "smoke": (6, 3, 2, 100)}
LARGE = (8, 4, 4, 100)


def trained(*, root: str, method: str, steps: int, snapshots: int, rows: int) -> dict[str, Any]:
    """One run: processor seconds of all steps but the first, of each snapshot, and bytes of the trajectory."""
    from limbeck.config import LoraConfig, RunConfig, TrainConfig
    from limbeck.train import trajectory
    from limbeck.train.run import train

    taken: list[float] = []
    stamps: list[float] = []
    take = trajectory.Recorder._take

    def timed(self: Any, step: int) -> None:
        begin = time.process_time()
        take(self, step)
        taken.append(time.process_time() - begin)

    trajectory.Recorder._take = timed  # type: ignore[method-assign]
    settings = TrainConfig(
        method=method, batch_size=rows, num_steps=steps, learning_rate=1e-4, checkpoint_every=10_000, save_visible=False,
        trajectory=snapshots, lora=LoraConfig(),
    )  # fmt: skip
    folder = Path(root)
    config = RunConfig(
        base=json.loads((folder / "facts.json").read_text())["base"], rollouts=str(folder / "rows"), train=settings
    )
    out = train(config, folder / f"{method}-run", advance=lambda num: stamps.append(time.process_time()))
    size = sum(file.stat().st_size for file in (out / trajectory.store.FOLDER).iterdir())
    whole = sum(file.stat().st_size for file in out.rglob("*.safetensors") if file.parent.name in ("model", "adapter"))
    return {"steps": stamps[-1] - stamps[1], "count": len(stamps) - 2, "taken": taken, "bytes": size, "whole": whole}


def measure(results: Results, name: str, shape: dict[str, Any], timing: Timing) -> None:
    steps, snapshots, rows, run = RUNS.get(name, LARGE)
    with tempfile.TemporaryDirectory() as root:
        run_job(SIDES, {"job": "prepare", "root": root, "shape": shape}, threads=timing.threads)
        for method in ("full", "lora"):
            job = {
                "job": "trained",
                "root": root,
                "method": method,
                "steps": steps,
                "snapshots": snapshots,
                "rows": rows,
            }
            found = run_job(Path(__file__), job, threads=timing.threads)
            later = found["taken"][1:]  # the first also writes what is known of the base
            step = (found["steps"] - sum(found["taken"])) / found["count"]
            share = (found["taken"][0] + 19 * statistics.mean(later)) / (run * step)
            each = found["bytes"] / snapshots / found["whole"]
            what = f"{name}, {method}"
            results.add(
                (
                    f"{what}: 20 snapshots in {run} steps, share of training time",
                    share,
                    None,
                    None,
                    None,
                    GOAL,
                    "fraction",
                ),
                (f"{what}: a snapshot", statistics.mean(later), None, None, None, None, "s"),
                (f"{what}: a step", step, None, None, None, None, "s"),
                (f"{what}: size of a snapshot over that of the fp32 result", each, None, None, None, None, "fraction"),
            )


def docs_table(rows: list[Row]) -> str:
    """Markdown of the stored rows."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        case, _, what = row["what"].partition(": ")
        found.setdefault(case, {})[what.split(",")[0]] = row
    lines = [
        "| run | steps | a step, s | a snapshot, s | 20 snapshots, share | goal | snapshot over result |",
        "| --- " * 7 + "|",
    ]
    for case, parts in found.items():
        share = next(row for what, row in parts.items() if what.startswith("20 snapshots"))
        steps = share["what"].split(" in ")[1].split(" ")[0]
        ours = number(share["ours"]) if share["ours"] <= GOAL else f"**{number(share['ours'])}**"
        size = next(row for what, row in parts.items() if what.startswith("size"))
        cells = (case, steps, number(parts["a step"]["ours"]), number(parts["a snapshot"]["ours"]), ours, f"{GOAL:g}")
        lines.append(f"| {' | '.join(cells)} | {number(size['ours'])} |")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        answer({"trained": trained})
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a small shape, nothing written")
    parser.add_argument("--docs", action="store_true", help="only write the table into docs/benchmarks.md")
    parser.add_argument("--only", default="", help="shapes whose name has this in it")
    arguments = parser.parse_args()
    timing = Timing(1, "processor_seconds")
    results = Results(
        "trajectory", command="python benchmarks/trajectory.py", machine=timing.machine, keep=not arguments.smoke
    )
    if arguments.docs:
        table_in_docs("trajectory", docs_table(results.stored()))
        return
    for name, shape in (SMOKE if arguments.smoke else SHAPES).items():
        if arguments.only in name:
            measure(results, name, shape, timing)
    results.show()


if __name__ == "__main__":
    main()
