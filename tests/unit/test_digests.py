"""Files against their manifest, and a manifest against itself: what is found, what passes, and what is hashed again."""

from __future__ import annotations

import json
import os

import pytest

from limbeck import digests, folders, records
from limbeck.errors import FolderError, ProvenanceError


def fill(out, kind="run"):
    with folders.publish(out, kind=kind, facts={"rate": 1e-05}) as temporary:
        (temporary / "part").mkdir()
        (temporary / "part/data.json").write_text('{"a": 1}')
    return out


def put_back(path, text):
    """Change a file and leave its time of change as it was."""
    facts = path.stat()
    path.write_bytes(text)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def settle(monkeypatch):
    """Every file counts as one that changed long ago."""
    monkeypatch.setattr(digests, "SETTLED", -60)


def test_a_changed_file_is_refused_by_name_and_one_that_no_manifest_names_passes(tmp_path):
    file = fill(tmp_path / "run") / "part/data.json"
    assert digests.sound(file) == file
    assert records.read_json(file) == {"a": 1}
    file.write_text('{"a": 3}')
    with pytest.raises(ProvenanceError, match=r"run/part/data.json must match its manifest's digest .* limbeck verify"):
        records.read_json(file)
    stray = tmp_path / "run/stray.json"
    stray.write_text("1")
    assert records.read_json(stray) == 1
    assert digests.sound(tmp_path / "run/absent") == tmp_path / "run/absent"


@pytest.mark.parametrize("link", [False, True])
def test_a_part_of_a_folder_is_checked_wherever_it_is_named_from(tmp_path, monkeypatch, link):
    fill(tmp_path / "run")
    (tmp_path / "run/part/data.json").write_text("{}")
    if link:
        (tmp_path / "model").symlink_to(tmp_path / "run/part")
    monkeypatch.chdir(tmp_path / ("model" if link else "run/part"))
    with pytest.raises(ProvenanceError, match="must match"):
        digests.sound("data.json")


def test_an_unfinished_folder_is_not_checked_against_the_one_that_it_lies_in(tmp_path):
    study = folders.claim(tmp_path / "study")
    fill(study / "steps/a")
    folders.seal(study, kind="study")
    (study / "steps/a/manifest.json").unlink()
    (study / "steps/a/part/data.json").write_text("[]")
    assert records.read_json(study / "steps/a/part/data.json") == []


@pytest.mark.parametrize("change", ["kept", "put back"])
def test_what_was_hashed_is_hashed_again_once_it_changed(tmp_path, monkeypatch, change):
    settle(monkeypatch)
    file = fill(tmp_path / "run") / "part/data.json"
    hashed = []
    monkeypatch.setattr(digests, "file_digest", lambda path: hashed.append(path) or folders.file_digest(path))
    for _ in range(3):
        digests.sound(file)
    assert len(hashed) == 1
    put_back(file, b'{"a": 9}') if change == "put back" else file.write_text('{"a": 9}')
    with pytest.raises(ProvenanceError):
        digests.sound(file)
    put_back(file, b'{"a": 1}')
    digests.sound(file)
    assert len(hashed) == 3


def test_a_file_that_changed_a_moment_ago_is_not_taken_as_known(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 3600)
    file = fill(tmp_path / "run") / "part/data.json"
    hashed = []
    monkeypatch.setattr(digests, "file_digest", lambda path: hashed.append(path) or folders.file_digest(path))
    digests.sound(file)
    digests.sound(file)
    assert len(hashed) == 2


def test_every_single_bit_of_a_manifest_is_found(tmp_path):
    path = fill(tmp_path / "run") / "manifest.json"
    text = path.read_bytes()
    assert digests.checked_manifest(text, path)["rate"] == 1e-05
    for bit in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProvenanceError, match=r"manifest.json must be as it was written"):
            digests.checked_manifest(bytes(flipped), path)


def test_a_damaged_manifest_is_neither_read_nor_silently_replaced(tmp_path):
    path = fill(tmp_path / "run") / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"kind": "run"', b'"kind": "ruo"'))
    for read in (
        lambda: folders.read_manifest(tmp_path / "run"),
        lambda: digests.sound(tmp_path / "run/part/data.json"),
    ):
        with pytest.raises(ProvenanceError, match=r"manifest.json must be as it was written"):
            read()
    for text in (path.read_bytes(), path.read_bytes().replace(b"{", b"z", 1)):
        path.write_bytes(text)
        assert digests.is_complete(tmp_path / "run")
        with pytest.raises(FolderError, match="--overwrite"):
            folders.claim(tmp_path / "run")
    fill_again = folders.claim(tmp_path / "run", overwrite=True)
    assert not (fill_again / "part").exists()


def test_manifests_from_before_they_had_a_digest_are_read_and_their_files_checked(tmp_path):
    path = fill(tmp_path / "run") / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["self"]
    path.write_bytes(records.json_bytes(manifest))
    assert folders.read_manifest(tmp_path / "run") == manifest
    (tmp_path / "run/part/data.json").write_text("{}")
    with pytest.raises(ProvenanceError, match="must match"):
        records.read_json(tmp_path / "run/part/data.json")


def test_what_a_later_verb_wrote_is_put_into_the_manifest_and_nothing_else(tmp_path):
    out = fill(tmp_path / "run")
    for name in ("report.html", "figures/a.csv", "figures/b.csv"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(name)
    (out / "part/data.json").write_text("{}")
    folders.amend(out, "report.html", "figures")
    (out / "figures/b.csv").unlink()
    folders.amend(out, "figures")
    files = folders.read_manifest(out)["files"]
    assert files.keys() == {"part/data.json", "report.html", "figures/a.csv"}
    assert files["report.html"] == digests.file_digest(out / "report.html")
    with pytest.raises(ProvenanceError):
        digests.sound(out / "part/data.json")
    folders.amend(tmp_path, "run")
    assert not (tmp_path / "manifest.json").exists()
