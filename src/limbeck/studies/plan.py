"""A study as a list of steps whose identities are known before anything runs.

A step's digest covers its kind, its settings, the identity of the models and files it reads, and the digests of the
steps it builds on. A finished folder with that digest is the step's result, whoever made it and when.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck import __version__
from limbeck.batches.collate import BEHAVIOR, PER_TOKEN_INPUTS
from limbeck.errors import ConfigError
from limbeck.folders import digest_of, file_digest
from limbeck.objectives import inputs as objective_inputs
from limbeck.objectives.vocabulary import check_same_map
from limbeck.studies.config import ArmConfig, ProblemsConfig, StudyConfig
from limbeck.train.models import input_digest, load_tokenizer
from limbeck.train.run import check


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One unit of work: a function's name, its settings, and the steps whose folders it reads.

    ``cost`` is a guess at seconds, for the progress bar alone.
    """

    name: str
    kind: str
    params: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    digest: str
    cost: float

    @property
    def folder(self) -> str:
        return f"{self.name.replace('/', '-')}-{self.digest[:12]}"


class _Plan:
    """Collects steps in an order in which each comes after what it reads."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}

    def add(self, name: str, kind: str, params: dict[str, Any], inputs: dict[str, str], cost: float) -> str:
        digests = {role: self.steps[step].digest for role, step in inputs.items()}
        digest = digest_of([__version__, kind, params, digests])
        self.steps[name] = Step(name=name, kind=kind, params=params, inputs=inputs, digest=digest, cost=cost)
        return name


def make_plan(config: StudyConfig) -> list[Step]:
    """Every step of a study, each after what it reads.

    Raises:
        ConfigError, ModelError: an arm, model or file that cannot serve, before anything runs.
    """
    plan = _Plan()
    student = {"base": config.student, "base_digest": input_digest(config.student)}
    rollouts = plan.add("rollouts", "rollouts", _rollouts(config), {}, 30)
    needs = {name for arm in config.arms for name in _scores_read(config, arm)}
    scores = {
        name: plan.add(f"score/{name}", "score", _scorer(config, name), {"rollouts": rollouts}, 8)
        for name in sorted(needs)
    }
    runs = _add_runs(plan, config, student, rollouts, scores)
    problems = _problems(config.eval.problems)
    decode = {"problems": problems, "max_new_tokens": config.eval.max_new_tokens, "batch_size": config.eval.batch_size}
    tables = {"base": plan.add("eval/base", "eval", {**student, **decode, "name": "base"}, {}, 12)}
    if config.teacher:
        teacher = {"base": config.teacher, "base_digest": input_digest(config.teacher)}
        tables["teacher"] = plan.add("eval/teacher", "eval", {**teacher, **decode, "name": "teacher"}, {}, 12)
    for run, step in runs.items():
        tables[run] = plan.add(f"eval/{run}", "eval", {**student, **decode, "name": run}, {"run": step}, 12)
    plan.add("compare", "compare", {"alpha": config.eval.alpha}, tables, 2)
    geometry = {"ks": list(config.geometry.ks), "draws": config.geometry.draws}
    plan.add("measure", "measure", geometry, runs, 1 + 0.3 * len(runs) ** 2)
    _add_paths(plan, config, student, runs, problems)
    if config.geometry.cka_problems:
        params = {**student, "problems": problems, "num": config.geometry.cka_problems}
        plan.add("cka", "cka", params, runs, 3 * len(runs))
    return list(plan.steps.values())


def run_name(arm: str, seed: int) -> str:
    """The name of one arm at one seed, everywhere."""
    return f"{arm}-s{seed}"


def _add_runs(
    plan: _Plan, config: StudyConfig, student: dict[str, Any], rollouts: str, scores: dict[str, str]
) -> dict[str, str]:
    runs: dict[str, str] = {}
    waiting = [(arm, seed) for arm in config.arms for seed in config.seeds_of(arm)]
    while waiting:
        ready = [(a, s) for a, s in waiting if all(run_name(o, s) in runs for o in (a.match_norm, a.match_items) if o)]
        if not ready:
            _refuse_matches(waiting)
        for arm, seed in ready:
            training = config.training(arm, seed)
            read = {name: scores[name] for name in _scores_read(config, arm)}
            for role, other in (("norm_of", arm.match_norm), ("items_of", arm.match_items)):
                read |= {role: runs[run_name(other, seed)]} if other else {}
            run = run_name(arm.name, seed)
            params = {**student, "train": training.model_dump(mode="json")}
            cost = training.num_steps * training.batch_size / 200
            runs[run] = plan.add(f"train/{run}", "train", params, {"rollouts": rollouts, **read}, cost)
        waiting = [item for item in waiting if item not in ready]
    return {run_name(a.name, s): runs[run_name(a.name, s)] for a in config.arms for s in config.seeds_of(a)}


def _refuse_matches(waiting: list[tuple[ArmConfig, int]]) -> None:
    names = ", ".join(run_name(arm.name, seed) for arm, seed in waiting)
    raise ConfigError(
        f"match_norm and match_items must name arms that run at the same seed and do not match each other in a circle, "
        f"received {names}. Give those arms the same seeds."
    )


def _add_paths(
    plan: _Plan, config: StudyConfig, student: dict[str, Any], runs: dict[str, str], problems: dict[str, Any]
) -> None:
    for a, b in config.paths.pairs:
        ends = {role: _run_of(config, end) for role, end in (("a", a), ("b", b))}
        params = {
            **student,
            "ends": ends,
            "problems": problems,
            **config.paths.model_dump(mode="json", exclude={"pairs", "problems"}),
            "num": config.paths.problems,
            "max_new_tokens": config.eval.max_new_tokens,
            "batch_size": config.eval.batch_size,
        }
        read = {role: runs[run] for role, run in ends.items() if run != "base"}
        plan.add(f"path/{ends['a']}--{ends['b']}", "path", params, read, 4 * len(config.paths.alphas))


def _run_of(config: StudyConfig, end: str) -> str:
    if end == "base":
        return end
    arm, _, seed = end.partition("@")
    return run_name(arm, int(seed) if seed else config.seeds_of(config.arm(arm))[0])


def _scores_read(config: StudyConfig, arm: ArmConfig) -> list[str]:
    objective = check(config.training(arm, 0))
    return [n for n in objective_inputs(objective) if n in PER_TOKEN_INPUTS and n not in BEHAVIOR]


def _scorer(config: StudyConfig, name: str) -> dict[str, Any]:
    """Which model gives a per-token input: the teacher its own, the base the reference."""
    model = config.teacher if name == "teacher_logprobs" else config.student
    if model is None or name == "signal":
        raise ConfigError(f"an arm reads {name}: the study needs a teacher that gives it, received none.")
    _check_vocabulary(config.student, model)
    return {"base": model, "base_digest": input_digest(model), "token_budget": config.train.token_budget}


def _check_vocabulary(student: str, teacher: str) -> None:
    """A teacher's token ids are trained on and scored as they are, so they must mean the same to the student."""
    if teacher != student:
        check_same_map(load_tokenizer(student).get_vocab(), load_tokenizer(teacher).get_vocab())


def _rollouts(config: StudyConfig) -> dict[str, Any]:
    given = config.rollouts
    if given.path:
        path = Path(given.path)
        identity = file_digest(path) if path.is_file() else file_digest(path / "manifest.json")
        return {
            "path": given.path,
            "file_digest": identity,
            "tokenizer": config.student,
            "student": input_digest(config.student),
        }
    params = given.model_dump(mode="json", exclude={"path", "problems"})
    teacher = str(config.teacher)
    _check_vocabulary(config.student, teacher)
    return {
        **params,
        "teacher": teacher,
        "teacher_digest": input_digest(teacher),
        "problems": _problems(given.problems),
    }


def _problems(config: ProblemsConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    return {**values, "file_digest": file_digest(Path(config.path))} if config.path else values
