"""Storage URLs among a verb's arguments: an input becomes its local copy, ``--out`` a local folder that is then published.

A verb sees local folders alone. What takes part is read off its parameters: every value that holds a URL, but the address of
a server and free text; an output takes a URL where its help says FOLDER|URL.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from limbeck.addresses import URL, checked, origin

WRITES = "FOLDER|URL"  # the metavar of a folder that a verb makes
OUTPUTS = ("out", "figures")
NOT_PLACES = ("server", "template", "settings")  # URLs in settings are read where the settings are


class Verb(TyperCommand):
    """A command whose folders may lie behind URLs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(list(args))  # as typed: a Path has lost one slash of "://"
        ctx.meta["urls"] = {name: value for name, value in given.items() if name not in NOT_PLACES and _urls(value)}
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        if not ctx.meta["urls"]:
            return super().invoke(ctx)
        from limbeck.errors import LimbeckError

        try:
            return self._with_copies(ctx, ctx.meta["urls"])
        except LimbeckError as error:
            error.args = (origin(str(error)),)
            raise

    def _with_copies(self, ctx: Any, urls: dict[str, Any]) -> Any:
        """Every URL is looked at before any is fetched."""
        from limbeck import storage

        parameters = {parameter.name: parameter for parameter in self.get_params(ctx)}
        out = next((name for name in urls if name in OUTPUTS), None)
        if out and parameters[out].metavar != WRITES:
            raise _local_only(out, urls[out])
        for name, value in urls.items():
            for url in _urls(value):
                checked(url, written=name == out)
        for name in urls.keys() - {out}:
            parameters[name].handle_parse_result(ctx, {name: _replaced(urls[name])}, [])
        if out is None:
            return super().invoke(ctx)
        call = repr([ctx.command_path, sorted((name, str(value)) for name, value in ctx.params.items() if name != out)])

        def write(folder: Path) -> None:
            typer.echo(f"on this machine until it is published: {folder}", err=True)
            parameters[out].handle_parse_result(ctx, {out: str(folder)}, [])
            super(Verb, self).invoke(ctx)

        if os.environ.get("RANK", "0") != "0":  # one of several processes, and not the one that publishes
            parameters[out].handle_parse_result(ctx, {out: str(storage.working(urls[out]))}, [])
            return super().invoke(ctx)
        with contextlib.redirect_stdout(io.StringIO()):  # the verb names the local folder
            result = storage.through(urls[out], call, write, overwrite=ctx.params.get("overwrite", False))
        typer.echo(result)
        return None


def _urls(value: Any) -> list[str]:
    texts = value if isinstance(value, (list, tuple)) else [value]
    return [url for text in texts if isinstance(text, str) for url in URL.findall(text)]


def _replaced(value: Any) -> Any:
    from limbeck import storage

    if isinstance(value, (list, tuple)):
        return type(value)(map(_replaced, value))
    return URL.sub(lambda found: str(storage.fetch(found[0])), value)


def _local_only(name: str, url: str) -> Exception:
    from limbeck.errors import ConfigError

    checked(url)
    return ConfigError(f"--{name} must be a path on this machine here, received {url}. Write it there and copy it.")
