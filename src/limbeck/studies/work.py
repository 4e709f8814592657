"""What each step of a plan has to do, counted before anything runs: tokens, positions, seconds of statistics, bytes.

Counts follow from a step's settings and from how long prompts and responses are. Statistics and geometry are in seconds of
one thread of a machine of two x86-64 cores, from studies that ran there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.objectives import find, inputs
from limbeck.studies.facts import Shape, rollout_facts, shape_of
from limbeck.studies.rates import Rates
from limbeck.studies.step import Step
from limbeck.worlds.named import WORLD_PROBLEMS, read_problems

PAIR_SECONDS = (0.01, 0.01)  # of a comparison: each pair, and each sample of it
GEOMETRY_SECONDS = 4e-5  # a pair of adapters, module and draw
WEIGHTS_SECONDS = {"point": 1.2, "pair": 0.4}  # of whole weights
TRAJECTORY_SECONDS = 10.0  # a run
KL_SECONDS = 4.0  # intervals
PATH_SECONDS = 6.0  # intervals
CKA_SECONDS = 0.2  # a pair
TOKEN_BYTES = {"rollouts": 12, "score": 5, "eval": 3}  # on disk, compressed
REPORT_BYTES = 12 << 20  # results, page and figures


class Sampling(NamedTuple):
    """Token positions of the batches that are sampled, and tokens of all their rows."""

    passes: float = 0.0
    tokens: float = 0.0

    def times(self, num: int) -> Sampling:
        return Sampling(num * self.passes, num * self.tokens)


NOTHING = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Of one step. ``size`` is that of who works over the student's; ``method`` that of ``trained``; ``elsewhere`` are rollouts
    that a server writes, nobody knows how fast.
    """

    sampling: Sampling = NOTHING
    scored: float = 0.0
    trained: float = 0.0
    method: str = "lora"
    size: float = 1.0
    loads: int = 0
    seconds: float = 0.0
    disk: float = 0.0
    elsewhere: int = 0

    @property
    def of_model(self) -> bool:
        """Whether a model does it."""
        return self.sampling.tokens + self.scored + self.trained > 0

    def takes(self, rates: Rates) -> float:
        """Seconds at these rates."""
        model = self.sampling.passes * rates.per_pass + self.sampling.tokens / rates.sample + self.scored / rates.score
        model += self.trained / rates.train[self.method] if self.trained else 0.0
        return self.size * (model + self.loads * rates.load) + self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Mean tokens of a prompt and of a response."""

    prompt: float
    response: float

    @property
    def row(self) -> float:
        return self.prompt + self.response


class Counter:
    """Counts the work of a plan's steps; steps know the rollouts that they read by name."""

    def __init__(self, steps: Sequence[Step], student: str, lengths: Lengths) -> None:
        self._steps = {step.name: step for step in steps}
        self._student, self._lengths = student, lengths
        self._shape = shape_of(student)

    def work(self, step: Step) -> Work:
        """Of one step; of kinds that read no model next to nothing."""
        counted = COUNTED.get(step.kind)
        return counted(self, step) if counted else Work(disk=4096)

    def rows(self, step: Step) -> int:
        """Rollouts that a step of that kind makes."""
        if "path" in step.params:
            return rollout_facts(Path(step.params["path"]), self._student).rows
        return num_problems(step.params["problems"]) * step.params["samples"]

    def _lengths_of(self, step: Step) -> Lengths:
        """Of the rollouts that a step makes."""
        if "path" not in step.params:
            return self._lengths
        facts = rollout_facts(Path(step.params["path"]), self._student)
        return Lengths(prompt=facts.prompt, response=facts.response)

    def rollouts(self, step: Step) -> Work:
        rows = self.rows(step)
        if "path" in step.params:
            return Work(disk=rows * self._lengths_of(step).row * TOKEN_BYTES["rollouts"], seconds=1.0)
        sampling = self._sampling(rows, step.params)
        size = self._size(step.params["teacher"]) if "teacher" in step.params else 1.0
        return Work(sampling=sampling, size=size, disk=sampling.tokens * TOKEN_BYTES["rollouts"], loads=1)

    def served(self, step: Step) -> Work:
        rows = self.rows(step)
        tokens = rows * min(self._lengths.response, step.params["max_new_tokens"])
        return Work(disk=tokens * TOKEN_BYTES["rollouts"], elsewhere=rows)

    def score(self, step: Step) -> Work:
        read = self._steps[step.inputs["rollouts"]]
        rows, lengths = self.rows(read), self._lengths_of(read)
        width = max(columns for _, columns in self._shape.matrices.values()) if "keep" in step.params else 1
        return Work(
            scored=rows * lengths.row,
            size=self._size(step.params["base"]),
            disk=rows * lengths.response * TOKEN_BYTES["score"] * width,
            loads=1,
        )

    def train(self, step: Step) -> Work:
        settings, live = step.params["train"], step.params.get("live")
        lengths = self._lengths if live else self._lengths_of(self._steps[step.inputs["rollouts"]])
        rows = rows_trained(settings, live)
        scored = _times_watched(settings) * settings["kl_rows"]
        if live:
            objectives = [stage["objective"] for stage in live["stages"]] or [settings["objective"]]
            frozen = max(sum(n.startswith(("teacher", "reference")) for n in inputs(find(o))) for o in objectives)
            for_the_record = 1 / live["reference_every"] if live["reference_every"] else 0.0
            scored += rows / live["inner_epochs"] * (frozen or for_the_record)
        return Work(
            sampling=self._sampled_live(settings, live) if live else NOTHING,
            scored=scored * lengths.row,
            trained=rows * lengths.row,
            method=settings["method"],
            loads=2,
            disk=run_bytes(settings, self._shape),
        )

    def _sampled_live(self, settings: Mapping[str, Any], live: Mapping[str, Any]) -> Sampling:
        rows = live["prompts_per_step"] * live["samples"]
        return self._sampling(rows, {**live, "batch_size": live["sampling_batch"]}).times(settings["num_steps"])

    def evaluate(self, step: Step) -> Work:
        sampling = self._sampling(num_problems(step.params["problems"]) * step.params.get("samples", 1), step.params)
        size = self._size(step.params["base"]) if "run" not in step.inputs else 1.0
        return Work(sampling=sampling, size=size, loads=1, disk=sampling.tokens * TOKEN_BYTES["eval"])

    def account_kl(self, step: Step) -> Work:
        rows = num_problems(step.params["problems"]) * step.params["samples"]
        drift = step.params["drift_rollouts"] if "rollouts" in step.inputs else 0
        scored = 2 * (2 * rows + drift) * self._lengths.row  # both models read what either wrote
        sampling = self._sampling(rows, step.params)
        return Work(sampling=sampling, scored=scored, seconds=KL_SECONDS, loads=2, disk=20_000)

    def walk(self, step: Step) -> Work:
        points, rows = len(step.params["alphas"]), step.params["num"]
        sampling = self._sampling(rows, step.params).times(points) if step.params["accuracy"] else NOTHING
        scored = 3 * points * rows * self._lengths.row  # the solution, the answer after it, the answer alone
        return Work(sampling=sampling, scored=scored, seconds=PATH_SECONDS, loads=1, disk=points * rows * 40)

    def compare_states(self, step: Step) -> Work:
        models = len(step.params.get("points", step.inputs)) + 1
        pairs = models - 1 + len(step.params["pairs"]) if "pairs" in step.params else math.comb(models, 2)
        scored = models * step.params["num"] * self._lengths.row
        return Work(scored=scored, seconds=CKA_SECONDS * pairs, loads=1, disk=2000 * pairs)

    def compare(self, step: Step) -> Work:
        arms, tables = len(step.params.get("arms", ())), len(step.params.get("among", step.inputs))
        pairs = math.comb(tables, 2) + math.comb(arms, 2)
        samples = max(self._steps[name].params.get("samples", 1) for name in step.inputs.values())
        a_pair, a_sample = PAIR_SECONDS
        return Work(seconds=pairs * (a_pair + a_sample * samples), disk=1500.0 * pairs)

    def measure(self, step: Step) -> Work:
        pairs = len(step.params["pairs"]) if "pairs" in step.params else math.comb(len(step.inputs), 2)
        first = self._steps[next(iter(step.inputs.values()))].params["train"]
        modules = len(self._shape.named(first["lora"]["targets"]))
        seconds = 1.0 + GEOMETRY_SECONDS * pairs * modules * step.params["draws"]
        return Work(seconds=seconds, disk=700.0 * pairs * modules)

    def weights(self, step: Step) -> Work:
        points, pairs = (len(step.params[name]) for name in ("points", "pairs"))
        seconds = WEIGHTS_SECONDS["pair"] * pairs if pairs else WEIGHTS_SECONDS["point"] * points
        scale = max(1.0, sum(m * n * min(m, n) for m, n in self._shape.matrices.values()) / 3e8)  # decompositions
        return Work(seconds=seconds * scale, disk=50_000.0 * (points + pairs))

    def follow(self, step: Step) -> Work:
        return Work(seconds=TRAJECTORY_SECONDS * len(step.inputs), disk=100_000.0 * len(step.inputs))

    def combine(self, step: Step) -> Work:
        parts = [self._steps[name] for name in step.inputs.values()]
        return Work(loads=1, disk=sum(self.work(part).disk for part in parts))

    def merge(self, step: Step) -> Work:
        return Work(loads=1, disk=4.0 * self._shape.parameters)

    def _sampling(self, rows: int, decoding: Mapping[str, Any]) -> Sampling:
        """A batch lasts until its longest answer, which among many is about the longest allowed."""
        limit = decoding["max_new_tokens"]
        return Sampling(math.ceil(rows / decoding["batch_size"]) * limit, rows * min(self._lengths.response, limit))

    def _size(self, model: str) -> float:
        return shape_of(model).parameters / self._shape.parameters


COUNTED: dict[str, Callable[[Counter, Step], Work]] = {
    "rollouts": Counter.rollouts,
    "served": Counter.served,
    "score": Counter.score,
    "train": Counter.train,
    "eval": Counter.evaluate,
    "kl": Counter.account_kl,
    "path": Counter.walk,
    "cka": Counter.compare_states,
    "compare": Counter.compare,
    "measure": Counter.measure,
    "weights": Counter.weights,
    "trajectory": Counter.follow,
    "merge": Counter.merge,
    "combine": Counter.combine,
}


def rows_trained(settings: Mapping[str, Any], live: Mapping[str, Any] | None) -> int:
    """Rollouts that a run is trained on, each as often as it comes; a pair is two."""
    if live:
        return settings["num_steps"] * live["prompts_per_step"] * live["samples"] * live["inner_epochs"]
    per_item = 2 if find(settings["objective"]).unit == "pair" else 1
    return settings["num_steps"] * settings["batch_size"] * per_item


def run_bytes(settings: Mapping[str, Any], shape: Shape) -> float:
    """What a run leaves on disk: its result and kept steps, bf16 copies, and the last checkpoints."""
    targets = shape.named(settings["lora"]["targets"])
    whole = settings["method"] == "full"
    trained = shape.parameters if whole else sum(settings["lora"]["rank"] * (m + n) for m, n in targets)
    stored = shape.matrices.values() if whole else targets
    visible = 2 * sum(m * n for m, n in stored) if settings["save_visible"] else 0
    checkpoints = min(2, (settings["num_steps"] - 1) // settings["checkpoint_every"])
    return (4 * trained + visible) * (1 + len(settings["keep"])) + 12 * trained * checkpoints + 20_000


def num_problems(given: Mapping[str, Any]) -> int:
    """How many problems are asked."""
    if not given.get("path"):
        return given["num"] or WORLD_PROBLEMS
    held = _in_file(given["path"], given["format"], tuple(sorted((given.get("fields") or {}).items())))
    return min(held, given["num"] or held)


@cache
def _in_file(path: str, file_format: str, fields: tuple[tuple[str, str], ...]) -> int:
    return len(read_problems({"path": path, "format": file_format, "num": None, "fields": dict(fields)}))


def _times_watched(settings: Mapping[str, Any]) -> float:
    """How often the KL to the reference is measured."""
    every = 1 if settings["kl_budget"] is not None else settings["kl_every"]
    return settings["num_steps"] / every if every else 0.0
