"""About how long a study takes, and how much it writes: the work of its steps at a measured rate, corrected by finished steps.

What finished steps of a kind took, over what this would have said, is a factor for the steps of that kind that are left; that of
all steps that the student does, for its kinds of which none is finished.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from limbeck.digests import is_complete
from limbeck.problems.prompts import prompt_ids
from limbeck.progress import bar
from limbeck.studies.config import StudyConfig
from limbeck.studies.facts import rollout_facts, shape_of
from limbeck.studies.identity import problems_of
from limbeck.studies.rates import Probe, Rates, counted, timed
from limbeck.studies.runner import SMALL, default_workers, read_seconds
from limbeck.studies.step import Step
from limbeck.studies.work import REPORT_BYTES, Counter, Lengths, Work
from limbeck.train.models import load_tokenizer
from limbeck.worlds.named import read_problems

ASKED = 64  # problems whose prompts are read for their length
# what studies took over what was predicted, at least and at most, by what the rates were taken from (docs/studies.md)
TIMED, COUNTED, CORRECTED = (0.4, 1.3), (0.3, 1.3), (0.85, 1.15)
SERVERS = "servers"  # in place of a source of seconds
STARTING = 10.0  # seconds of a study outside of its steps: start, collecting, report


class Kind(NamedTuple):
    """The steps of one kind.

    Attributes:
        kind: as in the plan.
        steps: how many there are.
        done: how many of these are.
        seconds: that the others take, one after another.
        disk: bytes of all.
        source: what says so: finished steps, the student's rates, or a table of seconds; of servers nothing does.
    """

    kind: str
    steps: int
    done: int
    seconds: float
    disk: float
    source: str


class Estimate(NamedTuple):
    """Of a whole study, from where it is now.

    Attributes:
        kinds: in the order of the plan.
        seconds: until the end, steps side by side.
        disk: bytes of the finished study.
        workers: steps at a time.
        how: where the numbers come from.
        spread: factors on the seconds between which the time has lain.
        steps: step name to predicted seconds, whether done or not, before any correction.
        served: rollouts that servers are yet to write, in no number of seconds.
    """

    kinds: list[Kind]
    seconds: float
    disk: float
    workers: int
    how: str
    spread: tuple[float, float]
    steps: Mapping[str, float]
    served: int = 0


def estimate(
    config: StudyConfig, plan: Sequence[Step], *, out: Path | None = None, probe: bool | None = None
) -> Estimate:
    """Predict a plan.

    Args:
        config: the study.
        plan: its steps.
        out: the study's folder, if it has been started.
        probe: time the student; by default if it is small, so that this takes seconds.
    """
    workers = config.workers or default_workers(shape_of(config.student).stored)
    prompts = _prompts(config)
    done = {step.name for step in plan if out and is_complete(out / "steps" / step.folder)}
    rates = _rates(config, prompts, workers, probe if len(done) < len(plan) else False)
    lengths, words = _lengths(config, prompts, rates)
    counter = Counter(plan, config.student, lengths)
    work = {step.name: counter.work(step) for step in plan}
    predicted = {name: one.takes(rates) for name, one in work.items()}
    factors = _factors(plan, work, predicted, read_seconds(out / "steps") if out else {})
    left = {s.name: 0.0 if s.name in done else factors[s.kind][0] * predicted[s.name] for s in plan}
    kinds = []
    for kind, steps in _by_kind(plan).items():
        names = {step.name for step in steps}
        seconds, disk = sum(left[name] for name in names), sum(work[name].disk for name in names)
        kinds.append(Kind(kind, len(names), len(names & done), seconds, disk, factors[kind][1]))
    seconds = side_by_side(plan, left, workers) + (STARTING if len(done) < len(plan) else 0.0)
    disk = sum(one.disk for one in kinds) + REPORT_BYTES
    corrected = 10 * len(done) >= len(plan) and any(
        source not in ("rates", "table", SERVERS) for _, source in factors.values()
    )
    spread = CORRECTED if corrected else COUNTED if rates.response is None else TIMED
    served = sum(work[step.name].elsewhere for step in plan if step.name not in done)
    return Estimate(kinds, seconds, disk, workers, f"{rates.how}; {words}", spread, predicted, served)


def _factors(
    plan: Sequence[Step], work: Mapping[str, Work], predicted: Mapping[str, float], took: Mapping[str, float]
) -> dict[str, tuple[float, str]]:
    """What the predictions of each kind are to be multiplied by, and what says so."""
    pooled, any_known = _correction([step for step in plan if work[step.name].of_model], predicted, took)
    out = {}
    for kind, steps in _by_kind(plan).items():
        factor, known = _correction(steps, predicted, took)
        if known:
            out[kind] = factor, f"{known} finished"
        elif any(work[step.name].of_model for step in steps):
            out[kind] = pooled, "rates, corrected" if any_known else "rates"
        elif any(work[step.name].elsewhere for step in steps):
            out[kind] = 1.0, SERVERS
        else:
            out[kind] = 1.0, "table"
    return out


def _rates(config: StudyConfig, prompts: Sequence[tuple[int, ...]], workers: int, probe: bool | None) -> Rates:
    """Of the student, timed or counted; each method with the settings of the first arm that has it."""
    shape = shape_of(config.student)
    methods = {train.method: train for train in (config.training(arm, 0) for arm in reversed(config.arms))}
    small = shape.stored < SMALL
    if not (small if probe is None else probe):
        return counted(shape, list(methods))
    given = config.eval
    asked = Probe(config.student, prompts, given.max_new_tokens, given.sampling_temperature, methods, small)
    with bar("timing the student", 1) as advance:
        found = timed(asked, workers)
        advance(1)
    return found


def side_by_side(plan: Sequence[Step], seconds: Mapping[str, float], workers: int) -> float:
    """When the last step ends, each starting in the plan's order as soon as a worker is free and what it reads is there."""
    ends: dict[str, float] = {}
    waiting = list(plan)
    running: list[tuple[float, str]] = []
    now = 0.0
    while waiting or running:
        ready = [step for step in waiting if all(ends.get(name, now + 1) <= now for name in step.inputs.values())]
        for step in ready[: workers - len(running)]:
            waiting.remove(step)
            heapq.heappush(running, (now + seconds[step.name], step.name))
        now, name = heapq.heappop(running)
        ends[name] = now
    return now


def _by_kind(plan: Sequence[Step]) -> dict[str, list[Step]]:
    kinds: dict[str, list[Step]] = defaultdict(list)
    for step in plan:
        kinds[step.kind].append(step)
    return kinds


def _correction(steps: Sequence[Step], predicted: Mapping[str, float], took: Mapping[str, float]) -> tuple[float, int]:
    """The seconds of finished steps over the predicted ones, and how many steps say so; 1 where none does."""
    known = [step for step in steps if step.folder in took and predicted[step.name] > 0]
    if not known:
        return 1.0, 0
    return sum(took[step.folder] for step in known) / sum(predicted[step.name] for step in known), len(known)


def _prompts(config: StudyConfig) -> list[tuple[int, ...]]:
    """The first problems of the evaluation, as the student reads them."""
    given = problems_of(config.eval.problems)
    problems = read_problems({**given, "num": min(given["num"] or ASKED, ASKED)})
    tokenizer = load_tokenizer(config.student)
    return [prompt_ids(tokenizer, problem.prompt) for problem, _ in problems]


def _lengths(config: StudyConfig, prompts: Sequence[tuple[int, ...]], rates: Rates) -> tuple[Lengths, str]:
    """Mean lengths of what is yet to be written, and what says so: what the student just answered, else the rollouts that
    are there, else the limit.
    """
    prompt = sum(map(len, prompts)) / len(prompts)
    if rates.response is not None:
        return Lengths(prompt=prompt, response=rates.response), f"prompts of {prompt:.0f}"
    if config.rollouts.path:
        given = rollout_facts(Path(config.rollouts.path), config.student).response
        return Lengths(prompt=prompt, response=given), f"answers as long as the given rollouts, {given:.0f} tokens"
    limit = config.eval.max_new_tokens
    return Lengths(prompt=prompt, response=limit), f"every answer counted at its limit of {limit} tokens, so at most"
