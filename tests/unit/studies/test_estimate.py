"""How long a study takes: what there is to do, at a measured rate, on so many workers, corrected by what is done."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from limbeck.config import TrainConfig
from limbeck.errors import ConfigError
from limbeck.folders import publish
from limbeck.problems.prompts import prompt_ids
from limbeck.records import write_json
from limbeck.studies.config import StudyConfig, load_study
from limbeck.studies.estimate import CORRECTED, estimate, side_by_side
from limbeck.studies.facts import shape_of
from limbeck.studies.overview import arms_table, duration, steps_lines, time_table
from limbeck.studies.plan import make_plan
from limbeck.studies.rates import Probe, counted, time_here
from limbeck.studies.runner import TIMES
from limbeck.studies.step import Step
from limbeck.studies.work import Counter, Lengths, run_bytes
from limbeck.train.models import add_adapter, load_model, load_tokenizer
from limbeck.worlds.abacus.generator import generate


def study(*arms: dict, **values) -> StudyConfig:
    basic = {"name": "x", "question": "?", "student": "abacus:base", "teacher": "abacus:teacher", "workers": 2}
    asked = {"rollouts": {"problems": {"world": "abacus", "num": 10}}, "eval": {"max_new_tokens": 96}}
    return StudyConfig.model_validate({**basic, **asked, "arms": arms, **values})


def works(config: StudyConfig) -> dict:
    steps = make_plan(config)
    counter = Counter(steps, config.student, Lengths(prompt=50, response=30))
    return {step.name: counter.work(step) for step in steps}


def test_work_is_counted_in_tokens():
    dpo = {"name": "dpo", "train": {"objective": "dpo", "batch_size": 4, "num_steps": 5}}
    found = works(study({"name": "sft", "train": {"batch_size": 8, "num_steps": 5}}, dpo))
    assert found["train/sft-s0"].trained == 8 * 5 * 80 == found["train/dpo-s0"].trained  # a pair is two rows
    assert found["rollouts"].sampling.tokens == 10 * 4 * 30
    assert found["score/reference_logprobs"].scored == 10 * 4 * 80
    assert found["eval/sft-s0"].sampling == (4 * 96, 1000 * 30)  # rows in batches of 256


def test_a_live_run_samples_scores_and_trains():
    live = {"problems": "abacus:train", "prompts_per_step": 3, "samples": 4, "inner_epochs": 2, "reference_every": 5}
    arms = [{"name": n, "train": {"objective": n, "num_steps": 7}, "live": {}} for n in ("grpo", "opd")]
    found = works(study(*arms, live=live))
    grpo, opd = found["train/grpo-s0"], found["train/opd-s0"]
    assert grpo.sampling.tokens == opd.sampling.tokens == 7 * 12 * 30
    assert grpo.trained == opd.trained == 2 * 7 * 12 * 80
    assert opd.scored == 7 * 12 * 80  # by the teacher
    assert grpo.scored == pytest.approx(7 * 12 * 80 / 5)  # the KL to the base, for the record


def test_shapes_and_bytes_are_those_of_the_files(tmp_path):
    shape = shape_of("abacus:base")
    model = load_model("abacus:base")
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    config = TrainConfig(save_visible=False, num_steps=10)
    tuned = add_adapter(model, config.lora, init_seed=0)
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert run_bytes(config.model_dump(), shape) == 4 * trained + 20_000
    kept = config.model_copy(update={"keep": (3, 5)})
    assert run_bytes(kept.model_dump(), shape) == 3 * 4 * trained + 20_000


def step(name: str, *reads: str) -> Step:
    return Step(name=name, kind="eval", params={}, inputs={r: r for r in reads}, digest=f"{name:>012}", cost=1)


def test_steps_side_by_side_wait_for_what_they_read():
    plan = [step("a"), step("b"), step("c", "a"), step("d", "b", "c")]
    seconds = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 4.0}
    assert side_by_side(plan, seconds, 1) == 10
    assert side_by_side(plan, seconds, 2) == 9  # b beside a; c after a, d after c
    assert side_by_side(plan, {**seconds, "a": 0.0, "b": 0.0}, 2) == 6


def finished(root: Path, one: Step, seconds: dict[str, float]) -> None:
    with publish(root / "steps" / one.folder, kind="scores"):
        pass
    write_json(root / "steps" / TIMES, seconds)


def test_finished_steps_are_done_and_correct_those_of_their_kind(tmp_path):
    config = study({"name": "sft"}, {"name": "dft", "train": {"objective": "dft"}})
    plan = make_plan(config)
    [base] = [one for one in plan if one.name == "eval/base"]
    finished(tmp_path, base, {base.folder: 7.0})
    found = estimate(config, plan, out=tmp_path, probe=False)
    kinds = {kind.kind: kind for kind in found.kinds}
    evaluated, trained = kinds["eval"], kinds["train"]
    assert (evaluated.steps, evaluated.done, evaluated.source) == (4, 1, "1 finished")
    assert evaluated.seconds == pytest.approx(3 * 7.0)  # each of the others answers as much as the base did
    assert (trained.done, trained.source) == (0, "rates, corrected")
    wrong_by = 7.0 / found.steps["eval/base"]
    assert trained.seconds == pytest.approx(wrong_by * sum(found.steps[f"train/{name}-s0"] for name in ("sft", "dft")))
    assert kinds["compare"].source == "table"
    assert "done  reads" in next(
        line for line in steps_lines(plan, tmp_path).splitlines() if line.startswith("eval/base")
    )
    said = time_table(found)
    low, high = (duration(factor * found.seconds) for factor in CORRECTED)
    assert f"{low} to {high} from here, " in said
    assert "Rough." in said
    assert "counted, not timed" in said
    assert "at its limit of 96 tokens, so at most" in said


def test_a_probe_times_the_student_itself():
    tokenizer = load_tokenizer("abacus:base")
    prompts = [prompt_ids(tokenizer, problem.prompt) for problem, _ in generate("test", 3, seed=0)]
    first_arm = TrainConfig(objective="dpo", knobs={"beta": 0.2}, normalizer="sequence")
    probe = Probe("abacus:base", prompts, 96, 1.0, {"lora": first_arm}, False)
    begin = time.monotonic()
    rates = time_here(probe, time.monotonic)
    took = time.monotonic() - begin
    assert 0 < rates.load < took
    assert 0 <= rates.per_pass < took
    assert min(rates.sample, rates.score, rates.train["lora"]) * took > 16  # each saw more tokens than that
    assert 1 <= rates.response <= 96


def test_a_count_follows_the_size_of_the_student():
    small = shape_of("abacus:base")
    one, other = (
        counted(shape, ["lora", "full"]) for shape in (small, small._replace(parameters=100 * small.parameters))
    )
    assert one.train["lora"] > 10 * other.train["lora"]
    assert one.score == pytest.approx(2 * one.train["lora"]) == pytest.approx(3 * one.train["full"])
    assert other.per_pass > 10 * one.per_pass


def test_the_arms_table_says_what_each_run_does():
    lines = {line.split()[1]: line for line in arms_table(load_study("rlad")).splitlines() if line.startswith("│")}
    assert "2,880 as it goes" in lines["grpo"]
    assert "0, 1, 2" in lines["sft"]
    assert "2,880" in lines["sft"]
    assert "shared" in lines["sft"]
    assert "opd_then_rl" in lines["opd-then-grpo"]
    with pytest.raises(ConfigError):
        load_study("rlaad")
