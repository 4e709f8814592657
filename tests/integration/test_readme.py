"""The README's commands, each run: its placeholders are the embedded world's models, problems and rollouts in a user's folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from documented import PAGES, run, users_folder

README = PAGES["README.md"]
MORE = {  # here the two longest run whole
    "study new": "--out new.toml",
    "study run": "--set eval.problems.num=8 --set eval.max_new_tokens=96",
    "measure base-folder": "--only ''",
    "eval": "--num 8 --max-new-tokens 96",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = users_folder(tmp_path_factory.mktemp("user"))
    (root / "study.toml").write_text(re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1])
    return root


def called() -> list[str]:
    """Commands of code blocks and of running text that name all that they need."""
    blocks = re.findall(r"^(?:# study\.toml: )?(limbeck .*)$", README, re.MULTILINE)
    spans = [
        " ".join(span.split())
        for span in re.findall(r"`(limbeck [^`]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    ]
    named = [span for span in spans if re.search(r"path/to|study\.toml", span)]
    return [*named, *blocks]


def test_every_command_is_among_those_that_run():
    verbs = [" ".join(command.split()[1:3]) for command in called()]
    assert verbs == [
        "study new", "doctor path/to/model", "study plan", "study run", "train --base", "measure adapter-a",
        "measure base-folder", "compare scores-a",
    ]  # fmt: skip


def test_they_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = [
        f"limbeck eval --base path/to/{model} --problems test.jsonl --out scores-{name}"
        for model, name in (("model", "a"), ("teacher", "b"))
    ]
    for place, command in enumerate([*before, *called()]):
        more = next((MORE[begins] for begins in MORE if command.startswith(f"limbeck {begins}")), "")
        result = run(re.sub(r"runs/\w+", f"runs/{place}", command), more)
        assert result.exit_code == 0, (command, result.exception, result.stderr)
    assert (folder / "new.toml").is_file()
    assert len(list(folder.glob("runs/*/report.html"))) == 1
    assert len(list(folder.glob("runs/*/measurements.parquet"))) == 2
