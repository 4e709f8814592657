"""A score table through a server equals the one from the model itself, and says what it cannot know."""

from __future__ import annotations

import threading

import pytest
from typer.testing import CliRunner

from limbeck import cli
from limbeck.evals.jobs import Job, from_checkpoint
from limbeck.evals.tables import read_table
from limbeck.folders import read_manifest
from limbeck.problems.prompts import stop_ids, text_of
from limbeck.rollouts.sample import Decoding, complete
from limbeck.rollouts.server import retries
from limbeck.train.models import load_model, load_tokenizer
from limbeck.worlds import resolve
from limbeck.worlds.abacus.generator import generate
from serving import completion, serving

BASE = "abacus:base"


@pytest.fixture(scope="module")
def answers():
    """What a server of the base does; it refuses token ids where ``by_messages`` is set."""
    model, tokenizer, lock = load_model(BASE), load_tokenizer(BASE), threading.Lock()

    def make(by_messages: bool):
        def answer(path, body):
            if by_messages != path.endswith("chat/completions"):
                return 404, {"error": "no such way"}
            ids = body.get("prompt") or tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_dict=False
            )
            decoding = Decoding(max_new_tokens=body["max_tokens"])
            with lock:
                stops = stop_ids(tokenizer, model.generation_config)
                done = complete(model, [ids], ["x"], decoding, stop_ids=stops)[0]
            if not by_messages:
                return completion(list(done.ids), list(done.logprobs), str(done.finish), prompt_token_ids=ids)
            message = {"role": "assistant", "content": text_of(tokenizer, done.ids)}
            choice = {"index": 0, "message": message, "finish_reason": str(done.finish)}
            return {"model": "m", "choices": [choice], "usage": {"completion_tokens": len(done.ids)}}

        return answer

    return make


@pytest.mark.parametrize("by_messages", [False, True])
def test_a_server_and_the_model_itself_give_one_table(answers, by_messages, tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "BASE_SECONDS", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    command = ["eval", "--problems", "abacus:test", "--num", "6", "--max-new-tokens", "64", "--base", "m"]
    busy = lambda number, body: "503" if number == 3 else None  # noqa: E731
    with serving(answers(by_messages), busy) as server:
        where = ["--server", server.url, "--tokenizer", str(resolve(BASE)), "--out", str(tmp_path / "served")]
        result = CliRunner().invoke(cli.app, [*command, *where])
    assert result.exit_code == 0, result.exception
    served = read_table(tmp_path / "served")
    problems = [problem for problem, _ in generate("test", 6, seed=0)]
    job = Job(problems=problems, decoding=Decoding(max_new_tokens=64), num_samples=1, name="m", out=tmp_path / "here")
    here = read_table(from_checkpoint(job, BASE))
    assert [s.response for s in served.scores] == [s.response for s in here.scores]
    assert served.correct.tolist() == here.correct.tolist()
    assert (served.model_digest, served.adapter_digest) == ("", "")
    assert served.template_digest == ("" if by_messages else here.template_digest)
    record = read_manifest(tmp_path / "served")["source"]["server"]
    assert record["prompts_sent_as"] == ("messages" if by_messages else "token ids")
