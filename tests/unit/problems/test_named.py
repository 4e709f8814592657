"""Problems by name, and what pins them in a record."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.digests import file_digest
from limbeck.errors import ConfigError, ProvenanceError
from limbeck.evals.tables import read_table
from limbeck.folders import read_manifest
from limbeck.problems.grading import grader_id
from limbeck.types import problems_digest
from limbeck.worlds.named import problems_named, problems_record, read_problems

ROW = {"question": "Start 7. Add 2.", "gold": "#### 9", "uid": "u0"}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "uid": "u1"}) + "\n")
    return tmp_path / "mine.jsonl"


def test_fields_as_on_the_command_line(file):
    named = problems_named(str(file), "jsonl", 1, 0, "prompt=question, answer=gold,id=uid")
    assert [(p.id, p.answer) for p, _ in read_problems(named)] == [("u0", "9")]
    record = problems_record(named)
    assert record["files_digest"] == file_digest(file)
    assert record["path"] == "mine.jsonl"
    assert record["fields"] == {"prompt": "question", "answer": "gold", "id": "uid"}


@pytest.mark.parametrize("text", ["prompt", "prompt=", "=question", "prompt:question"])
def test_fields_that_say_nothing(file, text):
    with pytest.raises(ConfigError, match="fields are written prompt=question,answer=solution"):
        problems_named(str(file), "jsonl", None, 0, text)


def test_a_template_asks_every_problem_and_stands_in_the_record(file, tmp_path):
    mapping = ["--fields", "prompt=question,answer=gold,id=uid"]
    template = r"{problem} Put the answer into \boxed{}."
    call = ["--base", "abacus:base", "--problems", str(file), *mapping, "--max-new-tokens", "2"]
    for name, asked in (("plain", []), ("boxed", ["--template", template, "--last-number"])):
        done = CliRunner().invoke(app, ["eval", *call, *asked, "--name", name, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    record = read_manifest(tmp_path / "boxed")
    assert record["source"]["problems"]["template"] == template
    assert "template" not in read_manifest(tmp_path / "plain")["source"]["problems"]
    problems = [p for p, _ in read_problems(problems_named(str(file), "jsonl", None, 0, mapping[1]))]
    asked = [replace(p, prompt=rf"{p.prompt} Put the answer into \boxed{{}}.") for p in problems]
    assert record["problems_digest"] == problems_digest(asked) != problems_digest(problems)
    assert read_table(tmp_path / "boxed").grader == grader_id(last_number=True)
    done = CliRunner().invoke(
        app, ["compare", *(str(tmp_path / n) for n in ("plain", "boxed")), "--out", str(tmp_path / "c")]
    )
    assert isinstance(done.exception, ProvenanceError)
    assert "other prompts or answers" in str(done.exception)


@pytest.mark.parametrize("template", ["Box it.", "{problem} {problem}"])
def test_a_template_names_the_problem_once(file, template):
    named = problems_named(str(file), "jsonl", 1, 0, "prompt=question,answer=gold", template)
    with pytest.raises(ConfigError, match=r"a template needs \{problem\} once"):
        read_problems(named)


def test_a_world_is_its_own_record():
    named = problems_named("abacus:test", "jsonl", 3, 5)
    assert problems_record(named) == {"world": "abacus", "split": "test", "num": 3, "seed": 5}


def test_sampling_records_where_the_problems_came_from(file, tmp_path):
    arguments = ["--model", "abacus:base", "--samples", "1", "--max-new-tokens", "4", "--out", str(tmp_path / "out")]
    mapping = ["--fields", "prompt=question,answer=gold,id=uid"]
    done = CliRunner().invoke(app, ["sample", "--problems", str(file), *mapping, *arguments])
    assert done.exit_code == 0, done.output
    provenance = read_manifest(tmp_path / "out")["provenance"]
    assert provenance["problems"]["files_digest"] == file_digest(file)
    assert provenance["num_problems"] == 2
    assert {"problems_digest", "template_digest", "grader"} <= set(provenance)
