"""Rollouts from servers: what the model sampled comes back exactly, each answer once, whatever the network does."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from asking import BASE, KEY, assert_each_once, call, command, prompts_of, sampler_of
from limbeck import cli
from limbeck.errors import ConfigError, FolderError, ServerError
from limbeck.problems.prompts import stop_ids
from limbeck.rollouts.journal import Journal
from limbeck.rollouts.sample import Decoding, complete
from limbeck.rollouts.server import Server
from limbeck.rollouts.server import retries as retries_module
from limbeck.rollouts.server.scoring import SCORING_NOTES
from limbeck.rollouts.server.wire import APIS, NOTES, AnswerError, prompt_text, read_answer, request_seed
from limbeck.rollouts.store import read_rollouts
from limbeck.train.models import load_model, load_tokenizer
from limbeck.types import Finish
from serving import FAULTS, completion, echoes, samples_of, serving, text_completion

pytestmark = pytest.mark.usefixtures("servers_here")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BASE)


@pytest.fixture(scope="module")
def model():
    return load_model(BASE)


def test_what_the_server_sampled_comes_back_exactly(model, tokenizer):
    prompts = prompts_of(tokenizer, 3, samples=2)
    keys = [str(request_seed(Decoding(seed=3), p.key)) for p in prompts]
    decoding = Decoding(sampling_temperature=1.0, max_new_tokens=100)
    here = complete(model, [p.ids for p in prompts], keys, decoding, stop_ids=stop_ids(tokenizer))
    with serving(samples_of(model)) as server:
        sampler = sampler_of(server, tokenizer, seed=3, max_new_tokens=100, require_logprobs=True)
        there = sampler(prompts)
        body = server.asked[0]["body"]
    assert [(c.ids, c.finish) for c in there] == [(c.ids, c.finish) for c in here]
    assert all(c.logprobs == pytest.approx(d.logprobs, abs=1e-5) for c, d in zip(there, here, strict=True))
    assert Finish.STOP in {c.finish for c in there}
    assert (body["prompt"], body["top_k"], body["repetition_penalty"]) == (list(prompts[0].ids), -1, 1.0)
    about = sampler.provenance()["server"]
    assert (about["api"], about["prompts_sent_as"], about["inexact"], about["repeated"]) == ("ids", "token ids", {}, {})


def test_every_prompt_is_answered_once_by_a_server_that_fails_in_every_way(tokenizer):
    prompts = prompts_of(tokenizer, 100, samples=3)
    draw = random.Random(0)
    plan = [draw.choice(FAULTS) if draw.random() < 0.3 else None for _ in range(5000)]
    with serving(echoes, lambda number, body: plan[number] if number else None) as server:
        server.delay = 0.05
        sampler = sampler_of(server, tokenizer, concurrency=16, patience_seconds=60)
        ticks = []
        done = sampler(prompts, advance=ticks.append)
        asked = Counter(request["body"]["seed"] for request in server.asked)
        failed = Counter(fault for fault in plan[1 : len(server.asked)] if fault not in (None, "delay"))
    assert_each_once(prompts, done)
    assert sum(ticks) == len(prompts)
    assert len(asked) == len(prompts)
    assert sum(asked.values()) == len(prompts) + sum(failed.values())  # nothing is repeated but what failed
    repeated = sampler.provenance()["server"]["repeated"]
    assert sum(repeated.values()) == sum(failed.values())
    assert repeated["HTTP 429"] == failed["429"]
    assert repeated["garbage: 2 choices instead of 1"] == failed["duplicate"]
    assert repeated["answers by another model (somebody-else)"] == failed["other"]


CLIENT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from asking import prompts_of, sampler_of
from limbeck.train.models import load_tokenizer
tokenizer = load_tokenizer("abacus:base")
sampler_of({urls!r}, tokenizer, journal=Path({journal!r}))(prompts_of(tokenizer, 60, samples=2))
"""


def test_a_killed_client_continues_at_other_addresses_and_asks_nothing_twice(tokenizer, tmp_path):
    journal = tmp_path / "journal.jsonl"
    prompts = prompts_of(tokenizer, 60, samples=2)
    seeds = {request_seed(Decoding(), prompt.key): prompt.key for prompt in prompts}
    enough = threading.Event()

    def slowly(number: int, body: dict) -> str | None:
        if number > 20:
            enough.set()
        return "delay" if number > 15 else None

    with serving(echoes, slowly) as old, serving(echoes, slowly) as kept:
        urls = (old.url, kept.url)
        code = CLIENT.format(tests=str(Path(__file__).parents[2]), urls=urls, journal=str(journal))
        client = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
        assert enough.wait(60), client.stderr.read()
        client.kill()
        client.wait()
        client.stderr.close()
        lines = [json.loads(line) for line in journal.read_bytes().splitlines()[2:]]
        saved = Counter(line["from"] for line in lines)
        with journal.open("ab") as file:
            file.write(b'{"key":"torn","ids":[1,')  # as a machine that lost power leaves it
        before, kept.delay = len(kept.asked), 0
        with serving(echoes) as new:
            sampler = sampler_of([new, kept], tokenizer, journal=journal)
            done = sampler(prompts)
            asked = [*new.asked, *kept.asked[before:]]
    assert 20 < len(lines) < len(prompts)
    assert_each_once(prompts, done)
    again = Counter(seeds[request["body"]["seed"]] for request in asked)
    assert again == Counter({prompt.key for prompt in prompts} - {line["key"] for line in lines})
    counts = sampler.provenance()["server"]["endpoints"]
    assert set(counts) == {f"{server.url}/v1/" for server in (old, kept, new)}
    assert counts[f"{old.url}/v1/"] == saved[f"{old.url}/v1/"] > 0
    assert counts[f"{new.url}/v1/"] == len(new.asked) > 0
    assert sum(counts.values()) == len(prompts)
    assert (
        sampler_of("http://127.0.0.1:9", tokenizer, journal=journal)(prompts) == done
    )  # all on record: nobody is asked


def test_a_server_that_dies_is_waited_for_then_named_and_its_answers_are_kept(tokenizer, tmp_path):
    journal, prompts, said = tmp_path / "journal.jsonl", prompts_of(tokenizer, 30), []
    with serving(echoes, lambda number, body: "drop" if number >= 10 else None) as server:
        sampler = sampler_of(server, tokenizer, journal=journal, patience_seconds=0.3)
        with pytest.raises(ServerError) as raised:
            sampler(prompts)
        said.append(server.url)
    text = str(raised.value)
    assert "10 of 30 answers are saved in" in text
    assert "within 0.3 s of patience" in text
    assert "connection" in text
    assert "the same command continues" in text
    with serving(echoes) as another:  # on another port: the address is no part of what must agree
        done = sampler_of(another, tokenizer, journal=journal, patience_seconds=0.3)(prompts)
        assert len(another.asked) == 20
    assert_each_once(prompts, done)


def test_while_a_server_is_silent_it_is_said(tokenizer, monkeypatch):
    monkeypatch.setattr(retries_module, "TELL_SECONDS", 0.0)
    said = []
    sampler = sampler_of("http://127.0.0.1:9", tokenizer, patience_seconds=0.2)
    sampler.client.tell = said.append
    with pytest.raises(ServerError, match="connection"):
        sampler(prompts_of(tokenizer, 1))
    assert "waiting for the server (connection (ConnectError))" in said[0]


def test_retry_after_holds_everybody_back(tokenizer):
    prompts = prompts_of(tokenizer, 8)

    def answer(path: str, body: dict) -> object:
        return (429, {"error": "slow down"}) if len(server.asked) == 2 else echoes(path, body)

    with serving(answer) as server:
        server.RequestHandlerClass = type("Slow", (server.RequestHandlerClass,), {"end_headers": _with_retry_after})
        done = sampler_of(server, tokenizer, concurrency=2)(prompts)
        times = [request["time"] for request in server.asked]
    assert_each_once(prompts, done)
    assert times[3] - times[1] >= 0.15  # the third may be under way already; without the pause all would be
    assert len(times) == 9


def _with_retry_after(handler) -> None:
    handler.send_header("Retry-After", "0.2")
    super(type(handler), handler).end_headers()


def test_a_server_that_asks_for_more_time_than_there_is_patience_is_quoted(tokenizer):
    with serving(lambda path, body: (429, {}), lambda number, body: None) as server:
        server.RequestHandlerClass = type("Slow", (server.RequestHandlerClass,), {"end_headers": _with_retry_after})
        with pytest.raises(ServerError, match=r"HTTP 429: {}, asking to wait 0 s"):
            sampler_of(server, tokenizer, patience_seconds=0.1)(prompts_of(tokenizer, 2))


def test_one_prompt_that_is_refused_does_not_hold_up_the_others(tokenizer, tmp_path):
    prompts = prompts_of(tokenizer, 12)
    bad = request_seed(Decoding(), prompts[5].key)

    def answer(path: str, body: dict) -> object:
        return (400, {"error": "too long"}) if body["seed"] == bad else echoes(path, body)

    with serving(answer) as server, pytest.raises(ServerError) as raised:
        sampler_of(server, tokenizer, journal=tmp_path / "journal.jsonl")(prompts)
    assert "no usable answer to 1" in str(raised.value)
    assert f"{prompts[5].key!r}: HTTP 400: " in str(raised.value)
    assert "11 of 12 answers are saved" in str(raised.value)


def test_another_model_is_refused_at_first_and_in_the_middle(tokenizer):
    prompts = prompts_of(tokenizer, 6)
    for begin in (0, 3):
        with (
            serving(echoes, lambda number, body, begin=begin: "other" if number >= begin else None) as server,
            pytest.raises(ServerError, match=r"answers by another model \(somebody-else\)"),
        ):
            sampler_of(server, tokenizer, patience_seconds=0.1)(prompts)


def test_new_weights_under_the_same_name_are_noticed(tokenizer):
    def answer(path: str, body: dict) -> dict:
        return echoes(path, body) | {"metadata": {"weight_version": "1" if len(server.asked) < 3 else "2"}}

    with serving(answer) as server, pytest.raises(ServerError, match=r"another model \(m, weights 2\)"):
        sampler_of(server, tokenizer, patience_seconds=0.1)(prompts_of(tokenizer, 6))


def test_a_journal_of_other_settings_is_refused_and_names_them(tokenizer, tmp_path):
    journal, prompts = tmp_path / "journal.jsonl", prompts_of(tokenizer, 3)
    with serving(echoes) as server:
        sampler_of(server, tokenizer, journal=journal)(prompts)
        with pytest.raises(FolderError, match=r"asked for seed = 1 \(there: 0\)\. Give the former settings"):
            sampler_of(server, tokenizer, journal=journal, seed=1)(prompts)
        with pytest.raises(FolderError, match="asked for num_prompts = 2"):
            sampler_of(server, tokenizer, journal=journal)(prompts[:2])
        sampler_of(server, tokenizer, journal=journal, seed=1, restart=True)(prompts)
        assert len(server.asked) == 6
        with pytest.raises(FolderError, match=r"seed = 0 \(there: 1\)"):
            sampler_of(server, tokenizer, journal=journal)(prompts)


def test_without_log_probs_offline_is_nan_and_on_policy_is_refused(tokenizer):
    prompts, end = prompts_of(tokenizer, 2), stop_ids(tokenizer)[0]
    with serving(lambda path, body: completion([11, end], None)) as server:
        done = sampler_of(server, tokenizer)(prompts)
        assert all(len(c.logprobs) == 2 and all(map(math.isnan, c.logprobs)) for c in done)
        with pytest.raises(ServerError, match=rf"{server.url}/v1/ must return .* received no logprobs.token_logprobs"):
            sampler_of(server, tokenizer, require_logprobs=True)(prompts)
    refused = pytest.raises(ServerError, match=r"received no token_ids in choices\[0\]")
    with serving(lambda path, body: text_completion("12")) as server, refused:
        sampler_of(server, tokenizer, require_logprobs=True)(prompts)


def test_log_probs_of_another_temperature_are_dropped_unless_they_are_said_to_be_tempered(tokenizer):
    prompts = prompts_of(tokenizer, 2)
    with serving(echoes) as server:
        raw = sampler_of(server, tokenizer, temperature=0.7)
        assert all(math.isnan(x) for c in raw(prompts) for x in c.logprobs)
        assert raw.provenance()["server"]["inexact"] == {"no_logprobs": 2, "untempered": 2}
        tempered = sampler_of(server, tokenizer, temperature=0.7, tempered_logprobs=True)
        assert {x for c in tempered(prompts) for x in c.logprobs} == {-0.5}
        assert {x for c in sampler_of(server, tokenizer, temperature=0.0)(prompts) for x in c.logprobs} == {-0.5}


@pytest.mark.parametrize(
    ("accepts", "api", "path"),
    [
        (lambda b: "generation_config" in b, "transformers", "/v1/completions"),
        (lambda b: isinstance(b.get("prompt"), str) and "generation_config" not in b, "text", "/v1/completions"),
        (lambda b: "messages" in b, "chat", "/v1/chat/completions"),
    ],
)
def test_the_way_of_asking_is_the_first_that_the_server_takes(tokenizer, accepts, api, path):
    prompts = prompts_of(tokenizer, 3)

    def answer(where: str, body: dict) -> object:
        if not accepts(body):
            return 422, {"detail": "Unexpected fields"}
        reply = text_completion(" 3 + 4 = 7", completion_tokens=1 + len(tokenizer.encode(" 3 + 4 = 7")))
        if "messages" in body:
            reply["choices"][0]["message"] = {"content": reply["choices"][0].pop("text"), "reasoning_content": None}
        return reply

    with serving(answer) as server:
        sampler = sampler_of(server, tokenizer)
        done = sampler(prompts)
        last = server.asked[-1]
    assert last["path"] == path
    assert [a["path"] for a in server.asked].count(path) >= 3
    assert last["body"].get("prompt", prompt_text(tokenizer, prompts[-1].ids)) == prompt_text(
        tokenizer, prompts[-1].ids
    )
    assert all(c.ids == (*tokenizer.encode(" 3 + 4 = 7"), stop_ids(tokenizer)[0]) for c in done)
    about = sampler.provenance()["server"]
    assert (about["api"], about["inexact"]) == (api, {"no_logprobs": 3, "retokenized": 3})


def test_a_server_that_takes_no_way_of_asking_is_quoted_for_each(tokenizer):
    with (
        serving(lambda path, body: (404, {"error": f"nothing at {path}"})) as server,
        pytest.raises(ServerError) as raised,
    ):
        sampler_of(server, tokenizer)(prompts_of(tokenizer, 1))
    assert all(f"{api} (" in str(raised.value) for api in APIS)
    assert "nothing at /v1/chat/completions" in str(raised.value)


END = 1


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ([], "not a JSON object"),
        ({}, "no choices instead of 1"),
        ({"choices": {}}, "no choices"),
        ({"choices": [None]}, "1 choices"),
        ({"choices": [{"text": "3", "finish_reason": "content_filter"}]}, "finish_reason 'content_filter'"),
        ({"choices": [{"text": "3"}]}, "finish_reason 'None'"),
        ({"choices": [{"finish_reason": "stop"}]}, "no text"),
        ({"choices": [{"text": "", "finish_reason": "stop"}]}, "an empty answer"),
        ({"choices": [{"text": "", "finish_reason": "length"}], "usage": {"completion_tokens": 1}}, "an empty answer"),
        (completion([], []), "token_ids that"),
        (completion([5, 10**6], [0, 0]), "token_ids that"),
        (completion([5, -1], [0, 0]), "token_ids that"),
        (completion([5, True], [0, 0]), "token_ids that"),
        (completion([5, "6"], [0, 0]), "token_ids that"),
        (completion([5] * 25, [0] * 25), "more token_ids than max_tokens"),
        (text_completion("PROMPT and more"), "begins with the prompt"),
    ],
)
def test_what_cannot_be_an_answer_is_not_one(tokenizer, payload, reason):
    prompt = prompts_of(tokenizer, 1)[0]
    text = json.dumps(payload).replace("PROMPT", json.dumps(prompt_text(tokenizer, prompt.ids))[1:-1])
    with pytest.raises(AnswerError, match=reason):
        read_answer(json.loads(text), prompt, Decoding(max_new_tokens=24), stop_ids(tokenizer), tokenizer)


def read(tokenizer, payload, max_new_tokens=24):
    prompt = prompts_of(tokenizer, 1)[0]
    return read_answer(payload, prompt, Decoding(max_new_tokens=max_new_tokens), stop_ids(tokenizer), tokenizer)


def test_log_probs_that_do_not_fit_the_ids_are_none(tokenizer):
    end = stop_ids(tokenizer)[0]
    assert read(tokenizer, completion([5, end], [-0.1, -0.2])).notes == ()
    for wrong in ([-0.1], [-0.1] * 3, [-0.1, 0.5], [-0.1, math.nan], [-0.1, None], [-0.1, "x"], "x"):
        answer = read(tokenizer, completion([5, end], wrong))
        assert answer.notes == ("no_logprobs",)
        assert math.isnan(answer.completion.logprobs[1])
    assert read(tokenizer, completion([5, end], [1e-7, 0.0])).completion.logprobs == (0.0, 0.0)


def test_a_missing_stop_token_is_put_back_and_said(tokenizer):
    answer = read(tokenizer, completion([5, 6], [-0.1, -0.2]))
    assert answer.completion.ids == (5, 6, stop_ids(tokenizer)[0])
    assert answer.notes == ("closed", "no_logprobs")
    assert answer.completion.logprobs[:2] == (-0.1, -0.2)
    assert read(tokenizer, completion([5, 6], [-0.1, -0.2], "length")).completion.ids == (5, 6)


def test_what_is_known_to_be_inexact_is_said(tokenizer):
    end = stop_ids(tokenizer)[0]
    assert read(tokenizer, completion([end], [-0.1], prompt_token_ids=[1, 2])).notes == ("prompt_differs",)
    text = text_completion(" 3", completion_tokens=9, prompt_tokens=5)
    assert read(tokenizer, text).notes == ("retokenized", "token_count_differs", "no_logprobs", "prompt_differs")
    stopped = text_completion("", completion_tokens=1)
    assert read(tokenizer, stopped).completion.ids == (end,)
    message = {"content": " 7", "reasoning_content": " 3 + 4"}
    joined = read(tokenizer, {"choices": [{"message": message, "finish_reason": "stop"}]}, 100)
    assert joined.notes[0] == "reasoning_joined"
    expected = tokenizer.encode("<think>\n3 + 4\n</think>\n\n 7", add_special_tokens=False)
    assert list(joined.completion.ids) == [*expected, end]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"urls": ("localhost:8000",)}, "http://localhost:8000/v1"),
        ({"urls": ("ftp://host",)}, r"must be http\(s\)"),
        ({"urls": (f"http://me:{KEY}@host",)}, "without user"),
        ({"urls": (f"http://host/v1?key={KEY}",)}, "without user"),
        ({"urls": ("http://h",), "api": "chta"}, 'Did you mean "chat"'),
        ({"urls": ("http://h",), "concurrency": 0}, "concurrency >= 1"),
        ({"urls": ("http://h",), "api_key": "a\nb"}, "printable"),
    ],
)
def test_settings_that_lead_nowhere_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message) as raised:
        Server(model="m", **settings)
    assert KEY not in str(raised.value)


def test_equal_keys_are_refused(tokenizer):
    prompts = prompts_of(tokenizer, 1)
    with pytest.raises(ConfigError, match="keys of their own"):
        sampler_of("http://127.0.0.1:9", tokenizer)(prompts * 2)


def test_a_redirect_does_not_carry_the_key_away(tokenizer):
    with serving(lambda path, body: (307, {})) as server, pytest.raises(ServerError, match="HTTP 307"):
        sampler_of(server, tokenizer, api_key=KEY)(prompts_of(tokenizer, 1))
    assert len(server.asked) == 1


def test_the_command_ends_in_a_folder_like_that_of_a_model_in_this_process(model, tokenizer, tmp_path):
    with serving(samples_of(model)) as server:
        code, said = call(*command(server, tmp_path / "there"))
        assert code == 0
        assert said.strip().splitlines()[-1] == str(tmp_path / "there")
        assert call(*command(server, tmp_path / "there"))[0] == 2  # complete: not again
    here = ["sample", "--model", BASE, "--problems", "abacus:train", "--num", "3", "--samples", "2"]
    assert call(*here, "--max-new-tokens", "24", "--out", str(tmp_path / "here"))[0] == 0
    there, here = read_rollouts(tmp_path / "there"), read_rollouts(tmp_path / "here")
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == sorted(
        p.name for p in (tmp_path / "here").iterdir()
    )
    assert [(r.key, r.prompt_ids) for r in there.rollouts] == [(r.key, r.prompt_ids) for r in here.rollouts]
    assert {k: v for k, v in there.provenance.items() if k not in ("model", "model_digest", "server")} == {
        k: v for k, v in here.provenance.items() if k not in ("model", "model_digest")
    }


def test_an_interrupted_command_is_continued_and_not_overwritten_by_accident(tokenizer, tmp_path):
    out = tmp_path / "out"
    with serving(echoes, lambda number, body: "drop" if number >= 4 else None) as server:
        code, said = call(*command(server, out, "--patience", "0.2"))
        assert (code, "4 of 6 answers are saved" in said) == (1, True)
        code, said = call("sample", "--model", BASE, "--problems", "abacus:train", "--num", "1", "--out", str(out))
        assert (code, "holds answers of a server" in said) == (2, True)
        code, said = call(*command(server, out, "--seed", "1"))
        assert (code, "seed = 1 (there: 0)" in said) == (2, True)
    with serving(echoes) as server:
        assert call(*command(server, out))[0] == 0
        assert len(server.asked) == 2
        assert len(read_rollouts(out)) == 6
        assert call(*command(server, out, "--seed", "1", "--overwrite"))[0] == 0
        assert read_rollouts(out).provenance["seed"] == 1


def test_the_key_is_sent_and_never_written(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_API_KEY", KEY)
    out = tmp_path / "out"

    def answer(path: str, body: dict) -> object:
        if len(server.asked) == 4:
            return 500, {"error": f"key {KEY} overloaded"}
        if len(server.asked) == 5:
            return 403, {"error": f"Incorrect key {KEY}"}
        return echoes(path, body)

    with serving(answer) as server:
        code, said = call(*command(server, out, "--concurrency", "1"))
        assert (code, "HTTP 403" in said, "(key)" in said) == (1, True, True)
        assert all(request["headers"]["Authorization"] == f"Bearer {KEY}" for request in server.asked)
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert any(path.name == "journal.jsonl" for path in written)
        code, rest = call(*command(server, out, "--concurrency", "1"))
        assert code == 0
    for text in (said, rest, repr(Server(urls=("http://h",), model="m", api_key=KEY))):
        assert KEY not in text
    for path in [*written, *(path for path in tmp_path.rglob("*") if path.is_file())]:
        assert not path.exists() or KEY.encode() not in path.read_bytes()


def test_the_page_says_what_may_be_inexact_and_which_options_there_are():
    page = (Path(__file__).parents[3] / "docs" / "servers.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", page, re.MULTILINE))
    assert {name: text.replace("`", "") for name, text in rows.items()} == NOTES | SCORING_NOTES
    verbs = (["sample"], ["score"], ["study", "run"])
    said = "".join(CliRunner().invoke(cli.app, [*verb, "--help"], env={"COLUMNS": "200"}).output for verb in verbs)
    for option in set(re.findall(r"`(--[a-z-]+)", page)) - {"--logprobs-mode"}:
        assert option in said, option


def test_server_and_tokenizer_go_together(tmp_path):
    model = ["sample", "--model", "m", "--problems", "abacus:train", "--out", str(tmp_path / "o")]
    assert "belong together" in call(*model, "--server", "http://h")[1]
    code, said = call(*model, "--server", "http://h", "--tokenizer", str(tmp_path))
    assert (code, "--tokenizer must be a folder with a tokenizer" in said) == (1, True)
    assert not (tmp_path / "o").exists()


def test_a_damaged_line_is_work_to_do_again(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, {"a": 1}) as journal:
        for number in range(3):
            journal.append(str(number), {"x": number})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + b"\0\0\0\n" + lines[3] + lines[1] + b'{"key": "9", "x"')
    with Journal(path, {"a": 1}) as journal:
        assert journal.done == {"0": {"x": 0}, "2": {"x": 2}}
        journal.append("1", {"x": 1})
    assert Journal(path, {"a": 1}).done == {"0": {"x": 0}, "2": {"x": 2}, "1": {"x": 1}}


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(tokenizer):
    with serving(echoes, lambda number, body: "delay" if number == 1 else None) as server:
        server.delay = 3.0
        prompts = prompts_of(tokenizer, 3)
        sampler = sampler_of(server, tokenizer, timeout_seconds=1, patience_seconds=60)
        assert_each_once(prompts, sampler(prompts))
    assert sampler.provenance()["server"]["repeated"]["no answer in 1 s"] >= 1
