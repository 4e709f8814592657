"""From finished steps to the files that a report reads. Nothing is computed here that a step could have computed."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limbeck.evals.tables import read_table
from limbeck.folders import host, publish, read_manifest, versions
from limbeck.geometry.table import read_measurements, write_measurements
from limbeck.problems.prompts import text_of
from limbeck.records import read_json, write_json
from limbeck.rollouts.store import read_rollouts
from limbeck.stats.passk import pass_at_k
from limbeck.studies.config import StudyConfig
from limbeck.studies.frontier import frontier
from limbeck.studies.inputs import read_problems
from limbeck.studies.plan import Step, run_name
from limbeck.studies.raw import write_raw
from limbeck.studies.runner import read_seconds
from limbeck.train.models import load_tokenizer
from limbeck.train.record import read_metrics
from limbeck.types import Measurement, Rollout, RolloutSet, is_right

MAX_SAMPLES = 300  # problems in the sample browser
MAX_EXAMPLES = 24  # rollout groups shown
TRAINING_COLUMNS = ("step", "loss", "nll", "entropy", "learning_rate", "grad_norm", "update_norm")
LIVE_COLUMNS = (
    "reward", "signal_share", "response_tokens", "truncated_share", "kl_student_teacher_k3", "kl_student_reference_k3",
    "teacher_agreement", "clipped_low", "clipped_high", "rollouts_sampled",
)  # fmt: skip
PASS_KS = (1, 8)
MAX_POINTS = 400  # of a training curve


def collect(
    config: StudyConfig,
    steps: Sequence[Step],
    folders: dict[str, Path],
    out: Path,
    *,
    started: str,
    command: str,
    seconds: float,
) -> Path:
    """Write the results folder of a study.

    Args:
        config: the study, resolved.
        steps: its plan.
        folders: step name to finished folder.
        out: replaced if it exists.
        started: when, ISO 8601.
        command: what was typed.
        seconds: of this invocation, finished steps found again included for nothing.
    """
    runs = {run_name(a.name, s): (a, s) for a in config.arms for s in config.seeds_of(a)}
    rollout_set = read_rollouts(folders["rollouts"])
    measured = [step.name for step in steps if step.kind in ("measure", "weights", "trajectory", "cka")]
    rows = [row for name in measured for row in _measured(folders[name])]
    with publish(out, kind="results", overwrite=True) as temporary:
        write_json(temporary / "study.json", _study(config))
        write_json(temporary / "arms.json", [_arm(folders[f"train/{run}"], run, *runs[run]) for run in runs])
        write_json(temporary / "comparison.json", read_json(folders["compare"] / "comparison.json"))
        paths = [read_json(folders[step.name] / "path.json") for step in steps if step.kind == "path"]
        write_json(temporary / "paths.json", [line for path in paths for line in path])
        write_json(temporary / "training.json", {run: _curve(folders[f"train/{run}"]) for run in runs})
        write_json(temporary / "live.json", _live(config, steps, folders))
        if config.kl:
            write_json(temporary / "frontier.json", frontier(config, steps, folders))
        if "factorial" in folders:
            write_json(temporary / "factorial.json", read_json(folders["factorial"] / "factorial.json"))
        write_json(temporary / "rollouts.json", _rollouts(config, rollout_set))
        write_json(temporary / "samples.json", _samples(config, folders))
        times = read_seconds(folders["rollouts"].parent)
        timing = [{"name": step.name, "seconds": times.get(step.folder)} for step in steps]
        provenance = {
            "limbeck": versions().get("limbeck", ""),
            "versions": versions(),
            "python": platform.python_version(),
            "host": host(),
            "command": command,
            "started": started,
            "seconds": seconds,
            "steps": timing,
        }
        write_json(temporary / "provenance.json", provenance)
        write_measurements(temporary / "measurements.parquet", rows)
        write_raw(temporary, steps, folders)
    return out


def _measured(folder: Path) -> list[Measurement]:
    return read_measurements(folder / "measurements.parquet")


def _study(config: StudyConfig) -> dict[str, Any]:
    arms = [
        {
            "name": arm.name,
            "label": arm.label or arm.name,
            "role": arm.role,
            "note": arm.note,
            "objective": "merge" if arm.merge else config.training(arm, 0).objective,
        }
        for arm in config.arms
    ]
    return {
        "name": config.name,
        "question": config.question,
        "seeds": list(config.seeds),
        "student": config.student,
        "teacher": config.teacher or "",
        "reference_arm": config.reference_arm or config.arms[0].name,
        "arms": arms,
        "config": config.model_dump(mode="json"),
    }


def _arm(folder: Path, run: str, arm: Any, seed: int) -> dict[str, Any]:
    facts = read_manifest(folder, "run")
    settings = (
        read_json(folder / "config.json")["train"] if (folder / "config.json").is_file() else {}
    )  # a merge has none
    metrics = read_metrics(folder / "metrics.jsonl")
    stated = (
        "objective", "normalizer", "credit", "items", "rows", "right_share", "steps", "epochs", "update_norm",
        "rollouts_digest", "init_digest", "adapter_digest", "seconds", "pair_rule", "mixed_groups",
        "all_right_groups", "all_wrong_groups", "rows_too_long", "subspace",
    )  # fmt: skip
    return {
        "run": run,
        "arm": arm.name,
        "seed": seed,
        "role": arm.role,
        **{name: facts.get(name) for name in stated},
        **{
            name: settings.get(name)
            for name in ("init_seed", "selection", "learning_rate", "stop_norm", "knobs", "batch_size", "rewards")
        },
        "final_nll": metrics[-1].get("nll") if metrics else None,
    }


def _curve(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "metrics.jsonl")
    stride = max(1, -(-len(lines) // MAX_POINTS))
    live = tuple(name for name in LIVE_COLUMNS if any(name in line for line in lines))
    return [{name: line.get(name) for name in (*TRAINING_COLUMNS, *live)} for line in lines[::stride]]


def _live(config: StudyConfig, steps: Sequence[Step], folders: dict[str, Path]) -> dict[str, Any]:
    """What live arms are asked besides: pass@k of every table, what was tuned on what, where the time of a step went."""
    tables = {
        name.removeprefix("eval/"): read_table(path) for name, path in folders.items() if name.startswith("eval/")
    }
    rates = {
        name: {f"pass@{k}": asdict(pass_at_k(table, k)) for k in PASS_KS if k <= table.correct.shape[1]}
        for name, table in tables.items()
    }
    runs = {
        run_name(arm.name, seed): _spent(read_metrics(folders[f"train/{run_name(arm.name, seed)}"] / "metrics.jsonl"))
        for arm in config.arms
        if arm.live is not None
        for seed in config.seeds_of(arm)
    }
    tuned = {
        step.name.removeprefix("tune/"): read_json(folders[step.name] / "tuning.json")
        for step in steps
        if step.kind == "tune"
    }
    return {"pass": rates, "runs": runs, "tuning": tuned}


def _spent(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one live run: rollouts sampled, seconds by part, and the last distances that were measured."""
    parts = sorted({name for line in lines for name in line if name.startswith("seconds")})
    distances = ("kl_student_teacher_k3", "kl_student_reference_k3", "teacher_agreement", "reward")
    last = {name: next((line[name] for line in reversed(lines) if name in line), None) for name in distances}
    rollouts = sum(line["rollouts_sampled"] for line in lines)
    return {"rollouts": rollouts, **{p: round(sum(x.get(p, 0.0) for x in lines), 2) for p in parts}, "last": last}


def _rollouts(config: StudyConfig, rollout_set: RolloutSet) -> dict[str, Any]:
    rollouts = rollout_set.rollouts
    told = rollout_set.outline
    right = [[is_right(float(told.reward[i])) for i in rows] for rows in rollout_set.groups.values()]
    tokenizer = load_tokenizer(config.student)
    groups = list(rollout_set.groups.items())[:MAX_EXAMPLES]
    answers = (
        {p.id: p.answer for p, _ in read_problems(config.rollouts.problems.model_dump())}
        if not config.rollouts.path
        else {}
    )

    def response(rollout: Rollout) -> dict[str, Any]:
        return {"text": rollout.response, "reward": rollout.reward, "finish": rollout.finish}

    examples = [
        {
            "problem_id": problem_id,
            "prompt": text_of(tokenizer, rollouts[rows[0]].prompt_ids).strip(),
            "answer": answers.get(problem_id, ""),
            "responses": [response(rollouts[i]) for i in rows],
        }
        for problem_id, rows in groups
    ]
    return {
        "digest": rollout_set.digest,
        "source": _writer(config),
        "rows": len(rollouts),
        "problems": len(right),
        "right_share": sum(map(sum, right)) / len(rollouts),
        "mixed_share": sum(0 < sum(group) < len(group) for group in right) / len(right),
        "all_right_share": sum(all(group) for group in right) / len(right),
        "all_wrong_share": sum(not any(group) for group in right) / len(right),
        "truncated_share": int(told.truncated.sum()) / len(rollouts),
        "mean_response_tokens": int(told.response_tokens.sum()) / len(rollouts),
        "sampling": dict(rollout_set.provenance),
        "examples": examples,
    }


def _writer(config: StudyConfig) -> str | None:
    """Who wrote the rollouts that arms share, or the file that they came in."""
    given = config.rollouts
    if given.server:
        return f"{given.server.model}, a server"
    return given.path or (config.student if given.by == "student" else config.teacher)


def _samples(config: StudyConfig, folders: dict[str, Path]) -> list[dict[str, Any]]:
    """Problems that split the arms first: those are what paired tests live on."""
    tables = {
        name.removeprefix("eval/"): read_table(path) for name, path in folders.items() if name.startswith("eval/")
    }
    answers = {name: {s.problem_id: s for s in table.scores if s.sample == 0} for name, table in tables.items()}
    problems = [problem for problem, _ in read_problems(config.eval.problems.model_dump())]

    def agreement(problem_id: str) -> float:
        right = [scores[problem_id].correct for scores in answers.values()]
        return abs(sum(right) / len(right) - 0.5)

    ranked = sorted(problems, key=lambda p: agreement(p.id))[:MAX_SAMPLES]
    return [
        {
            "problem_id": p.id,
            "prompt": p.prompt,
            "answer": p.answer,
            "responses": {
                name: {"text": s.response, "extracted": s.extracted, "correct": s.correct, "finish": s.finish}
                for name, scores in answers.items()
                for s in [scores[p.id]]
            },
        }
        for p in ranked
    ]
