"""Problems by name: a world's split such as ``abacus:train``, a file, or a data set's folder."""

from __future__ import annotations

from typing import Any

from limbeck.errors import ConfigError, nearest
from limbeck.problems.files import find_source
from limbeck.problems.sources import FORMATS, Solved, asked_by, fields_named
from limbeck.problems.sources import read_problems as read_mapped
from limbeck.types import Problem
from limbeck.worlds import WORLDS
from limbeck.worlds.abacus.generator import generate

SPLITS = ("train", "validation", "test")
WORLD_PROBLEMS = 1000  # of a world's endless supply, unless a number is given


def read_problems(given: dict[str, Any]) -> list[tuple[Problem, str]]:
    """Problems with a reference solution each, empty where the source has none, in a fixed order.

    Args:
        given: a study's ``ProblemsConfig`` as a dictionary, or what :func:`problems_named` makes.
    """
    solved = _as_they_stand(given)
    return asked_by(given["template"], solved) if given.get("template") else solved


def _as_they_stand(given: dict[str, Any]) -> Solved:
    if not given.get("path"):
        return generate(given["split"], given["num"] or WORLD_PROBLEMS, seed=given["seed"])
    if given["format"] not in FORMATS:
        raise ConfigError(f'there is no problem format "{given["format"]}". {nearest(given["format"], FORMATS)}')
    if given.get("fields"):
        return read_mapped(given["path"], fields_named(given["fields"]))[: given["num"]]
    return FORMATS[given["format"]](given["path"])[: given["num"]]


def problems_named(
    name: str, file_format: str, num: int | None, seed: int, fields: str = "", template: str = ""
) -> dict[str, Any]:
    """``world:split``, a file, ``folder`` or ``folder:split``, as :func:`read_problems` takes it.

    Args:
        name: see above.
        file_format: of a file or folder, one of ``FORMATS``; without meaning where ``fields`` are given.
        num: the first so many; None for all.
        seed: of a world's generator.
        fields: where a file keeps what, ``prompt=question,answer=solution,id=uid``; empty for the format's own.
        template: how a problem is asked, ``{problem}`` in it; empty: as it stands.
    """
    world, sign, split = name.partition(":")
    asked = {"template": template} if template else {}
    if sign and world in WORLDS:
        if split not in SPLITS:
            raise ConfigError(f'world "{world}" has no split "{split}". {nearest(split, SPLITS)}')
        return {"world": world, "split": split, "num": num, "seed": seed, **asked}
    return {"path": name, "format": file_format, "num": num, "fields": _mapping(fields), **asked}


def problems_record(given: dict[str, Any]) -> dict[str, Any]:
    """What pins a set of problems in a manifest: where it came from, how it was read and asked, the digest of its files."""
    if not given.get("path"):
        return dict(given)
    return {**given, "path": str(given["path"]).rpartition("/")[2], "files_digest": find_source(given["path"]).digest}


def _mapping(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if not all(sign and ours.strip() and theirs.strip() for ours, sign, theirs in pairs):
        raise ConfigError(f"fields are written prompt=question,answer=solution, received {text!r}. Write them so.")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
