"""Log-probs of given rollouts from servers: those of the model in this process, whoever's fields they come in."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import threading
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from asking import BASE, call
from limbeck.batches.score import read_scores, score_rollouts
from limbeck.errors import ConfigError, ServerError
from limbeck.folders import read_manifest
from limbeck.rollouts.sample import Decoding
from limbeck.rollouts.server import Server, ServerSampler, ServerScorer
from limbeck.rollouts.server.scoring import NEVER, SCORING_APIS, Passage, scoring_ways
from limbeck.rollouts.server.wire import AnswerError
from limbeck.rollouts.store import write_rollouts
from limbeck.studies.sampling import sample_rollouts
from limbeck.train.models import load_model, load_tokenizer
from limbeck.types import RolloutSet
from limbeck.worlds.abacus.generator import generate
from serving import completion, scores_of, serving

pytestmark = pytest.mark.usefixtures("servers_here")


@pytest.fixture(scope="module")
def model():
    return load_model(BASE).eval()


@pytest.fixture(scope="module")
def rollout_set(model) -> RolloutSet:
    problems = [problem for problem, _ in generate("train", 6, seed=5)]
    decoding = Decoding(sampling_temperature=1.0, max_new_tokens=20)
    return sample_rollouts(model, load_tokenizer(BASE), problems, decoding, samples=2, source={})


@pytest.fixture(scope="module")
def expected(model, rollout_set):
    return score_rollouts(model, rollout_set.rollouts)


def scorer_of(*servers, **settings) -> ServerScorer:
    settings = {"model": "m", "patience_seconds": 5, "concurrency": 4} | settings
    return ServerScorer(Server(urls=tuple(getattr(s, "url", s) for s in servers), **settings))


def assert_scores(found, expected):
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("form", list(SCORING_APIS))
def test_a_server_gives_what_the_model_in_this_process_gives(form, model, rollout_set, expected):
    with serving(scores_of(model, form)) as server:
        scorer = scorer_of(server)
        found = scorer(rollout_set.rollouts)
        about, last = scorer.provenance()["server"], server.asked[-1]["body"]
        assert_scores(scorer_of(server, api=form)(rollout_set.rollouts), expected)
    assert_scores(found, expected)
    assert (about["api"], about["served_model"], about["prompts_sent_as"]) == (form, "m", "token ids")
    assert about["inexact"] == ({"ids_not_returned": 12} if form == "echo" else {})
    assert about["endpoints"] == {f"{server.url}/v1/": 12}
    temperature = last["sampling_params"]["temperature"] if form == "sglang" else last["temperature"]
    assert temperature == 1.0


def test_the_command_writes_the_folder_that_the_model_itself_writes(model, rollout_set, tmp_path):
    rollouts = write_rollouts(rollout_set, tmp_path / "rollouts")
    here = ["score", "--model", BASE, "--rollouts", str(rollouts), "--out", str(tmp_path / "here")]
    assert call(*here)[0] == 0
    with serving(scores_of(model, "vllm")) as one, serving(scores_of(model, "vllm")) as two:
        there = ["score", "--model", "m", "--rollouts", str(rollouts), "--out", str(tmp_path / "there")]
        code, said = call(*there, "--server", one.url, "--server", two.url, "--concurrency", "4")
        assert (code, said.strip().splitlines()[-1]) == (0, str(tmp_path / "there"))
        assert call(*there, "--server", one.url)[0] == 2  # complete: not again
        code, said = call(*there[:-1], str(tmp_path / "no"), "--server", one.url, "--keep", "topk")
        assert (code, "--keep must be logprobs" in said) == (2, True)
        code, said = call(*there[:-1], str(tmp_path / "no"), "--server", one.url, "--api", "chat")
        assert (code, 'api "chat" is for something else' in said) == (2, True)
        assert not (tmp_path / "no").exists()
        urls = {f"{server.url}/v1/" for server in (one, two)}
    assert_scores(read_scores(tmp_path / "there", rollout_set), read_scores(tmp_path / "here", rollout_set))
    assert {p.name for p in (tmp_path / "there").iterdir()} == {p.name for p in (tmp_path / "here").iterdir()}
    stated, known = (read_manifest(tmp_path / name, kind="logprobs") for name in ("there", "here"))
    assert stated["rollouts_digest"] == known["rollouts_digest"]
    assert (stated["model"], stated["model_digest"], stated["server"]["served_model"]) == ("m", "", "m")
    assert set(stated["server"]["endpoints"]) == urls
    assert sum(stated["server"]["endpoints"].values()) == 12


def test_a_server_without_log_probs_of_the_prompt_is_refused_with_what_is_missing(rollout_set):
    def answer(path: str, body: dict) -> object:
        return (404, {"detail": "Not Found"}) if path == "/generate" else completion([11], [-0.5], "length")

    with serving(answer) as server, pytest.raises(ServerError) as raised:
        scorer_of(server)(rollout_set.rollouts)
    text = str(raised.value)
    assert "vllm (token ids): no prompt_logprobs in choices[0]" in text
    assert "sglang (token ids): HTTP 404" in text
    assert "echo (token ids): token_logprobs of 1 tokens for a prompt of" in text
    assert "limbeck score --model" in text


def test_what_has_no_room_at_the_server_is_nan_and_counted(model, rollout_set, expected):
    room = 8 + min(len(r.prompt_ids) + len(r.response_ids) for r in rollout_set.rollouts)
    fitting = [len(r.prompt_ids) + len(r.response_ids) <= room for r in rollout_set.rollouts]
    inner = scores_of(model, "vllm")

    def answer(path: str, body: dict) -> object:
        said = f"This model's maximum context length is {room} tokens."
        return inner(path, body) if len(body["prompt"]) <= room else (400, {"message": said})

    with serving(answer) as server:
        scorer = scorer_of(server)
        found = scorer(rollout_set.rollouts)
    assert 0 < sum(fitting) < len(fitting)
    for fits, row, other in zip(fitting, found, expected, strict=True):
        assert row == (pytest.approx(other, abs=1e-5) if fits else pytest.approx([math.nan] * len(other), nan_ok=True))
    assert scorer.provenance()["server"]["inexact"] == {"too_long": len(fitting) - sum(fitting)}


def test_an_sglang_server_that_came_back_with_another_model_is_noticed(model, rollout_set):
    def fault(number: int, body: dict) -> str | None:
        if number == 5:
            server.model = "somebody-else"
            return "drop"
        return None

    with (
        serving(scores_of(model, "sglang"), fault) as server,
        pytest.raises(ServerError, match=r"answers by another model \(somebody-else, weights default\)"),
    ):
        scorer_of(server, concurrency=1, patience_seconds=0.2)(rollout_set.rollouts)


@pytest.mark.parametrize("form", list(SCORING_APIS))
def test_other_weights_under_the_same_name_are_refused_at_the_start_and_noticed_later(
    form, model, rollout_set, expected
):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.lm_head.weight.mul_(0.2)  # less sure of everything
    other, good = scores_of(changed, form), scores_of(model, form)
    with (
        serving(good) as one,
        serving(other) as two,
        pytest.raises(
            ServerError, match=r"answers by other weights \([\d.]+ nats a token off what is on record\) at http"
        ),
    ):
        scorer_of(one, two, concurrency=2)(rollout_set.rollouts)

    def answer(path: str, body: dict) -> object:
        return (good if len(replaced.asked) <= 2 else other)(path, body)

    fault = lambda number, body: "drop" if number == 2 else None  # noqa: E731
    with serving(answer, fault) as replaced, serving(good, lambda number, body: "delay") as one:
        one.delay = 0.1  # so that the other is asked again before all is done
        scorer = scorer_of(one, replaced, api=form, concurrency=2, patience_seconds=30)
        found = scorer(rollout_set.rollouts)
    assert_scores(found, expected)
    about = scorer.provenance()["server"]
    assert about["largest_gap_nats"] > 0.2
    assert any(kind.startswith("answers by other weights") for kind in about["repeated"])


def read(form: str, payload: object) -> object:
    return scoring_ways("m")[form].read(payload, Passage(key="p/0", ids=(5, 6, 7, 8), num_prompt=2)).record["logprobs"]


def test_only_log_probs_of_these_very_tokens_are_believed():
    entries = [
        None,
        {"6": {"logprob": -1.0}},
        {"7": {"logprob": -2.0}, "3": {"logprob": -0.1}},
        {"8": {"logprob": 1e-7}},
    ]
    triples = [[-1.0, 6, None], [-2.0, 7, None], [-3.0, 8, None]]
    vllm = lambda given: {"model": "m", "choices": [{"finish_reason": "length", "prompt_logprobs": given}]}  # noqa: E731
    sglang = lambda given: {"meta_info": {"input_token_logprobs": given}}  # noqa: E731
    assert read("vllm", vllm(entries)) == [-2.0, 0.0]
    assert read("sglang", sglang(triples)) == [-2.0, -3.0]
    assert read("sglang", sglang([[None, 6, None], *triples[1:]])) == [-2.0, -3.0]
    for wrong in (entries[:-1], [*entries[:3], {"9": {"logprob": -1.0}}], [*entries[:3], {"8": {"logprob": 0.5}}],
                  [*entries[:3], {"8": {"logprob": None}}], [*entries[:3], None], "x"):  # fmt: skip
        with pytest.raises(AnswerError):
            read("vllm", vllm(wrong))
    for wrong in (
        triples[:-1],
        [*triples[:2], [-1.0, 9, None]],
        [*triples[:2], [None, 8, None]],
        [-1.0, -2.0],
        "x",
        [],
    ):
        with pytest.raises(AnswerError):
            read("sglang", sglang(wrong))
    for wrong in ([None, -1.0, -2.0, math.nan], [None, -1.0, -2.0, True], [None] * 4, [None, *[-1.0] * 4]):
        with pytest.raises(AnswerError):
            read("echo", {"choices": [{"logprobs": {"token_logprobs": wrong}}]})


def test_a_token_of_probability_zero_is_minus_infinity(rollout_set):
    rollout = rollout_set.rollouts[0]

    def answer(path: str, body: dict) -> dict:
        reply = completion([11], None, "length")
        entries = [None, *({str(token): {"logprob": NEVER}} for token in body["prompt"][1:])]
        reply["choices"][0]["prompt_logprobs"] = entries
        return reply

    with serving(answer) as server:
        assert scorer_of(server)([rollout]) == [[-math.inf] * len(rollout.response_ids)]


def test_a_way_to_score_is_none_to_sample():
    server = Server(urls=("http://h",), model="m", api="vllm")
    with pytest.raises(ConfigError, match=r'api "vllm" is for something else. Known: auto, chat, ids'):
        ServerSampler(server, load_tokenizer(BASE), Decoding(), stop_ids=[1])


def test_a_killed_command_continues_elsewhere_and_ends_with_the_same_folder(model, rollout_set, tmp_path):
    more = tuple(replace(r, problem_id=f"{r.problem_id}-{n}") for n in range(5) for r in rollout_set.rollouts)
    rollouts = write_rollouts(RolloutSet(rollouts=more, provenance={}), tmp_path / "rollouts")
    common = ["score", "--model", "m", "--rollouts", str(rollouts), "--concurrency", "2"]
    enough = threading.Event()

    def slowly(number: int, body: dict) -> str | None:
        if number > 12:
            enough.set()
        return "delay" if number > 8 else None

    with serving(scores_of(model, "vllm"), slowly) as server:
        command = [sys.executable, "-m", "limbeck", *common, "--server", server.url, "--out", str(tmp_path / "killed")]
        client = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert enough.wait(90), client.stderr.read()
        client.kill()
        client.wait()
        client.stderr.close()
    saved = [json.loads(line)["key"] for line in (tmp_path / "killed" / "journal.jsonl").read_bytes().splitlines()[2:]]
    code, said = call("score", "--model", BASE, "--rollouts", str(rollouts), "--out", str(tmp_path / "killed"))
    assert (code, "holds answers of a server" in said) == (2, True)
    with serving(scores_of(model, "vllm")) as server:
        assert call(*common, "--server", server.url, "--out", str(tmp_path / "killed"))[0] == 0
        assert len(server.asked) == len(more) - len(saved) + 1  # one of those on record again, to compare
        assert call(*common, "--server", server.url, "--out", str(tmp_path / "whole"))[0] == 0
    assert 8 <= len(set(saved)) == len(saved) < len(more)
    killed, whole = (pq.read_table(tmp_path / name / "logprobs.parquet") for name in ("killed", "whole"))
    assert killed.equals(whole)
    assert read_manifest(tmp_path / "killed")["files"] == read_manifest(tmp_path / "whole")["files"]
