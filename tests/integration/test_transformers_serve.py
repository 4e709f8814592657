"""Rollouts from ``transformers serve`` on loopback, with the embedded world's teacher: a real server, nothing downloaded."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limbeck import cli
from limbeck.errors import ServerError
from limbeck.problems.prompts import prompt_ids, stop_ids
from limbeck.rollouts.protocol import Prompt
from limbeck.rollouts.sample import Decoding, complete
from limbeck.rollouts.server import Server, ServerSampler
from limbeck.rollouts.store import read_rollouts
from limbeck.train.models import load_model, load_tokenizer
from limbeck.worlds import resolve
from limbeck.worlds.abacus.generator import generate

for package in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(package, reason=f'`transformers serve` needs {package}: pip install "limbeck[dev]"')

TEACHER = "abacus:teacher"
PAGE = (Path(__file__).parents[2] / "docs" / "servers.md").read_text(encoding="utf-8")
START_SECONDS = 300
CODE = "from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server of the teacher, started as a user starts it, and stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    serve = as_shown("transformers serve", {"path/to/teacher": str(resolve(TEACHER)), "8000": str(port)})
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, *serve[1:]],
            stdout=file,
            stderr=file,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not healthy(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def as_shown(command: str, words: dict[str, str]) -> list[str]:
    """The last line of the page that begins with the command, with some of its words replaced."""
    line = next(line for line in reversed(PAGE.splitlines()) if line.startswith(command))
    for shown, meant in words.items():
        line = line.replace(shown, meant)
    return line.split()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def sampler(server: str, *, temperature: float, api: str = "auto", **settings) -> ServerSampler:
    settings = {"model": str(resolve(TEACHER)), "patience_seconds": 20, "concurrency": 4} | settings
    decoding = Decoding(sampling_temperature=temperature, max_new_tokens=120, seed=1)
    tokenizer = load_tokenizer(TEACHER)
    return ServerSampler(Server(urls=(server,), api=api, **settings), tokenizer, decoding, stop_ids=stop_ids(tokenizer))


@pytest.fixture(scope="module")
def prompts():
    tokenizer = load_tokenizer(TEACHER)
    problems = [problem for problem, _ in generate("test", 4, seed=2)]
    return [Prompt(key=f"{p.id}/0", ids=prompt_ids(tokenizer, p.prompt), text=p.prompt) for p in problems]


def test_greedy_answers_are_those_of_the_model_in_this_process(server, prompts):
    model = load_model(TEACHER)
    stops = stop_ids(load_tokenizer(TEACHER))
    here = complete(
        model, [p.ids for p in prompts], [p.key for p in prompts], Decoding(max_new_tokens=120), stop_ids=stops
    )
    ask = sampler(server, temperature=0.0)
    assert [(c.ids, c.finish) for c in ask(prompts)] == [(c.ids, c.finish) for c in here]
    about = ask.provenance()["server"]
    assert about["api"] == "transformers"
    assert about["inexact"] == {
        "no_logprobs": 4,
        "retokenized": 4,
    }  # as many tokens as sampled, the prompt read as sent


def test_a_temperature_samples_where_the_bare_api_stays_greedy(server, prompts):
    greedy = [c.ids for c in sampler(server, temperature=0.0)(prompts)]
    assert [c.ids for c in sampler(server, temperature=2.5, api="text")(prompts)] == greedy  # the server's trap
    hot = [c.ids for c in sampler(server, temperature=2.5)(prompts)]
    assert all(ids != other for ids, other in zip(hot, greedy, strict=True))


def test_what_the_server_cannot_give_is_refused_in_a_sentence(server, prompts):
    with pytest.raises(ServerError, match=r"received no token_ids in choices\[0\]"):
        sampler(server, temperature=1.0, require_logprobs=True)(prompts)
    with pytest.raises(ServerError, match="Server is pinned to"):
        sampler(server, temperature=1.0, model="somebody-else")(prompts)
    with pytest.raises(
        ServerError, match="begins with the prompt itself"
    ):  # its chat parser looks for another template
        sampler(server, temperature=1.0, api="chat", patience_seconds=0)(prompts)


def test_the_command_of_the_page_writes_graded_rollouts(server, tmp_path):
    words = {
        "path/to/teacher": str(resolve(TEACHER)),
        "http://127.0.0.1:8000": server,
        "rollouts/served": str(tmp_path / "rollouts"),
    }
    command = as_shown("limbeck sample", words)[1:]
    result = CliRunner().invoke(cli.app, [*command, "--num", "3", "--samples", "2", "--max-new-tokens", "120"])
    assert result.exit_code == 0, result.output
    rollout_set = read_rollouts(tmp_path / "rollouts")
    assert len(rollout_set) == 6
    assert sum(r.reward for r in rollout_set.rollouts) >= 4  # the teacher answers nearly all of these
