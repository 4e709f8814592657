"""What is told of rollouts: counted here by hand on eight rows, four problems."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from limbeck.config import RunConfig, TrainConfig
from limbeck.doctor.data import Reader, examine_rollouts, read_any
from limbeck.doctor.table import asked, examine_objectives
from limbeck.objectives import OBJECTIVES
from limbeck.rollouts import select
from limbeck.train.data import prepare
from limbeck.train.scores import check_scores
from limbeck.types import Finish, RolloutSet

from .parts import by_name


@pytest.fixture
def reader(tokenizer) -> Reader:
    return Reader(tokenizer, stops=(1,), num_ids=168, context=256, opens_thinking=False)


def changed(rollout_set: RolloutSet, provenance=None, **changes) -> RolloutSet:
    rows = tuple(replace(r, **{k: v(r) for k, v in changes.items()}) for r in rollout_set.rollouts)
    return RolloutSet(rollouts=rows, provenance={**rollout_set.provenance, **(provenance or {})})


def test_everything_is_counted(rollout_set, reader):
    found = by_name(examine_rollouts(rollout_set, reader, TrainConfig()))
    lengths = sorted(len(r.response_ids) for r in rollout_set.rollouts)
    assert found["rows"].facts == {"rows": 8, "groups": 4, "group_sizes": {"2": 4}}
    tokens = found["trainable tokens a row"].facts
    assert (tokens["smallest"], tokens["largest"], tokens["all"]) == (lengths[0], lengths[-1], sum(lengths))
    assert found["truncated"].facts["truncated"] == 1
    assert found["truncated"].level == "note"  # 1 of 8
    assert found["mixed groups"].facts == {"mixed": 2, "all_right": 1, "all_wrong": 1, "share": 0.5}
    assert found["rewards"].facts["right_share"] == 0.5
    assert found["log-probs"].facts["with"] == 8
    assert {f.level for name, f in found.items() if name != "truncated"} == {"ok"}
    assert all(f.remedy for f in found.values() if f.level != "ok")


def test_rows_that_do_not_fit_are_told_before_they_are_dropped(rollout_set, reader):
    lengths = [len(r.prompt_ids) + len(r.response_ids) for r in rollout_set.rollouts]
    for limit, level in ((max(lengths), "ok"), (max(lengths) - 1, "note"), (min(lengths) - 1, "problem")):
        found = by_name(examine_rollouts(rollout_set, reader._replace(context=limit), TrainConfig()))["longest rows"]
        assert (found.level, found.facts["beyond"]) == (level, sum(n > limit for n in lengths))


@pytest.mark.parametrize(
    ("name", "level", "provenance", "changes"),
    [
        ("ids", "problem", {}, {"response_ids": lambda r: (*r.response_ids[:-1], 168)}),
        ("template", "note", {"template_digest": "another"}, {}),
        ("truncated", "note", {"finish": "assumed stop"}, {"finish": lambda r: Finish.STOP}),
        ("ends", "note", {}, {"response_ids": lambda r: (*r.response_ids[:-1], 5)}),
        ("rewards", "note", {"rewards": "assumed 1 (demonstrations)"}, {}),
        ("rewards", "note", {}, {"reward": lambda r: 1.0}),
        ("mixed groups", "note", {}, {"reward": lambda r: float(r.problem_id == "p0")}),
        ("log-probs", "note", {"sampling_temperature": 0.7}, {}),
        ("log-probs", "note", {}, {"behavior_logprobs": lambda r: (math.nan,) * len(r.response_ids)}),
        ("rows", "note", {}, {"problem_id": lambda r: f"{r.problem_id}-{r.sample}"}),
    ],
)
def test_each_fault_is_found_and_has_a_remedy(rollout_set, reader, name, level, provenance, changes):
    found = by_name(examine_rollouts(changed(rollout_set, provenance, **changes), reader, TrainConfig()))[name]
    assert found.level == level
    assert found.remedy


def test_a_tag_that_the_template_has_opened_already(rollout_set, reader):
    twice = changed(rollout_set, response=lambda r: f"<think>{r.response}" if r.sample else r.response)
    found = by_name(examine_rollouts(twice, reader._replace(opens_thinking=True), TrainConfig()))["template"]
    assert found.facts["opened_twice"] == 4


def test_a_file_is_read_as_import_reads_it_and_keeps_rows_of_any_length(tmp_path, tokenizer):
    row = {"prompt": "A box holds 12 coins.", "response": "12 - 5 = 7. " * 60, "reward": 1}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    assert len(read_any(tmp_path / "r.jsonl", tokenizer).rollouts[0].response_ids) > 256


def objectives(rollout_set, **train) -> dict:
    config = RunConfig(base="abacus:base", train=TrainConfig(**train))
    return by_name(examine_objectives(asked(config, rollout_set, 256)))


@pytest.mark.parametrize("known", [True, False])
def test_an_objective_needs_something_exactly_where_a_run_would_refuse_it(rollout_set, known):
    given = rollout_set if known else changed(rollout_set, {"sampling_temperature": 0.7})
    found = objectives(given)
    assert set(found) == set(OBJECTIVES)
    for name, objective in OBJECTIVES.items():
        config = RunConfig(base="abacus:base", train=TrainConfig(objective=name))
        try:
            check_scores(config, objective, given)
            refused = False
        except ValueError:
            refused = True
        assert bool(found[name].facts["needs"]) == refused, name


def test_usable_rows_are_those_that_a_run_would_train_on(rollout_set):
    found = objectives(rollout_set)
    for name in ("sft", "dpo", "grpo", "kto"):
        own = prepare(TrainConfig(objective=name), OBJECTIVES[name], rollout_set, {}, context=256)
        assert found[name].facts["items"] == len(own.data.items)
        assert found[name].facts["rows"] == own.facts["rows"]
    assert found["dpo"].facts["items"] == len(select.pairs(rollout_set, seed=0).pairs) == 2
    assert found["grpo"].facts["moving"] == 4  # both rows of the two mixed groups
    assert found["offline_grpo:advantage-nll"].facts["moving"] == 8  # its credit adds a bias to every row
    assert found["dpo"].facts["makes"] == ["reference_logprobs"]
    assert found["reverse_kl"].facts["needs"] == ["teacher_logits"]
    selected = objectives(rollout_set, selection="correct", objective="sft")["sft"]
    assert selected.facts["items"] == 4


def test_the_chosen_objective_is_a_problem_where_the_others_are_noted(rollout_set):
    right = changed(rollout_set, reward=lambda r: 1.0)
    found = objectives(right, objective="dpo")
    assert (found["dpo"].level, found["ipo"].level) == ("problem", "note")
    assert found["dpo"].remedy
    assert found["grpo"].facts["moving"] == 0
    assert objectives(rollout_set, objective="opd")["opd"].level == "problem"
    assert objectives(rollout_set, objective="dpo")["dpo"].level == "ok"
