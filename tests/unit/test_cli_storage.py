"""Verbs on storage URLs: each takes them or says that it does not, and a chain of verbs runs from URL to URL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import typer
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from limbeck import cli, storage
from limbeck.cli.places import NOT_PLACES, OUTPUTS, WRITES, Verb
from limbeck.digests import MARKER
from limbeck.errors import LimbeckError
from limbeck.folders import claim, read_manifest, seal
from limbeck.records import read_json, write_json
from limbeck.worlds.abacus.generator import generate


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def verbs(group, names=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*names, name))
        else:
            yield (*names, name), command


VERBS = dict(verbs(typer.main.get_command(cli.app)))
PLACES = [
    (words, parameter.name)
    for words, command in VERBS.items()
    for parameter in command.params
    if {parameter.type_descriptor.annotation, *get_args(parameter.type_descriptor.annotation)} & {str, Path}
    and parameter.name not in NOT_PLACES
]


def words_of(words, name, value):
    """A command line whose one parameter has this value and whose other required ones have anything."""
    out = list(words)
    for parameter in VERBS[words].params:
        given = value if parameter.name == name else "0.5" if parameter.name == "accuracy" else "x"
        if parameter.name == name or parameter.required:
            out += [given] if parameter.param_type_name == "argument" else [parameter.opts[0], given]
    return out


def refusal(*words: str) -> str:
    result = CliRunner().invoke(cli.app, list(words))
    assert isinstance(result.exception, LimbeckError), (words, result.exception, result.output)
    return str(result.exception)


def test_every_verb_takes_part():
    assert all(isinstance(command, Verb) for command in VERBS.values())
    inputs = {(words[0], name) for words, name in PLACES}
    assert {("train", "rollouts"), ("compare", "tables"), ("measure", "folders"), ("report", "studies")} <= inputs


@pytest.mark.parametrize(("words", "name"), PLACES, ids=lambda part: part if isinstance(part, str) else " ".join(part))
def test_no_url_reaches_a_verb_as_a_path(words, name, tmp_path):
    parameter = next(p for p in VERBS[words].params if p.name == name)
    assert "hunter2planted" not in refusal(*words_of(words, name, SECRET))
    if parameter.metavar != WRITES:
        said = refusal(*words_of(words, name, "memory://bucket/absent"))
        expected = (
            "must be a path on this machine here" if name in OUTPUTS else "must lead to a folder that limbeck published"
        )
        assert expected in said
        assert "memory://bucket/absent" in said
    assert list(tmp_path.glob("*:*")) == []


SECRET = "s3://key:hunter2planted@bucket/x"


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--base", "abacus:base", "--set", f"rollouts={SECRET}"),
        ("train", "--config", "run.json"),
        ("study", "run", "quickstart", "--set", f"rollouts.path={SECRET}"),
        ("compare", "a", f"b={SECRET},c"),
        ("compare", f"b={SECRET.replace('hunter', 'x,hunter')}"),
    ],
    ids=" ".join,
)
def test_a_secret_is_not_written_anywhere(words, tmp_path, cache):
    (tmp_path / "run.json").write_text(json.dumps({"base": "abacus:base", "rollouts": SECRET}))
    said = refusal(*words, "--out", "out")
    assert "without password, token or query" in said
    assert "hunter2planted" not in said
    assert not [path for path in tmp_path.rglob("*") if path.name != "run.json"]


def run(*words: str) -> str:
    result = CliRunner().invoke(cli.app, list(words))
    assert result.exit_code == 0, (words, result.exception, result.stderr)
    return result.stdout.splitlines()[-1]


def test_a_chain_of_verbs_from_url_to_url(tmp_path, cache):
    rows = [
        {"problem_id": problem.id, "prompt": problem.prompt, "response": text, "reward": 1}
        for problem, text in generate("train", 4, seed=77)
    ]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    at = "memory://bucket/mine"
    assert run("import", "rollouts.jsonl", "--model", "abacus:base", "--out", f"{at}/rollouts") == f"{at}/rollouts"
    run("study", "new", "--student", "abacus:base", "--rollouts", f"{at}/rollouts", "--test", "abacus:test")
    assert f'"{at}/rollouts"' in (tmp_path / "study.toml").read_text()
    run("study", "plan", "study.toml", "--no-probe")
    small = ("--set", "train.num_steps=1", "--set", "train.batch_size=2")
    train = ("train", "--rollouts", f"{at}/rollouts", "--objective", "sft", *small)
    run(*train, "--base", "abacus:base", "--set", "train.method=full", "--out", f"{at}/start")
    train = (*train, "--base", f"{at}/start/model")
    assert run(*train, "--out", f"{at}/run/") == f"{at}/run"
    short = ("--num", "2", "--max-new-tokens", "8", "--problems", "abacus:test")
    run("eval", "--run", f"{at}/run", *short, "--out", f"{at}/scores-a")
    run("eval", "--base", "abacus:base", *short, "--out", f"{at}/scores-b")
    run("compare", f"{at}/scores-a", f"base={at}/scores-b", "--out", f"{at}/comparison")
    run("measure", f"{at}/run", "--draws", "20", "--out", "measured")

    config = read_json(storage.fetch(f"{at}/run") / "config.json")
    assert (config["rollouts"], config["base"]) == (f"{at}/rollouts", f"{at}/start/model")
    assert read_manifest("measured")["adapters"] == [f"{at}/run"]
    arms = read_json(storage.fetch(f"{at}/comparison") / "comparison.json")["arms"]
    assert [arm["name"] for arm in arms] == ["run", "base"]
    for name, file in MemoryFileSystem.store.items():
        assert str(tmp_path).encode() not in file.getvalue(), name
    assert not [path for path in cache.glob("out/**/*") if path.is_file() and path.name != storage.LOCK]

    (tmp_path / "run.json").write_text(json.dumps(config))  # what reproduces a run reads the same rollouts
    again = run("train", "--config", "run.json", "--out", "again")
    assert read_manifest(again)["rollouts_digest"] == read_manifest(storage.fetch(f"{at}/run"))["rollouts_digest"]
    assert "which is complete" in refusal(*train, "--out", f"{at}/run")


def test_a_verb_that_fails_leaves_a_marker_alone(tmp_path):
    (tmp_path / "rollouts.jsonl").write_text('{"prompt": "?"}\n')
    said = refusal("import", "rollouts.jsonl", "--model", "abacus:base", "--out", "memory://bucket/rollouts")
    assert "response" in said
    assert list(MemoryFileSystem.store) == [f"/bucket/rollouts/{MARKER}"]


def test_the_main_of_several_processes_publishes(tmp_path, monkeypatch):
    row = {"problem_id": "p", "prompt": "What is 1 + 1?", "response": "2. #### 2", "reward": 1}
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setenv("RANK", "1")
    url = "memory://bucket/rollouts"
    assert run("import", "rollouts.jsonl", "--model", "abacus:base", "--out", url) == str(storage.working(url))
    assert MemoryFileSystem.store == {}


def test_a_study_behind_a_url_is_reported(tmp_path):
    url = "memory://bucket/study"

    def study(folder: Path) -> None:
        claim(folder)
        (folder / "results").mkdir()
        write_json(folder / "results" / "study.json", {"name": "of the bucket"})
        seal(folder, kind="study", facts={"report": "report.html"})

    storage.through(url, "x", study)
    assert f"a study behind a URL needs --out, received {url} alone" in refusal("report", url)
    assert run("report", url, "--out", "memory://bucket/page") == "memory://bucket/page/report.html"
    assert "of the bucket" in (storage.fetch("memory://bucket/page") / "report.html").read_text()
    assert "of the bucket" in CliRunner().invoke(cli.app, ["report", url, "--markdown"]).stdout
    assert "which is complete" in refusal("report", url, "--out", url)
