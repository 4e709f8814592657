"""The units of :mod:`limbeck.folders`, each disturbed at all of its operations; prints what comes of it. Needs no torch."""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from faultpoints import Unit, everywhere
from limbeck import digests, folders, leftovers, records
from limbeck.errors import FolderError


def published(out: Path, text: str = "new") -> None:
    with folders.publish(out, kind="text", overwrite=True) as temporary:
        (temporary / "text").write_text(text)
        records.write_json(temporary / "deep.json", {"text": text})


def claimed(out: Path, text: str = "new") -> None:
    """As a run: some files once, one that is gone on with, a folder within, an older one that goes."""
    folders.refuse_existing(out, overwrite=True)
    if digests.is_complete(out) and (out / "text").read_text() == text:
        return  # it was sealed before it died
    folders.claim(out, overwrite=True)
    records.write_json(out / "settings.json", {"text": text})
    for number in (1, 2):
        with folders.publish(out / f"step-{number}", kind="step", overwrite=True) as temporary:
            (temporary / "text").write_text(str(number))
    if (out / "step-1").exists():
        leftovers.remove(out / "step-1")
    (out / "text").write_text(text)
    folders.seal(out, kind="text")


def former(out: Path) -> None:
    published(out, "old")


def kept(out: Path) -> None:
    """What was complete is so still, or again once somebody looks, or its successor is on its way."""
    with suppress(FolderError):
        folders.refuse_existing(out)
    if digests.is_complete(out):
        assert (out / "text").read_text() in ("old", "new")
        return
    aside = [path for path in out.parent.iterdir() if path.name.endswith(".old")]
    assert any((path / "text").read_text() == "old" for path in aside if digests.is_complete(path)), (
        "the former is lost"
    )


def look(out: Path) -> dict[str, Any]:
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*")}
    return {
        name: path.is_dir()
        or (records.read_json(path)["files"] if path.name == folders.MANIFEST else path.read_bytes().decode())
        for name, path in found.items()
        if path.name != folders.MARKER  # says who holds the folder, of a complete one nothing
    }


UNITS = {
    "publish": Unit(published, look),
    "publish over": Unit(published, look, former, kept),
    "claim and seal": Unit(claimed, look),
    "claim over": Unit(claimed, look, former, kept),
}

if __name__ == "__main__":
    folders.versions()  # kept, so that forks need not ask
    folders.revision()
    with tempfile.TemporaryDirectory() as root:
        found = {
            f"{name}, {what}": everywhere(unit, Path(root, name, what), full=what == "full")
            for name, unit in UNITS.items()
            for what in ("killed", "full")
        }
    json.dump(found, sys.stdout)
