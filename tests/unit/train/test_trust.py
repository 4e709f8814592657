"""A measured trust region: the number against a plain computation, the stop, the refusal, kept steps, other rewards."""

from __future__ import annotations

import pytest
import torch

from limbeck.batches.score import write_scores
from limbeck.config import RunConfig, TrainConfig
from limbeck.digests import is_complete
from limbeck.errors import ConfigError, DegenerateError, ProvenanceError
from limbeck.evals.apply import applied
from limbeck.folders import read_manifest
from limbeck.geometry.adapters import read_adapter
from limbeck.records import read_json
from limbeck.rollouts.store import read_rollouts
from limbeck.train.models import load_model
from limbeck.train.record import read_metrics
from limbeck.train.run import train

from .toy import tiny_model, tiny_rollouts


def exact(student, reference, rollouts) -> tuple[float, float]:
    """KL(student||reference) and drift, one rollout at a time from whole logits in float64."""
    kl, drift, tokens = 0.0, 0.0, 0
    for rollout in rollouts:
        ids = torch.tensor([*rollout.prompt_ids, *rollout.response_ids])[None]
        at = slice(len(rollout.prompt_ids) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            p, f = (m(input_ids=ids).logits[0, at].double().log_softmax(-1) for m in (student, reference))
        d = (p - f).gather(1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        kl += float((p.exp() * (p - f)).sum())
        drift += float((d.exp() - d - 1).sum())
        tokens += len(rollout.response_ids)
    return kl / tokens, drift / tokens


def configured(base: str, rollouts: str, settings: TrainConfig, **changes) -> RunConfig:
    lora = settings.lora.model_copy(update={"dropout": 0.0})
    return RunConfig(base=base, rollouts=rollouts, train=settings.model_copy(update={"lora": lora, **changes}))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_measured_is_the_divergence(tmp_path, base, rollouts, settings, method):
    changes = {"method": method, "num_steps": 3, "kl_every": 2, "learning_rate": 3e-3}
    out = train(configured(base, rollouts, settings, **changes), tmp_path / "run")
    lines = read_metrics(out / "metrics.jsonl")
    assert ["kl_measured" in line for line in lines] == [False, True, True]  # every second and the last
    reference = load_model(base)
    if method == "lora":
        with applied(load_model(base), read_adapter(out)) as student:
            kl, drift = exact(student, reference, read_rollouts(rollouts).rollouts)
    else:
        kl, drift = exact(load_model(str(out / "model")), reference, read_rollouts(rollouts).rollouts)
    assert lines[-1]["kl_measured"] == pytest.approx(kl, rel=1e-3)
    assert lines[-1]["drift"] == pytest.approx(drift, rel=1e-3)


def test_a_spent_budget_ends_the_run_before_the_step_that_spends_it(tmp_path, base, rollouts, settings):
    free = train(configured(base, rollouts, settings, kl_every=1), tmp_path / "free")
    path = [line["kl_measured"] for line in read_metrics(free / "metrics.jsonl")]
    assert path[1] < path[5]
    budget = (path[3] + path[4]) / 2 if path[3] < path[4] else path[3]
    last = next(i for i, kl in enumerate(path) if kl > budget)
    out = train(configured(base, rollouts, settings, kl_budget=budget), tmp_path / "bound")
    assert read_manifest(out)["steps"] == last
    assert read_metrics(out / "metrics.jsonl")[-1]["kl_measured"] == pytest.approx(path[last], rel=1e-4)
    with applied(load_model(base), read_adapter(out)) as student:
        kl, _ = exact(student, load_model(base), read_rollouts(rollouts).rollouts)
    assert kl <= budget
    assert kl == pytest.approx(path[last - 1], rel=1e-3)


def test_a_budget_spent_in_the_first_step_is_refused(tmp_path, base, rollouts, settings):
    words = r"received train.kl_budget = 1e-09 nats a token, spent in the first step that moves, step 1: 0\.\d+"
    with pytest.raises(DegenerateError, match=words):
        train(configured(base, rollouts, settings, kl_budget=1e-9), tmp_path / "run")


def test_kept_steps_are_what_a_shorter_run_ends_with(tmp_path, base, rollouts, settings):
    changes = {"schedule": "constant", "warmup_fraction": 0.0}
    long = train(configured(base, rollouts, settings, keep=(2, 5), num_steps=6, **changes), tmp_path / "long")
    short = train(configured(base, rollouts, settings, num_steps=2, **changes), tmp_path / "short")
    kept = long / "kept" / "step-000002"
    assert is_complete(kept)
    assert sorted(p.name for p in (long / "kept").iterdir()) == ["step-000002", "step-000005"]
    ours, theirs = read_adapter(kept), read_adapter(short)
    for name, factors in theirs.modules.items():
        torch.testing.assert_close(ours.modules[name].left, factors.left)
    assert read_manifest(kept)["update_norm"] == pytest.approx(read_manifest(short)["update_norm"])
    with pytest.raises(ConfigError, match=r"steps from 1 to num_steps = 6, received 7"):
        train(configured(base, rollouts, settings, keep=(7,), num_steps=6), tmp_path / "no")
    with pytest.raises(ConfigError, match="received it beside kl_budget"):
        train(configured(base, rollouts, settings, keep=(1,), kl_budget=1.0), tmp_path / "no")


def test_an_unlearned_twin_takes_the_mirror_step(tmp_path, base, rollouts, settings):
    """After one small SGD step the twin's update is the negative of the teacher's."""
    changes = {
        "objective": "erpd_mse",
        "num_steps": 1,
        "optimizer": "sgd",
        "learning_rate": 1e-4,
        "warmup_fraction": 0.0,
    }
    found = [
        read_adapter(train(configured(base, rollouts, settings, rewards=rule, **changes), tmp_path / rule))
        for rule in ("graded", "mirror")
    ]
    for name, factors in found[0].modules.items():
        torch.testing.assert_close(factors.left, -found[1].modules[name].left, rtol=1e-3, atol=1e-9)
    with pytest.raises(ConfigError, match='received credit "centred_bias"'):
        train(
            configured(base, rollouts, settings, objective="grpo", credit="centred_bias", rewards="mirror"),
            tmp_path / "no",
        )


def test_a_reference_that_is_not_the_base_is_measured_and_scored(tmp_path, base, rollouts, settings):
    tiny_model(seed=5).save_pretrained(tmp_path / "other")
    other = str(tmp_path / "other")
    config = configured(base, rollouts, settings, num_steps=2, kl_every=1, objective="erpd_ce", learning_rate=1e-3)
    out = train(config.model_copy(update={"anchor": other}), tmp_path / "run")
    with applied(load_model(base), read_adapter(out)) as student:
        kl, _ = exact(student, load_model(other), read_rollouts(rollouts).rollouts)
    assert read_metrics(out / "metrics.jsonl")[-1]["kl_measured"] == pytest.approx(kl, rel=1e-3)
    assert "anchor" in read_json(out / "identity.json")
    given = read_rollouts(rollouts)
    own = write_scores(
        tmp_path / "scores", given, [[-1.0] * len(r.response_ids) for r in given.rollouts], model_digest="base's"
    )
    scored = config.model_copy(update={"anchor": other, "scores": {"reference_logprobs": str(own)}})
    with pytest.raises(ProvenanceError, match="received scores that another model than"):
        train(scored, tmp_path / "no")


def test_stage_2_trains_on_a_stored_signal_and_says_where_to_get_one(tmp_path, base, rollouts, settings):
    given = read_rollouts(rollouts)
    config = configured(base, rollouts, settings, objective="erpd_kl_clip", num_steps=8, learning_rate=3e-3)
    with pytest.raises(ConfigError, match="made by `limbeck signal --rollouts"):
        train(config, tmp_path / "no")
    values = [[1.0 if r.reward > 0 else -1.0] * len(r.response_ids) for r in given.rollouts]
    write_scores(tmp_path / "signal", given, values, model_digest="", kind="signal")
    out = train(config.model_copy(update={"scores": {"signal": str(tmp_path / "signal")}}), tmp_path / "run")
    with applied(load_model(base), read_adapter(out)) as student:
        gains = {right: mean_gain(student, load_model(base), given, right) for right in (True, False)}
    assert gains[True] > 0 > gains[False]


def mean_gain(student, reference, given, right: bool) -> float:
    from limbeck.batches.score import score_rollouts

    chosen = [r for r in given.rollouts if (r.reward > 0) == right]
    ours, base = (score_rollouts(model, chosen) for model in (student, reference))
    return sum(sum(a) - sum(b) for a, b in zip(ours, base, strict=True)) / sum(map(len, ours))


def test_a_reference_of_probability_zero_is_floored_and_counted(tmp_path, base, rollouts, settings):
    from limbeck.train.models import model_digest

    given = tiny_rollouts()
    values = [[-2.0] * len(r.response_ids) for r in given.rollouts]
    values[0][0] = -float("inf")
    write_scores(tmp_path / "scores", given, values, model_digest=model_digest(base))
    config = configured(base, rollouts, settings, objective="erpd_ce", num_steps=1)
    scored = config.model_copy(update={"scores": {"reference_logprobs": str(tmp_path / "scores")}})
    assert read_manifest(train(scored, tmp_path / "run"))["reference_floored"] == 1
