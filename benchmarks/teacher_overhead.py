"""What a teacher of four times the student's size adds to a GRPO step at the same rollouts, and where the step goes.

    python benchmarks/teacher_overhead.py            # KDRL and TRRD over GRPO, short and long answers
    python benchmarks/teacher_overhead.py --smoke    # small, nothing written
    python benchmarks/teacher_overhead.py --docs     # the table in docs/benchmarks.md from the JSON

Matrices of four layers as in the embedded world (hidden 128) and, for the teacher, twice as wide; random weights, an end
token that is not written. A teacher costs one forward pass over the sampled rows, about 8 operations for each parameter
of the student and token where the student's update takes about 6; what is left to decide is how slow sampling is. So two
ends: many short answers at once, which samples fast, and few long ones, where a step is mostly one token after another.
Every objective is a process of its own on fixed threads: one warm-up step, then the medians of the timed ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import Results, Row, machine, number, run_job, table_in_docs

from limbeck.progress import bar

SIDES = Path(__file__).parent / "onpolicy_sides.py"
OBJECTIVES = ("grpo", "kdrl", "trrd")
GOAL = 0.15
SHAPES: dict[str, dict[str, Any]] = {
    "64 answers of 60 tokens": {"world": "abacus", "wider": 1, "rollouts": 64, "tokens": 60},
    "64 answers of 512 tokens": {"world": "abacus", "wider": 1, "rollouts": 64, "tokens": 512},
    "8 answers of 1,024 tokens": {"world": "abacus", "wider": 1, "rollouts": 8, "tokens": 1024},
}
SMOKE = {"smoke": {"world": "abacus", "wider": 1, "rollouts": 8, "tokens": 8}}
HEADS = ("step", "objective", "seconds", "sample", "teacher", "update", "over GRPO", "goal")


def measure(name: str, shape: dict[str, Any], steps: int, job: Any) -> list[tuple[Any, ...]]:
    """The rows of one shape: whole steps, their parts, and the overhead over GRPO."""
    out: list[tuple[Any, ...]] = []
    with tempfile.TemporaryDirectory() as root:
        job(job="prepare", root=root, shape=shape | {"steps": steps})
        given = {"root": root, "steps": steps, "rollouts": shape["rollouts"], "tokens": shape["tokens"]}
        found = {objective: job(job="ours", objective=objective, **given) for objective in OBJECTIVES}
    median = {o: {part: statistics.median(f[part]) for part in ("seconds", *PARTS)} for o, f in found.items()}
    for objective, seconds in median.items():
        what = f"{objective}, {name}"
        out.append((f"{what}: one step", seconds["seconds"], None, None, None, None, "s"))
        out += [(f"{what}: {part}", seconds[part], None, None, None, None, "s") for part in PARTS]
        if objective != "grpo":
            out.append((f"{what}: over GRPO", added(seconds), None, "the rest of the same steps", None, GOAL, "share"))
    return out


PARTS = ("sample", "score", "update")


def added(seconds: dict[str, float]) -> float:
    """The teacher's pass over what GRPO does too, in the same run: runs beside each other differ by more than it.

    >>> added({"sample": 3.0, "score": 0.5, "update": 1.0})
    0.125
    """
    return seconds["score"] / (seconds["sample"] + seconds["update"])


def docs_table(rows: list[Row]) -> str:
    """One line an objective and shape, bold where the goal is missed."""
    by = {row["what"]: row for row in rows}
    lines = [f"| {' | '.join(HEADS)} |", f"| {' | '.join(['---'] * len(HEADS))} |"]
    for what in by:
        case, _, part = what.partition(": ")
        if part != "one step":
            continue
        objective, _, name = case.partition(", ")
        cells = [name, objective, number(by[what]["ours"]), *(number(by[f"{case}: {part}"]["ours"]) for part in PARTS)]
        over = by.get(f"{case}: over GRPO")
        text = "" if over is None else f"{100 * over['ours']:+.0f} %"
        missed = over is not None and over["ours"] > GOAL
        goal = "" if over is None else f"{100 * GOAL:.0f} %"
        lines.append(f"| {' | '.join([*cells, f'**{text}**' if missed else text, goal])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and keep the rows; or refresh the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="timed steps after the warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="a small shape, to see that everything runs")
    parser.add_argument("--docs", action="store_true", help="only write the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    command = "python benchmarks/teacher_overhead.py"
    results = Results("teacher_overhead", command=command, machine=machine(arguments.threads), keep=not arguments.smoke)
    if arguments.docs:
        table_in_docs("teacher_overhead", docs_table(results.stored()))
        return
    shapes = SMOKE if arguments.smoke else SHAPES
    with bar("teacher_overhead", len(shapes) * (1 + len(OBJECTIVES))) as advance:

        def job(**wanted: Any) -> dict[str, Any]:
            done = run_job(SIDES, wanted, threads=arguments.threads)
            advance(1)
            return done

        for name, shape in shapes.items():
            results.add(*measure(name, shape, arguments.steps, job))
    results.show()


if __name__ == "__main__":
    sys.exit(main())
