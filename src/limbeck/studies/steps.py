"""What each kind of step does: settings and input folders in, one folder out. Nothing here knows the study around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck import folders
from limbeck.batches.score import score_rollouts, write_scores
from limbeck.config import TrainConfig, parse
from limbeck.evals.apply import applied
from limbeck.evals.evaluate import evaluate
from limbeck.evals.tables import read_table, write_table
from limbeck.geometry.adapters import read_adapter
from limbeck.geometry.suite import measure
from limbeck.geometry.table import write_measurements
from limbeck.rollouts.sample import Decoding
from limbeck.rollouts.store import read_rollouts, write_rollouts
from limbeck.stats.compare import compare
from limbeck.studies.inputs import read_any_rollouts, read_problems
from limbeck.studies.representation import compare_states
from limbeck.studies.sampling import sample_rollouts
from limbeck.studies.walk import walk
from limbeck.train.models import load_model, load_tokenizer, model_digest
from limbeck.train.run import RunConfig, check, train

Params = dict[str, Any]
Inputs = dict[str, Path]
Tell = Callable[[float], None]


def _counter(tell: Tell, total: int) -> Callable[[int], None]:
    """Turns "so many more are done" into a share."""
    done = 0

    def advance(num: int) -> None:
        nonlocal done
        done += num
        tell(min(done / max(total, 1), 1.0))

    return advance


def rollouts(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """Sample from the teacher, or read a file."""
    if "path" in params:
        write_rollouts(read_any_rollouts(Path(params["path"]), params["tokenizer"]), out)
        return
    problems = [problem for problem, _ in read_problems(params["problems"])]
    tokenizer = load_tokenizer(params["teacher"])
    decoding = Decoding(
        **{name: params[name] for name in ("sampling_temperature", "max_new_tokens", "batch_size", "seed")}
    )
    rollout_set = sample_rollouts(
        load_model(params["teacher"]),
        tokenizer,
        problems,
        decoding,
        samples=params["samples"],
        source={"model": params["teacher"], "model_digest": model_digest(params["teacher"])},
        advance=_counter(tell, len(problems) * params["samples"]),
    )
    write_rollouts(rollout_set, out)


def score(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """Log-probs of a frozen model on every rollout."""
    rollout_set = read_rollouts(inputs["rollouts"])
    scores = score_rollouts(
        load_model(params["base"]),
        rollout_set.rollouts,
        token_budget=params["token_budget"],
        advance=_counter(tell, len(rollout_set)),
    )
    write_scores(out, rollout_set, scores, model_digest=model_digest(params["base"]))


def train_arm(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """One arm at one seed."""
    settings = parse(TrainConfig, params["train"], where="train")
    if "norm_of" in inputs:
        norm = folders.read_manifest(inputs["norm_of"], "run")["update_norm"]
        settings = settings.model_copy(update={"stop_norm": norm})
    if "items_of" in inputs:
        rows = folders.read_manifest(inputs["items_of"], "run")["rows"]
        items = max(rows // 2, 1) if check(settings).unit == "pair" else rows
        settings = settings.model_copy(update={"max_items": items})
    scores = {role: str(path) for role, path in inputs.items() if role.endswith("_logprobs")}
    config = RunConfig(base=params["base"], rollouts=str(inputs["rollouts"]), scores=scores, train=settings)
    train(config, out, advance=_counter(tell, settings.num_steps))


def evaluate_checkpoint(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """Greedy answers of the base, or of the base with a run's adapter on it."""
    problems = [problem for problem, _ in read_problems(params["problems"])]
    delta = read_adapter(inputs["run"], name=params["name"]) if "run" in inputs else None
    decoding = Decoding(max_new_tokens=params["max_new_tokens"], batch_size=params["batch_size"])
    with applied(load_model(params["base"]), delta) as model:
        table = evaluate(
            model,
            load_tokenizer(params["base"]),
            problems,
            decoding,
            name=params["name"],
            advance=_counter(tell, len(problems)),
        )
    write_table(table, out)


def compare_tables(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """Paired tests over all score tables, in the order given."""
    result = compare([read_table(path) for path in inputs.values()], alpha=params["alpha"])
    with folders.publish(out, kind="comparison") as temporary:
        folders.write_json(temporary / "comparison.json", result)


def measure_runs(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """The weight-space table over all runs."""
    deltas = [read_adapter(path, name=run) for run, path in inputs.items()]
    rows = measure(
        deltas, ks=params["ks"], draws=params["draws"], workers=1, progress=lambda done, total: tell(done / total)
    )
    with folders.publish(out, kind="measurements") as temporary:
        write_measurements(temporary / "measurements.parquet", rows)


KINDS: dict[str, Callable[[Params, Inputs, Path, Tell], None]] = {
    "rollouts": rollouts,
    "score": score,
    "train": train_arm,
    "eval": evaluate_checkpoint,
    "compare": compare_tables,
    "measure": measure_runs,
    "path": walk,
    "cka": compare_states,
}
