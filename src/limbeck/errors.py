"""One root, few leaves, and how a message is worded.

Every message says three things in order: what must hold, what was received, and the way out.
A failed grade or an undefined metric is data, not an exception, and has no place here.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST, TAIL = 4000, 500  # characters of a message: it may repeat what a stranger's file calls its columns


class LimbeckError(Exception):
    """Root of everything limbeck raises on purpose; the command line prints it without a traceback.

    >>> len(str(LimbeckError("x" * 10_000)))
    4000
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= LONGEST else f"{text[: LONGEST - TAIL - 5]} ... {text[-TAIL:]}"


class ConfigError(LimbeckError, ValueError):
    """A setting, argument or table key that cannot mean anything."""

    exit_code = 2


class DataError(LimbeckError, ValueError):
    """Problems, rollouts or score tables that break their contract."""


class ShapeError(LimbeckError, ValueError):
    """A tensor whose shape or dtype an objective, head or metric must refuse rather than broadcast."""


class ProvenanceError(LimbeckError, ValueError):
    """Two things that must come from the same source and do not."""


class ModelError(LimbeckError, ValueError):
    """A model, adapter or tokenizer that cannot serve here."""


class DegenerateError(LimbeckError, ValueError):
    """Input that is well formed and leaves nothing to compute: no trainable token, no pair, no item."""


class NotFiniteError(DegenerateError):
    """A number that is read is NaN or infinite."""


class FolderError(ConfigError, FileExistsError):
    """An output folder that is already there, or an input folder that is not complete."""


class ServerError(LimbeckError, ConnectionError):
    """A server that does not answer, or answers what cannot be used; what it did answer is saved."""


class DivergedError(LimbeckError, ArithmeticError):
    """Training met NaN or infinity; the step and its inputs were saved for replay."""


class StorageError(LimbeckError):
    """A disk that is full or read-only, or a file that is gone: what the system says of files, once it is a sentence."""


ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PLACE = (errno.EROFS, errno.EIO, errno.ESTALE)


@contextmanager
def storage_errors() -> Iterator[None]:
    """What the system says of files, raised as :class:`StorageError`; whatever else is raised passes."""
    try:
        yield
    except (LimbeckError, ConnectionError, TimeoutError):  # the latter two are about servers
        raise
    except Exception as error:
        told = _of_system(error)
        if told is None:
            raise
        raise told from error


def _of_system(error: BaseException) -> StorageError | None:
    """The error of the operating system that this is, or that lies behind it where files were written."""
    said = str(error)
    if isinstance(error, OSError):
        number = error.errno
        said = f"{error.strerror}: {error.filename}" if error.filename else said
    else:  # safetensors gives the number in words; torch raises another one over the system's
        spelled = re.search(r"\(os error (\d+)\)", said)
        behind = error.__cause__ or error.__context__
        number = int(spelled[1]) if spelled else behind.errno if isinstance(behind, OSError) else None
        if number not in ROOM + PLACE:
            return None
        said = os.strerror(number) if not spelled else said
    must, way = "files must be there and be read and written as long as a command runs", "See to that"
    if number in ROOM:
        must, way = "there must be room on the disk for what is written", "Make room"
    return StorageError(f"{must}, received: {said}. {way}, and run the same command: what was finished is kept.")


def printable(text: str) -> str:
    r"""The text as a terminal may have it: what a file says can not move a cursor, ring a bell or turn a line around.

    >>> printable("a\x1b[2Jb\tc\u202e\n")
    'a\ufffd[2Jb\tc\ufffd\n'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def inert(value: object) -> object:
    """A cell of a CSV file as a spreadsheet may have it: text that it would compute gets an apostrophe; numbers stay numbers.

    >>> inert("=1+1"), inert("-x"), inert("-0.5"), inert(-0.5), inert("a=b")
    ("'=1+1", "'-x", '-0.5', -0.5, 'a=b')
    """
    if not isinstance(value, str) or not value.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


MOST_CHOICES = 500  # that are looked through


def nearest(word: str, choices: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the closest match, then every choice.

    >>> nearest("betta", ["beta", "label_smoothing"])
    'Did you mean "beta"? Known: beta, label_smoothing.'
    >>> nearest("zzz", ["beta"])
    'Known: beta.'
    """
    known = sorted({f"{choice:.60}" for choice in choices})  # names may be a stranger's, and many
    close = difflib.get_close_matches(word, known[:MOST_CHOICES], n=1)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    return f"{hint}Known: {', '.join(known)}."
