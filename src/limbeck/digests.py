"""Whether a file is what was written: the digest that the manifest above it has of it is compared before the file is read.

A manifest has the digest of every file of its folder and, in its own text, its own. A file that no manifest names, a user's
own, passes. What was hashed is not hashed again by the same process while the file stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from limbeck.errors import ProvenanceError

MANIFEST = "manifest.json"
MARKER = ".limbeck"  # the first file in every folder of ours: an unfinished folder without it is not ours to replace
DEPTH = 6  # folders from a file up to the one whose manifest names it: study/steps/run/kept/step/adapter
KEYS = {"kind", "files", "versions"}  # that every manifest of ours has
OWN = "sha256 of this file with zeros in its place: "
SIGNS = (
    OWN.encode(),
    b'"limbeck": "',
    b'"versions": {',
    b'"files": {',
)  # of a manifest of ours, one damaged at any place
_OWN = re.compile(rb'(?<="self": "' + re.escape(OWN.encode()) + rb')[0-9a-f]{64}(?=")')
BLOCK = 1 << 22  # bytes read at a time
SETTLED = 0.1  # seconds after which a change of a file surely changes its times; the clocks of file systems tick slowly

T = TypeVar("T")
Stamp = tuple[int, ...]


def file_digest(path: Path | str, advance: Callable[[int], None] = lambda num: None) -> str:
    """sha256 of a file's bytes; ``advance`` is called with the number of bytes just read."""
    found = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            found.update(block)
            advance(len(block))
    return found.hexdigest()


def sound(path: Path | str) -> Path:
    """The path, after the file was found to be what its manifest says; also where no manifest names it, or it is not there.

    Raises:
        ProvenanceError: it is not, or the manifest itself is damaged.
    """
    path = Path(path)
    if path.name == MANIFEST:
        return path
    for file in dict.fromkeys((Path(os.path.abspath(path)), path.resolve())):
        for folder in list(file.parents)[:DEPTH]:
            if not ((folder / MANIFEST).is_file() or (folder / MARKER).is_file()):
                continue
            stated = str(_files(folder / MANIFEST).get(file.relative_to(folder).as_posix(), ""))
            if stated and file.is_file() and (found := known_digest(file)) != stated:
                raise ProvenanceError(
                    f"{path} must match its manifest's digest {stated[:12]}..., received {found[:12]}...: it was changed or "
                    "damaged after it was written. Copy the folder again, or remove it and make it anew; "
                    f"limbeck verify {folder} looks at every file of it."
                )
            return path
    return path


def sound_in(folder: Path | str, *, weights: bool) -> Path:
    """The folder of a model, after all of its weights, or all other files right in it, were found to be what was written.

    Raises:
        ProvenanceError: as :func:`sound`.
    """
    for file in sorted(Path(folder).iterdir()):
        if file.is_file() and (file.suffix == ".safetensors") == weights:
            sound(file)
    return Path(folder)


def known_digest(path: Path | str) -> str:
    """As :func:`file_digest`, once a process while size, times and place of the file stay as they are."""
    return _digest(Path(os.path.abspath(path)))


def sealed_text(text: bytes) -> bytes:
    """The text of a manifest with its own digest in it, in place of the zeros of :func:`unsealed`."""
    return _OWN.sub(hashlib.sha256(text).hexdigest().encode(), text, count=1)


def unsealed() -> str:
    """What a manifest has as ``self`` until its own digest is known."""
    return OWN + "0" * 64


def read_sealed(path: Path | str) -> dict[str, Any] | None:
    """A manifest of ours, which is what was written; None where the file is not there or is a stranger's.

    One that was written before manifests had a digest of their own is taken as it is.

    Raises:
        ProvenanceError: it is damaged.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return checked_manifest(text, path)


def checked_manifest(text: bytes, path: Path | str) -> dict[str, Any] | None:
    """As :func:`read_sealed`, of a text that was read already; ``path`` is what a message calls it."""
    manifest = _parsed(text)
    if not is_manifest(text):
        return None
    stated = _OWN.search(text)
    without = stated is None and not (b'"self": "' in text or OWN.encode() in text)  # one bit cannot take both away
    same = stated is not None and hashlib.sha256(_OWN.sub(b"0" * 64, text, count=1)).hexdigest().encode() == stated[0]
    if manifest is None or not (same or without):
        raise ProvenanceError(
            f"{path} must be as it was written, received a text that does not match its own digest: it was changed or damaged. "
            "Copy the folder again, or remove it and make it anew; nothing in it can be told to be right without its manifest."
        )
    return manifest


def is_manifest(text: bytes) -> bool:
    """Whether this is the text of a manifest of ours, damaged or not."""
    return _parsed(text) is not None or sum(sign in text for sign in SIGNS) >= len(SIGNS) - 1


def is_complete(path: Path | str) -> bool:
    """Whether a verb finished this folder: its manifest is there, and it is one of ours, damaged or not."""
    try:
        return is_manifest((Path(path) / MANIFEST).read_bytes())
    except OSError:
        return False


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        manifest = json.loads(text.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or not manifest.keys() >= KEYS or not isinstance(manifest["files"], dict):
        return None
    return manifest


def _remembered(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """The reading, done again only where the file has changed."""
    known: dict[Path, tuple[Stamp, T]] = {}

    def again(path: Path) -> T:
        stamp, now = _stamp(path), time.time_ns()
        if path in known and known[path][0] == stamp:
            return known[path][1]
        value = read(path)
        known.pop(path, None)
        # a file that changed just now may change again without its times telling
        if stamp and stamp[0] < now - int(SETTLED * 1e9) and stamp == _stamp(path):
            known[path] = stamp, value
        return value

    return again


def _stamp(path: Path) -> Stamp:
    """Times and place of a file: writing to it changes ``ctime``, which nobody can set."""
    try:
        facts = path.stat()
    except OSError:
        return ()
    return facts.st_ctime_ns, facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_dev


@_remembered
def _digest(path: Path) -> str:
    return file_digest(path)


@_remembered
def _files(manifest: Path) -> dict[str, str]:
    """The digests in a manifest; none in an unfinished folder, or a stranger's."""
    return (read_sealed(manifest) or {}).get("files", {})
