"""The verbs. Arguments are parsed before anything heavy is imported; what a command needs, its body imports.

Progress goes to stderr, the path of the result alone is the last line of stdout. Exit codes: 0 done, 1 failed, 2 usage.
"""

from __future__ import annotations

import os
import sys

import typer

# isort: off
# a verb registers itself on import; the order is that of --help
from limbeck.cli import studies, watch, doctor, rollouts, signal, train, scores, geometry, tables, verify  # noqa: F401

# isort: on
from limbeck.cli.options import app


def main() -> None:
    """Run the command line; errors on purpose end in one sentence and an exit code."""
    from limbeck.errors import LimbeckError, printable

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except LimbeckError as error:
        typer.echo(printable(f"limbeck: {error}"), err=True)
        sys.exit(error.exit_code)


__all__ = ["app", "main"]
