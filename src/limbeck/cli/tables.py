"""Verbs that print what there is: objectives, metrics, world."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from limbeck.cli import complete
from limbeck.cli.options import Out, app, world_app


@app.command()
def objectives(
    name: Annotated[
        str | None, typer.Argument(help="One objective in full.", autocompletion=complete.objectives)
    ] = None,
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
def metrics(
    markdown: Annotated[bool, typer.Option("--markdown", help="The whole table, nulls and reasons as a page.")] = False,
) -> None:
    """The metrics of the geometry: unit, null, meaning."""
    from limbeck.geometry import METRICS, describe
    from limbeck.geometry.dense import DENSE_METRICS
    from limbeck.geometry.trajectory import TRAJECTORY_METRICS
    from limbeck.report.terminal import metric_table

    if markdown:
        sys.stdout.write(describe.markdown())
    else:
        typer.echo(metric_table(METRICS | DENSE_METRICS | TRAJECTORY_METRICS))


@world_app.command("build")
def world_build(world: Annotated[str, typer.Argument(help="abacus", autocompletion=complete.worlds)], out: Out) -> None:
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
    world: Annotated[str, typer.Argument(help="abacus", autocompletion=complete.worlds)] = "abacus",
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
