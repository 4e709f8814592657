"""Storage URLs as text: what one is, which are refused, where on this machine its folder lies, and back.

A folder behind a URL is worked on as a local one below the cache, at a path that spells the URL, so that every record and
message can name the URL and none names the cache. Reads and writes nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path

from limbeck.errors import ConfigError

# Anywhere in a text: NAME=s3://a/b,s3://a/c has two. A comma before an @ is part of a password, which is to be refused whole.
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s,]|,(?=[^\s/]*@))*")
EMPTY = "%"  # stands in a path for the empty host of file:///data
READ_ONLY = ("http", "https")


def is_url(text: str | os.PathLike[str]) -> bool:
    """Whether this is one URL and nothing else.

    >>> is_url("s3://bucket/run"), is_url("runs/a"), is_url("abacus:base"), is_url("sft=s3://bucket/run")
    (True, False, False, False)
    """
    return bool(URL.fullmatch(os.fspath(text)))


def checked(url: str, *, written: bool = False) -> str:
    """The URL without a slash at its end.

    The message of a refusal does not repeat the URL: what makes it refused may be a secret.

    Args:
        url: of a folder.
        written: a folder is to be written there, not read.

    Raises:
        ConfigError: it holds a password, a query or a fragment, names no folder, or cannot be written to.

    >>> checked("s3://bucket/runs/a/")
    's3://bucket/runs/a'
    """
    protocol, _, rest = url.partition("://")
    before, at, _ = rest.rpartition("@")
    if (at and (":" in before or protocol.lower() in READ_ONLY)) or "?" in rest or "#" in rest:
        raise ConfigError(
            f"a storage URL must be without password, token or query, because records and messages repeat it; received a URL "
            f"of {protocol}:// with one. Give credentials to the storage's own client, by its environment or files "
            "(docs/storage.md)."
        )
    parts = rest.rstrip("/").split("/")
    if not parts[-1] or {".", "..", EMPTY} & {*parts} or "" in parts[1:] or not re.fullmatch(r"[\w./@:%~+=-]+", rest):
        raise ConfigError(
            f"a storage URL must name a folder by letters, digits and any of . / @ : % ~ + = - _, received {url!r}. "
            "Write protocol://place/folder."
        )
    if written and protocol.lower() in READ_ONLY:
        raise ConfigError(f"a folder can be read over {protocol}, not written; received {url}. Give another --out.")
    return f"{protocol.lower()}://{rest.rstrip('/')}"


def cache_root() -> Path:
    """Where folders behind URLs lie on this machine: ``LIMBECK_CACHE``, by default ``limbeck`` in the user's cache."""
    return _root(os.environ.get("LIMBECK_CACHE", ""), os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~"))


def place(role: str, key: str, url: str) -> Path:
    """The local folder of a URL: ``ROLE/KEY/PROTOCOL/...`` below the cache, with the URL's own last name.

    Args:
        role: ``in`` for a copy of what is there, ``out`` for what is to go there.
        key: hexadecimal; tells two contents of one URL apart.
        url: checked.
    """
    protocol, _, rest = url.partition("://")
    return cache_root().joinpath(role, key[:16], protocol, *(part or EMPTY for part in rest.split("/")))


def key_of(content: bytes | str) -> str:
    """What :func:`place` takes for a key.

    >>> len(key_of("s3://bucket/run"))
    16
    """
    return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()[:16]


def origin(text: str) -> str:
    """The text with every path of :func:`place` as the URL that it stands for.

    >>> origin(f"read {place('in', '0' * 16, 'file:///data/run')}/model")
    'read file:///data/run/model'
    """
    if "/in/" not in text and "/out/" not in text:  # most texts: millions of them are digested
        return text
    root = str(cache_root())
    return _places(root).sub(_url, text) if root in text else text


def _url(found: re.Match[str]) -> str:
    parts = found[2].split("/")
    return f"{found[1]}://{'/'.join(['' if parts[0] == EMPTY else parts[0], *parts[1:]])}"


@cache
def _places(root: str) -> re.Pattern[str]:
    return re.compile(re.escape(root) + r"/(?:in|out)/[0-9a-f]{16}/([a-z0-9+.-]+)/([\w./@:%~+=-]+)")


@cache
def _root(own: str, xdg: str, home: str) -> Path:
    return Path(own or Path(xdg or Path(home, ".cache"), "limbeck")).expanduser().resolve()
