"""The sentence in which a run or study failed, left in its folder by the command line and gone when it goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from limbeck.digests import MARKER, is_complete
from limbeck.errors import LimbeckError
from limbeck.records import write_json

STOPPED = "stopped.json"


@contextmanager
def sentence_left(folder: Path) -> Iterator[None]:
    """Write an error's message into ``folder``, where this process has claimed it and did not complete it."""
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, LimbeckError) else f"{type(error).__name__}: {error}"
        with suppress(OSError):  # what is told of the failure must not be another one
            if (folder / MARKER).read_text() == str(os.getpid()) and not is_complete(folder):
                write_json(folder / STOPPED, {"error": said})
        raise


def forget_sentence(folder: Path) -> None:
    """Remove what an earlier failure said, once the folder is claimed again."""
    (folder / STOPPED).unlink(missing_ok=True)
