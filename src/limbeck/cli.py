"""The verbs. Arguments are parsed before anything heavy is imported; what a command needs, its body imports.

Progress goes to stderr, the path of the result alone is the last line of stdout. Exit codes: 0 done, 1 failed, 2 usage.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Distil reasoning with any objective on identical rollouts, see what it did to the weights, say which is better.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
study_app = typer.Typer(help="A comparison from rollouts to report.", no_args_is_help=True)
world_app = typer.Typer(help="The embedded worlds.", no_args_is_help=True)
app.add_typer(study_app, name="study")
app.add_typer(world_app, name="world")

Out = Annotated[Path, typer.Option("--out", help="Folder to write; must be new.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what a finished run left in --out.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override a key: section.key=value. Repeatable.")]


@study_app.command("run")
def study_run(
    study: Annotated[str, typer.Argument(help="A packaged study (`limbeck study list`) or a TOML file.")],
    out: Out,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Everything for every arm and seed, then the report. A killed study continues where it was."""
    from limbeck.report import build
    from limbeck.studies.config import load_study
    from limbeck.studies.study import finish, run_study

    results = run_study(load_study(study, tuple(settings or ())), out, overwrite=overwrite)
    page = build(results, out)
    finish(out, {"report": page.name})
    typer.echo(page)


@study_app.command("list")
def study_list() -> None:
    """The packaged studies."""
    from limbeck.studies.config import load_study, packaged

    for name in packaged():
        typer.echo(f"{name:20} {load_study(name).question}")


@study_app.command("plan")
def study_plan(
    study: Annotated[str, typer.Argument(help="A packaged study or a TOML file.")], settings: Settings = None
) -> None:
    """The steps that a study would run, without running them."""
    from limbeck.studies.config import load_study
    from limbeck.studies.plan import make_plan

    for step in make_plan(load_study(study, tuple(settings or ()))):
        typer.echo(f"{step.name:44} {step.digest[:12]}  reads {', '.join(step.inputs.values()) or '-'}")


@app.command()
def sample(
    model: Annotated[str, typer.Option(help="Who answers: a local Hugging Face folder or `abacus:teacher`.")],
    problems: Annotated[str, typer.Option(help="A JSONL or Parquet file, or `abacus:train`.")],
    out: Out,
    samples: Annotated[int, typer.Option(min=1, help="Rollouts a problem.")] = 4,
    num: Annotated[int | None, typer.Option(min=1, help="Use the first so many problems.")] = None,
    file_format: Annotated[str, typer.Option("--format", help="jsonl, gsm8k, math or aime.")] = "jsonl",
    sampling_temperature: Annotated[float, typer.Option(min=1e-6, help="Divides the logits.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Model and problems to graded rollouts."""
    from limbeck.folders import refuse_existing
    from limbeck.progress import bar
    from limbeck.rollouts.sample import Decoding
    from limbeck.rollouts.store import write_rollouts
    from limbeck.studies.inputs import problems_named, read_problems
    from limbeck.studies.sampling import sample_rollouts
    from limbeck.train.models import load_model, load_tokenizer, model_digest

    refuse_existing(out, overwrite=overwrite)
    picked = [problem for problem, _ in read_problems(problems_named(problems, file_format, num, seed))]
    decoding = Decoding(sampling_temperature=sampling_temperature, max_new_tokens=max_new_tokens, seed=seed)
    source = {"model": model, "model_digest": model_digest(model)}
    with bar("sample", len(picked) * samples) as advance:
        rollout_set = sample_rollouts(
            load_model(model), load_tokenizer(model), picked, decoding, samples=samples, source=source, advance=advance
        )
    typer.echo(write_rollouts(rollout_set, out, overwrite=overwrite))


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="JSONL or Parquet rollouts: ours, TRL's or verl's columns.")],
    model: Annotated[str, typer.Option(help="The student, whose tokenizer and context apply.")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Your own rollouts to a rollouts folder."""
    from limbeck.folders import refuse_existing
    from limbeck.rollouts.store import write_rollouts
    from limbeck.studies.inputs import read_any_rollouts

    refuse_existing(out, overwrite=overwrite)
    typer.echo(write_rollouts(read_any_rollouts(file, model), out, overwrite=overwrite))


@app.command()
def score(
    model: Annotated[str, typer.Option(help="The frozen model that scores: reference or teacher.")],
    rollouts: Annotated[Path, typer.Option(help="A rollouts folder.")],
    out: Out,
    token_budget: Annotated[int, typer.Option(min=1, help="Padded tokens a forward pass.")] = 16384,
    overwrite: Overwrite = False,
) -> None:
    """Log-probs that a model gives to rollouts, once, for all arms."""
    from limbeck.batches.score import score_rollouts, write_scores
    from limbeck.folders import refuse_existing
    from limbeck.progress import bar
    from limbeck.rollouts.store import read_rollouts
    from limbeck.train.models import load_model, model_digest

    refuse_existing(out, overwrite=overwrite)
    rollout_set = read_rollouts(rollouts)
    with bar("score", len(rollout_set)) as advance:
        scores = score_rollouts(load_model(model), rollout_set.rollouts, token_budget=token_budget, advance=advance)
    typer.echo(write_scores(out, rollout_set, scores, model_digest=model_digest(model), overwrite=overwrite))


@app.command()
def train(
    out: Out,
    config: Annotated[Path | None, typer.Option(help="TOML or JSON; a run's own config.json reproduces it.")] = None,
    base: Annotated[str | None, typer.Option(help="The student.")] = None,
    rollouts: Annotated[str | None, typer.Option(help="A rollouts folder.")] = None,
    objective: Annotated[str | None, typer.Option(help="A name from `limbeck objectives`.")] = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Rollouts, base and objective to a run: adapter, metrics, checkpoints, record."""
    from limbeck.config import load, override, parse
    from limbeck.progress import bar
    from limbeck.train.run import RunConfig
    from limbeck.train.run import train as train_run

    values = load(config) if config else {}
    given = {"base": base, "rollouts": rollouts}
    values |= {key: value for key, value in given.items() if value is not None}
    if objective:
        values.setdefault("train", {})["objective"] = objective
    resolved = parse(RunConfig, override(values, settings or []), where="run")
    with bar("train", resolved.train.num_steps) as advance:
        typer.echo(train_run(resolved, out, overwrite=overwrite, advance=advance))


@app.command("eval")
def evaluate(
    base: Annotated[str, typer.Option(help="The model that answers.")],
    problems: Annotated[str, typer.Option(help="A JSONL or Parquet file, or `abacus:test`.")],
    out: Out,
    adapter: Annotated[Path | None, typer.Option(help="A run or a PEFT adapter on top of the base.")] = None,
    name: Annotated[str | None, typer.Option(help="Whose table this is.")] = None,
    num: Annotated[int | None, typer.Option(min=1, help="Use the first so many problems.")] = None,
    file_format: Annotated[str, typer.Option("--format", help="jsonl, gsm8k, math or aime.")] = "jsonl",
    samples: Annotated[int, typer.Option(min=1, help="Answers a problem.")] = 1,
    sampling_temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Checkpoint and problems to a score table."""
    from limbeck.evals.apply import applied, check_base
    from limbeck.evals.evaluate import evaluate as run
    from limbeck.evals.tables import write_table
    from limbeck.folders import refuse_existing
    from limbeck.geometry.adapters import read_adapter
    from limbeck.progress import bar
    from limbeck.rollouts.sample import Decoding
    from limbeck.studies.inputs import problems_named, read_problems
    from limbeck.train.models import load_model, load_tokenizer, model_digest

    refuse_existing(out, overwrite=overwrite)
    picked = [problem for problem, _ in read_problems(problems_named(problems, file_format, num, seed))]
    decoding = Decoding(sampling_temperature=sampling_temperature, max_new_tokens=max_new_tokens, seed=seed)
    named = name or (adapter.name if adapter else "base")
    if adapter:
        check_base(adapter, model_digest(base))
    delta = read_adapter(adapter, name=named) if adapter else None
    with applied(load_model(base), delta) as model, bar("eval", len(picked) * samples) as advance:
        table = run(
            model, load_tokenizer(base), picked, decoding, name=named, num_samples=samples, advance=advance
        )  # fmt: skip
    typer.echo(write_table(table, out, overwrite=overwrite))


@app.command()
def measure(
    adapters: Annotated[list[Path], typer.Argument(help="PEFT LoRA adapters or runs, from anywhere.")],
    out: Out,
    base: Annotated[str | None, typer.Option(help="What they are said to be trained on; weights are not read.")] = None,
    draws: Annotated[int, typer.Option(min=20, help="Draws of the simulated nulls.")] = 200,
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Adapters to measurements.parquet: norms, ranks, cosines, angles, each beside its null."""
    from limbeck.folders import publish
    from limbeck.geometry.adapters import read_adapter
    from limbeck.geometry.suite import measure as measure_all
    from limbeck.geometry.table import write_measurements
    from limbeck.progress import bar
    from limbeck.report.terminal import measurement_table, short_names

    facts: dict[str, object] = {"adapters": [str(path) for path in adapters]}
    with publish(out, overwrite=overwrite, kind="measurements", facts=facts) as temporary:
        deltas = [read_adapter(path, name=name) for path, name in zip(adapters, short_names(adapters), strict=True)]
        facts["base"] = base or deltas[0].base
        with bar("measure", 1.0) as advance:
            shown = [0.0]

            def progress(done: int, total: int) -> None:
                advance(done / total - shown[0])
                shown[0] = done / total

            rows = measure_all(deltas, draws=draws, seed=seed, progress=progress)
        write_measurements(temporary / "measurements.parquet", rows)
    typer.echo(measurement_table(rows), err=True)
    typer.echo(out)


@app.command()
def compare(
    tables: Annotated[list[Path], typer.Argument(help="Two or more score tables of the same problems.")],
    out: Out,
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.999999, help="Family-wise level.")] = 0.05,
    overwrite: Overwrite = False,
) -> None:
    """Score tables to comparison.json: paired tests, intervals, the smallest difference that could have been called."""
    from limbeck.evals.tables import read_table
    from limbeck.folders import publish, write_json
    from limbeck.report.terminal import comparison_table
    from limbeck.stats.compare import compare as run

    with publish(out, overwrite=overwrite, kind="comparison") as temporary:
        result = run([read_table(path) for path in tables], alpha=alpha)
        write_json(temporary / "comparison.json", result)
    typer.echo(comparison_table(result), err=True)
    typer.echo(out)


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="A study folder, or its results folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where report.html goes; the study folder by default.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Sentences and tables to stdout instead.")] = False,
) -> None:
    """Results to one self-contained HTML page, with a CSV beside every figure."""
    from limbeck.report import build
    from limbeck.report import markdown as as_markdown

    results = study / "results" if (study / "results").is_dir() else study
    if markdown:
        typer.echo(as_markdown(results), nl=False)
    else:
        typer.echo(build(results, out or study))


@app.command()
def objectives(
    name: Annotated[str | None, typer.Argument(help="One objective in full.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The whole table as docs/methods.md.")] = False,
) -> None:
    """The objectives: inputs, knobs, unit, normalizer as published, source."""
    from limbeck.objectives import describe
    from limbeck.report.terminal import objective_table

    if markdown:
        sys.stdout.write(describe.markdown())
    else:
        typer.echo(describe.describe(name) if name else objective_table(describe.table()))


@app.command()
def metrics() -> None:
    """The metrics of the geometry: unit, null, meaning."""
    from limbeck.geometry import METRICS
    from limbeck.report.terminal import metric_table

    typer.echo(metric_table(METRICS))


@world_app.command("build")
def world_build(world: Annotated[str, typer.Argument(help="abacus")], out: Out) -> None:
    """Train a world's base and teacher again from nothing."""
    import torch

    from limbeck.folders import publish
    from limbeck.worlds import check_world
    from limbeck.worlds.abacus.build import build

    check_world(world)
    torch.set_num_threads(1)  # more threads change the order of sums, and with it the weights
    with publish(out, kind="world") as temporary:
        build(temporary, lambda record: typer.echo(record, err=True))
    typer.echo(out)


@world_app.command("check")
def world_check(
    world: Annotated[str, typer.Argument(help="abacus")] = "abacus",
    num: Annotated[int, typer.Option(min=10, help="Test problems.")] = 1000,
) -> None:
    """How good a world's base and teacher are, and how mixed the teacher's groups."""
    from limbeck.evals.audit import audit, num_answers
    from limbeck.progress import bar
    from limbeck.worlds import check_world
    from limbeck.worlds.abacus.build import MAX_NEW_TOKENS
    from limbeck.worlds.abacus.generator import generate

    check_world(world)
    problems = [problem for problem, _ in generate("test", num, seed=0)]
    with bar("check", num_answers(num)) as advance:
        rows = audit(world, problems, max_new_tokens=MAX_NEW_TOKENS, advance=advance)
    for name, found in rows:
        typer.echo(f"{name:52} {found.value:.3f}   95 %: {found.low:.3f} to {found.high:.3f}   n = {found.n}")


def main() -> None:
    """Run the command line; errors on purpose end in one sentence and an exit code."""
    from limbeck.errors import LimbeckError

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except LimbeckError as error:
        typer.echo(f"limbeck: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
