"""The verb that looks before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.options import Settings, app


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="The student: a local folder, or `abacus:base`.")],
    rollouts: Annotated[Path | None, typer.Option(help="A JSONL or Parquet file, or a rollouts folder.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Who the student is to learn from: a local folder.")] = None,
    method: Annotated[str | None, typer.Option(help="What is trained: lora or full.")] = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON on stdout.")] = False,
) -> None:
    """Model, machine and rollouts before a run: what will and will not work, and the memory it will need."""
    import json

    from limbeck.config import RunConfig, override, parse
    from limbeck.doctor.examine import PARTS, examine
    from limbeck.doctor.show import shown
    from limbeck.progress import bar

    values = {"base": model, "rollouts": str(rollouts or ""), "train": {"method": method} if method else {}}
    config = parse(RunConfig, override(values, settings or []), where="run")
    with bar("doctor", len(PARTS)) as advance:
        findings = examine(config, teacher, advance=advance)
    problems = sum(finding.level == "problem" for finding in findings)
    if as_json:
        record = {"model": model, "problems": problems, "findings": [finding.record() for finding in findings]}
        typer.echo(json.dumps(record, indent=2))
    else:
        typer.echo(shown(findings))
    sys.exit(1 if problems else 0)
