"""Verbs about answers: eval, scores, compare, power."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.options import (
    Api,
    Concurrency,
    FieldNames,
    Format,
    LastNumber,
    Out,
    Overwrite,
    Patience,
    Servers,
    Template,
    Tokenizer,
    app,
    scores_app,
)


@app.command("eval")
def evaluate(
    problems: Annotated[str, typer.Option(help="A data file or folder, `folder:split`, or `abacus:test`.")],
    out: Out,
    base: Annotated[
        str | None, typer.Option(help="Who answers, or what the run is on (a run names its own); the --server's name.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", "--adapter", help="A run, or a PEFT adapter on top of the base.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Whose table this is.")] = None,
    num: Annotated[int | None, typer.Option(min=1, help="Use the first so many problems.")] = None,
    file_format: Format = "jsonl",
    field_names: FieldNames = "",
    template: Template = "",
    last_number: LastNumber = False,
    samples: Annotated[int, typer.Option(min=1, help="Answers a problem.")] = 1,
    sampling_temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at once.")] = 128,
    seed: int = 0,
    server: Servers = None,
    tokenizer: Tokenizer = None,
    api: Api = "auto",
    concurrency: Concurrency = 32,
    patience: Patience = 600.0,
    overwrite: Overwrite = False,
) -> None:
    """Checkpoint and problems to a score table. Interrupted, the same command continues where it was."""
    from limbeck.errors import ConfigError, printable
    from limbeck.evals.evaluate import refuse_copies
    from limbeck.evals.jobs import Job, from_checkpoint, from_server
    from limbeck.evals.protocols import describe
    from limbeck.evals.tables import read_table
    from limbeck.folders import refuse_existing
    from limbeck.progress import bars
    from limbeck.rollouts.sample import Decoding
    from limbeck.rollouts.server import Server, key_from_environment
    from limbeck.worlds.named import problems_named, problems_record, read_problems

    refuse_existing(out, overwrite=overwrite)
    decoding = Decoding(
        sampling_temperature=sampling_temperature, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed
    )
    refuse_copies(decoding, samples)
    if base is None and (run is None or server):
        raise ConfigError("eval needs --base, a model, or --run, a run that names its base; received neither.")
    if bool(server) != bool(tokenizer) or (server and run is not None):
        raise ConfigError(
            "--server goes with --tokenizer and without --run. The server's weights are its own business."
        )
    asked_of = problems_named(problems, file_format, num, seed, field_names, template)
    picked = [problem for problem, _ in read_problems(asked_of)]
    named = name or (run.resolve().name if run else (base or "").rpartition("/")[2])
    with bars() as show:
        job = Job(
            problems=picked, decoding=decoding, num_samples=samples, name=named, out=out, overwrite=overwrite,
            source=problems_record(asked_of), last_number=last_number, show=show,
        )  # fmt: skip
        if server and tokenizer:
            asked = Server(
                urls=tuple(server), model=base or "", api=api, concurrency=concurrency, patience_seconds=patience,
                api_key=key_from_environment(),
            )  # fmt: skip
            from_server(job, asked, tokenizer, tell=partial(typer.echo, err=True))
        else:
            from_checkpoint(job, run or base or "", base if run and base else "")
    typer.echo(printable(describe(read_table(out))), err=True)
    typer.echo(out)


@scores_app.command("import")
def scores_import(
    log: Annotated[Path, typer.Argument(help="A sample log, or a folder with exactly one.")],
    out: Out,
    source: Annotated[
        str, typer.Option("--from", help="lm-eval, lighteval, inspect or table; told from the file.")
    ] = "",
    metric: Annotated[str, typer.Option(help="Which grade, where the log has several: METRIC, METRIC,FILTER.")] = "",
    regrade: Annotated[bool, typer.Option("--regrade", help="Judge the logged responses by limbeck's grader.")] = False,
    last_number: LastNumber = False,
    name: Annotated[str, typer.Option(help="Whose table this is; the file's name by default.")] = "",
    overwrite: Overwrite = False,
) -> None:
    """Another program's log of answers to a score table, for `limbeck compare`."""
    from limbeck.errors import ConfigError, printable
    from limbeck.evals.exchange import Regrade, read_log
    from limbeck.evals.protocols import describe
    from limbeck.evals.tables import write_table
    from limbeck.folders import refuse_existing

    refuse_existing(out, overwrite=overwrite)
    if last_number and not regrade:
        raise ConfigError("--last-number goes with --regrade: it says how responses are judged again.")
    judge: Regrade = "last_number" if last_number else "strict" if regrade else ""
    table = read_log(log, source=source, name=name, metric=metric, regrade=judge)
    write_table(table, out, overwrite=overwrite, source={"log": log.name, "regraded": regrade})
    typer.echo(printable(describe(table)), err=True)
    typer.echo(out)


@scores_app.command("export")
def scores_export(
    table: Annotated[Path, typer.Argument(help="A score table.")],
    out: Annotated[Path, typer.Option("--out", help="A new file: .jsonl, .csv or .parquet.")],
) -> None:
    """A score table as one plain file with the same columns; `limbeck scores import` reads it back."""
    from limbeck.evals.exchange import write_file
    from limbeck.evals.tables import read_table

    typer.echo(write_file(read_table(table), out))


@scores_app.command("show")
def scores_show(table: Annotated[Path, typer.Argument(help="A score table.")]) -> None:
    """pass@1, or avg@k, pass@k and maj@k, each with its interval; outcomes; what is on record."""
    from limbeck.errors import printable
    from limbeck.evals.protocols import describe
    from limbeck.evals.tables import read_table

    typer.echo(printable(describe(read_table(table))))


@app.command()
def compare(
    tables: Annotated[
        list[str],
        typer.Argument(
            help="Score tables of the same problems, one an arm; NAME=TABLE,TABLE gives an arm several seeds."
        ),
    ],
    out: Out,
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.999999, help="Family-wise level.")] = 0.05,
    interval: Annotated[str, typer.Option(help="Of an accuracy: wilson or clopper_pearson.")] = "wilson",
    mixed_templates: Annotated[
        bool, typer.Option("--mixed-templates", help="Compare arms that were asked through different templates.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Score tables to comparison.json: paired tests, intervals, the smallest difference that could have been called."""
    from limbeck.errors import printable
    from limbeck.evals.arms import read_arms
    from limbeck.folders import publish
    from limbeck.records import write_json
    from limbeck.report.terminal import comparison_table
    from limbeck.stats.compare import compare as run
    from limbeck.stats.compare import interval_named

    with publish(out, overwrite=overwrite, kind="comparison") as temporary:
        arms = read_arms(tables)
        result = run(arms, alpha=alpha, interval=interval_named(interval), mixed_templates=mixed_templates)
        write_json(temporary / "comparison.json", result)
    typer.echo(printable(comparison_table(result)), err=True)
    typer.echo(out)


@app.command()
def power(
    accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of the worse arm, a fraction; needed without a pilot.")
    ] = None,
    difference: Annotated[float | None, typer.Option(help="To be called, a fraction: 0.02 is 2 points.")] = None,
    items: Annotated[int | None, typer.Option(min=2, help="Problems at hand.")] = None,
    discordance: Annotated[
        float | None, typer.Option(help="Share of problems that exactly one arm solves; unrelated answers by default.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Answers a problem; the pilot's, or 1.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Training runs an arm; the pilot's, or 1.")] = None,
    sample_disagreement: Annotated[
        float | None, typer.Option(help="Share of problems on which two samples of a run differ.")
    ] = None,
    seed_disagreement: Annotated[
        float | None, typer.Option(help="Share of problems on which two seeds of an arm differ, one sample each.")
    ] = None,
    seed_sd: Annotated[
        float | None, typer.Option(help="Standard deviation of accuracy over seeds, a fraction.")
    ] = None,
    target: Annotated[float, typer.Option("--power", min=0.01, max=0.999, help="Chance of calling it.")] = 0.8,
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.999999, help="Family-wise level.")] = 0.05,
    comparisons: Annotated[int, typer.Option(min=1, help="Pairs in the family, for Holm's first step.")] = 1,
    pilot: Annotated[
        Path | None, typer.Option(help="A finished study or comparison that says what the options above do not.")
    ] = None,
    pair: Annotated[str, typer.Option(help="Two arms of the pilot: A,B.")] = "",
) -> None:
    """How many problems, samples and seeds a difference needs; with --items, which difference they can call."""
    from limbeck.errors import ConfigError
    from limbeck.progress import bar
    from limbeck.records import read_json
    from limbeck.report.terminal import power_table
    from limbeck.stats.planning import Design, from_pilot, neighbors, plan

    told = {
        "accuracy": accuracy, "discordance": discordance, "samples": samples, "seeds": seeds,
        "sample_disagreement": sample_disagreement, "seed_disagreement": seed_disagreement, "seed_sd": seed_sd,
    }  # fmt: skip
    given = {name: value for name, value in told.items() if value is not None}
    if pilot:
        places = [pilot / part / "comparison.json" for part in ("results", ".")]
        found = next((place for place in places if place.is_file()), None)
        ends = pair.split(",")
        if found is None or len(ends) != 2:
            raise ConfigError(
                f"a pilot is the folder of a study or comparison, with --pair A,B, received {pilot} and {pair!r}. Name two arms."
            )
        given = from_pilot(read_json(found), *ends) | given
        given |= {"seed_sd": None} if given["seeds"] == 1 else {}
        given |= {f"{key}_apart": None for key in ("discordance", "seed_disagreement") if told[key] is not None}
    if "accuracy" not in given:
        raise ConfigError("power needs --accuracy, or a --pilot that says it, received neither.")
    design = Design(**given, alpha=alpha, comparisons=comparisons)
    with bar("power", len(neighbors(design))) as advance:
        planned = plan(design, difference=difference, n=items, target=target, advance=advance)
    typer.echo(power_table(planned))
