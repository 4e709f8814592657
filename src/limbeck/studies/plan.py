"""A study as a list of steps whose identities are known before anything runs.

A step's digest covers its kind, its settings, the identity of the models and files it reads, and the digests of the
steps it builds on. A finished folder with that digest is the step's result, whoever made it and when.
"""

from __future__ import annotations

from typing import Any

from limbeck.errors import ConfigError
from limbeck.studies.config import StudyConfig, split_step
from limbeck.studies.factorial import add_factorial
from limbeck.studies.identity import problems_of
from limbeck.studies.runs import Runs, run_name
from limbeck.studies.step import Plan, Step
from limbeck.studies.weights import add_trajectories, add_weights, chosen_pairs
from limbeck.train.models import input_digest

__all__ = ["Step", "make_plan", "run_name"]


def make_plan(config: StudyConfig) -> list[Step]:
    """Every step of a study, each after what it reads.

    Raises:
        ConfigError, ModelError: an arm, model or file that cannot serve, before anything runs.
    """
    plan = Plan()
    runs = Runs(plan, config)
    runs.add_all()
    student, final = runs.student, runs.final
    tables = {"base": runs.base_table()}
    if config.teacher:
        teacher = {"base": config.teacher, "base_digest": input_digest(config.teacher)}
        asked = {**teacher, **runs.asked, "name": "teacher"}
        tables["teacher"] = plan.add("eval/teacher", "eval", asked, {}, 2)
    tables |= {run: runs.table(run) for run in final}
    plan.add("compare", "compare", {"alpha": config.eval.alpha, **_seeds_to_compare(config)}, tables, 2)
    runs.add_points()
    add_factorial(plan, runs, config)
    geometry = {"ks": list(config.geometry.ks), "draws": config.geometry.draws}
    measured = _adapters(config)
    adapters = {run_name(arm, seed): final[run_name(arm, seed)] for arm, seeds in measured.items() for seed in seeds}
    near = {} if config.geometry.pairs == "all" else {"pairs": [list(pair) for pair in chosen_pairs(config, measured)]}
    problems = problems_of(config.eval.problems)
    num_pairs = len(near["pairs"]) if near else len(adapters) ** 2 / 2
    if adapters:
        plan.add("measure", "measure", {**geometry, **near}, adapters, 1 + 0.015 * num_pairs)
    _add_signalled(plan, config, geometry, final)
    add_weights(plan, runs, config)
    add_trajectories(plan, runs, config)
    _add_paths(plan, config, student, adapters, problems)
    if config.geometry.cka_problems and adapters:
        params = {**student, "problems": problems, "num": config.geometry.cka_problems}
        plan.add("cka", "cka", {**params, **near}, adapters, 0.2 * len(adapters))
        _add_kept_states(plan, runs, params, adapters)
    return list(plan.steps.values())


def _adapters(config: StudyConfig) -> dict[str, tuple[int, ...]]:
    """The arms, with the seeds that are measured, whose updates are low-rank factors on the student.

    :mod:`~limbeck.studies.weights` has those of whole weights. Merges are left out: what they are in weight space follows from
    their parts.
    """
    trained = (arm for arm in config.arms if arm.start is None and arm.merge is None)
    arms = [arm for arm in trained if config.training(arm, 0).method == "lora"]
    return {arm.name: config.measured_seeds(arm) for arm in arms}


def _add_kept_states(plan: Plan, runs: Runs, params: dict[str, Any], adapters: dict[str, str]) -> None:
    """What runs had become after the steps that they keep, each beside the base."""
    points = [point for point in runs.points() if point.step is not None and point.run in adapters]
    if points:
        read = {point.run: adapters[point.run] for point in points}
        given = {**params, "pairs": [], "points": [[point.run, point.step] for point in points]}
        plan.add("cka/kept", "cka", given, read, 0.2 * len(points))


def _add_signalled(plan: Plan, config: StudyConfig, geometry: dict[str, Any], final: dict[str, str]) -> None:
    """Where the geometry reads first seeds alone: at every other seed the arms with a signal beside their teachers."""
    arms = [arm for arm in config.arms if arm.signal and arm.start is None]
    for seed in dict.fromkeys(seed for arm in arms for seed in config.seeds_of(arm)):
        further = [arm for arm in arms if seed in config.seeds_of(arm) and seed not in config.measured_seeds(arm)]
        teachers = [split_step(name)[0] for arm in further if arm.signal for name in arm.signal.teachers]
        names = dict.fromkeys((*(arm.name for arm in further), *teachers))
        members = [
            n for n in names if config.arm(n).start is None and config.training(config.arm(n), seed).method == "lora"
        ]
        if len(members) > 1:
            read = {run_name(name, seed): final[run_name(name, seed)] for name in members}
            plan.add(f"measure/signals-{seed}", "measure", geometry, read, 1 + 0.0075 * len(read) ** 2)


def _seeds_to_compare(config: StudyConfig) -> dict[str, Any]:
    """Runs by arm, where any arm has several: arms are then compared over their seeds, and first seeds with each other."""
    arms = {name: [name] for name in ("base", *(["teacher"] if config.teacher else []))}
    arms |= {arm.name: [run_name(arm.name, seed) for seed in config.seeds_of(arm)] for arm in config.arms}
    firsts = [runs[0] for runs in arms.values()]
    return {"arms": arms, "among": firsts} if any(len(runs) > 1 for runs in arms.values()) else {}


def _add_paths(
    plan: Plan, config: StudyConfig, student: dict[str, Any], runs: dict[str, str], problems: dict[str, Any]
) -> None:
    for ends in _ends(config):
        params = {
            **student,
            "ends": ends,
            "problems": problems,
            **config.paths.model_dump(mode="json", exclude={"pairs", "problems", "seeds"}),
            "num": config.paths.problems,
            "max_new_tokens": config.eval.max_new_tokens,
            "batch_size": config.eval.batch_size,
        }
        for run in set(ends.values()) - {"base", *runs}:
            raise ConfigError(
                f"the end of a path must be the base or an adapter, received {run}, which trains every weight "
                'or starts elsewhere. Use method = "lora" there without start, or leave the path out.'
            )
        read = {role: runs[run] for role, run in ends.items() if run != "base"}
        plan.add(f"path/{ends['a']}--{ends['b']}", "path", params, read, 4 * len(config.paths.alphas))


def _ends(config: StudyConfig) -> list[dict[str, str]]:
    """The two ends of every path: of pairs that name no seed, at the first, or once for each seed that both have."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for pair in config.paths.pairs:
        named = [config.seeds_of(config.arm(end)) for end in pair if end != "base" and "@" not in end]
        shared = [seed for seed in named[0] if all(seed in seeds for seeds in named)] if named else []
        several = config.paths.seeds == "all" and not any("@" in end for end in pair)
        for seed in shared if several else [None]:
            a, b = (_run_of(config, end, seed) for end in pair)
            found[a, b] = {"a": a, "b": b}
    return list(found.values())


def _run_of(config: StudyConfig, end: str, seed: int | None) -> str:
    if end == "base":
        return end
    arm, _, own = end.partition("@")
    return run_name(arm, int(own) if own else config.seeds_of(config.arm(arm))[0] if seed is None else seed)
