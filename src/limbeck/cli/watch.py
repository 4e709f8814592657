"""The verb that shows a study or a run while it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.options import app


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Of a study, or of a run of `limbeck train`.")],
    once: Annotated[bool, typer.Option("--once", help="Print the view once, as where stdout is no terminal.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="A page that refreshes itself, for this machine alone.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of the page; 0 takes a free one.", min=0, max=65535)] = 8642,
) -> None:
    """What a study or run does now, how long it still takes, or how to go on where it was stopped; reads only."""
    from rich.console import Console

    from limbeck.watch.planned import Watch
    from limbeck.watch.terminal import show, view

    console = Console()
    try:
        with Watch(folder) as watching:
            if serve:
                from limbeck.watch.serve import serve_page

                serve_page(watching, port, tell=typer.echo)
                return
            if console.is_terminal and not once:
                state = show(watching, console)
            else:
                with Console(stderr=True).status("The plan is made again from config.json ..."):
                    state = watching.state(planned=True)
                console.print(view(state))
    except KeyboardInterrupt:  # how a reader takes leave
        return
    if state.status == "complete":
        typer.echo(state.report or state.folder)
