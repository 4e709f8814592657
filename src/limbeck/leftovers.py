"""What a process writes beside its place, and what is left of it after a crash: swept away, or put back.

A name says whose it is: ``.NAME.HOST.PID.partial`` is being written, ``.old`` stands aside for its successor. What a process
of this machine left when it died goes; what other machines have written cannot be judged from here and stays.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from limbeck.digests import MARKER, is_complete

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]  # tells machines apart and names none


def sibling(out: Path, role: str) -> Path:
    """Where this process writes what shall stand at ``out`` ("partial"), or keeps what stood there ("old")."""
    return out.with_name(f".{out.name}.{HOST}.{os.getpid()}.{role}")


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """A temporary sibling of a file to write; on a clean exit it takes the file's place, else it goes."""
    temporary = sibling(Path(path), "partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def left_over(out: Path, role: str) -> list[Path]:
    """Siblings by processes of this machine that died, or by this one; those of other machines cannot be judged."""
    begin, end = f".{out.name}.{HOST}.", f".{role}"
    names = os.listdir(out.parent) if out.parent.is_dir() else []  # of a study there may be thousands
    found = [(name, name[len(begin) : -len(end)]) for name in names if name.startswith(begin) and name.endswith(end)]
    return [out.parent / n for n, pid in found if pid.isdigit() and (int(pid) == os.getpid() or not _alive(int(pid)))]


def clean(out: Path) -> None:
    """Remove what is left over beside ``out``; a former copy goes only where a complete one has taken its place."""
    for path in left_over(out, "partial") + (left_over(out, "old") if is_complete(out) else []):
        shutil.rmtree(path, ignore_errors=True)
        if path.is_file():
            path.unlink(missing_ok=True)


def sweep(out: Path) -> None:
    """In a folder that is gone on with: what processes that died were writing there. Folders of ours in it see to theirs."""
    left = re.compile(rf"\.(.+)\.{HOST}\.\d+\.(partial|old)")
    for place, folders, files in os.walk(out):
        if Path(place) != out and MARKER in files:
            folders.clear()
            continue
        for name in files:
            if re.fullmatch(r"\.tmp\w{6}", name):  # safetensors writes beside the file, too
                Path(place, name).unlink(missing_ok=True)
        for match in filter(None, map(left.fullmatch, (*folders, *files))):
            restore(Path(place, match[1]))
            clean(Path(place, match[1]))


def restore(out: Path) -> None:
    """Put back the former copy where a process died after moving it aside and before its successor was there."""
    copies = [] if out.exists() else left_over(out, "old")
    if copies:
        with suppress(FileNotFoundError):  # another process was quicker
            os.replace(max(copies, key=lambda path: (is_complete(path), path.stat().st_mtime)), out)


def set_aside(out: Path) -> None:
    """Make room for a successor; what stood there goes once that is complete."""
    old = sibling(out, "old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(out, old)


def remove(folder: Path) -> None:
    """Take a folder away at once: a crash leaves all of it, or what is swept away later."""
    temporary = sibling(folder, "partial")
    os.replace(folder, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
