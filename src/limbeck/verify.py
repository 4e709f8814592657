"""Whether a folder that a verb wrote is still what was written: every file against the manifests that name it.

All of it is read, each file once, whatever this process read before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from limbeck.addresses import origin
from limbeck.digests import MANIFEST, MARKER, file_digest, read_sealed
from limbeck.errors import LimbeckError, ProvenanceError
from limbeck.evals.tables import read_table
from limbeck.folders import read_manifest
from limbeck.rollouts.store import read_rollouts

CONTENT: dict[str, Callable[[Path], object]] = {"rollouts": read_rollouts, "scores": read_table}  # rows with a digest
Advance = Callable[[float], None]


class Problem(NamedTuple):
    """What is wrong with one file, below the folder; what it is in a word; and what must hold, was found, and is to be done."""

    file: str
    kind: str
    says: str


class Verdict(NamedTuple):
    """What was found in a folder.

    Attributes:
        folder: as it was given.
        kind: what it holds; empty where its own manifest is damaged or not there yet.
        files: how many were read.
        size: bytes of them.
        problems: one for each file that is not as it should be, by name.
        unfinished: folders in it, itself included, that a verb began and did not end; no problem.
    """

    folder: Path
    kind: str
    files: int
    size: int
    problems: tuple[Problem, ...]
    unfinished: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**self._asdict(), "whole": not self.problems, "problems": [p._asdict() for p in self.problems]}


def shown(verdict: Verdict) -> list[str]:
    """A verdict in lines: each problem, each unfinished folder, and the whole."""
    folder = origin(str(verdict.folder))
    lines = [f"{folder}/{problem.file} {problem.says}" for problem in verdict.problems]
    lines += [
        f"{folder if place == '.' else f'{folder}/{place}'} is not finished; the command that writes it goes on with it."
        for place in verdict.unfinished
    ]
    state = f"{len(verdict.problems)} of its files are not as they were written" if verdict.problems else "whole"
    kind = f" ({verdict.kind})" if verdict.kind else ""
    return [*lines, f"{folder}{kind}: {state}; {verdict.files} files, {verdict.size / 1e6:.1f} MB, were read"]


class _Owner(NamedTuple):
    """A folder of ours within the one that is looked at: what its manifest says, None where it has none that can be read."""

    place: str
    kind: str
    files: dict[str, str] | None
    finished: bool
    apart: frozenset[str] = frozenset()

    def writes_on(self, name: str) -> bool:
        """Whether a file has no digest because others go on writing to it."""
        return Path(name).relative_to(self.place).as_posix() in self.apart


def size_of(folder: Path) -> int:
    """Bytes of all files that :func:`verify` compares.

    Raises:
        FolderError: no folder that a verb wrote, or only a part of one.
    """
    if not (folder / MARKER).is_file() or (folder / MANIFEST).is_file():
        with suppress(ProvenanceError):  # a damaged one is told with the rest
            read_manifest(folder)
    return sum((folder / name).stat().st_size for name in _compared(_names(folder)))


def verify(folder: Path, advance: Advance = lambda num: None) -> Verdict:
    """Read every file of a folder, and of the folders in it, and compare.

    Args:
        folder: of any kind, complete or not.
        advance: called with the number of bytes just read.

    Raises:
        FolderError: as :func:`size_of`.
    """
    size, names = size_of(folder), _names(folder)
    owners, problems = _owners(folder, names)
    stated = _stated(owners)
    files = _compared(names)
    for name in files:
        problems += _of_file(folder, name, stated.get(name, []), owners, advance)
    there = set(files)
    problems += [_missing(name) for name in stated if name not in there]
    problems += _of_content(folder, owners, {problem.file for problem in problems})
    root = owners.get("")
    unfinished = tuple(place or "." for place, owner in sorted(owners.items()) if not owner.finished)
    kind = root.kind if root else ""
    return Verdict(folder, kind, len(files), size, tuple(sorted(problems)), unfinished)


def _names(folder: Path) -> list[str]:
    """Every file below a folder, links to folders not followed."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def _compared(names: list[str]) -> list[str]:
    """Those that have a digest in a manifest, or should."""
    return [name for name in names if Path(name).name not in (MANIFEST, MARKER)]


def _owners(folder: Path, names: list[str]) -> tuple[dict[str, _Owner], list[Problem]]:
    """The folders of ours, by their place below the one that is looked at, and manifests that are damaged."""
    owners: dict[str, _Owner] = {}
    problems = []
    for name in names:
        path = Path(name)
        place = path.parent.as_posix() if path.parent != Path() else ""
        if path.name == MARKER:
            owners.setdefault(place, _Owner(place, "", None, finished=False))
        if path.name != MANIFEST:
            continue
        try:
            manifest = read_sealed(folder / name)
        except ProvenanceError:
            owners[place] = _Owner(place, "", None, finished=True)
            says = "must match its own digest, and does not: it was changed or damaged. Copy the folder again, or make it anew."
            problems.append(Problem(name, "manifest", says))
            continue
        if manifest is not None:
            given = manifest.get("apart")
            apart = frozenset(map(str, given)) if isinstance(given, list) else frozenset[str]()
            owners[place] = _Owner(place, str(manifest["kind"]), manifest["files"], finished=True, apart=apart)
    return owners, problems


def _stated(owners: dict[str, _Owner]) -> dict[str, list[str]]:
    """The digests that manifests have of each file."""
    out: dict[str, list[str]] = {}
    for owner in owners.values():
        for name, digest in (owner.files or {}).items():
            out.setdefault(f"{owner.place}/{name}" if owner.place else name, []).append(str(digest))
    return out


def _of_file(
    folder: Path, name: str, stated: list[str], owners: dict[str, _Owner], advance: Advance
) -> Iterator[Problem]:
    try:
        found = file_digest(folder / name, advance)
    except OSError as error:
        yield Problem(name, "unreadable", f"must be readable, received {error}. Copy it again.")
        return
    wrong = next((digest for digest in stated if digest != found), "")
    if wrong:
        yield Problem(
            name,
            "changed",
            f"must match its manifest's digest {wrong[:12]}..., received {found[:12]}...: it was changed or damaged after it was "
            "written. Copy it again, or make the folder anew.",
        )
    elif not stated and (owner := _owner_of(name, owners)) and owner.files is not None and not owner.writes_on(name):
        yield Problem(
            name,
            "stray",
            f"must be named in {owner.place + '/' if owner.place else ''}{MANIFEST}, received a file that is not: it came after "
            "the folder was finished. Move it elsewhere.",
        )
    elif said := _unreadable(folder / name):
        yield Problem(
            name, "unreadable", f"must be readable, received {said}. It was written so: make the folder anew."
        )


def _owner_of(name: str, owners: dict[str, _Owner]) -> _Owner | None:
    """The innermost folder of ours that a file lies in."""
    places = [parent.as_posix() for parent in Path(name).parents]
    return next((owners[place] for place in ("" if p == "." else p for p in places) if place in owners), None)


def _missing(name: str) -> Problem:
    says = "must be there, as a manifest names it, and is not. Copy it again, or make the folder anew."
    return Problem(name, "missing", says)


def _unreadable(path: Path) -> str:
    """What a reader of such files says of one that it cannot read; empty where it can, and of files of other kinds."""
    reader = READERS.get(path.suffix)
    try:
        if reader:
            reader(path)
    except (OSError, ValueError, RecursionError, SafetensorError, pa.ArrowException) as error:
        return f"{type(error).__name__}: {error!s:.200}"
    return ""


def _tensors(path: Path) -> None:
    with safe_open(path, framework="np"):
        pass


def _lines(path: Path) -> None:
    with path.open("rb") as file:
        for line in file:
            json.loads(line)


READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _tensors,
    ".json": lambda path: json.loads(path.read_bytes()),
    ".jsonl": _lines,
    ".parquet": pq.read_metadata,
}


def _of_content(folder: Path, owners: dict[str, _Owner], wrong: set[str]) -> Iterator[Problem]:
    """Rows that have a digest of their own beside that of their file, where the files are right."""
    for place, owner in owners.items():
        read = CONTENT.get(owner.kind)
        if read is None or any(name.startswith(f"{place}/" if place else "") for name in wrong):
            continue
        try:
            read(folder / place)
        except LimbeckError as error:
            yield Problem(f"{place}/{MANIFEST}" if place else MANIFEST, "content", str(error))
