"""limbeck's training steps beside TRL's on the same rows: tokens a second, peak memory, and the losses of both.

    python benchmarks/train_vs_trl.py                      # all shapes, all objectives, TRL as it comes and at its fastest
    python benchmarks/train_vs_trl.py --shapes a --objectives sft dpo --steps 3
    python benchmarks/train_vs_trl.py --smoke              # small, nothing written
    python benchmarks/train_vs_trl.py --docs               # the table in docs/benchmarks.md from the JSON

Every side of every case is a process of its own: one warm-up step, then the median of the timed ones, on fixed threads.
fp32, AdamW, LoRA of rank 32 on q, k, v and o, frozen base, no padding at shapes a and b. Peak memory is the process's
whole resident memory at its highest, libraries and model included; on our side, the process that scored counts too.
TRL's defaults hold gradient checkpointing on, ours off; its fastest here is without, and for DPO with the reference's
log-probs precomputed. Both sides are also measured with it on, and with gradients accumulated row by row. TRL's
padding-free batches need FlashAttention and its Liger kernels Triton: neither runs on a CPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from common import Results, Row, number, run_job, table_in_docs, timed, timing

from limbeck.progress import bar

SIDES = Path(__file__).parent / "sides.py"
OBJECTIVES = ("sft", "dft", "dpo", "grpo", "reverse_kl", "jsd")
SCORED = ("dpo", "reverse_kl", "jsd")
AGREE = 1e-4
STEP, PEAK, GAP = "one optimizer step", "peak memory", "largest difference of the losses, share of the largest"
SPARING, BY_ROW = ", gradient checkpointing on both sides", ", row by row on both sides"
ROW_BY_ROW = ("sft", "dft", "dpo")
QWEN = {"vocab": 151_936, "layers": 4, "rows": 4, "pairs": 4, "prompt": 16, "length": 512}
SHAPES: dict[str, dict[str, Any]] = {
    "a": QWEN | {"hidden": 256, "intermediate": 768, "heads": 4, "kv_heads": 2, "head_dim": 64},
    "b": QWEN | {"hidden": 1024, "intermediate": 3072, "heads": 16, "kv_heads": 8, "head_dim": 128},
    "c": {"world": "abacus", "rows": 64, "pairs": 32, "problems": 96, "max_new_tokens": 96},
}
SMOKE = {"vocab": 500, "hidden": 32, "intermediate": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16} | {
    "rows": 4, "pairs": 2, "prompt": 6, "length": 40,
}  # fmt: skip
WORDS = {
    "a": "hidden 256, 4 layers, 151,936 words",
    "b": "hidden 1,024, 4 layers, 151,936 words",
    "c": "the embedded world",
    "smoke": "smoke",
}
GOALS = {"a": (3.0, 3.0), "b": (1.5, 2.0), "c": (1.0, 1.0)}  # times the tokens/s; times less memory


def speed_goal(shape: str, objective: str) -> float | None:
    """Three times for what reads log-probs alone, four for DPO; a whole distribution must not be slower."""
    if shape == "a" and objective == "dpo":
        return 4.0
    if shape == "a" and objective in ("reverse_kl", "jsd"):
        return 1.0
    return GOALS[shape][0] if shape in GOALS else None


class Setting(NamedTuple):
    """One comparison: options of both sides that differ from their defaults, and what it is called."""

    words: str
    peer: str
    ours: dict[str, Any]
    theirs: dict[str, Any]
    by_row: bool = False


def settings(objective: str) -> list[Setting]:
    """Both as they come; TRL with what makes it fastest here; then what spares memory, on both sides.

    TRL's trainers that generate are handed whole batches here and cannot take them row by row.
    """
    name, words = f"TRL {version('trl')}", "no gradient checkpointing"
    fast: dict[str, Any] = {"gradient_checkpointing": False}
    if objective == "dpo":
        fast["precompute_ref_log_probs"], words = True, words + ", reference precomputed"
    sparing = {"gradient_checkpointing": True}
    out = [
        Setting("", f"{name}, defaults", {}, {}),
        Setting("", f"{name}, {words}", {}, fast),
        Setting(SPARING, f"{name}, defaults", sparing, {}),
    ]
    if objective in ROW_BY_ROW:
        out.append(Setting(BY_ROW, f"{name}, {words}", {"token_budget": 1}, fast, by_row=True))
    return out


class Bench:
    """One run of this script: its settings, its results and its progress."""

    def __init__(self, arguments: argparse.Namespace, results: Results, advance: Any) -> None:
        self.steps, self.timing, self.num_settings = arguments.steps, timed(arguments), arguments.settings
        self.results, self._advance = results, advance

    def job(self, **job: Any) -> dict[str, Any]:
        out = run_job(SIDES, job, threads=self.timing.threads)
        self._advance(1)
        return out

    def shape(self, name: str, shape: dict[str, Any], objectives: list[str]) -> None:
        with tempfile.TemporaryDirectory() as root:
            self.job(job="prepare", root=root, shape=shape)
            loaded = self.job(job="loaded", root=root)["now_mb"]
            for objective in objectives:
                self.objective(name, root, objective, loaded)

    def objective(self, shape: str, root: str, objective: str, loaded: float) -> None:
        """All rows of one objective at one shape, written as soon as both sides are measured."""
        scored = self.job(job="score", root=root, objective=objective) if objective in SCORED else None
        common = {"root": root, "objective": objective, "steps": self.steps}
        done: dict[str, dict[str, Any]] = {}  # a run serves every comparison that it is a side of

        def run(side: str, **options: Any) -> dict[str, Any]:
            key = f"{side} {options}"
            if key not in done:
                done[key] = self.job(job=side, **common, **options)
            return done[key]

        for setting in settings(objective)[: self.num_settings]:
            ours, theirs = (
                run("ours", train=setting.ours),
                run("theirs", settings=setting.theirs, by_row=setting.by_row),
            )
            if scored:
                ours["peak_mb"] = max(ours["peak_mb"], scored["peak_mb"])
            what = f"{objective}, {shape} ({WORDS[shape]}){setting.words}"
            self.results.add(*self.step_rows(what, shape, objective, setting.peer, ours, theirs, loaded))
            if scored:
                plain, key = run("theirs", settings={}, by_row=False)["built"], self.timing.key
                precomputed = "precompute_ref_log_probs" in setting.theirs
                once = scored[key], max(0.0, theirs["built"][key] - plain[key]) if precomputed else 0.0
                self.results.add(self.once_row(what, setting.peer, ours, theirs, once))

    def step_rows(
        self, what: str, shape: str, objective: str, peer: str, ours: dict, theirs: dict, loaded: float
    ) -> list[tuple[Any, ...]]:
        """Speed, memory and agreement."""
        mine, other = (self.timing.median(side) for side in (ours, theirs))
        tokens, space = ours["tokens"], (ours["peak_mb"], theirs["peak_mb"])
        above = space[0] - loaded, space[1] - theirs["loaded_mb"]
        goals = speed_goal(shape, objective), GOALS[shape][1] if shape in GOALS else None
        gap = difference(ours["losses"], theirs["losses"])
        return [
            (f"{what}: {STEP}", tokens / mine, tokens / other, peer, other / mine, goals[0], "tokens/s"),
            (f"{what}: {STEP}", mine, other, peer, other / mine, None, "s"),
            (f"{what}: {PEAK}", *space, peer, space[1] / space[0], goals[1], "MB"),
            (f"{what}: {PEAK} above libraries and model", *above, peer, above[1] / above[0], None, "MB"),
            (f"{what}: {GAP}", gap, None, peer, None, AGREE, "share"),
        ]

    def once_row(self, what: str, peer: str, ours: dict, theirs: dict, once: tuple[float, float]) -> tuple[Any, ...]:
        """The step with what each side scored beforehand, as if every row were met once."""
        mine, other = (self.timing.median(side) + extra for side, extra in zip((ours, theirs), once, strict=True))
        tokens = ours["tokens"]
        return (
            f"{what}: one step and the scoring of its rows",
            tokens / mine,
            tokens / other,
            peer,
            other / mine,
            None,
            "tokens/s",
        )


def difference(mine: list[float], other: list[float]) -> float:
    """Largest difference of two lists of losses, as a share of the largest loss.

    >>> difference([2.0, 1.0], [2.0, 1.5])
    0.25
    """
    return max(abs(a - b) for a, b in zip(mine, other, strict=True)) / max(abs(x) for x in (*mine, *other))


def docs_table(rows: list[Row]) -> str:
    """The rows that have goals, and whether the losses agree, as Markdown."""
    heads = ("case", "peer", "tokens/s, ours", "theirs", "times", "goal")
    heads += ("peak MB, ours", "theirs", "times less", "goal", "losses differ by")
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    by = {(*row["what"].split(": ", 1), row["peer"], row["unit"]): row for row in rows}
    for (case, what, peer, unit), speed in sorted(by.items(), key=lambda item: order(item[0][0])):
        if (what, unit) != (STEP, "tokens/s"):
            continue
        space = by[case, PEAK, peer, "MB"]
        gap = [row for name, row in by.items() if name[::2] == (case, peer) and name[3] == "share"][-1]
        objective, shape = case.split(" (")[0].split(", ")
        also = {SPARING: "; gradient checkpointing here too", BY_ROW: "; both row by row"}.get(
            case.partition(")")[2], ""
        )
        cells = [f"{shape}, {objective}", peer + also, *measured(speed), *measured(space), f"{gap['ours']:.0e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def order(case: str) -> tuple[str, int]:
    """Shapes one after another, objectives as they are listed."""
    objective, shape = case.split(" (")[0].split(", ")
    return shape, OBJECTIVES.index(objective)


def measured(row: dict[str, Any]) -> list[str]:
    """Ours, theirs, the ratio (bold where the goal is missed) and the goal."""
    missed = row["goal"] is not None and row["ratio"] < row["goal"]
    ratio = f"**{row['ratio']:.2f}**" if missed else f"{row['ratio']:.2f}"
    return [f"{row['ours']:,.0f}", f"{row['theirs']:,.0f}", ratio, number(row["goal"])]


def main() -> None:
    """Measure, print, and keep the rows; or refresh the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    timing(parser, threads=2)
    parser.add_argument("--settings", type=int, default=4, help="only the first so many comparisons of an objective")
    parser.add_argument("--smoke", action="store_true", help="a small shape, to see that everything runs")
    parser.add_argument("--docs", action="store_true", help="only write the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    command = "python benchmarks/train_vs_trl.py"
    results = Results("train_vs_trl", command=command, machine=timed(arguments).machine, keep=not arguments.smoke)
    if arguments.docs:
        table_in_docs("train_vs_trl", docs_table(results.stored()))
        return
    shapes = {"smoke": SMOKE} if arguments.smoke else {name: SHAPES[name] for name in arguments.shapes}
    each = 2 + sum(4 + (objective in SCORED) + 2 * (objective in ROW_BY_ROW) for objective in arguments.objectives)
    with bar("train_vs_trl", len(shapes) * each) as advance:
        bench = Bench(arguments, results, advance)
        for name, shape in shapes.items():
            bench.shape(name, shape, arguments.objectives)
    results.show()


if __name__ == "__main__":
    sys.exit(main())
