"""Who asks the servers of ``serving.py``: a few prompts, a sampler that is soon out of patience, and the verb itself."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from limbeck import cli
from limbeck.errors import LimbeckError
from limbeck.problems.prompts import prompt_ids, stop_ids
from limbeck.rollouts.protocol import Prompt
from limbeck.rollouts.sample import Decoding
from limbeck.rollouts.server import Server, ServerSampler
from limbeck.rollouts.server.wire import request_seed
from limbeck.worlds.abacus.generator import generate
from serving import told

BASE = "abacus:base"
KEY = "sk-never-to-be-written-0123456789"


def prompts_of(tokenizer, num: int, samples: int = 1) -> list[Prompt]:
    problems = [problem for problem, _ in generate("train", num, seed=5)]
    return [
        Prompt(key=f"{p.id}/{sample}", ids=prompt_ids(tokenizer, p.prompt), text=p.prompt)
        for p in problems
        for sample in range(samples)
    ]


def sampler_of(
    server, tokenizer, *, journal=None, temperature=1.0, restart=False, max_new_tokens=24, seed=0, **settings
):
    servers = server if isinstance(server, (list, tuple)) else [server]
    urls = tuple(each if isinstance(each, str) else each.url for each in servers)
    settings = {"model": "m", "patience_seconds": 5, "concurrency": 4} | settings
    decoding = Decoding(sampling_temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    return ServerSampler(
        Server(urls=urls, **settings),
        tokenizer,
        decoding,
        stop_ids=stop_ids(tokenizer),
        journal=journal,
        restart=restart,
    )


def assert_each_once(prompts, done):
    for prompt, found in zip(prompts, done, strict=True):
        assert list(found.ids[:3]) == told(request_seed(Decoding(), prompt.key))


def command(server, out: Path, *more: str) -> list[str]:
    url = server if isinstance(server, str) else server.url
    asked = ["--server", url, "--model", "m", "--tokenizer", BASE, "--problems", "abacus:train", "--num", "3"]
    return ["sample", *asked, "--samples", "2", "--max-new-tokens", "24", "--out", str(out), *more]


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, list(arguments))
    if isinstance(result.exception, LimbeckError):
        return result.exception.exit_code, result.output + str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output
