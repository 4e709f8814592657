"""Which program wrote a log, told from its name and its first record; results without samples are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from limbeck.errors import ConfigError, DataError, nearest
from limbeck.evals.exchange import inspect_logs, lighteval, lm_eval, plain
from limbeck.evals.exchange.files import json_document, json_lines, parquet_columns
from limbeck.evals.exchange.rows import Regrade
from limbeck.types import ScoreTable


@runtime_checkable
class Reader(Protocol):
    """A log to a score table; ``metric`` empty where there is one."""

    def __call__(self, path: Path, *, name: str, metric: str = "", regrade: Regrade = "") -> ScoreTable: ...


class Source(NamedTuple):
    """A program whose logs can be read: its reader, and what its log of answers looks like in a folder."""

    read: Reader
    pattern: str


SOURCES: dict[str, Source] = {
    "lm-eval": Source(lm_eval.read, "samples_*.jsonl"),
    "lighteval": Source(lighteval.read, "details_*.parquet"),
    "inspect": Source(inspect_logs.read, "*.eval"),
    "table": Source(plain.read, ""),
}

AGGREGATES: dict[str, Callable[[set[str]], bool]] = {
    "lm-evaluation-harness, which logs answers with --log_samples": lambda keys: {"results", "configs"} <= keys,
    "lighteval, which logs answers with --save-details": lambda keys: {"results", "config_general"} <= keys,
}


def read_log(path: Path, *, source: str = "", name: str = "", metric: str = "", regrade: Regrade = "") -> ScoreTable:
    """The score table in another program's log, or in a plain file with our columns.

    Args:
        path: the log, or a folder with exactly one.
        source: a key of ``SOURCES``; told from the file when empty.
        name: whose table this is; the file's name when empty.
        metric: which grade, in the program's own words; may be left out where there is one.
        regrade: judge the logged responses by limbeck's grader instead.

    Raises:
        ConfigError: no such file, an unknown source, or several logs, metrics or scorers and none named.
        DataError: what cannot be paired: aggregates only, ids that are missing or double, partial credit.
    """
    if source and source not in SOURCES:
        raise ConfigError(f'there is no source "{source}". {nearest(source, SOURCES)}')
    path = _only_log(path, source)
    try:
        return SOURCES[source or _source_of(path)].read(path, name=name or path.stem, metric=metric, regrade=regrade)
    except RecursionError:  # read, and too deep for whatever walks over it
        raise DataError(f"{path} must hold records of a few levels, received nesting too deep to read.") from None


def _only_log(path: Path, source: str) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"a log must be an existing file or folder, received {path}. Check the path.")
    patterns = [SOURCES[source].pattern] if source else [one.pattern for one in SOURCES.values()]
    found = sorted(file for pattern in patterns if pattern for file in path.rglob(pattern) if file.is_file())
    if len(found) != 1:
        names = ", ".join(str(file.relative_to(path)) for file in found[:5]) or "none"
        raise ConfigError(
            f"{path} must hold one log of answers, received {len(found)} ({names}). Give the file's path."
        )
    return found[0]


def _source_of(path: Path) -> str:
    if path.suffix == ".eval":
        return "inspect"
    if path.suffix == ".csv":
        return "table"
    if path.suffix == ".parquet":
        return "lighteval" if set(lighteval.COLUMNS) <= set(parquet_columns(path)) else "table"
    if path.suffix == ".jsonl":
        _, first = next(json_lines(path), ("", {}))
        return "table" if "problem_id" in first else "lm-eval"
    if path.suffix == ".json":
        keys = set(json_document(path))
        for program, fits in AGGREGATES.items():
            if fits(keys):
                raise DataError(
                    f"{path} must hold one grade an answer, received aggregates of {program}. Averages cannot be paired."
                )
        return "inspect"
    raise ConfigError(
        f"a log must be .jsonl, .parquet, .csv, .eval or .json, received {path.name}. Give --from, one of: {', '.join(SOURCES)}."
    )
