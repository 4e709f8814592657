"""Accuracy against KL: every result of a study, and every step that a run kept, as a point; token signals to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from limbeck.batches.score import read_scores
from limbeck.evals.tables import read_table
from limbeck.folders import read_manifest
from limbeck.problems.prompts import text_of
from limbeck.records import read_json
from limbeck.rollouts.store import read_rollouts
from limbeck.stats.intervals import mean_of_items
from limbeck.studies.config import StudyConfig
from limbeck.studies.contrasts import Reader, contrasts
from limbeck.studies.runs import Point, run_name
from limbeck.studies.step import Step
from limbeck.train.models import load_tokenizer
from limbeck.types import RolloutSet, is_right

MAX_PROBLEMS, MAX_TOKENS = 3, 160  # of the rollouts whose tokens are shown


def frontier(config: StudyConfig, steps: Sequence[Step], folders: Mapping[str, Path]) -> dict[str, Any]:
    """What the report draws of a study that measures KL; empty for others.

    Args:
        config: the study.
        steps: its plan.
        folders: step name to finished folder.
    """
    if config.kl is None:
        return {}
    read = cache(lambda name: read_table(folders[f"eval/{name}"]))
    base = {"run": "base", "arm": "base", "seed": None, "step": None, "steps": 0, "epochs": 0.0}
    points = [{**base, **_measured(folders, "base", read)}]
    for arm in config.arms:
        for seed in config.seeds_of(arm):
            run = run_name(arm.name, seed)
            kept = sorted(set(config.training(arm, seed).keep))
            points += [_point(folders, Point(run, step), arm.name, seed, read) for step in (*kept, None)]
    made = [step for step in steps if step.kind == "signal"]
    signals = {s.name.removeprefix("signal/"): read_json(folders[s.name] / "signal.json") for s in made}
    views = _views(config, made, folders)
    return {"points": points, **contrasts(config, points, read), "signals": signals, "views": views}


def _point(folders: Mapping[str, Path], point: Point, arm: str, seed: int, read: Reader) -> dict[str, Any]:
    folder = folders[f"train/{point.run}"]
    run = read_manifest(folder, "run")
    kept = read_manifest(folder / "kept" / f"step-{point.step:06d}") if point.step is not None else run
    step = run["steps"] if point.step is None else point.step
    passes = run["epochs"] * step / run["steps"] if run.get("epochs") and run["steps"] else None
    return {
        "run": point.run, "arm": arm, "seed": seed, "step": point.step, "steps": step, "epochs": passes,
        "update_norm": kept["update_norm"], **_measured(folders, point.name, read),
    }  # fmt: skip


def _measured(folders: Mapping[str, Path], name: str, read: Reader) -> dict[str, Any]:
    return {
        "name": name,
        "accuracy": asdict(mean_of_items(read(name).correct.double().mean(1).numpy())),
        **read_json(folders[f"kl/{name}"] / "kl.json"),
    }


def _views(config: StudyConfig, made: Sequence[Step], folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """A right and a wrong rollout of a few problems, every token with what each arm's signal says of it.

    Signals of the first seed alone: what is shown is how a signal looks, not how often it looks so.
    """
    first = {run_name(arm.name, config.seeds_of(arm)[0]): arm.name for arm in config.arms if arm.signal}
    by_rollouts: dict[str, list[tuple[str, Step]]] = {}
    for step in made:
        if (run := step.name.removeprefix("signal/")) in first:
            by_rollouts.setdefault(step.inputs["rollouts"], []).append((run, step))
    tokenizer = load_tokenizer(config.student)
    out = []
    for name, shown in by_rollouts.items():
        rollout_set = read_rollouts(folders[name])
        scores = {run: read_scores(folders[step.name], rollout_set, kind="signal") for run, step in shown}
        out += [_view(rollout_set, row, scores, tokenizer) for row in _chosen(rollout_set)]
    return out


def _chosen(rollout_set: RolloutSet) -> list[int]:
    """The first right and the first wrong rollout of the first problems that have both."""
    told, out = rollout_set.outline, []
    for rows in rollout_set.groups.values():
        short = [i for i in rows if told.response_tokens[i] <= MAX_TOKENS]
        both = [next((i for i in short if is_right(float(told.reward[i])) == right), None) for right in (True, False)]
        if None not in both and len(out) < 2 * MAX_PROBLEMS:
            out += both
    return [i for i in out if i is not None]


def _view(
    rollout_set: RolloutSet,
    row: int,
    scores: Mapping[str, Sequence[Sequence[float]]],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    rollout = rollout_set.rollouts[row]
    return {
        "problem_id": rollout.problem_id,
        "prompt": text_of(tokenizer, rollout.prompt_ids).strip(),
        "right": is_right(rollout.reward),
        "tokens": [tokenizer.decode([token]) for token in rollout.response_ids],
        "signals": {run: [round(x, 4) for x in rows[row]] for run, rows in scores.items()},
    }
