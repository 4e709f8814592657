"""Verbs that run a comparison and show it: study, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.options import Out, Overwrite, Settings, app, study_app


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
