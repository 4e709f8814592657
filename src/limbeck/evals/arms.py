"""Score tables as arms: which tables are the seeds of one method, as a command line writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from limbeck.errors import ConfigError
from limbeck.evals.tables import read_table
from limbeck.stats.compare import Arm


def read_arms(texts: Sequence[str]) -> list[Arm]:
    """Arms from folders, ``TABLE`` by the table's own name or ``NAME=TABLE,TABLE`` with one table a training seed.

    Raises:
        ConfigError: a name or a folder is missing, or one folder is given twice.
        FolderError, DataError, ProvenanceError: a table cannot be read.
    """
    named = [_parse(text) for text in texts]
    paths = [path.resolve() for _, tables in named for path in tables]
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise ConfigError(f"each score table must be given once, received {', '.join(twice)} again. Leave one out.")
    read = [(name, tuple(read_table(path) for path in tables)) for name, tables in named]
    return [Arm(name or tables[0].name, tables) for name, tables in read]


def _parse(text: str) -> tuple[str, list[Path]]:
    """A folder that exists is a folder, whatever its name."""
    if "=" not in text or Path(text).exists():
        return "", [Path(text)]
    name, _, rest = text.partition("=")
    folders = [folder for folder in rest.split(",") if folder]
    if not name or not folders:
        raise ConfigError(f"an arm must read NAME=TABLE or NAME=TABLE,TABLE with one table a seed, received {text!r}.")
    return name, [Path(folder) for folder in folders]
