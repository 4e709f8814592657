"""Parts of the live loop: rewards that fail, what is refused, end tokens of one side, distances, the view."""

from __future__ import annotations

import io
import math
import os
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from rich.console import Console

import live_rewards
from limbeck.config import LiveConfig, LoraConfig, RunConfig, StageConfig, TrainConfig
from limbeck.errors import ConfigError, DataError, DegenerateError, ModelError
from limbeck.folders import read_manifest
from limbeck.train import live_draw, live_run
from limbeck.train.live_record import distances, spread_of
from limbeck.train.live_view import dashboard, live_view
from limbeck.train.models import load_tokenizer
from limbeck.train.record import read_metrics
from limbeck.train.rewards import Isolated, Rewarded
from limbeck.train.run import train
from limbeck.types import Finish, Problem, Rollout

from .live_toy import Parity, toy_model

PROBLEM = Problem(id="p", prompt="2 + 2", answer="4", source="test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def student(folder) -> str:
    return toy_model(folder / "student", seed=0)


@pytest.fixture(scope="module")
def config(folder, student) -> RunConfig:
    return RunConfig(
        base=student,
        train=TrainConfig(objective="grpo", num_steps=2, save_visible=False, lora=LoraConfig(rank=2, alpha=4.0)),
        live=LiveConfig(
            problems="abacus:train",
            num_problems=12,
            teacher=toy_model(folder / "teacher", seed=1),
            prompts_per_step=3,
            samples=3,
            max_new_tokens=6,
            reference_every=0,
        ),
    )


def changed(config: RunConfig, *, train: dict | None = None, live: dict | None = None, **own) -> RunConfig:
    parts = {"train": config.train.model_copy(update=train or {}), "live": config.live.model_copy(update=live or {})}
    return config.model_copy(update={**parts, **own})


def test_a_reward_function_that_fails_costs_its_group_alone():
    told = {
        "right": Rewarded((1.0, 0.0)),
        "raise": Rewarded((), "it raised ValueError: no"),
        "short": Rewarded((), "it returned 1 rewards for 2 answers"),
        "nan": Rewarded((), "it returned a reward that is not finite"),
        "text": Rewarded((), "it raised ValueError: could not convert string to float: 'good'"),
        "exit": Rewarded((), "its process died"),
        "hang": Rewarded((), "it took longer than 1 s"),
        "again": Rewarded((1.0, 0.0)),
    }
    groups = [(replace(PROBLEM, id=name), ["4", "5"]) for name in told]
    with Isolated(live_rewards.by_name, limit_seconds=1) as rewards:
        found = rewards(groups)
        process = rewards._process.pid
    assert dict(zip(told, found, strict=True)) == told
    with pytest.raises(ProcessLookupError):  # nothing is left behind
        os.kill(process, 0)


def test_a_reward_function_must_be_importable():
    with pytest.raises(ConfigError, match=r"another process can import, received <function .*lambda"):
        Isolated(lambda problem, answers: [0.0], limit_seconds=1)


def test_failing_rewards_are_counted_and_past_a_share_the_run_stops(config, tmp_path):
    with pytest.warns(RuntimeWarning, match="gave no rewards for 1 of 3 groups: it raised ValueError: no"):
        out = train(config, tmp_path / "some", reward=live_rewards.one_in_three)
    lines = read_metrics(out / "metrics.jsonl")
    assert [(line["groups"], line["groups_without_reward"]) for line in lines] == [(2, 1), (2, 1)]
    assert read_manifest(out, "run")["reward"] == "live_rewards.one_in_three"
    strict = changed(config, train={"num_steps": 9}, live={"reward_failures": 0.2})
    with (
        pytest.raises(DegenerateError, match="at least 80% of the groups, received rewards for 6 of 9"),
        pytest.warns(RuntimeWarning, match="gave no rewards"),
    ):
        train(strict, tmp_path / "many", reward=live_rewards.one_in_three)
    assert len(read_metrics(tmp_path / "many" / "metrics.jsonl")) == 3  # what was done is on record


REFUSED = [
    (
        {"live": {"teacher": None}, "train": {"objective": "opd"}},
        "opd reads a teacher, received none. Give live.teacher",
    ),
    ({"live": {"sampling_temperature": 0.7}}, "live.sampling_temperature must be 1, received 0.7"),
    ({"live": {"samples": 1}}, "live.samples must be at least 2, received 1"),
    ({"train": {"objective": "erpd_kl"}}, "erpd_kl reads a signal that only a fixed rollout set has"),
    ({"live": {"student_fraction": 0.5}}, "rollouts = '' and live.student_fraction = 0.5. Give both or neither"),
    ({"scores": {"teacher_logprobs": "x"}}, "a live run scores its own rollouts, received scores"),
    ({"live": {"stages": (StageConfig(objective="opd"),)}}, "live.stages stand in place of train.objective"),
    (
        {
            "train": {"objective": "sft"},
            "live": {"stages": (StageConfig(objective="opd", until=2), StageConfig(objective="grpo", until=1))},
        },
        "must end one after another and last to the end, step 2; received until = 2, 1",
    ),
    ({"live": {"stages": (StageConfig(objective="opdd"),)}}, "opdd"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_what_cannot_work_is_refused_before_a_folder_is_made(config, tmp_path, changes, sentence):
    with pytest.raises(ConfigError) as refused:
        train(changed(config, **changes), tmp_path / "run")
    assert sentence in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_problems_that_leave_no_room_are_dropped_and_too_few_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(live_run, "rewards_of", lambda function, limit_seconds: Parity())
    with pytest.raises(DataError, match=r"live.prompts_per_step = 3 problems .* received 0 of 12"):
        train(changed(config, live={"max_new_tokens": 150}), tmp_path / "none")
    out = train(changed(config, live={"max_new_tokens": 100, "prompts_per_step": 1}), tmp_path / "some")
    facts = read_manifest(out, "run")
    assert facts["problems"] + facts["problems_too_long"] == 12
    assert facts["problems_too_long"] > 0


def test_a_teacher_of_other_ids_is_refused(config, folder, tmp_path):
    other = toy_model(folder / "other", seed=2)
    tokenizer = load_tokenizer(other)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match=r"every token to the same id, received None and \d+ for '<new>'"):
        train(changed(config, train={"objective": "opd"}, live={"teacher": other}), tmp_path / "run")
    train(changed(config, train={"num_steps": 1, "objective": "sft"}, live={"teacher": other}), tmp_path / "unread")


@pytest.mark.parametrize("name", ["opd", "reverse_kl", "kdrl"])
def test_end_tokens_of_one_side_are_named_and_masked(config, folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr(live_run, "rewards_of", lambda function, limit_seconds: Parity())
    tokenizer = load_tokenizer(config.base)
    extra = [tokenizer.eos_token_id, *range(20, 60)]  # the teacher would stop at a quarter of all tokens
    teacher = toy_model(folder / f"stops-{name}", seed=1, eos=extra)
    out = train(changed(config, train={"objective": name}, live={"teacher": teacher}), tmp_path / "run")
    assert read_manifest(out, "run")["one_sided_stops"] == list(range(20, 60))
    for line in read_metrics(out / "metrics.jsonl"):
        if name == "kdrl":  # the reward judges such a token, the teacher does not
            assert line["tokens"] == line["tokens_sampled"]
        else:
            assert 0 < line["tokens"] < line["tokens_sampled"]


def test_distances_by_hand():
    # o = log(.5), log(.8); q = log(.25), log(.9): D = ln 2 and ln(8/9)
    rollout = Rollout(
        problem_id="p", sample=0, prompt_ids=(1,), response_ids=(2, 3), reward=1.0, finish=Finish.STOP, response="",
        behavior_logprobs=(math.log(0.5), math.log(0.8)),
    )  # fmt: skip
    found = distances([rollout], {"teacher_logprobs": [[math.log(0.25), math.log(0.9)]]})
    assert found["kl_student_teacher_k1"] == pytest.approx((math.log(2) + math.log(8 / 9)) / 2)
    assert found["kl_student_teacher_k3"] == pytest.approx((0.5 + math.log(2) - 1 + 9 / 8 + math.log(8 / 9) - 1) / 2)
    assert found["teacher_agreement"] == pytest.approx((0.5 + 1) / 2)


def test_the_spread_of_other_people_s_rollouts_by_hand():
    """Two tokens that the student likes as much and three times as much: weights 1 and 3, worth 4**2 / (2 * 10) of two."""
    found = spread_of(np.log([1.0, 3.0]))
    assert found["writer_ratio_q50"] == pytest.approx(2.0)
    assert found["writer_ratio_max"] == pytest.approx(3.0)
    assert found["writer_log_ratio_std"] == pytest.approx(math.log(3) / 2)
    assert found["writer_effective_share"] == pytest.approx(0.8)


def test_distances_leave_out_what_others_wrote_and_what_the_teacher_cannot_judge():
    rollout = _one(math.log(0.5))
    columns = {"teacher_logprobs": [[math.log(0.25)], [-19.0]], "reference_logprobs": [[math.log(0.5)], [-19.0]]}
    found = distances([rollout], columns)  # the second row belongs to another sampler
    assert found["kl_student_teacher_k1"] == pytest.approx(math.log(2))
    assert found["kl_student_reference_k3"] == 0
    masked = distances([rollout, rollout], {**columns, "teacher_mask": [[1.0], [0.0]]})
    assert masked["teacher_agreement"] == pytest.approx(0.5)
    assert distances([rollout], {"teacher_logprobs": [[-1.0]], "mask": [[0.0]]}) == {}
    assert distances([], columns) == {}


def test_agreement_expects_one_minus_total_variation():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), size=2)
    expected = sum(
        weight * distances([_one(math.log(weight))], {"teacher_logprobs": [[math.log(other)]]})["teacher_agreement"]
        for weight, other in zip(p, q, strict=True)
    )
    assert expected == pytest.approx(1 - np.abs(p - q).sum() / 2)


def _one(logprob: float) -> Rollout:
    return Rollout(
        problem_id="p", sample=0, prompt_ids=(1,), response_ids=(2,), behavior_logprobs=(logprob,), reward=0.0,
        finish=Finish.STOP, response="",
    )  # fmt: skip


def test_an_epoch_asks_every_problem_once():
    ids = tuple(f"p{i}" for i in range(12))
    turns = [live_draw.positions(ids, turn, num=4, seed=0) for turn in range(6)]
    assert sorted(chain(*turns[:3])) == sorted(chain(*turns[3:])) == list(range(12))
    assert turns[:3] != turns[3:]


LINE = {"step": 1, "objective": "opd", "reward": 0.25, "signal_share": 0.5, "response_tokens": 12.0, "seconds": 2.0,
        "seconds_sample": 1.0, "seconds_update": 1.0, "tokens_per_second_sample": 500.0}  # fmt: skip


def test_the_view_shows_trends_and_time_left():
    history = [{**LINE, "step": step, "reward": step / 10} for step in range(1, 5)]
    console = Console(file=io.StringIO(), width=100)
    console.print(dashboard(history, 10))
    text = console.file.getvalue()
    assert "step 4 of 10, about 12 s left" in text
    assert "▁▃▆█" in text
    assert "sample 50%, 500 tokens/s; update 50%" in text


def test_the_plain_view_says_the_first_and_the_last_step(capsys):
    with live_view(3) as show:
        for step in (1, 2, 3):
            show({**LINE, "step": step})
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "opd step 1 of 3: reward 0.250, groups with signal 50%" in said[0]
    assert said[1].endswith("done")
