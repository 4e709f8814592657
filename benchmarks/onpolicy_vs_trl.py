"""limbeck's on-policy steps beside TRL's: rollouts a second with the update they lead to, where the time goes, memory.

    python benchmarks/onpolicy_vs_trl.py                 # both shapes, GRPO and whole-distribution distillation
    python benchmarks/onpolicy_vs_trl.py --shapes c --objectives grpo --steps 5
    python benchmarks/onpolicy_vs_trl.py --hundred       # 100 steps on the embedded world as it is, nothing of TRL
    python benchmarks/onpolicy_vs_trl.py --smoke         # small, nothing written
    python benchmarks/onpolicy_vs_trl.py --docs          # the table in docs/benchmarks.md from the JSON

64 rollouts of exactly 60 tokens a step (the end token is one that the models do not write), GRPO in groups of 8,
distillation with one answer a prompt and the reverse KL over the whole vocabulary. Every side of every case is a process
of its own on fixed threads: one warm-up step, then the median of the timed ones. fp32, AdamW, LoRA of rank 32 on q, k, v
and o. TRL samples with transformers' generation; its defaults hold gradient checkpointing on, its fastest here is without.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import Results, machine, number, run_job, table_in_docs

from limbeck.progress import bar

SIDES = Path(__file__).parent / "onpolicy_sides.py"
OBJECTIVES = ("grpo", "reverse_kl")
STEPS = {"rollouts": 64, "tokens": 60}
SHAPES: dict[str, dict[str, Any]] = {
    "a": STEPS
    | {"vocab": 151_936, "hidden": 256, "intermediate": 768, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 64}
    | {"prompt": 32},
    "c": STEPS | {"world": "abacus"},
}
SMOKE = {"rollouts": 16, "tokens": 8, "vocab": 500, "hidden": 32, "intermediate": 64, "layers": 2} | {
    "heads": 2, "kv_heads": 1, "head_dim": 16, "prompt": 6,
}  # fmt: skip
WORDS = {"a": "hidden 256, 4 layers, 151,936 words", "c": "the embedded world", "smoke": "smoke"}
UPDATE_GOAL, MEMORY_GOAL = {"a": 2.0}, {"a": 3.0}
MINUTES = 5.0


def peers() -> dict[str, dict[str, Any]]:
    """TRL as it comes, and with the option that makes it fastest here."""
    name = f"TRL {version('trl')}"
    return {f"{name}, defaults": {}, f"{name}, no gradient checkpointing": {"gradient_checkpointing": False}}


class Bench:
    """One run of this script: its settings, its results and its progress."""

    def __init__(self, arguments: argparse.Namespace, results: Results, advance: Any) -> None:
        self.steps, self.threads = arguments.steps, arguments.threads
        self.results, self._advance = results, advance

    def job(self, **job: Any) -> dict[str, Any]:
        out = run_job(SIDES, job, threads=self.threads)
        self._advance(1)
        return out

    def shape(self, name: str, shape: dict[str, Any], objectives: list[str]) -> None:
        with tempfile.TemporaryDirectory() as root:
            self.job(job="prepare", root=root, shape=shape | {"steps": self.steps})
            loaded = self.job(job="loaded", root=root)["now_mb"]
            for objective in objectives:
                self.objective(name, shape, root, objective, loaded)

    def objective(self, name: str, shape: dict[str, Any], root: str, objective: str, loaded: float) -> None:
        """All rows of one objective at one shape, written as soon as a peer is measured."""
        what = f"{objective}, {name} ({WORDS[name]})"
        given = {"root": root, "objective": objective, "steps": self.steps}
        given |= {"rollouts": shape["rollouts"], "tokens": shape["tokens"]}
        mine = self.job(job="ours", **given)
        for peer, settings in peers().items():
            other = self.job(job="theirs", settings=settings, **given)
            same_work(mine, other, shape)
            for row in rows(what, name, shape["rollouts"], mine, other, loaded):
                self.results.add((row[0], row[1], row[2], peer, *row[3:]))

    def hundred(self, objectives: list[str]) -> None:
        """100 steps from the first prompt to the saved adapter."""
        for objective in objectives:
            done = self.job(job="hundred", objective=objective, steps=100)
            what = f"{objective}, the embedded world: 100 steps of 64 rollouts"
            minutes = done["seconds"] / 60
            self.results.add((f"{what}, start and end included", minutes, None, None, MINUTES / minutes, 1.0, "min"))
            for part, seconds in done["parts"].items():
                self.results.add((f"{what}: {part}", seconds / 60, None, None, None, None, "min"))


def rows(
    what: str, shape: str, rollouts: int, mine: dict[str, Any], other: dict[str, Any], loaded: float
) -> list[tuple[str, float, float, float, float | None, str]]:
    """(what, ours, theirs, ratio, goal, unit) of one case beside one peer."""
    step, theirs = (statistics.median(side["seconds"]) for side in (mine, other))
    out = [
        (f"{what}: sampled and learned from", rollouts / step, rollouts / theirs, theirs / step, 1.0, "rollouts/s"),
        (f"{what}: one step", step, theirs, theirs / step, None, "s"),
    ]
    for part in ("sample", "score", "update"):
        a, b = (statistics.median(side[part]) for side in (mine, other))
        goal = {"sample": 1.0, "update": UPDATE_GOAL.get(shape, 1.0)}.get(part)
        out += [(f"{what}: {part}", a, b, b / a, goal, "s")] if a and b else []
    peak, above = (mine["peak_mb"], other["peak_mb"]), (mine["peak_mb"] - loaded, other["peak_mb"] - other["loaded_mb"])
    out.append((f"{what}: peak memory", *peak, peak[1] / peak[0], MEMORY_GOAL.get(shape), "MB"))
    out.append((f"{what}: peak memory above libraries and student", *above, above[1] / above[0], None, "MB"))
    return out


def same_work(mine: dict[str, Any], other: dict[str, Any], shape: dict[str, Any]) -> None:
    """Both sides must have sampled as many tokens, within one answer in a hundred that ended by chance."""
    full = shape["rollouts"] * shape["tokens"]
    for side in (mine, other):
        if not all(0.99 * full <= sampled <= full for sampled in side["sampled"]):
            raise SystemExit(f"every step must sample {full} tokens, received {side['sampled']}")


def docs_table(stored: list[dict[str, Any]]) -> str:
    """What was measured as Markdown, bold where a goal is missed."""
    lines = ["| case | peer | ours | theirs | times | goal |", "| --- | --- | --- | --- | --- | --- |"]
    for row in stored:
        missed = row["goal"] is not None and row["ratio"] < row["goal"]
        ratio = "" if row["ratio"] is None else f"**{row['ratio']:.2f}**" if missed else f"{row['ratio']:.2f}"
        theirs = "" if row["theirs"] is None else f"{number(row['theirs'])} {row['unit']}"
        cells = [
            row["what"],
            row["peer"] or "",
            f"{number(row['ours'])} {row['unit']}",
            theirs,
            ratio,
            number(row["goal"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and keep the rows; or refresh the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--steps", type=int, default=5, help="timed steps after the warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hundred", action="store_true", help="100 steps on the embedded world instead")
    parser.add_argument("--smoke", action="store_true", help="a small shape, to see that everything runs")
    parser.add_argument("--docs", action="store_true", help="only write the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    command = "python benchmarks/onpolicy_vs_trl.py" + (" --hundred" if arguments.hundred else "")
    results = Results("onpolicy_vs_trl", command=command, machine=machine(arguments.threads), keep=not arguments.smoke)
    if arguments.docs:
        table_in_docs("onpolicy_vs_trl", docs_table(results.stored()))
        return
    shapes = {"smoke": SMOKE} if arguments.smoke else {name: SHAPES[name] for name in arguments.shapes}
    num_jobs = len(arguments.objectives) if arguments.hundred else len(shapes) * (2 + 3 * len(arguments.objectives))
    with bar("onpolicy_vs_trl", num_jobs) as advance:
        bench = Bench(arguments, results, advance)
        if arguments.hundred:
            bench.hundred(arguments.objectives)
        else:
            for name, shape in shapes.items():
                bench.shape(name, shape, arguments.objectives)
    results.show()


if __name__ == "__main__":
    sys.exit(main())
