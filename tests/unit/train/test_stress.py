"""Training at its ends: rates, rewards, lengths and ranks that leave a finite student, or a sentence that says what was kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.laws.batches import settings as admissible
from transformers import Qwen3ForCausalLM

from limbeck.batches.collate import BEHAVIOR
from limbeck.batches.score import score_rollouts
from limbeck.config import LoraConfig, RunConfig, TrainConfig, parse
from limbeck.errors import ConfigError, DegenerateError, DivergedError
from limbeck.folders import read_manifest
from limbeck.geometry.adapters import read_adapter
from limbeck.geometry.suite import measure
from limbeck.heads import Head
from limbeck.objectives import LOOP_KNOBS, OBJECTIVES, inputs
from limbeck.rollouts.store import write_rollouts
from limbeck.train.data import prepare
from limbeck.train.engine import advance, finite_norm, gradient, make_engine
from limbeck.train.models import add_adapter, trained_tensors
from limbeck.train.record import read_metrics
from limbeck.train.run import train
from limbeck.types import Finish, Rollout, RolloutSet

from .toy import VOCAB, tiny_model, tiny_rollouts

SIZE = 32  # of the toy's hidden states
TINY = LoraConfig(rank=2, alpha=4.0)
STEADY = {"schedule": "constant", "warmup_fraction": 0.0}
REWARDS = {
    "0 for one problem, 1 for the other": lambda group, sample: float(group),
    "1e30 and -1e30": lambda group, sample: 1e30 if sample % 2 else -1e30,
}


def rows(wanted=lambda row: True):
    """The rows of the table that are wanted, one test each."""
    return pytest.mark.parametrize(
        "row", [pytest.param(row, id=name) for name, row in OBJECTIVES.items() if wanted(row)]
    )


def reads(*names: str):
    return rows(lambda row: bool(set(names) & set(inputs(row))))


every = rows()


def rewarded(rule) -> RolloutSet:
    rollouts = tiny_rollouts(2, 2).rollouts
    given = tuple(replace(r, reward=rule(int(r.problem_id[1:]), r.sample)) for r in rollouts)
    return RolloutSet(rollouts=given, provenance={})


def columns(row, rollouts, behavior: float | None) -> dict[str, list]:
    """What frozen models would say: hidden states and log-probs at random, those of the sampler perhaps all one number."""
    draw = torch.Generator().manual_seed(0)
    found: dict[str, list] = {}
    for name in inputs(row):
        sizes = [len(r.response_ids) for r in rollouts]
        if name.endswith("_logits"):
            found[name.replace("logits", "hidden")] = [torch.randn(n, SIZE, generator=draw) for n in sizes]
        elif name == "signal" or name.endswith("_logprobs"):
            random = [torch.randn(n, generator=draw).abs().neg().tolist() for n in sizes]
            found[name] = [[behavior] * n for n in sizes] if behavior is not None and name in BEHAVIOR else random
    return found


def walk(
    row, rollout_set: RolloutSet, out, *, behavior: float | None = None, rate: float = 1e-2, steps: int = 1
) -> dict:
    """A few steps of a row of the table; the weights they end at."""
    knobs = {name: value for name, value in admissible(row).items() if name not in LOOP_KNOBS}
    config = TrainConfig(objective=row.name, knobs=knobs, lora=TINY, learning_rate=rate, num_steps=2, **STEADY)
    data = prepare(config, row, rollout_set, columns(row, rollout_set.rollouts, behavior), context=None).data
    frozen = {name: Head(torch.ones(VOCAB, SIZE)) for name in inputs(row) if name.endswith("_logits")}
    engine = make_engine(add_adapter(tiny_model(), TINY, init_seed=0), config, frozen)
    for step in range(1, steps + 1):
        line = gradient(engine, data, range(len(data.items)), row, step=step, out=out)
        advance(engine)
        assert math.isfinite(finite_norm(engine, step, out))
        assert all(math.isfinite(value) for value in line.values())
    return trained_tensors(engine.model)


def ends_finite(call) -> bool:
    """Whether it came to an end; a run that diverged says so, and what it kept."""
    try:
        weights = call()
    except DivergedError as error:
        said = str(error)
    else:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
        return True
    assert "must be finite" in said
    assert "lower train.learning_rate" in said
    return False


@reads("rewards", "advantages", "correct", "group_all_wrong", "pairs")
@pytest.mark.parametrize("rule", REWARDS.values(), ids=list(REWARDS))
def test_rewards(row, rule, tmp_path):
    equal = rule(0, 0) == rule(0, 1)
    if equal and row.unit == "pair":
        with pytest.raises(DegenerateError, match="both a right and a wrong rollout, received none in 2 problems"):
            walk(row, rewarded(rule), tmp_path)
        return
    assert ends_finite(lambda: walk(row, rewarded(rule), tmp_path)) or not equal


@reads(*BEHAVIOR)
def test_samplers_far_from_the_student(row, tmp_path):
    """Ratios of exp(1e9) end at exp(20); what frozen models say is as it was."""
    assert ends_finite(lambda: walk(row, tiny_rollouts(2, 2), tmp_path, behavior=-1e9))


@every
def test_a_huge_rate(row, tmp_path):
    ends_finite(lambda: walk(row, tiny_rollouts(2, 2), tmp_path, rate=1e3, steps=2))


@every
def test_answers_of_the_end_token_alone(row, tmp_path):
    """One prompt token, one answer token, twice the same answer with different rewards."""
    rollout_set = RolloutSet(rollouts=tuple(lone(1, sample) for sample in range(2)), provenance={})
    assert ends_finite(lambda: walk(row, rollout_set, tmp_path))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    ("optimizer", "rate"), [("adamw", 1e3), ("sgd", 1e3), ("adafactor", 1e3), ("muon", 1e3), ("adamw", 1e-12)]
)
def test_rates(base, rollouts, tmp_path, optimizer, method, rate):
    settings = TrainConfig(
        optimizer=optimizer, method=method, learning_rate=rate, lora=TINY, batch_size=4, num_steps=3, **STEADY
    )
    out = tmp_path / "run"

    def weights():
        train(RunConfig(base=base, rollouts=rollouts, train=settings), out)
        return load_file(out / ("model/model.safetensors" if method == "full" else "adapter/adapter_model.safetensors"))

    ended = ends_finite(weights)
    assert ended or rate > 1
    assert (out / "manifest.json").is_file() == ended
    if ended:
        assert math.isfinite(read_manifest(out, "run")["update_norm"])
        assert len(read_metrics(out / "metrics.jsonl")) == 3


@pytest.mark.parametrize("rate", [0, -1, 1e39, math.nan, math.inf])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(ConfigError, match=r"train\.learning_rate"):
        parse(TrainConfig, {"learning_rate": rate}, where="train")


def test_a_last_step_that_leaves_no_finite_weight_is_no_result(base, rollouts, tmp_path):
    """Nothing is computed from its weights any more, so the update itself must be looked at."""
    settings = TrainConfig(
        method="full", optimizer="sgd", learning_rate=1e9, weight_decay=1e31, batch_size=4, num_steps=1, **STEADY
    )
    out = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"every weight must be finite, received NaN or infinity at step 1\."):
        train(RunConfig(base=base, rollouts=rollouts, train=settings), out)
    assert not (out / "manifest.json").exists()
    assert not (out / "model").exists()


@pytest.mark.parametrize("rank", [1, 16, 200])
def test_ranks_up_to_full_and_beyond(base, rollouts, tmp_path, rank):
    """The narrowest matrix of the toy is 16 wide, 200 is beyond every one of them."""
    settings = TrainConfig(learning_rate=1e-2, lora=LoraConfig(rank=rank, alpha=8.0), batch_size=4, num_steps=2)
    out = train(RunConfig(base=base, rollouts=rollouts, train=settings), tmp_path / "run")
    assert math.isfinite(read_manifest(out, "run")["update_norm"])
    delta = read_adapter(out)
    kept = {name: factors for name, factors in delta.modules.items() if name.endswith("layers.0.self_attn.k_proj")}
    delta = replace(delta, modules=kept)
    rows = measure([delta, replace(delta, name="again")], ks=(1, 10), draws=20, workers=1)
    assert all(math.isfinite(row.value) or row.reason for row in rows)
    cosines = [row.value for row in rows if row.metric == "cosine"]
    assert cosines == pytest.approx([1.0] * len(cosines))
    assert cosines


def lone(length: int, sample: int = 0) -> Rollout:
    ids = (*(2 + i % (VOCAB - 2) for i in range(length - 1)), 1)
    return Rollout(
        problem_id="p", sample=sample, prompt_ids=(5,), response_ids=ids, behavior_logprobs=(-1.0,) * length,
        reward=float(sample % 2), finish=Finish.STOP, response="",
    )  # fmt: skip


def test_an_answer_of_ten_thousand_tokens(tmp_path):
    config = tiny_model().config
    config.max_position_embeddings, config.num_hidden_layers, config.layer_types = 16384, 1, ["full_attention"]
    roomy = Qwen3ForCausalLM(config).eval()
    (scores,) = score_rollouts(roomy, [lone(10_000)])
    assert len(scores) == 10_000
    assert all(map(math.isfinite, scores))
    settings = TrainConfig(lora=TINY, learning_rate=1e-3, batch_size=1, num_steps=1)
    row, rollout_set = OBJECTIVES["sft"], RolloutSet(rollouts=(lone(10_000),), provenance={})
    data = prepare(settings, row, rollout_set, {}, context=16384).data
    line = gradient(make_engine(add_adapter(roomy, TINY, init_seed=0), settings), data, [0], row, step=1, out=tmp_path)
    assert line["loss"] == pytest.approx(-sum(scores) / 10_000, rel=1e-4)


def test_a_context_that_is_too_short_is_a_sentence(base, tmp_path):
    rollouts = write_rollouts(RolloutSet(rollouts=(lone(10_000),), provenance={}), tmp_path / "rollouts")
    with pytest.raises(DegenerateError, match="the longest row allowed is 128 tokens and the shortest has 10001"):
        train(RunConfig(base=base, rollouts=str(rollouts), train=TrainConfig(num_steps=1)), tmp_path / "run")
    assert all(map(math.isnan, score_rollouts(tiny_model(), [lone(3), lone(10_000, 1)])[1]))


def test_a_selection_that_leaves_nothing_is_a_sentence(base, tmp_path):
    rollouts = str(write_rollouts(rewarded(lambda group, sample: 0.0), tmp_path / "rollouts"))
    for settings in ({"selection": "correct"}, {"objective": "dpo"}):
        with pytest.raises(DegenerateError, match="received none in"):
            train(RunConfig(base=base, rollouts=rollouts, train=TrainConfig(num_steps=1, **settings)), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_no_rollout_at_all_is_a_sentence(base, tmp_path):
    rollouts = str(write_rollouts(RolloutSet(rollouts=(), provenance={}), tmp_path / "rollouts"))
    with pytest.raises(DegenerateError, match="a run learns from at least one rollout, received none"):
        train(RunConfig(base=base, rollouts=rollouts, train=TrainConfig(num_steps=1)), tmp_path / "run")
