"""One root, few leaves, and how a message is worded.

Every message says three things in order: what must hold, what was received, and the way out.
A failed grade or an undefined metric is data, not an exception, and has no place here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LimbeckError(Exception):
    """Root of everything limbeck raises on purpose; the command line prints it without a traceback."""

    exit_code = 1


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


def nearest(word: str, choices: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the closest match, then every choice.

    >>> nearest("betta", ["beta", "label_smoothing"])
    'Did you mean "beta"? Known: beta, label_smoothing.'
    >>> nearest("zzz", ["beta"])
    'Known: beta.'
    """
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    return f"{hint}Known: {', '.join(known)}."
