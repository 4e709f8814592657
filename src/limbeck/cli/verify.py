"""The verb that looks whether folders are still what was written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.options import app


@app.command()
def verify(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that a verb wrote, of any kind.")],
    as_json: Annotated[bool, typer.Option("--json", help="What was found as JSON on stdout.")] = False,
) -> None:
    """Every file against its manifest: one line for each that is damaged, missing or unknown. Exit code 1 if any is."""
    import json

    from limbeck.errors import printable
    from limbeck.progress import bar
    from limbeck.records import plain
    from limbeck.verify import shown, size_of
    from limbeck.verify import verify as look

    with bar("verify", max(sum(map(size_of, folders)), 1)) as advance:
        found = [look(folder, advance) for folder in folders]
    if as_json:
        typer.echo(json.dumps(plain([verdict.record() for verdict in found]), indent=2))
    else:
        typer.echo(printable("\n".join(line for verdict in found for line in shown(verdict))))
    sys.exit(1 if any(verdict.problems for verdict in found) else 0)
