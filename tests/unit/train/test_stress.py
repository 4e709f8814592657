"""Training at its ends: rates, rewards, lengths and ranks that leave a finite student, or a sentence that says what was kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.laws.batches import settings as admissible
from transformers import Qwen3ForCausalLM

from limbeck.batches.collate import VECTOR_INPUTS
from limbeck.batches.score import score_rollouts
from limbeck.config import LoraConfig, RunConfig, TrainConfig, parse
from limbeck.errors import ConfigError, DegenerateError, DivergedError, LimbeckError
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

every = pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in OBJECTIVES.items()])
SIZE = 32  # of the toy's hidden states
TINY = LoraConfig(rank=2, alpha=4.0)
REWARDS = {
    "all 0": lambda group, sample: 0.0,
    "all 1": lambda group, sample: 1.0,
    "equal within groups": lambda group, sample: float(group),
    "1e30 and -1e30": lambda group, sample: 1e30 if sample % 2 else -1e30,
    "1e30 for all": lambda group, sample: 1e30,
}


def rewarded(rule, groups=2, samples=2) -> RolloutSet:
    rollouts = tiny_rollouts(groups, samples).rollouts
    given = tuple(replace(r, reward=rule(int(r.problem_id[1:]), r.sample)) for r in rollouts)
    return RolloutSet(rollouts=given, provenance={})


def columns(row, rollouts, value: float | None = None) -> dict[str, list]:
    """What frozen models would say: random log-probs, or one number for all of them, and random hidden states."""
    draw = torch.Generator().manual_seed(0)
    found: dict[str, list] = {}
    for name in inputs(row):
        sizes = [len(r.response_ids) for r in rollouts]
        if name.endswith("_logits"):
            found[name.replace("logits", "hidden")] = [torch.randn(n, SIZE, generator=draw) for n in sizes]
        elif name == "signal" or name.endswith("_logprobs"):
            said = [
                torch.randn(n, generator=draw).abs().neg() if value is None else torch.full((n,), value) for n in sizes
            ]
            found[name] = [row.tolist() for row in said]
    return found


def walk(
    row, rollout_set: RolloutSet, out, *, given: float | None = None, rate: float = 1e-2, method: str = "lora"
) -> dict:
    """Two steps of a row of the table; the weights they end at."""
    knobs = {name: value for name, value in admissible(row).items() if name not in LOOP_KNOBS}
    config = TrainConfig(
        objective=row.name, knobs=knobs, method=method, lora=TINY, learning_rate=rate, schedule="constant",
        warmup_fraction=0.0, batch_size=4, num_steps=2,
    )  # fmt: skip
    data = prepare(config, row, rollout_set, columns(row, rollout_set.rollouts, given), context=None).data
    draw = torch.Generator().manual_seed(1)
    frozen = {
        n: Head(torch.randn(VOCAB, SIZE, generator=draw))
        for n in inputs(row)
        if n.endswith("_logits") and n != "logits"
    }
    model = tiny_model()
    engine = make_engine(model if method == "full" else add_adapter(model, TINY, init_seed=0), config, frozen)
    for step in (1, 2):
        line = gradient(engine, data, range(len(data.items)), row, step=step, out=out)
        advance(engine)
        assert math.isfinite(finite_norm(engine, step, out))
        assert all(math.isfinite(value) for value in line.values())
    return trained_tensors(engine.model)


def finite_or_a_sentence(call) -> bool:
    """Whether it came to an end; a run that diverged says so, and what it kept."""
    try:
        weights = call()
    except DivergedError as error:
        assert "must be finite" in str(error)
        assert "lower train.learning_rate" in str(error)
        return False
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    return True


@every
@pytest.mark.parametrize("rule", REWARDS.values(), ids=list(REWARDS))
def test_rewards(row, rule, tmp_path):
    if not {"rewards", "advantages", "correct", "group_all_wrong"} & set(inputs(row)) and row.unit != "pair":
        return
    try:
        ended = finite_or_a_sentence(lambda: walk(row, rewarded(rule), tmp_path))
    except DegenerateError as error:
        assert (row.unit == "pair" and "received 0" in str(error)) or "mixed" in str(error)
        return
    assert ended or rule(0, 1) == 1e30


@every
@pytest.mark.parametrize("given", [-1e9, 0.0])
def test_given_log_probs_far_from_the_student(row, given, tmp_path):
    if any(name in inputs(row) for name in ("signal",) + VECTOR_INPUTS) or not columns(
        row, tiny_rollouts(1, 1).rollouts
    ):
        return
    finite_or_a_sentence(lambda: walk(row, tiny_rollouts(2, 2), tmp_path, given=given))


@every
def test_a_huge_rate(row, tmp_path):
    finite_or_a_sentence(lambda: walk(row, tiny_rollouts(2, 2), tmp_path, rate=1e3))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor", "muon"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("rate", [1e30, 1e3, 1e-12])
def test_rates(base, rollouts, tmp_path, optimizer, method, rate):
    settings = TrainConfig(
        optimizer=optimizer, method=method, learning_rate=rate, lora=TINY, batch_size=4, num_steps=3, schedule="constant",
        warmup_fraction=0.0,
    )  # fmt: skip
    out = tmp_path / "run"

    def weights():
        train(RunConfig(base=base, rollouts=rollouts, train=settings), out)
        file = "adapter/adapter_model.safetensors" if method == "lora" else "model/model.safetensors"
        return load_file(out / file)

    ended = finite_or_a_sentence(weights)
    assert ended or rate > 1
    assert (out / "manifest.json").is_file() == ended
    if ended:
        assert math.isfinite(read_manifest(out, "run")["update_norm"])
        assert len(read_metrics(out / "metrics.jsonl")) == 3


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(ConfigError, match=r"train\.learning_rate"):
        parse(TrainConfig, {"learning_rate": rate}, where="train")


def test_a_last_step_that_leaves_no_finite_weight_is_no_result(base, rollouts, tmp_path):
    settings = TrainConfig(
        method="full", learning_rate=3e38, batch_size=4, num_steps=1, schedule="constant", warmup_fraction=0.0
    )
    with pytest.raises(DivergedError, match="every weight must be finite, received NaN or infinity at step 1"):
        train(
            RunConfig(base=base, rollouts=rollouts, train=settings.model_copy(update={"weight_decay": 10.0})),
            tmp_path / "run",
        )
    assert not (tmp_path / "run" / "manifest.json").exists()
    assert not list((tmp_path / "run").glob("model/*"))


@pytest.mark.parametrize("rank", [1, 16, 32, 200])
def test_ranks_up_to_full_and_beyond(base, rollouts, tmp_path, rank):
    """The narrowest matrix of the toy is 16 wide: 200 is beyond every one of them."""
    settings = TrainConfig(learning_rate=1e-2, lora=LoraConfig(rank=rank, alpha=8.0), batch_size=4, num_steps=2)
    out = train(RunConfig(base=base, rollouts=rollouts, train=settings), tmp_path / f"rank{rank}")
    assert math.isfinite(read_manifest(out, "run")["update_norm"])
    delta = read_adapter(out)
    rows = measure([delta, replace(delta, name="again")], ks=(1, 10), draws=20, workers=1)
    assert all(math.isfinite(row.value) or row.reason for row in rows)
    norm = next(
        row.value for row in rows if row.metric == "frobenius_norm" and row.aggregation == "stacked" and not row.kind
    )
    assert norm == pytest.approx(read_manifest(out, "run")["update_norm"], rel=1e-4)
    same = [row.value for row in rows if row.metric == "cosine"]
    assert same == pytest.approx([1.0] * len(same))


def lone(length: int, sample: int = 0, prompt: int = 1) -> Rollout:
    ids = (*(2 + i % (VOCAB - 2) for i in range(length - 1)), 1)
    return Rollout(
        problem_id="p", sample=sample, prompt_ids=(5,) * prompt, response_ids=ids, behavior_logprobs=(-1.0,) * length,
        reward=float(sample % 2), finish=Finish.STOP, response="",
    )  # fmt: skip


@every
def test_answers_of_the_end_token_alone(row, tmp_path):
    """One prompt token, one answer token, twice the same answer with different rewards."""
    rollout_set = RolloutSet(rollouts=tuple(lone(1, sample) for sample in range(2)), provenance={})
    assert finite_or_a_sentence(lambda: walk(row, rollout_set, tmp_path))


@pytest.fixture(scope="module")
def roomy() -> Qwen3ForCausalLM:
    """The toy with one layer and a context of 16,384 tokens."""
    config = tiny_model().config
    config.update(
        {"max_position_embeddings": 16384, "num_hidden_layers": 1, "num_attention_heads": 1, "layer_types": None}
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).eval()


def test_an_answer_of_ten_thousand_tokens(roomy, tmp_path):
    rollouts = [lone(10_000)]
    ((*scores,),) = score_rollouts(roomy, rollouts)
    assert len(scores) == 10_000
    assert all(map(math.isfinite, scores))
    config = TrainConfig(lora=TINY, learning_rate=1e-3, batch_size=1, num_steps=1)
    row, rollout_set = OBJECTIVES["sft"], RolloutSet(rollouts=tuple(rollouts), provenance={})
    data = prepare(config, row, rollout_set, {}, context=16384).data
    line = gradient(make_engine(add_adapter(roomy, TINY, init_seed=0), config), data, [0], row, step=1, out=tmp_path)
    assert line["loss"] == pytest.approx(-sum(scores) / 10_000, rel=1e-4)


def test_a_context_that_is_too_short_is_a_sentence(base, tmp_path):
    rollouts = write_rollouts(RolloutSet(rollouts=(lone(10_000),), provenance={}), tmp_path / "rollouts")
    with pytest.raises(DegenerateError, match="the longest row allowed is 128 tokens and the shortest has 10001"):
        train(RunConfig(base=base, rollouts=str(rollouts), train=TrainConfig(num_steps=1)), tmp_path / "run")
    assert all(map(math.isnan, score_rollouts(tiny_model(), [lone(3), lone(10_000, 1)])[1]))


def test_a_selection_that_leaves_nothing_is_a_sentence(base, tmp_path):
    rollouts = str(write_rollouts(rewarded(REWARDS["all 0"]), tmp_path / "rollouts"))
    for settings in ({"selection": "correct"}, {"objective": "dpo"}):
        with pytest.raises(LimbeckError, match="received 0|mixed"):
            train(RunConfig(base=base, rollouts=rollouts, train=TrainConfig(num_steps=1, **settings)), tmp_path / "run")
        assert not (tmp_path / "run").exists()
