"""Verbs that run a comparison and show it: study, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli import complete
from limbeck.cli.options import Out, Overwrite, Settings, app, study_app
from limbeck.cli.places import WRITES

Study = Annotated[
    str,
    typer.Argument(help="A packaged study (`limbeck study list`) or a TOML file.", autocompletion=complete.studies),
]


@study_app.command("run")
def study_run(
    study: Study,
    out: Out,
    settings: Settings = None,
    overwrite: Overwrite = False,
    on: Annotated[
        str,
        typer.Option(
            "--on", help="Where steps run: local, or a Ray cluster: auto (that of this machine) or ray://HOST:PORT."
        ),
    ] = "local",
    steps: Annotated[
        Path | None,
        typer.Option(
            "--steps", help="A folder that several studies keep their steps in, each made once; by default OUT/steps."
        ),
    ] = None,
) -> None:
    """Everything for every arm and seed, then the report. A killed study continues where it was."""
    from limbeck.report import build
    from limbeck.stopped import sentence_left
    from limbeck.studies.config import load_study
    from limbeck.studies.study import finish, run_study

    with sentence_left(out):
        results = run_study(load_study(study, tuple(settings or ())), out, overwrite=overwrite, on=on, shared=steps)
        page = build(results, out)
        finish(out, {"report": page.name})
    typer.echo(page)


@study_app.command("list")
def study_list() -> None:
    """The packaged studies."""
    from limbeck.studies.config import load_study, packaged

    for name in packaged():
        typer.echo(f"{name:20} {load_study(name).question}")


@study_app.command("new")
def study_new(
    student: Annotated[
        str, typer.Option(help="A local Hugging Face folder or `abacus:base`.", autocompletion=complete.models)
    ],
    out: Annotated[Path, typer.Option("--out", help="The TOML file to write.")] = Path("study.toml"),
    rollouts: Annotated[str | None, typer.Option(help="A JSONL or Parquet file, or a rollouts folder.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Who writes rollouts where there are none.", autocompletion=complete.models)
    ] = None,
    problems: Annotated[
        str | None,
        typer.Option(
            help="What is answered for training: a data file or `abacus:train`.", autocompletion=complete.splits
        ),
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="What every result is asked.", autocompletion=complete.splits)
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            help="Objectives, rft and seed-null, joined by commas; by default sft, rft, dft, dpo and seed-null, as far as "
            "the data allow.",
            autocompletion=complete.arms,
        ),
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """A commented study for your model and data, and beside it the schema that editors complete its keys from."""
    from limbeck.addresses import origin
    from limbeck.errors import FolderError
    from limbeck.studies.config import load_study
    from limbeck.studies.new import Given, new_study, write_schema

    if out.exists() and not overwrite:
        raise FolderError(f"--out must be new, received {out}, which is there. Pass --overwrite, or another --out.")
    names = tuple(dict.fromkeys(name.strip() for name in arms.split(",") if name.strip())) or None
    text, notes = new_study(Given(student, rollouts, teacher, problems, test, names, out))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_schema(out.parent)
    out.write_text(origin(text), encoding="utf-8")
    load_study(str(out))
    for note in notes:
        typer.echo(note, err=True)
    typer.echo(out)


@study_app.command("schema")
def study_schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="As docs/study-keys.md.")] = False,
) -> None:
    """The JSON schema of a study file: every key with its meaning and domain, knobs of objectives included."""
    import json

    from limbeck.studies import keys, schema

    typer.echo(keys.markdown() if markdown else json.dumps(schema.study_schema(), indent=1) + "\n", nl=False)


@study_app.command("plan")
def study_plan(
    study: Study,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A study folder: steps that it has finished are done, and correct the rest."),
    ] = None,
    probe: Annotated[
        bool | None,
        typer.Option(
            "--probe/--no-probe",
            help="Time the student here, or count operations; by default small students are timed.",
        ),
    ] = None,
    steps: Annotated[bool, typer.Option("--steps/--no-steps", help="Also list every step.")] = True,
) -> None:
    """The arms and steps of a study, and about how long they would take, without running them."""
    from limbeck.studies.config import load_study
    from limbeck.studies.estimate import estimate
    from limbeck.studies.overview import arms_table, steps_lines, time_table
    from limbeck.studies.plan import make_plan

    config = load_study(study, tuple(settings or ()))
    plan = make_plan(config)
    if steps:
        typer.echo(steps_lines(plan, out))
    typer.echo(arms_table(config))
    typer.echo(time_table(estimate(config, plan, out=out, probe=probe)))


@app.command()
def report(
    studies: Annotated[
        list[Path], typer.Argument(help="A study folder, or its results folder; several share one page.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar=WRITES,
            help="Where report.html goes; by default the study's folder, of several studies `report`.",
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
    from limbeck.folders import amend
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
        folder = out or _beside(studies[0])
        page = build(several.results_of(studies[0]), folder)
        amend(folder, page.name, "figures")
        typer.echo(page)


def _beside(study: Path) -> Path:
    """The study's own folder, where it is one of the user's."""
    from limbeck.addresses import origin
    from limbeck.errors import ConfigError

    if origin(str(study)) != str(study):
        raise ConfigError(
            f"the report of a study behind a URL needs --out, received {study} alone. Give a folder or a URL."
        )
    return study
