"""The command tree that verbs hang on, and the options that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from limbeck.cli.places import WRITES, Verb


class Verbs(typer.Typer):
    """A command tree whose verbs take storage URLs for folders."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Callable], Callable]:
        return super().command(name, cls=Verb, **options)


app = Verbs(
    help="Distil reasoning with any objective on identical rollouts, see what it did to the weights, say which is better.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
study_app = Verbs(help="A comparison from rollouts to report.", no_args_is_help=True)
scores_app = Verbs(help="Score tables from and to other programs.", no_args_is_help=True)
world_app = Verbs(help="The embedded worlds.", no_args_is_help=True)
app.add_typer(study_app, name="study")
app.add_typer(world_app, name="world")
app.add_typer(scores_app, name="scores")

Format = Annotated[str, typer.Option("--format", help="Of a problem file: jsonl, gsm8k, math, aime or amc.")]
FieldNames = Annotated[
    str, typer.Option("--fields", help="In place of a format: prompt=question,answer=solution,id=uid.")
]
Template = Annotated[
    str, typer.Option("--template", help="How a problem is asked, {problem} in it: '{problem} Box the answer.'")
]
LastNumber = Annotated[
    bool,
    typer.Option("--last-number", help="An answer without box or #### is its last number; the grader's id says so."),
]
Out = Annotated[Path, typer.Option("--out", metavar=WRITES, help="Folder to write; must be new.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what a finished run left in --out.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override a key: section.key=value. Repeatable.")]
Servers = Annotated[
    list[str] | None,
    typer.Option("--server", help="URL of an OpenAI-compatible server of the model. Repeatable: they share the work."),
]
Tokenizer = Annotated[str | None, typer.Option(help="With --server: a folder with the model's tokenizer.")]
Api = Annotated[str, typer.Option(help="With --server: auto, ids, transformers, text or chat.")]
Concurrency = Annotated[int, typer.Option(min=1, help="With --server: requests under way at once, over all of them.")]
Timeout = Annotated[float, typer.Option(help="With --server: seconds for one attempt at an answer.")]
Patience = Annotated[float, typer.Option(help="With --server: seconds to repeat what fails.")]
