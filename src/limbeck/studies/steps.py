"""What each kind of step does: settings and input folders in, one folder out. Nothing here knows the study around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck import folders, records
from limbeck.batches.distributions import write_hidden
from limbeck.batches.score import score_rollouts, write_scores
from limbeck.config import LiveConfig, RunConfig, SubspaceConfig, TrainConfig, parse
from limbeck.errors import DegenerateError
from limbeck.evals.checkpoints import opened, scorer_digest
from limbeck.evals.evaluate import evaluate
from limbeck.evals.tables import read_table, write_table
from limbeck.geometry.adapters import read_adapter
from limbeck.geometry.suite import measure
from limbeck.geometry.table import write_measurements
from limbeck.progress import counted, say
from limbeck.rollouts.sample import Decoding
from limbeck.rollouts.server import key_from_environment
from limbeck.rollouts.store import read_rollouts, write_rollouts
from limbeck.stats.compare import Arm, compare
from limbeck.studies.chains import account_kl, kept, merge, read_signal, result, under
from limbeck.studies.factorial import split_variance
from limbeck.studies.inputs import read_problems, write_any_rollouts
from limbeck.studies.merges import combine
from limbeck.studies.representation import compare_states
from limbeck.studies.sampling import sample_from_server, sample_rollouts
from limbeck.studies.sections import ServerConfig
from limbeck.studies.walk import walk
from limbeck.studies.weights import follow_runs, measure_weights
from limbeck.train.checks import check
from limbeck.train.models import load_model, load_tokenizer, model_digest
from limbeck.train.run import train

Params = dict[str, Any]
Inputs = dict[str, Path]
Tell = Callable[[float], None]


def rollouts(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """Sample from the teacher, or read a file."""
    if "path" in params:
        write_any_rollouts(Path(params["path"]), params["tokenizer"], out)
        return
    problems = [problem for problem, _ in read_problems(params["problems"])]
    writer = str(inputs["model"]) if "model" in inputs else params["teacher"]
    tokenizer = load_tokenizer(writer)
    decoding = Decoding(
        **{name: params[name] for name in ("sampling_temperature", "max_new_tokens", "batch_size", "seed")}
    )
    rollout_set = sample_rollouts(
        load_model(writer),
        tokenizer,
        problems,
        decoding,
        samples=params["samples"],
        source={"model": params.get("by") or params["teacher"], "model_digest": model_digest(writer)},
        advance=counted(tell, len(problems) * params["samples"]),
    )
    write_rollouts(rollout_set, out)


def served(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """Rollouts of a model behind servers. Each answer is on record in ``out`` as it comes: a step cut short asks for the rest."""
    problems = [problem for problem, _ in read_problems(params["problems"])]
    server = parse(ServerConfig, {**params["server"], **params["asked"]}, where="rollouts.server")
    decoding = Decoding(**{name: params[name] for name in ("sampling_temperature", "max_new_tokens", "seed")})
    sample_from_server(
        server.opened(key_from_environment()),
        params["tokenizer"],
        problems,
        decoding,
        out,
        samples=params["samples"],
        source={},
        advance=counted(tell, len(problems) * params["samples"]),
        tell=say,
    )


def score(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """What a frozen model, or a result, says of every rollout: log-probs, or hidden states with its head."""
    rollout_set = read_rollouts(inputs["rollouts"])
    passes = {"token_budget": params["token_budget"], "advance": counted(tell, len(rollout_set))}
    with opened(result(params, inputs)) as checkpoint:
        digest, model = scorer_digest(checkpoint.identity), checkpoint.model
        if "keep" in params:
            tokens = checkpoint.tokenizer.get_vocab()
            num_ids, facts = max(tokens.values()) + 1, {"token_map_digest": records.digest_of(tokens)}
            write_hidden(out, rollout_set, model, model_digest=digest, num_ids=num_ids, facts=facts, **passes)
            return
        write_scores(out, rollout_set, score_rollouts(model, rollout_set.rollouts, **passes), model_digest=digest)


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
    if "tuned" in inputs:
        tuned = records.read_json(inputs["tuned"] / "tuning.json")
        settings = settings.model_copy(update={"knobs": {**settings.knobs, tuned["knob"]: tuned["chosen"]}})
    if "rate" in inputs:
        rate = records.read_json(inputs["rate"] / "rate.json")["learning_rate"]
        settings = settings.model_copy(update={"learning_rate": rate})
    if "subspace" in inputs:
        settings = settings.model_copy(update={"subspace": _directions(settings, params, inputs)})
    live = parse(LiveConfig, params["live"], where="live") if "live" in params else None
    if live and "teacher" in inputs:
        live = live.model_copy(update={"teacher": str(inputs["teacher"])})
    config = RunConfig(
        base=under(params, inputs),
        anchor=params.get("anchor", ""),
        rollouts=str(inputs["rollouts"]) if "rollouts" in inputs else "",
        scores={n: str(p) for n, p in inputs.items() if n == "signal" or n.endswith(("_logprobs", "_logits"))},
        train=settings,
        live=live,
    )
    train(config, out, advance=counted(tell, settings.num_steps))


def _directions(settings: TrainConfig, params: Params, inputs: Inputs) -> SubspaceConfig:
    """Where the arm that a subspace is of left its result, and what it started from."""
    given = settings.subspace
    assert given is not None  # the plan has read it
    of = kept(inputs["subspace"], params.get("subspace_at"))
    against = str(inputs["subspace_base"]) if "subspace_base" in inputs else params["base"]
    return given.model_copy(update={"of": str(of), "against": against})


def tune(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """The value of a grid whose run answered most problems; of equals the first."""
    found = {value: float(read_table(inputs[f"{value:g}"]).correct.double().mean()) for value in params["grid"]}
    chosen = max(found, key=found.__getitem__)
    with folders.publish(out, kind="tuning") as temporary:
        rows = [{"value": value, "accuracy": accuracy} for value, accuracy in found.items()]
        records.write_json(temporary / "tuning.json", {"knob": params["knob"], "chosen": chosen, "grid": rows})


def rate(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """The peak rate that a run asks for which was to end at another length: that of an update is about proportional to it."""
    used = float(records.read_json(inputs["run"] / "config.json")["train"]["learning_rate"])
    reached = float(folders.read_manifest(inputs["run"], "run")["update_norm"])
    if reached == 0:
        raise DegenerateError(
            f"a trial run must move the weights, received an update of zero at a rate of {used:g}. Begin with a larger "
            "train.learning_rate, or leave reach_norm out."
        )
    with folders.publish(out, kind="rate") as temporary:
        found = {
            "learning_rate": used * params["norm"] / reached,
            "tried": used,
            "reached": reached,
            "norm": params["norm"],
        }
        records.write_json(temporary / "rate.json", found)


def evaluate_checkpoint(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """Answers of the base, or of a run, be it an adapter on the base or a whole model."""
    problems = [problem for problem, _ in read_problems(params["problems"])]
    samples = params.get("samples", 1)
    decoding = Decoding(
        max_new_tokens=params["max_new_tokens"],
        batch_size=params["batch_size"],
        sampling_temperature=params.get("sampling_temperature", 0.0),
    )
    with opened(result(params, inputs)) as checkpoint:
        table = evaluate(
            checkpoint.model,
            checkpoint.tokenizer,
            problems,
            decoding,
            name=params["name"],
            num_samples=samples,
            identity=checkpoint.identity,
            advance=counted(tell, len(problems) * samples),
        )
    write_table(table, out)


def compare_tables(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """Paired tests over all score tables; where some arms have several seeds, over first seeds and over arms."""
    tables = {name: read_table(path) for name, path in inputs.items()}
    result = compare(list(tables.values()), alpha=params["alpha"], among=params.get("among"))
    if arms := params.get("arms"):
        grouped = [Arm(name, tuple(tables[run] for run in runs)) for name, runs in arms.items()]
        result["over_seeds"] = compare(grouped, alpha=params["alpha"])
    with folders.publish(out, kind="comparison") as temporary:
        records.write_json(temporary / "comparison.json", result)


def measure_runs(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """The weight-space table over all runs, in all pairs or those that are named."""
    deltas = [read_adapter(path, name=run) for run, path in inputs.items()]
    places = {run: place for place, run in enumerate(inputs)}
    pairs = [(places[a], places[b]) for a, b in params["pairs"]] if "pairs" in params else None
    rows = measure(deltas, ks=params["ks"], draws=params["draws"], pairs=pairs, workers=1, progress=counted(tell))
    with folders.publish(out, kind="measurements") as temporary:
        write_measurements(temporary / "measurements.parquet", rows)


KINDS: dict[str, Callable[[Params, Inputs, Path, Tell], None]] = {
    "rollouts": rollouts,
    "served": served,
    "score": score,
    "train": train_arm,
    "tune": tune,
    "eval": evaluate_checkpoint,
    "compare": compare_tables,
    "measure": measure_runs,
    "weights": measure_weights,
    "trajectory": follow_runs,
    "path": walk,
    "cka": compare_states,
    "merge": merge,
    "signal": read_signal,
    "kl": account_kl,
    "combine": combine,
    "rate": rate,
    "factorial": split_variance,
}
