"""Studies on a Ray cluster: what placing a step costs, and a study on one and two workers beside this machine's own processes.

    python benchmarks/cluster.py                 # both parts
    python benchmarks/cluster.py --parts sleep   # 1,000 steps that sleep: needs no processor time
    python benchmarks/cluster.py --smoke         # both parts small, nothing written
    python benchmarks/cluster.py --docs          # the table in docs/benchmarks.md from the JSON

`sleep`: a plan in the form of a study (one step that all read, runs, an evaluation of each, a comparison of all) whose steps
sleep and write their folder, through the runner, on workers that have started. The ideal is the sleep alone, no worker ever
waiting. Scheduling is the wall time beyond what the steps themselves took, spread over the workers; what a step takes beyond its
sleep, to write its folder, is a row of its own. `study`: `limbeck study run` from start to end, six arms
at two seeds of the embedded world; that all ways give the same files is checked.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from common import Results, Row, answer, machine, number, run_job, table_in_docs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
COMMAND = "python benchmarks/cluster.py"
GOAL = 0.02  # of the ideal time
LONG = 3.0  # seconds of the first steps, so that every worker gets one
SLEEP = {"steps": 1000, "seconds": 1.0, "workers": 4}
SLEEP_SMOKE = {"steps": 22, "seconds": 0.05, "workers": 2}
STUDY = """
name = "cluster"
question = "What does a cluster cost?"
student = "abacus:base"
teacher = "abacus:teacher"
seeds = [0, 1]
train = {{ num_steps = {steps}, batch_size = 8, learning_rate = 1e-3, lora = {{ rank = 4 }} }}
eval = {{ max_new_tokens = 96, problems = {{ world = "abacus", num = {problems} }} }}
geometry = {{ cka_problems = 0, draws = 20 }}
arms = [
  {{ name = "sft" }}, {{ name = "rft", train = {{ selection = "correct" }} }},
  {{ name = "dft", train = {{ objective = "dft" }} }}, {{ name = "rift", train = {{ objective = "rift:reward-weighted" }} }},
  {{ name = "dpo", train = {{ objective = "dpo" }} }},
  {{ name = "grpo", train = {{ objective = "offline_grpo:advantage-nll" }} }},
]

[rollouts]
sampling_temperature = 1.4
max_new_tokens = 96
problems = {{ world = "abacus", split = "train", num = {problems} }}
"""
SIZE, SIZE_SMOKE = {"steps": 5, "problems": 20}, {"steps": 1, "problems": 8}


# --------------------------------------------------------------------------------------------------------------- sleep


def plan_of(steps: int, seconds: float) -> list[Any]:
    """One step that all runs read, runs, an evaluation of each, and a comparison of these."""
    from limbeck.studies.step import Plan

    plan, params = Plan(), {"seconds": seconds}
    plan.add("rollouts", "sleep", params, {}, seconds)
    evals = {}
    for i in range(steps // 2 - 1):
        plan.add(f"train/{i}", "sleep", params | {"run": i}, {"rollouts": "rollouts"}, seconds)
        evals[str(i)] = plan.add(f"eval/{i}", "sleep", params, {"run": f"train/{i}"}, seconds)
    plan.add("compare", "sleep", params, evals, seconds)
    return list(plan.steps.values())


def ideal(steps: int, seconds: float, workers: int) -> float:
    """Seconds that :func:`plan_of` sleeps where no worker ever waits: the ends alone, the rest in rounds.

    >>> ideal(1000, 1.0, 4)
    252.0
    """
    return seconds * (2 + math.ceil((steps - 2) / workers))


def sleep(*, on: str, steps: int, seconds: float, workers: int) -> dict[str, float]:
    """Seconds of the plan on workers that have started, of that beyond what its steps took, of a step beyond its sleep, and of
    starting the workers."""
    from limbeck.studies.cluster import Cluster
    from limbeck.studies.executors import InProcess, Processes
    from limbeck.studies.runner import read_seconds, run_plan
    from limbeck.studies.sections import ResourcesConfig

    def run(executor: Any, steps: int, seconds: float) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as root:
            plan, place = plan_of(steps, seconds), lambda tell: nullcontext(executor)
            begin = time.perf_counter()
            run_plan(plan, Path(root), on=place, show=lambda *told: None, kinds="tinysteps:KINDS")
            wall = time.perf_counter() - begin
            took = read_seconds(Path(root))
            first, *rest, last = (took[step.folder] for step in plan)
        return {
            "wall": wall,
            "placing": wall - first - last - sum(rest) / workers,
            "own": sum(took.values()) / steps - seconds,
        }

    begin, few = time.perf_counter(), 2 + 2 * workers
    places = {"ray": partial(Cluster, "auto", ResourcesConfig(), ["sleep"]), "processes": partial(Processes, workers)}
    with places.get(on, InProcess)(lambda name, share: None) as executor:  # the same workers for both plans
        run(executor, few, LONG)
        started = time.perf_counter() - begin - ideal(few, LONG, workers)
        return {"start": started} | run(executor, steps, seconds)


def measure_sleep(results: Results, steps: int, seconds: float, workers: int) -> None:
    from raycluster import cluster

    job = {"job": "sleep", "steps": steps, "seconds": seconds, "workers": workers}
    with cluster(workers) as environment:
        os.environ.update(environment)
        ours = run_job(Path(__file__), job | {"on": "ray"}, threads=1)
    theirs = run_job(Path(__file__), job | {"on": "processes"}, threads=1)
    best = ideal(steps, seconds, workers)
    what, peer = f"{steps} steps that sleep {seconds:g} s, {workers} Ray workers", f"{workers} local processes"
    share = [found["placing"] / best for found in (ours, theirs)]
    each = [1e3 * found["placing"] * workers / steps for found in (ours, theirs)]
    results.add(
        (f"{what}: wall (ideal {best:g} s)", ours["wall"], theirs["wall"], peer, None, None, "s"),
        (f"{what}: scheduling, share of the ideal", *share, peer, None, GOAL, "fraction"),
        (f"{what}: scheduling, a step", *each, peer, None, None, "ms"),
        (f"{what}: the step itself beyond its sleep", 1e3 * ours["own"], 1e3 * theirs["own"], peer, None, None, "ms"),
        (f"{what}: starting the workers, not in it", ours["start"], theirs["start"], peer, None, None, "s"),
    )


# --------------------------------------------------------------------------------------------------------------- study


def study(folder: Path, name: str, *options: str) -> tuple[float, dict[str, dict[str, str]]]:
    """Seconds of ``limbeck study run``, and by step the digests of the files that do not tell the time."""
    out = folder / name
    command = [sys.executable, "-m", "limbeck", "study", "run", str(folder / "study.toml"), "--out", str(out), *options]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    found = {}
    for manifest in sorted(out.glob("steps/*/manifest.json")):
        files = json.loads(manifest.read_text())["files"]
        found[manifest.parent.name] = {n: d for n, d in files.items() if n not in ("metrics.jsonl", "config.json")}
    return seconds, found


def measure_study(results: Results, steps: int, problems: int) -> None:
    from raycluster import cluster

    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    walls: dict[str, float] = {}
    files: list[dict[str, dict[str, str]]] = []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        (folder / "study.toml").write_text(STUDY.format(steps=steps, problems=problems))
        for workers in (1, 2):
            walls[f"local {workers}"], found = study(folder, f"local-{workers}", "--set", f"workers={workers}")
            files.append(found)
            with cluster(workers) as environment:
                os.environ.update(environment)
                walls[f"ray {workers}"], found = study(folder, f"ray-{workers}", "--on", "auto")
            files.append(found)
    if any(found != files[0] for found in files):
        raise SystemExit("every way to run a study must give the same files, received others from one of them.")
    num = len(files[0])
    what = f"6 arms x 2 seeds, {num} steps"
    rows = []
    for workers in (1, 2):
        ours, theirs = walls[f"ray {workers}"], walls[f"local {workers}"]
        peer = f"local, workers = {workers}"
        rows.append(
            (f"{what}, {workers} Ray workers: wall, start included", ours, theirs, peer, ours / theirs, None, "s")
        )
        rows.append((f"{what}, {workers} Ray workers: beyond the local runner, a step", (ours - theirs) / num, None, None,
                     None, None, "s"))  # fmt: skip
    ours, theirs = (walls[f"{where} 1"] / (2 * walls[f"{where} 2"]) for where in ("ray", "local"))
    rows.append((f"{what}: efficiency of two workers", ours, theirs, "local", None, None, "fraction"))
    rows.append((f"{what}: steps whose files differ between the four", 0, None, None, None, 0, "count"))
    results.add(*rows)


def docs_table(rows: list[Row]) -> str:
    """Markdown of the stored rows."""
    lines = ["| what | Ray | local | goal | unit |", "| --- " * 5 + "|"]
    for row in rows:
        ours, theirs, goal = (number(row[key]) for key in ("ours", "theirs", "goal"))
        missed = row["goal"] is not None and row["ours"] > row["goal"]
        lines.append(f"| {row['what']} | {f'**{ours}**' if missed else ours} | {theirs} | {goal} | {row['unit']} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and keep the rows."""
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        answer({"sleep": sleep})
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["sleep", "study"], default=["sleep", "study"])
    parser.add_argument("--smoke", action="store_true", help="small, nothing written")
    parser.add_argument("--docs", action="store_true", help="only write the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    results = Results("cluster", command=COMMAND, machine=machine(1), keep=not arguments.smoke)
    if arguments.docs:
        table_in_docs("cluster", docs_table(results.stored()))
        return
    if "sleep" in arguments.parts:
        measure_sleep(results, **(SLEEP_SMOKE if arguments.smoke else SLEEP))
    if "study" in arguments.parts:
        measure_study(results, **(SIZE_SMOKE if arguments.smoke else SIZE))
    results.show()


if __name__ == "__main__":
    main()
