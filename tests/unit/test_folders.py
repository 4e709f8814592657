"""Folders appear whole or not at all, never over somebody's files, and carry no environment."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from limbeck import digests, folders, leftovers, records
from limbeck.errors import DataError, FolderError

DEAD = 99_999_999  # no system numbers its processes so high


def fill(out, text="x", **options):
    with folders.publish(out, **options) as tmp:
        (tmp / "data.txt").write_text(text)
        assert not digests.is_complete(tmp)


def test_published_folder_is_complete_and_digests_match(tmp_path):
    out = tmp_path / "deep" / "run"
    facts = {"seed": 3}
    with folders.publish(out, kind="run", facts=facts) as tmp:
        (tmp / "data.txt").write_text("x")
        facts["late"] = math.nan
        assert not out.exists()
    manifest = folders.read_manifest(out, "run")
    assert manifest["files"] == {"data.txt": folders.file_digest(out / "data.txt")}
    assert (manifest["seed"], manifest["late"]) == (3, None)
    assert manifest["versions"]["limbeck"]
    assert [p.name for p in out.parent.iterdir()] == ["run"]  # no sibling is left


def test_complete_folder_is_refused_with_the_way_out(tmp_path):
    fill(tmp_path / "run", "first")
    with pytest.raises(FolderError, match=r"Pass --overwrite to replace it or another --out\.$"):
        fill(tmp_path / "run", "second")
    assert (tmp_path / "run/data.txt").read_text() == "first"
    fill(tmp_path / "run", "second", overwrite=True)
    assert (tmp_path / "run/data.txt").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def crash(out):
    with folders.publish(out, overwrite=True) as tmp:
        (tmp / "data.txt").write_text("half")
        raise RuntimeError


def test_an_error_leaves_what_was_there(tmp_path):
    fill(tmp_path / "run", "first")
    with pytest.raises(RuntimeError):
        crash(tmp_path / "run")
    assert (tmp_path / "run/data.txt").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_crashed_folder_is_replaced_and_stale_siblings_go(tmp_path):
    crashed = folders.claim(tmp_path / "run")
    (crashed / "half.txt").write_text("half")
    dead = tmp_path / f".run.{leftovers.HOST}.{DEAD}.partial"
    living = tmp_path / f".run.{leftovers.HOST}.{os.getppid()}.partial"
    other = tmp_path / f".run2.{leftovers.HOST}.{DEAD}.partial"
    foreign = [tmp_path / f".run.00c0ffee.{DEAD}.{role}" for role in ("partial", "old")]  # of another machine
    for path in (dead, living, other, *foreign):
        path.mkdir()
    fill(tmp_path / "run")
    assert not (tmp_path / "run/half.txt").exists()
    assert not dead.exists()
    assert all(path.exists() for path in (living, other, *foreign))


@pytest.mark.parametrize("how", ["publish", "claim", "look"])
def test_a_copy_that_a_crash_left_aside_comes_back(tmp_path, how):
    out = tmp_path / "run"
    fill(out, "only copy")
    os.replace(out, tmp_path / f".run.{leftovers.HOST}.{DEAD}.old")  # died before the new folder was in its place
    (tmp_path / f".run.{leftovers.HOST}.{DEAD}.partial").mkdir()
    with pytest.raises(FolderError, match="which is complete"):
        {"publish": fill, "claim": folders.claim, "look": folders.refuse_existing}[how](out)
    assert (out / "data.txt").read_text() == "only copy"
    fill(out, "second", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_another_machines_copy_is_not_taken_for_a_crash(tmp_path):
    aside = tmp_path / f".run.00c0ffee.{DEAD}.old"
    fill(aside)
    folders.refuse_existing(tmp_path / "run")
    assert (aside.exists(), (tmp_path / "run").exists()) == (True, False)


def test_an_overwritten_folder_stays_aside_until_the_new_one_is_sealed(tmp_path):
    out = tmp_path / "run"
    fill(out, "first")
    folders.claim(out, overwrite=True)
    aside = tmp_path / leftovers.sibling(out, "old").name
    assert (aside / "data.txt").read_text() == "first"
    with pytest.raises(RuntimeError):
        crash(out)  # a publication that fails is no successor
    assert (aside / "data.txt").read_text() == "first"
    assert folders.claim(out, overwrite=True) == out  # unfinished: continued, and nothing else moves
    folders.seal(out, kind="run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


HOLD = """
import sys
from limbeck.folders import claim, seal
claim(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
seal(sys.argv[1], kind="run")
print("sealed", flush=True)
sys.stdin.readline()
"""


@contextmanager
def holder(out):
    """Another process that has claimed ``out`` and seals it at a newline."""
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_one_process_at_a_time(tmp_path):
    out = tmp_path / "run"
    with holder(out) as process:
        words = rf"another process \(pid {process.pid}\) is writing .*run\. Wait for it, or give another --out\.$"
        for attempt in (folders.claim, folders.refuse_existing, fill):
            with pytest.raises(FolderError, match=words):
                attempt(out, overwrite=True)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "sealed\n"
        with pytest.raises(FolderError, match="which is complete"):
            folders.claim(out)
        folders.claim(out, overwrite=True)  # it lives on and has let go
    folders.seal(out, kind="run")
    assert (out / folders.MARKER).read_bytes() == b""


def test_a_killed_process_holds_nothing(tmp_path):
    with holder(tmp_path / "run") as process:
        process.kill()
        process.wait()
        out = folders.claim(tmp_path / "run")
        assert (out / folders.MARKER).read_text() == str(os.getpid())
    shutil.rmtree(out)
    assert folders.claim(out).is_dir()  # a claim on what the user removed does not stand in the way


def test_claim_resumes_until_sealed(tmp_path):
    out = folders.claim(tmp_path / "run")
    (out / "step1").write_text("done")
    assert (folders.claim(out) / "step1").read_text() == "done"
    with pytest.raises(FolderError, match="must be complete"):
        folders.read_manifest(out)
    folders.seal(out, kind="study")
    assert folders.read_manifest(out, "study")["files"].keys() == {"step1"}
    with pytest.raises(FolderError, match="--overwrite"):
        folders.claim(out)
    assert not (folders.claim(out, overwrite=True) / "step1").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "manifest.json"])
def test_a_folder_of_the_users_is_never_replaced(tmp_path, overwrite, name):
    (tmp_path / name).write_text("years of work")
    with pytest.raises(FolderError, match="did not write"):
        fill(tmp_path, overwrite=overwrite)
    assert (tmp_path / name).read_text() == "years of work"


def test_file_as_out_and_empty_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match="must be a folder"):
        fill(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty")
    assert digests.is_complete(tmp_path / "empty")


def test_manifest_of_another_kind_or_missing_folder(tmp_path):
    fill(tmp_path / "run", kind="rollouts")
    with pytest.raises(FolderError, match="must be a scores folder, received one of kind 'rollouts'"):
        folders.read_manifest(tmp_path / "run", "scores")
    with pytest.raises(FolderError, match="existing folder"):
        folders.read_manifest(tmp_path / "absent")
    (tmp_path / "rollouts.jsonl").write_text("{}")
    with pytest.raises(FolderError, match=r"received the file .*`limbeck import .*rollouts.jsonl --model MODEL"):
        folders.read_manifest(tmp_path / "rollouts.jsonl", "rollouts")


def test_no_environment_in_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hunter2-planted")
    fill(tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        assert b"hunter2-planted" not in path.read_bytes()
    assert set(folders.host()) == {"system", "machine", "cores"}


def test_json_round_trip(tmp_path):
    value = {"b": [1, math.inf, math.nan], "a": np.float64(0.5), "c": {"é\ud800": np.arange(2)}}
    records.write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_bytes()
    assert records.read_json(tmp_path / "x.json") == {"a": 0.5, "b": [1, None, None], "c": {"é\ud800": [0, 1]}}
    assert text.index(b'"a"') < text.index(b'"b"')
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="must be JSON"):
        records.read_json(tmp_path / "bad.json")


def test_digest_sees_content_alone():
    assert records.digest_of({"a": 1, "b": [1.0]}) == records.digest_of({"b": (1.0,), "a": 1})
    assert records.digest_of({"a": 1}) != records.digest_of({"a": 2})
    assert records.digest_of([1, [2]]) != records.digest_of([1, 2])


def test_safe_names_stay_inside_and_never_collide(tmp_path):
    ids = [
        "../../x",
        "..",
        ".",
        "",
        "/etc/passwd",
        "x" * 5000,
        "x" * 5001,
        "CON",
        "con",
        "nul.txt",
        "a/b",
        "a-b",
        "A-B",
    ]
    ids += ["a\\b", "a\0b", "Ä", "manifest.json", "qwen2.5", "a.", ".a", "a~b", "ok", "x~8"]
    names = [records.safe_name(i) for i in ids]
    assert len({n.lower() for n in names}) == len(ids)
    for name in names:
        path = tmp_path / name
        path.write_text("x")
        assert path.resolve().parent == tmp_path.resolve()
        assert len(name) <= 80
        assert name != "manifest.json"
    assert records.safe_name("qwen2.5") == "qwen2.5"


def test_manifest_is_sorted_json(tmp_path):
    fill(tmp_path / "run")
    keys = list(json.loads((tmp_path / "run/manifest.json").read_text()))
    assert keys == sorted(keys)


def test_killed_or_without_room_at_any_operation_the_next_try_ends_as_if_nothing_had_been():
    """Every change that publish, claim and seal make to files, each with a former copy and without one."""
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(tests / "folderfaults.py")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 8
    assert {name: wrong for name, (_, _, wrong) in found.items() if wrong} == {}
    assert all(tried == operations >= 14 for operations, tried, _ in found.values())


def test_a_place_that_cannot_be_written_to_is_refused_before_work(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    for out in (tmp_path / "new", tmp_path / "deep" / "new", tmp_path / "full"):
        with pytest.raises(FolderError, match=r"is read-only to this user\. Give another --out\.$"):
            folders.refuse_existing(out)


def test_a_folder_that_is_gone_on_with_is_swept(tmp_path):
    out = folders.claim(tmp_path / "run")
    inner = out / "steps"
    fill(inner / "done")
    stray = [
        inner / f".x.{leftovers.HOST}.{DEAD}.partial",
        out / f".a.json.{leftovers.HOST}.{DEAD}.partial",
        out / ".tmpAb3dEf",
    ]
    stray[0].mkdir()
    for path in stray[1:]:
        path.touch()
    os.replace(inner / "done", inner / f".done.{leftovers.HOST}.{DEAD}.old")
    others = [inner / f".x.{leftovers.HOST}.{os.getppid()}.partial", inner / "live" / ".tmpAb3dEf"]
    others[0].mkdir()
    others[1].parent.mkdir()
    for path in (others[1], inner / "live" / folders.MARKER):  # another process may be at work in a folder of its own
        path.touch()
    folders.claim(out)
    assert not any(path.exists() for path in stray)
    assert all(path.exists() for path in (*others, inner / "done" / "data.txt"))
