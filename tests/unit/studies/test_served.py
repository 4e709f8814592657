"""Rollouts of a study from a server: what may be said of it, what of that identifies them, what a plan says of them."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from limbeck.errors import ConfigError
from limbeck.rollouts.server.endpoint import AUTO
from limbeck.rollouts.server.wire import APIS
from limbeck.studies.config import StudyConfig, load_study
from limbeck.studies.estimate import estimate
from limbeck.studies.overview import arms_table, time_table
from limbeck.studies.plan import make_plan
from limbeck.studies.sections import ServerConfig
from limbeck.studies.step import Step
from limbeck.train.models import input_digest, tokenizer_digest
from limbeck.worlds import resolve

DOCS = Path(__file__).parents[3] / "docs"
SERVER = {"urls": ["http://localhost:8000"], "model": "m"}
WORLD = {"world": "abacus", "split": "train", "num": 10}


def study(*arms: dict, server: dict[str, Any] | None = None, **values) -> dict[str, Any]:
    """A study without a teacher, as a file has it."""
    rollouts = {"problems": WORLD, "server": {**SERVER, **(server or {})}}
    basic = {"name": "x", "question": "?", "student": "abacus:base", "rollouts": rollouts}
    return {**basic, "arms": arms or [{"name": "sft"}], **values}


def loaded(values: dict[str, Any], folder: Path) -> StudyConfig:
    (folder / "study.json").write_text(json.dumps(values))
    return load_study(str(folder / "study.json"))


def steps(values: dict[str, Any]) -> dict[str, Step]:
    return {step.name: step for step in make_plan(StudyConfig.model_validate(values))}


def test_where_and_how_patiently_is_asked_identifies_nothing():
    elsewhere = {"urls": ["http://a:1", "http://b:2"], "concurrency": 3, "timeout_seconds": 9, "patience_seconds": 0}
    one, other = steps(study()), steps(study(server=elsewhere))
    assert {name: step.digest for name, step in one.items()} == {name: step.digest for name, step in other.items()}
    assert other["rollouts"].manner["asked"] == elsewhere
    assert "http" not in json.dumps(one["rollouts"].params)


@pytest.mark.parametrize(
    "changed", [{"model": "other"}, {"api": "text"}, {"tempered_logprobs": True}, {"require_logprobs": True}]
)
def test_what_is_asked_identifies_the_rollouts_and_what_reads_them(changed):
    one, other = steps(study()), steps(study(server=changed))
    same = {name for name in one if one[name].digest == other[name].digest}
    assert same == {"eval/base"}


def test_students_with_one_tokenizer_share_what_a_server_wrote(tmp_path):
    shutil.copytree(resolve("abacus:teacher"), tmp_path / "student")
    there = steps(study(student=str(tmp_path / "student")))["rollouts"]
    assert there.digest == steps(study())["rollouts"].digest
    assert there.manner["tokenizer"] == str(tmp_path / "student")
    template = tmp_path / "student" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    for known in (input_digest, tokenizer_digest):
        known.cache_clear()
    assert steps(study(student=str(tmp_path / "student")))["rollouts"].digest != there.digest


@pytest.mark.parametrize(
    ("rollouts", "words"),
    [
        ({"path": "r.jsonl"}, r'rollouts must say one writer, received a server and path = "r.jsonl"\. Leave out path'),
        ({"by": "student"}, r'rollouts must say one writer, received a server and by = "student"\. Leave out by, or'),
        (
            {"server": {"urls": ["localhost:8000"], "model": "m"}},
            r"must be http\(s\)://host.*received 'localhost:8000'",
        ),
        ({"server": {"urls": ["http://a/", "http://a"], "model": "m"}}, "addresses that differ"),
        ({"server": {"urls": [], "model": "m"}}, r"rollouts.server.urls: .*at least 1 item"),
        ({"server": {**SERVER, "api": "vllm"}}, r"rollouts.server.api: .*received 'vllm'"),
        ({"server": {**SERVER, "modle": "m"}}, r'\[study.rollouts.server\] has no key "modle". Did you mean "model"'),
        ({"server": None}, r"needs rollouts.path, rollouts.server or a teacher to sample from, received none of them"),
    ],
)
def test_what_cannot_be_asked_is_refused(rollouts, words, tmp_path):
    values = study()
    with pytest.raises(ConfigError, match=words):
        loaded({**values, "rollouts": {**values["rollouts"], **rollouts}}, tmp_path)


@pytest.mark.parametrize(
    "server",
    [
        {"urls": ["http://me:hunter2@host"], "model": "m"},
        {"urls": ["http://host/v1?key=hunter2"], "model": "m"},
        {"urls": ["http://me:hunter2/x@host"], "model": "m"},
        {"urls": "http://me:hunter2@host", "model": "m"},
        {"urls": ["http://me:hunter2@host"]},
        "https://host/v1?key=hunter2",
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(server, tmp_path):
    values = study()
    with pytest.raises(ConfigError, match="received") as refused:
        loaded({**values, "rollouts": {"server": server}}, tmp_path)
    assert "hunter2" not in str(refused.value)
    if isinstance(server, dict) and isinstance(server["urls"], list) and "model" in server:
        with pytest.raises(ConfigError, match="a server's address must be"):  # from Python, too
            make_plan(StudyConfig.model_validate({**values, "rollouts": {"server": server}}))


def test_an_arm_says_for_itself_who_writes_its_rollouts(tmp_path):
    arms = [
        {"name": "first"},
        {"name": "other", "rollouts": {"server": {**SERVER, "model": "m2"}}},
        {"name": "own", "rollouts": {"by": "student"}},
        {"name": "second", "rollouts": {"by": "first"}},
        {"name": "more", "rollouts": {"samples": 8}},
    ]
    config = loaded(study(*arms), tmp_path)
    found = {step.name: step for step in make_plan(config)}
    read = {name: found[f"train/{name}-s0"].inputs["rollouts"] for name in ("first", "other", "own", "second")}
    assert read == {
        "first": "rollouts", "other": "rollouts/server", "own": "rollouts/student", "second": "rollouts/first-s0",
    }  # fmt: skip
    assert [found[read[name]].kind for name in ("first", "other", "own", "second")] == [
        "served", "served", "rollouts", "rollouts",
    ]  # fmt: skip
    more = found[found["train/more-s0"].inputs["rollouts"]]
    assert (more.params["server"]["model"], more.params["samples"]) == ("m", 8)
    with pytest.raises(ConfigError, match=r"arms.a.rollouts.server or a teacher to sample from, received none"):
        loaded(study({"name": "a", "rollouts": {"by": "teacher"}}), tmp_path)


def test_an_arm_that_names_an_arm_does_not_read_the_study_s_file(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"prompt": "1 + 1?", "response": "2"}\n')
    second = {"name": "second", "rollouts": {"by": "first", "problems": WORLD}}
    values = study({"name": "first"}, second, rollouts={"path": "r.jsonl"})
    found = {step.name: step for step in make_plan(loaded(values, tmp_path))}
    assert found["train/second-s0"].inputs["rollouts"] == "rollouts/first-s0"
    assert found["rollouts/first-s0"].inputs == {"model": "merge/first-s0"}


def test_a_plan_counts_no_time_for_a_server_and_says_so(tmp_path):
    config = loaded(study({"name": "a", "rollouts": {"server": {**SERVER, "model": "m2"}}}), tmp_path)
    found = estimate(config, make_plan(config), probe=False)
    [served] = [kind for kind in found.kinds if kind.kind == "served"]
    assert (served.steps, served.seconds, served.source) == (2, 0.0, "servers")
    assert served.disk > 0
    assert "from here, and as long as servers take for 80 rollouts, " in time_table(found)
    assert re.search(r"served .* not known .* servers", time_table(found))
    assert "by m2, a server" in arms_table(config)


def test_every_way_of_asking_can_be_said():
    assert get_args(ServerConfig.model_fields["api"].annotation) == (AUTO, *APIS)


@pytest.mark.parametrize("page", ["servers.md", "studies.md"])
def test_what_the_docs_show_of_a_server_is_a_study(page, tmp_path):
    blocks = map(tomllib.loads, re.findall(r"```toml\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL))
    shown = [block for block in blocks if "server" in block.get("rollouts", {})]
    assert shown
    for block in shown:
        config = loaded({**study(), **block}, tmp_path)
        assert config.rollouts.server is not None
