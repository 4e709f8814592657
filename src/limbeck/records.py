"""JSON records as limbeck writes them: one form for every value, so that equal records have equal bytes and digests."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.addresses import origin
from limbeck.digests import sound
from limbeck.errors import DataError
from limbeck.leftovers import whole


def write_json(path: Path | str, value: Any) -> None:
    """Sorted keys, two spaces, NaN and infinities as null; appears whole or not at all."""
    put(Path(path), json_bytes(value))


def put(path: Path, text: bytes) -> None:
    """Appears whole or not at all."""
    with whole(path) as temporary:
        temporary.write_bytes(text)


def read_json(path: Path | str) -> Any:
    """What :func:`write_json` wrote.

    Raises:
        DataError: the file is not JSON.
        ProvenanceError: it is not what was written, see :func:`limbeck.digests.sound`.
    """
    sound(path)
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:  # the latter: brackets nested by the thousand
        raise DataError(f"{path} must be JSON, received text that is not ({error}). Write it again.") from error


def json_bytes(value: Any) -> bytes:
    """What :func:`write_json` writes."""
    text = json.dumps(plain(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "surrogatepass")


def plain(value: Any) -> Any:
    """The JSON form of a value: mappings, sequences, numpy and torch scalars, paths; not-a-number becomes null.

    The local copy of a folder behind a URL is named by the URL: records are read on other machines.

    >>> plain({"b": float("nan"), "a": (1, Path("x"))})
    {'b': None, 'a': [1, 'x']}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, (str, os.PathLike)):
        return origin(os.fspath(value))
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def digest_of(value: Any) -> str:
    """sha256 of a value's canonical JSON: independent of key order, and of tuple or list.

    >>> digest_of({"a": 1, "b": (2,)}) == digest_of({"b": [2], "a": 1})
    True
    """
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


RESERVED = {"con", "prn", "aux", "nul", "manifest", *(f"{d}{i}" for d in ("com", "lpt") for i in range(10))}


def safe_name(identifier: str) -> str:
    """A file name for any id: inside its folder, short, portable; distinct ids never collide.

    Plain lower-case ids stay as they are; others are shortened and get a digest after ``~``, which no plain id has.

    >>> safe_name("sft-lr1e-4"), safe_name("../../x")[:3]
    ('sft-lr1e-4', 'x~9')
    """
    simple = re.fullmatch(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*", identifier)
    if simple and len(identifier) <= 64 and identifier.split(".")[0] not in RESERVED:
        return identifier
    slug = re.sub(r"[^a-z0-9_-]+", "-", identifier.lower()).strip("-")[:40]
    return f"{slug}~{hashlib.sha256(identifier.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"
