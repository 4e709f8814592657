"""Several addresses of one model: they share the work, one that falls out is done without, each answer comes once."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import serving as serving_module
from asking import BASE, KEY, assert_each_once, call, command, prompts_of, sampler_of
from limbeck.errors import ConfigError, ServerError
from limbeck.rollouts.server import Server
from limbeck.rollouts.server import pool as pool_module
from limbeck.rollouts.store import read_rollouts
from limbeck.train.models import load_tokenizer
from serving import FAULTS, echoes, free_port, serving

pytestmark = pytest.mark.usefixtures("servers_here")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BASE)


@pytest.fixture
def several():
    """Starts servers that tell who asked, each with its own faults."""
    with ExitStack() as stack:
        yield lambda *faults: [stack.enter_context(serving(echoes, fault)) for fault in faults]


def fine(number: int, body: dict) -> None:
    """No fault."""


def always(kind: str, since: int = 1):
    """This fault from some request on; the first is number 0."""
    return lambda number, body: kind if number >= since else None


def answers_at(sampler) -> list[int]:
    return list(sampler.provenance()["server"]["endpoints"].values())


def test_addresses_share_the_requests_and_none_has_more_than_its_share(several, tokenizer):
    prompts = prompts_of(tokenizer, 40)
    slow, quick = servers = several(always("delay", 0), fine)
    slow.delay = 0.1
    sampler = sampler_of(servers, tokenizer, concurrency=8)
    assert_each_once(prompts, sampler(prompts))
    assert all(server.most_under_way <= 4 for server in servers)
    assert answers_at(sampler) == [len(slow.asked), len(quick.asked)]
    assert 0 < len(slow.asked) < len(quick.asked)
    assert len(slow.asked) + len(quick.asked) == len(prompts)


def test_every_prompt_is_answered_once_by_addresses_that_fail_in_every_way(several, tokenizer):
    prompts = prompts_of(tokenizer, 100, samples=2)
    draw = random.Random(0)
    plan = [draw.choice(FAULTS) if draw.random() < 0.3 else None for _ in range(2000)]
    servers = several(*(lambda number, body, at=at: plan[number + at] if number else None for at in (0, 700, 1300)))
    for server in servers:
        server.delay = 0.02
    sampler = sampler_of(servers, tokenizer, concurrency=12, patience_seconds=60)
    assert_each_once(prompts, sampler(prompts))
    asked = sum(len(server.asked) for server in servers)
    assert asked == len(prompts) + sum(sampler.provenance()["server"]["repeated"].values())
    assert sum(answers_at(sampler)) == len(prompts)
    assert min(answers_at(sampler)) > 0


@pytest.mark.parametrize("kind", ["drop", "503", "garbage"])
def test_an_address_that_keeps_failing_is_done_without_and_it_is_said(kind, several, tokenizer, monkeypatch):
    monkeypatch.setattr(pool_module, "backoff", lambda attempt: 60.0)  # it rests for longer than the test takes
    prompts, said = prompts_of(tokenizer, 60), []
    failing, good = several(always(kind, 3), fine)
    sampler = sampler_of([failing, good], tokenizer, concurrency=8, patience_seconds=90)
    sampler.client.tell = said.append
    assert_each_once(prompts, sampler(prompts))
    assert answers_at(sampler) == [3, 57]
    assert len(failing.asked) <= 3 + pool_module.DOUBT + 4  # and those under way with the fifth
    assert f"{failing.url}/v1/ keeps failing" in said[0]


def test_an_address_that_is_not_there_at_first_joins_when_it_is(several, tokenizer):
    prompts, port = prompts_of(tokenizer, 60), free_port()
    [here] = several(fine)
    there, said = ExitStack(), []

    def answer(path: str, body: dict) -> object:
        with here.lock:
            if len(here.asked) >= 20 and not said:
                said.append("started")
                there.enter_context(serving(echoes, port=port))
        time.sleep(0.02)
        return echoes(path, body)

    here.answer = answer
    with there:
        sampler = sampler_of([f"http://127.0.0.1:{port}", here], tokenizer, concurrency=4)
        assert_each_once(prompts, sampler(prompts))
    assert min(answers_at(sampler)) > 0
    assert sampler.provenance()["server"]["repeated"]["connection (ConnectError)"] > 0


def test_when_all_addresses_are_gone_each_is_named(several, tokenizer, tmp_path):
    servers = several(always("drop", 4), always("500", 4))
    journal, prompts = tmp_path / "journal.jsonl", prompts_of(tokenizer, 30)
    with pytest.raises(ServerError) as raised:
        sampler_of(servers, tokenizer, journal=journal, patience_seconds=0.3)(prompts)
    text = str(raised.value)
    assert f"{servers[0].url}/v1/ or {servers[1].url}/v1/ must answer every prompt" in text
    assert f"Of several, {servers[0].url}/v1/ last said connection" in text
    assert f"{servers[1].url}/v1/ last said HTTP 500" in text
    assert "8 of 30 answers are saved" in text


def test_two_addresses_of_different_models_are_refused_at_the_start(several, tokenizer):
    prompts = prompts_of(tokenizer, 30)
    servers = several(fine, always("other", 0))
    with pytest.raises(ServerError, match=r"answers by another model \(somebody-else\) at http") as raised:
        sampler_of(servers, tokenizer)(prompts)
    assert servers[1].url in str(raised.value)
    good, bad = several(fine, fine)
    bad.answer = lambda path, body: (404, {"message": "The model `m` does not exist."})
    with pytest.raises(ServerError, match=rf"does not exist.*|{bad.url}"):
        sampler_of([good, bad], tokenizer)(prompts)
    assert max(len(server.asked) for server in (*servers, good, bad)) < len(prompts)


def test_two_versions_of_the_weights_are_refused_at_the_start(several, tokenizer):
    servers = several(fine, fine)
    for number, server in enumerate(servers):
        version = {"metadata": {"weight_version": str(number)}}
        server.answer = lambda path, body, version=version: echoes(path, body) | version
    with pytest.raises(
        ServerError, match=r"another model \(m, weights [01]\).* where m, weights [01] answered at first"
    ):
        sampler_of(servers, tokenizer)(prompts_of(tokenizer, 30))


def test_a_model_replaced_at_one_address_is_noticed_and_none_of_its_answers_is_kept(several, tokenizer):
    prompts = prompts_of(tokenizer, 60)
    replaced, good = several(always("other", 5), fine)
    sampler = sampler_of([replaced, good], tokenizer, concurrency=4)
    assert_each_once(prompts, sampler(prompts))
    assert answers_at(sampler) == [5, 55]
    assert sampler.provenance()["server"]["repeated"] == {
        "answers by another model (somebody-else)": len(replaced.asked) - 5
    }


def test_time_asked_for_by_one_address_is_given_to_it_alone(several, tokenizer):
    prompts = prompts_of(tokenizer, 30)
    busy, good = several(always("429", 2), fine)
    busy.retry_after = "50"
    sampler = sampler_of([busy, good], tokenizer, concurrency=4, patience_seconds=90)
    assert_each_once(prompts, sampler(prompts))
    assert len(busy.asked) <= 2 + 2  # those under way with the first that was put off
    assert answers_at(sampler) == [2, 28]


def test_what_one_address_refuses_is_asked_of_the_other(several, tokenizer):
    prompts = prompts_of(tokenizer, 30)
    strict, good = several(fine, fine)
    strict.answer = lambda path, body: (400, {"error": "too long"}) if body["seed"] % 3 == 0 else echoes(path, body)
    sampler = sampler_of([good, strict], tokenizer)
    assert_each_once(prompts, sampler(prompts))
    both = {request["body"]["seed"] for request in strict.asked} & {request["body"]["seed"] for request in good.asked}
    assert all(seed % 3 == 0 for seed in both)
    assert sampler.provenance()["server"]["repeated"] == ({"HTTP 400": len(both)} if both else {})


def test_an_address_whose_key_ran_out_is_left_out(several, tokenizer):
    prompts, said = prompts_of(tokenizer, 30), []
    closed, good = several(fine, fine)
    closed.answer = lambda path, body: (
        echoes(path, body) if len(closed.asked) <= 3 else (401, {"error": f"{KEY} expired"})
    )
    sampler = sampler_of([closed, good], tokenizer, concurrency=2, api_key=KEY)
    sampler.client.tell = said.append
    assert_each_once(prompts, sampler(prompts))
    assert said == [f'{closed.url}/v1/ refuses what it is asked (HTTP 401: {{"error": "(key) expired"}}) and is left '
                    "out from here on"]  # fmt: skip
    assert len(closed.asked) == 4


@pytest.mark.parametrize("urls", [(), ("http://h", "http://h/v1")])
def test_addresses_must_be_some_and_differ(urls):
    with pytest.raises(ConfigError, match="addresses that differ"):
        Server(urls=urls, model="m")


@pytest.fixture
def process():
    """A server in a process of its own, deterministic by seed, to be killed and started again on its port."""
    port, running = free_port(), []

    def start() -> subprocess.Popen:
        running.append(subprocess.Popen([sys.executable, serving_module.__file__, str(port), "0.02"]))
        return running[-1]

    yield f"http://127.0.0.1:{port}", start
    for each in running:
        each.kill()
        each.wait()


def test_a_server_killed_while_sampling_and_started_again_leaves_no_trace_in_the_rollouts(process, tmp_path):
    url, start = process
    journal = tmp_path / "disturbed" / "journal.jsonl"
    server = start()

    def disturb() -> None:
        while not (journal.is_file() and journal.read_bytes().count(b"\n") > 20):
            time.sleep(0.005)
        server.kill()
        server.wait()
        time.sleep(0.2)
        start()

    killer = threading.Thread(target=disturb, daemon=True)
    killer.start()
    more = ("--samples", "20", "--concurrency", "4", "--patience", "60")
    code, said = call(*command(url, tmp_path / "disturbed", *more))
    killer.join()
    assert code == 0, said
    assert call(*command(url, tmp_path / "undisturbed", *more))[0] == 0
    disturbed, undisturbed = read_rollouts(tmp_path / "disturbed"), read_rollouts(tmp_path / "undisturbed")
    assert len(disturbed) == 60
    assert disturbed.digest == undisturbed.digest
    assert disturbed.provenance["server"]["repeated"]
    assert not Path(journal).exists()
