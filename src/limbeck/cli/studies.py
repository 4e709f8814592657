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
    studies: Annotated[
        list[Path], typer.Argument(help="A study folder, or its results folder; several share one page.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Where report.html goes; by default the study's folder, of several studies `report`."
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Sentences and tables to stdout instead.")] = False,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Every figure as vector files into this folder instead.")
    ] = None,
    file_format: Annotated[str | None, typer.Option("--format", help="Of --figures: pdf (the default) or svg.")] = None,
) -> None:
    """Results to one self-contained HTML page, with a CSV beside every figure; or its figures as files for print."""
    from limbeck.errors import ConfigError
    from limbeck.report import build, several, vector
    from limbeck.report import markdown as as_markdown

    if figures is not None and (markdown or out is not None):
        raise ConfigError(
            "--figures writes figures alone and goes with neither --out nor --markdown. Run the command twice."
        )
    if file_format is not None and figures is None:
        raise ConfigError(
            f"--format is that of --figures, received {file_format!r} without it. Name a folder for the figures."
        )
    if markdown and len(studies) > 1:
        raise ConfigError(f"--markdown takes one study, received {len(studies)}. Run the command once for each.")
    if figures is not None:
        typer.echo(vector.figures(studies, figures, file_format or "pdf"))
    elif len(studies) > 1:
        typer.echo(several.build(studies, out or Path("report")))
    elif markdown:
        typer.echo(as_markdown(several.results_of(studies[0])), nl=False)
    else:
        typer.echo(build(several.results_of(studies[0]), out or studies[0]))
