"""The verbs. Arguments are parsed before anything heavy is imported; what a command needs, its body imports.

Progress goes to stderr, the path of the result alone is the last line of stdout. Exit codes: 0 done, 1 failed, 2 usage,
130 interrupted (Ctrl-C), 143 terminated.
"""

from __future__ import annotations

import os
import signal as signals
import sys

import typer

# isort: off
# a verb registers itself on import; the order is that of --help
from limbeck.cli import studies, watch, doctor, rollouts, signal, train, scores, geometry, tables, verify  # noqa: F401

# isort: on
from limbeck.cli.options import app

STOPPED = (130, 143)  # by SIGINT and by SIGTERM


def main() -> None:
    """Run the command line; errors on purpose end in one sentence and an exit code."""
    from limbeck.errors import LimbeckError, printable, storage_errors

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    signals.signal(signals.SIGTERM, lambda number, frame: sys.exit(STOPPED[1]))
    try:
        with storage_errors():
            app()
    except LimbeckError as error:
        typer.echo(printable(f"limbeck: {error}"), err=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code in STOPPED and os.environ.get("RANK", "0") == "0":
            typer.echo("limbeck: stopped. What was finished is kept: the same command goes on from there.", err=True)
        raise


__all__ = ["app", "main"]
