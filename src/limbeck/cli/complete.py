"""What the shell offers after a name's first letters; where nothing fits, the shell offers files.

Names are read off the package's files: importing what defines them would take seconds at every press of the key.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def studies(incomplete: str) -> list[str]:
    """The packaged studies."""
    return _fitting(incomplete, [path.stem for path in (PACKAGE / "studies").glob("*.toml")])


def objectives(incomplete: str) -> list[str]:
    """The rows of the table of objectives."""
    return _fitting(incomplete, [name for path in (PACKAGE / "objectives").glob("*.py") for name in _rows(path)])


def worlds(incomplete: str) -> list[str]:
    """The embedded worlds."""
    return _fitting(incomplete, {path.parent.parent.name for path in _models()})


def models(incomplete: str) -> list[str]:
    """The models of embedded worlds, ``world:model``."""
    return _fitting(incomplete, [f"{path.parent.parent.name}:{path.parent.name}" for path in _models()])


def splits(incomplete: str) -> list[str]:
    """The splits of embedded worlds, ``world:split``."""
    return _fitting(
        incomplete, [f"{world}:{split}" for world in worlds("") for split in ("train", "validation", "test")]
    )


def arms(incomplete: str) -> list[str]:
    """The last of several arms, joined by commas, of a new study."""
    before, sign, last = incomplete.rpartition(",")
    return [f"{before}{sign}{name}" for name in (*objectives(last), *_fitting(last, ["rft", "seed-null"]))]


def _models() -> list[Path]:
    return list((PACKAGE / "worlds").glob("*/*/config.json"))


def _rows(path: Path) -> list[str]:
    """The names in a module's ``ROWS``: of each call there the keyword ``name``, else what comes first."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    tables = [n.value for n in module.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "ROWS"]
    calls = [
        call for table in tables if isinstance(table, ast.Tuple) for call in table.elts if isinstance(call, ast.Call)
    ]
    named = [[word.value for word in call.keywords if word.arg == "name"] + call.args for call in calls]
    return [value.value for value, *_ in named if isinstance(value, ast.Constant) and isinstance(value.value, str)]


def _fitting(incomplete: str, names: list[str] | set[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
