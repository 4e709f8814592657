"""`limbeck verify`: each kind of fault has a line with the file in it, and whole folders have none."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from limbeck import folders, records
from limbeck.cli import app
from limbeck.errors import FolderError
from limbeck.rollouts.store import write_rollouts
from limbeck.verify import verify

from .train.toy import tiny_rollouts


@pytest.fixture
def study(tmp_path):
    """A finished study with rollouts and another step in it."""
    out = folders.claim(tmp_path / "study")
    write_rollouts(tiny_rollouts(), out / "steps/rollouts", shard_rows=10)
    with folders.publish(out / "steps/compare", kind="comparison") as temporary:
        records.write_json(temporary / "comparison.json", {"arms": []})
        (temporary / "lines.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    records.write_json(out / "config.json", {})
    folders.seal(out, kind="study")
    return out


def found(folder):
    return {problem.file: problem.kind for problem in verify(folder).problems}


def test_a_whole_study_has_no_problem_and_all_of_it_is_read(study):
    read = []
    verdict = verify(study, read.append)
    assert (verdict.kind, verdict.problems, verdict.unfinished) == ("study", (), ())
    files = [
        path for path in study.rglob("*") if path.is_file() and path.name not in (folders.MANIFEST, folders.MARKER)
    ]
    assert verdict.files == len(files) == 6
    assert sum(read) == verdict.size == sum(path.stat().st_size for path in files)


def test_each_fault_is_told_by_its_file(study):
    (study / "config.json").write_text("{ }")
    (study / "steps/compare/lines.jsonl").unlink()
    (study / "steps/rollouts/notes.txt").write_text("mine")
    manifest = study / "steps/compare/manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"comparison", b"comparisoo", 1))
    assert found(study) == {
        "config.json": "changed",
        "steps/compare/lines.jsonl": "missing",
        "steps/compare/manifest.json": "manifest",
        "steps/rollouts/notes.txt": "stray",
    }


def test_what_was_written_broken_is_told_although_its_digest_is_right(study):
    step = study / "steps/compare"
    broken = {"a.json": b"{", "a.jsonl": b"{}\n{\n", "a.parquet": b"PAR1", "a.safetensors": b"\0" * 9, "a.bin": b"\0"}
    for name, text in broken.items():
        (step / name).write_bytes(text)
    folders.seal(step, kind="comparison")
    assert found(step) == {name: "unreadable" for name in broken if name != "a.bin"}


def test_rows_of_rollouts_are_held_against_their_own_digest(study):
    manifest = folders.read_manifest(study / "steps/rollouts")
    facts = {**manifest, "digest": "0" * 64}
    folders.seal(study / "steps/rollouts", kind="rollouts", facts={k: v for k, v in facts.items() if k != "self"})
    assert found(study / "steps/rollouts") == {"manifest.json": "content"}


def test_unfinished_folders_are_told_and_their_files_belong_to_them(study, tmp_path):
    run = folders.claim(study / "steps/late")
    (run / "metrics.jsonl").write_text("{}\n")
    verdict = verify(study)
    assert (verdict.problems, verdict.unfinished) == ((), ("steps/late",))
    folders.claim(tmp_path / "begun")
    assert verify(tmp_path / "begun").unfinished == (".",)
    (tmp_path / "users").mkdir()
    with pytest.raises(FolderError, match="must be complete"):
        verify(tmp_path / "users")


def test_the_verb_says_a_line_a_problem_and_ends_with_one(study):
    def call(*arguments):
        return CliRunner().invoke(app, ["verify", str(study), *arguments])

    whole = call()
    assert whole.exit_code == 0
    assert f"{study} (study): whole; 6 files" in whole.stdout
    (study / "config.json").write_text("{ }")
    told = call()
    assert told.exit_code == 1
    assert f"{study}/config.json must match its manifest's digest" in told.stdout
    assert "1 of its files are not as they were written" in told.stdout
    said = call("--json", str(study / "steps/compare"))
    first, second = json.loads(said.stdout)
    assert [problem["file"] for problem in first["problems"]] == ["config.json"]
    assert (first["whole"], second["whole"], said.exit_code) == (False, True, 1)
