"""The verb that trains one run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli import complete
from limbeck.cli.options import Out, Overwrite, Settings, app


@app.command()
def train(
    out: Out,
    config: Annotated[Path | None, typer.Option(help="TOML or JSON; a run's own config.json reproduces it.")] = None,
    base: Annotated[str | None, typer.Option(help="The student.", autocompletion=complete.models)] = None,
    rollouts: Annotated[str | None, typer.Option(help="A rollouts folder.")] = None,
    problems: Annotated[
        str | None,
        typer.Option(
            help="Live: what the student answers as it goes, a file or `abacus:train`.", autocompletion=complete.splits
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Live: a local Hugging Face folder or `abacus:teacher`.", autocompletion=complete.models),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="A name from `limbeck objectives`.", autocompletion=complete.objectives)
    ] = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Rollouts (or problems), base and objective to a run: adapter or model, metrics, checkpoints, record.

    On several processes: accelerate launch --num_processes 2 -m limbeck train ...
    """
    from limbeck.config import RunConfig, load, override, parse
    from limbeck.progress import bar
    from limbeck.stopped import sentence_left
    from limbeck.train.live_view import live_view
    from limbeck.train.run import train as train_run

    values = load(config) if config else {}
    given = {"base": base, "rollouts": rollouts}
    values |= {key: value for key, value in given.items() if value is not None}
    live = {key: value for key, value in {"problems": problems, "teacher": teacher}.items() if value is not None}
    if live:
        values["live"] = {**(values.get("live") or {}), **live}
    if objective:
        values.setdefault("train", {})["objective"] = objective
    resolved = parse(RunConfig, override(values, settings or []), where="run")
    if os.environ.get("RANK", "0") != "0":  # one of several processes, and not the one that speaks
        train_run(resolved, out, overwrite=overwrite)
    elif resolved.live:
        with sentence_left(out), live_view(resolved.train.num_steps) as observe:
            done = train_run(resolved, out, overwrite=overwrite, observe=observe)
        typer.echo(done)
    else:
        with sentence_left(out), bar("train", resolved.train.num_steps) as advance:
            typer.echo(train_run(resolved, out, overwrite=overwrite, advance=advance))
