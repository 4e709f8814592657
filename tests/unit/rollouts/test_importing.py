"""Users' files become rollouts under every layout that is promised, and bad rows are named by line."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.errors import DataError
from limbeck.problems.prompts import prompt_ids, response_ids
from limbeck.rollouts import select
from limbeck.rollouts.importing import import_rollouts
from limbeck.rollouts.store import read_rollouts, write_rollouts
from limbeck.types import Finish
from limbeck.worlds.abacus.tokenizer import build_tokenizer

PROMPT = "A box holds 12 coins. First 5 are lost. How many coins are there now?"
RIGHT, FALSE = "12 - 5 = 7. #### 7", "12 - 5 = 8. #### 8"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def jsonl(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_own_layout_with_rewards(tmp_path, tokenizer):
    row = {"problem_id": "p", "prompt": PROMPT, "response": RIGHT, "reward": 1}
    path = jsonl(tmp_path / "r.jsonl", row, {**row, "response": FALSE, "reward": 0.5, "finish": "length"})
    found = import_rollouts(path, tokenizer)
    first, second = found.rollouts
    assert first.prompt_ids == prompt_ids(tokenizer, PROMPT)
    assert first.response_ids == response_ids(tokenizer, RIGHT)
    assert first.response_ids[-1] == tokenizer.eos_token_id
    assert (second.finish, second.reward, second.key) == (Finish.LENGTH, 0.5, ("p", 1))
    assert second.response_ids == response_ids(tokenizer, FALSE)[:-1]  # cut by the limit: no stop token
    assert all(math.isnan(x) for x in first.behavior_logprobs)
    assert found.provenance["rewards"] == "given"
    assert found.provenance["group_sizes"] == {"2": 1}
    write_rollouts(found, tmp_path / "out")
    assert read_rollouts(tmp_path / "out").digest == found.digest


def test_own_layout_is_graded_by_answer_and_grouped_by_prompt(tmp_path, tokenizer):
    rows = [{"prompt": PROMPT, "response": r, "answer": 7} for r in (RIGHT, FALSE, RIGHT)]
    rows.append({"prompt": "Start 3.", "response": RIGHT, "answer": "7"})
    found = import_rollouts(jsonl(tmp_path / "r.jsonl", *rows), tokenizer)
    assert [r.reward for r in found.rollouts] == [1.0, 0.0, 1.0, 1.0]
    assert [r.sample for r in found.rollouts] == [0, 1, 2, 0]
    assert found.provenance["group_sizes"] == {"1": 1, "3": 1}
    assert "math-verify" in found.provenance["rewards"]


def test_trl_layouts_agree(tmp_path, tokenizer):
    layouts = {
        "text": {"prompt": PROMPT, "completion": RIGHT},
        "turns": {"prompt": [user(PROMPT)], "completion": [assistant(RIGHT)]},
        "messages": {"messages": [user(PROMPT), assistant(RIGHT)]},
    }
    found = {k: import_rollouts(jsonl(tmp_path / f"{k}.jsonl", row), tokenizer) for k, row in layouts.items()}
    assert len({x.digest for x in found.values()}) == 1
    assert {x.provenance["rewards"] for x in found.values()} == {"assumed 1 (demonstrations)"}
    given = import_rollouts(jsonl(tmp_path / "g.jsonl", {**layouts["text"], "reward": 0.0}), tokenizer)
    assert given.rollouts[0].reward == 0.0


def test_trl_preferences_are_pairs_of_rewards(tmp_path, tokenizer):
    text = {"prompt": PROMPT, "chosen": RIGHT, "rejected": FALSE}
    implicit = {"chosen": [user(PROMPT), assistant(RIGHT)], "rejected": [user(PROMPT), assistant(FALSE)]}
    found = [import_rollouts(jsonl(tmp_path / f"{i}.jsonl", row), tokenizer) for i, row in enumerate((text, implicit))]
    assert found[0].digest == found[1].digest
    assert [(r.sample, r.reward, r.response) for r in found[0].rollouts] == [(0, 1.0, RIGHT), (1, 0.0, FALSE)]
    with pytest.raises(DataError, match='line 1: "chosen" as text needs the column prompt'):
        import_rollouts(jsonl(tmp_path / "x.jsonl", {"chosen": RIGHT, "rejected": FALSE}), tokenizer)


@pytest.mark.parametrize("names", [{}, {"problem_id": "p"}])
def test_a_preference_row_keeps_its_pair_among_rows_of_one_prompt(tmp_path, tokenizer, names):
    rows = [{"prompt": PROMPT, "chosen": f"{RIGHT} {i}", "rejected": f"{FALSE} {i}", **names} for i in range(4)]
    found = import_rollouts(jsonl(tmp_path / "r.jsonl", *rows), tokenizer)
    for rule in ("one_per_group", "zip", "all"):
        pairs = select.pairs(found, rule, seed=0).pairs
        texts = sorted((found.rollouts[right].response, found.rollouts[wrong].response) for right, wrong in pairs)
        assert texts == [(row["chosen"], row["rejected"]) for row in rows]
    assert found.provenance["groups"].startswith("one for each row")


def test_an_assumed_finish_is_on_record(tmp_path, tokenizer):
    row = {"prompt": PROMPT, "response": RIGHT, "reward": 1}
    some = import_rollouts(jsonl(tmp_path / "a.jsonl", row, {**row, "finish": "stop"}), tokenizer)
    assert some.provenance["finish"] == 'assumed "stop" for 1 of 2, where the file does not say'
    assert {r.finish for r in some.rollouts} == {Finish.STOP}
    every = import_rollouts(jsonl(tmp_path / "b.jsonl", {**row, "finish": "length"}), tokenizer)
    assert every.provenance["finish"] == "given"
    assert every.provenance["groups"] == "by problem_id, else by prompt"


@pytest.mark.parametrize("name", ["responses", "response"])
def test_verl_parquet(tmp_path, tokenizer, name):
    row = {
        "data_source": "abacus",
        "prompt": [user(PROMPT)],
        "reward_model": {"style": "rule", "ground_truth": "7"},
        name: [RIGHT, FALSE],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "v.parquet")
    found = import_rollouts(tmp_path / "v.parquet", tokenizer)
    assert [(r.sample, r.reward) for r in found.rollouts] == [(0, 1.0), (1, 0.0)]
    assert found.rollouts[0].prompt_ids == prompt_ids(tokenizer, PROMPT)


def test_several_turns_need_a_template(tmp_path, tokenizer):
    turns = [user("Start 3."), assistant("3"), user(PROMPT), assistant(RIGHT)]
    path = jsonl(tmp_path / "m.jsonl", {"messages": turns})
    rollout = import_rollouts(path, tokenizer).rollouts[0]
    text = tokenizer.decode(rollout.prompt_ids)
    assert text.index("Start 3.") < text.index("A box holds")
    plain = build_tokenizer()
    plain.chat_template = None
    with pytest.raises(DataError, match="line 1: a prompt of several turns needs a tokenizer with a chat template"):
        import_rollouts(path, plain)


def test_long_rows_are_dropped_on_record_or_refused(tmp_path, tokenizer):
    row = {"problem_id": "p", "prompt": "Start 3.", "response": "3", "reward": 1.0}
    path = jsonl(tmp_path / "r.jsonl", row, {**row, "response": "3 " * 40}, {**row, "response": "4"})
    found = import_rollouts(path, tokenizer, max_length=20)
    assert [r.key for r in found.rollouts] == [("p", 0), ("p", 2)]
    assert found.provenance["dropped"] == {"longer_than_max_length": [["p", 1]], "max_length": 20}
    assert found.provenance["num_rows"] == 3
    exact = len(found.rollouts[0].prompt_ids) + len(found.rollouts[0].response_ids)
    assert len(import_rollouts(path, tokenizer, max_length=exact)) == 2
    with pytest.raises(DataError, match=r"at least one row must fit into 3 tokens, received 3 that are longer"):
        import_rollouts(path, tokenizer, max_length=3)


OWN = {"prompt": PROMPT, "response": RIGHT, "reward": 1.0}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((OWN, "{"), r"r.jsonl, line 2: a line must be JSON"),
        (({"prompt": "x"},), r"line 1: rollouts need the columns prompt and response, .*; received prompt\. Rename"),
        ((OWN, {"prompt": PROMPT, "reward": 1.0}), r'line 2: a row needs the field "response"'),
        ((OWN, {**OWN, "response": " \n"}), r"line 2: a response must not be empty"),
        ((OWN, {**OWN, "prompt": ""}), r"line 2: a prompt must not be empty"),
        ((OWN, {**OWN, "reward": "high"}), r"""line 2: "reward" must be a finite number, received 'high'"""),
        ((OWN, {**OWN, "reward": math.nan}), r"""line 2: "reward" must be a finite number, received nan"""),
        ((OWN, {"prompt": PROMPT, "response": RIGHT, "answer": "7"}), r"line 2: every row needs a reward, or every row"),
        (({"prompt": PROMPT, "response": RIGHT},), r'line 1: a rollout needs "reward", or "answer" to be graded by'),
        ((OWN, {**OWN, "finish": "eos"}), r"""line 2: "finish" must be "stop" or "length", received 'eos'"""),
        (({**OWN, "problem_id": 1}, {**OWN, "problem_id": 1, "prompt": "y"}), r"line 2: problem_id '1' stands for two"),
        (({"messages": [assistant(RIGHT), user("x")]},), r"line 1: messages must end with an assistant turn"),
        (({"messages": [user("x"), {"role": "assistant"}]},), r"line 1: text or a list of messages with role and content"),
        (({"prompt": "x", "completion": [assistant("a"), user("b")]},), r"one assistant turn, received assistant, user"),
        (({"prompt": [user("x")], "reward_model": {}, "responses": ["7"]},), r'needs the field "reward_model.ground_truth"'),
        ((), r"must hold at least one rollout, received none"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path, tokenizer, rows, words):
    with pytest.raises(DataError, match=words):
        import_rollouts(jsonl(tmp_path / "r.jsonl", *rows), tokenizer)
