"""A score table through a server equals the one from the model itself, and says what it cannot know."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from limbeck import cli
from limbeck.evals.jobs import Job, from_checkpoint
from limbeck.evals.tables import read_table
from limbeck.folders import read_manifest
from limbeck.problems.prompts import stop_ids, text_of
from limbeck.rollouts.sample import Decoding
from limbeck.train.models import load_model, load_tokenizer
from limbeck.worlds import resolve
from limbeck.worlds.abacus.generator import generate
from serving import samples_of, serving

BASE = "abacus:base"


@pytest.fixture(scope="module")
def answers():
    """What a server of the base does, by what it takes: token ids, or messages alone."""
    model, tokenizer = load_model(BASE), load_tokenizer(BASE)
    by_ids, stops = samples_of(model), stop_ids(tokenizer, model.generation_config)

    def by_messages(path, body):
        if not path.endswith("chat/completions"):
            return 404, {"error": "no such way"}
        ids = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        reply = by_ids(path, body | {"prompt": ids, "stop_token_ids": stops})
        [choice] = reply["choices"]
        message = {"role": "assistant", "content": text_of(tokenizer, choice["token_ids"])}
        return reply | {"choices": [{"index": 0, "message": message, "finish_reason": choice["finish_reason"]}]}

    return {"token ids": by_ids, "messages": by_messages}


@pytest.mark.usefixtures("servers_here")
@pytest.mark.parametrize("sent_as", ["token ids", "messages"])
def test_a_server_and_the_model_itself_give_one_table(answers, sent_as, tmp_path):
    command = ["eval", "--problems", "abacus:test", "--num", "6", "--max-new-tokens", "64", "--base", "m"]
    busy = lambda number, body: "503" if number == 3 else None  # noqa: E731
    with serving(answers[sent_as], busy) as server:
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
    assert served.template_digest == ("" if sent_as == "messages" else here.template_digest)
    record = read_manifest(tmp_path / "served")["source"]["server"]
    assert record["prompts_sent_as"] == sent_as
