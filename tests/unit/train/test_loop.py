"""The offline loop: one denominator, bit-exact resumption, nothing of the base touched, divergence caught."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from limbeck.batches.distributions import write_hidden
from limbeck.batches.forward import check_head
from limbeck.batches.score import score_rollouts, write_scores
from limbeck.config import TrainConfig
from limbeck.digests import file_digest
from limbeck.errors import ConfigError, DegenerateError, DivergedError, FolderError, ModelError, ProvenanceError
from limbeck.folders import read_manifest
from limbeck.objectives import OBJECTIVES, find, inputs, knobs
from limbeck.records import digest_of
from limbeck.rollouts.store import read_rollouts
from limbeck.train import engine, loop
from limbeck.train.data import prepare
from limbeck.train.engine import gradient, make_engine, trainable
from limbeck.train.models import add_adapter, load_model, model_digest, trained_tensors
from limbeck.train.record import read_metrics, update_norm
from limbeck.train.run import RunConfig, load_run_config, train

from .toy import tiny_model

LOGITS = {"teacher_logits", "reference_logits"}
OFFLINE = [
    "sft",
    "dft",
    "rift:reward-weighted",
    "rift:source",
    "offline_grpo:advantage-nll",
    "offline_grpo:krafton",
    "dpo",
]


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def run(base, rollouts, settings, out, **changes):
    values = settings.model_copy(update=changes)
    return train(RunConfig(base=base, rollouts=rollouts, train=values), out)


@pytest.mark.parametrize("name", OFFLINE)
@pytest.mark.parametrize("normalizer", ["sequence", "constant"])
def test_the_cut_into_micro_batches_changes_no_gradient(base, rollouts, settings, tmp_path, name, normalizer):
    objective, rollout_set = find(name), read_rollouts(rollouts)
    gradients, logged = [], []
    for token_budget in (1, 40, 1 << 20):
        config = settings.model_copy(update={"token_budget": token_budget, "normalizer": normalizer, "objective": name})
        config = config.model_copy(update={"lora": config.lora.model_copy(update={"dropout": 0.0})})
        model = load_model(base)
        scores = {"reference_logprobs": score_rollouts(model, rollout_set.rollouts)}
        data, _, _ = prepare(config, objective, rollout_set, scores, context=None)
        tuned = add_adapter(model, config.lora, init_seed=0).double()
        for tensor_name, tensor in trained_tensors(tuned).items():
            if "lora_B" in tensor_name:  # at zero the A factors would have no gradient to compare
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
        student = make_engine(tuned, config)
        line = gradient(student, data, range(min(8, len(data.items))), objective, step=1, out=tmp_path)
        logged.append({name: value for name, value in line.items() if name != "padding"})
        gradients.append(torch.cat([p.grad.flatten() for p in trainable(student)]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-9, atol=1e-12)
    assert gradients[0].norm() > 0
    for line in logged[1:]:  # what is logged is a reduction over all micro-batches too
        assert line == pytest.approx(logged[0], rel=1e-9, abs=1e-12)


def test_a_micro_batch_without_a_scored_token_is_passed_over(base, rollouts, settings, tmp_path):
    objective, rollout_set = find("sft"), read_rollouts(rollouts)
    config = settings.model_copy(update={"lora": settings.lora.model_copy(update={"dropout": 0.0})})
    data, _, _ = prepare(config, objective, rollout_set, {}, context=None)
    kept = [[float(i > 2)] * len(row.response_ids) for i, row in enumerate(data.rollouts)]
    data, found = replace(data, columns={**data.columns, "mask": kept}), []
    for token_budget in (1, 1 << 20):
        tuned = add_adapter(load_model(base), config.lora, init_seed=0).double()
        student = make_engine(tuned, config.model_copy(update={"token_budget": token_budget}))
        line = gradient(student, data, range(8), objective, step=1, out=tmp_path)
        found.append((line["rows"], torch.cat([p.grad.flatten() for p in trainable(student)])))
    (alone, one), (together, other) = found
    assert alone == together == 5
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    silent = replace(data, columns={**data.columns, "mask": [[0.0] * len(row) for row in kept]})
    with pytest.raises(DegenerateError, match="a step needs at least one token"):
        gradient(student, silent, range(8), objective, step=1, out=tmp_path)


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_run_cut_short_ends_bit_identical(base, rollouts, settings, tmp_path, monkeypatch, name):
    changes = {"objective": name}
    run(base, rollouts, settings, tmp_path / "whole", **changes)
    real = loop.gradient

    def dies(*args, **settings):
        if settings["step"] == 8:
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(loop, "gradient", dies)
    with pytest.raises(KeyboardInterrupt):
        run(base, rollouts, settings, tmp_path / "cut", **changes)
    monkeypatch.setattr(loop, "gradient", real)
    run(base, rollouts, settings, tmp_path / "cut", **changes)
    whole, cut = adapter(tmp_path / "whole"), adapter(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    lines = [read_metrics(tmp_path / folder / "metrics.jsonl") for folder in ("whole", "cut")]
    for one, other in zip(*lines, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_damaged_checkpoint_is_skipped_with_a_warning(base, rollouts, settings, tmp_path, monkeypatch):
    real = loop.gradient

    def dies(*args, **settings):
        if settings["step"] == 8:
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(loop, "gradient", dies)
    with pytest.raises(KeyboardInterrupt):
        run(base, rollouts, settings, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-000006" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    monkeypatch.setattr(loop, "gradient", real)
    with pytest.warns(RuntimeWarning, match=r"step-000006 is damaged \(weights.safetensors\) and was skipped"):
        run(base, rollouts, settings, tmp_path / "run")
    run(base, rollouts, settings, tmp_path / "whole")
    assert all(torch.equal(a, adapter(tmp_path / "whole")[k]) for k, a in adapter(tmp_path / "run").items())


def test_a_run_restarted_with_other_settings_is_refused_and_lists_them(base, rollouts, settings, tmp_path, monkeypatch):
    def dies(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "gradient", dies)
    with pytest.raises(KeyboardInterrupt):
        run(base, rollouts, settings, tmp_path / "run")
    with pytest.raises(FolderError, match=r"these differ: train\.learning_rate"):
        run(base, rollouts, settings, tmp_path / "run", learning_rate=1.0)


def test_a_finished_run_is_never_overwritten_silently(base, rollouts, settings, tmp_path):
    run(base, rollouts, settings, tmp_path / "run", num_steps=1)
    with pytest.raises(FolderError, match="overwrite"):
        run(base, rollouts, settings, tmp_path / "run", num_steps=1)


def test_the_base_stays_as_it_was_and_the_record_is_whole(base, rollouts, settings, tmp_path):
    before = file_digest(Path(base) / "model.safetensors")
    out = run(base, rollouts, settings, tmp_path / "run")
    facts = read_manifest(out, "run")
    assert file_digest(Path(base) / "model.safetensors") == before
    assert facts["rollouts_digest"] == read_rollouts(rollouts).digest
    assert facts["steps"] == 10
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 11))
    for line in lines:
        assert line["loss"] == pytest.approx(line["nll"], rel=1e-5)  # sft by token is the mean nll
        assert 0 <= line["padding"] < 1
    assert lines[-1]["update_norm"] == pytest.approx(facts["update_norm"], rel=1e-6)
    assert load_run_config(out).train == settings


def test_a_run_reproduces_from_its_own_config(base, rollouts, settings, tmp_path):
    first = run(base, rollouts, settings, tmp_path / "first")
    again = train(load_run_config(first), tmp_path / "again")
    assert file_digest(first / "config.json") == file_digest(again / "config.json")
    assert all(torch.equal(a, adapter(again)[key]) for key, a in adapter(first).items())


def test_arms_share_their_initial_factors_and_dpo_starts_at_log_2(base, rollouts, settings, tmp_path):
    facts = {}
    for name in ("sft", "dpo"):
        out = run(base, rollouts, settings, tmp_path / name, objective=name, num_steps=1)
        facts[name] = read_manifest(out, "run")
    assert facts["sft"]["init_digest"] == facts["dpo"]["init_digest"]
    assert read_metrics(tmp_path / "dpo" / "metrics.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    other = run(base, rollouts, settings, tmp_path / "other", num_steps=1, init_seed=1)
    assert read_manifest(other, "run")["init_digest"] != facts["sft"]["init_digest"]


def test_stop_norm_ends_the_run_at_the_first_step_that_reaches_it(base, rollouts, settings, tmp_path):
    out = run(base, rollouts, settings, tmp_path / "run", stop_norm=0.2, num_steps=60)
    lines = read_metrics(out / "metrics.jsonl")
    assert lines[-1]["update_norm"] >= 0.2
    assert all(line["update_norm"] < 0.2 for line in lines[:-1])
    assert len(lines) < 60


def test_update_norm_is_the_frobenius_norm_of_the_dense_update(base, settings):
    tuned = add_adapter(load_model(base), settings.lora, init_seed=0)
    factors = trained_tensors(tuned)
    for tensor in factors.values():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)))
    dense = sum(
        (factors[name.replace("lora_A", "lora_B")].double() @ tensor.double()).square().sum().item()
        for name, tensor in factors.items()
        if "lora_A" in name
    )
    assert update_norm(factors, 2.0) == pytest.approx(2.0 * dense**0.5, rel=1e-12)


def test_training_moves_the_loss_of_every_objective(base, rollouts, settings, tmp_path):
    for name in OFFLINE:
        out = run(base, rollouts, settings, tmp_path / name.replace(":", "-"), objective=name, num_steps=15)
        lines = read_metrics(out / "metrics.jsonl")
        assert lines[-1]["update_norm"] > 0
        assert all(math.isfinite(line["loss"]) for line in lines)
    nll = [line["nll"] for line in read_metrics(tmp_path / "sft" / "metrics.jsonl")]
    assert nll[-1] < nll[0] - 0.3


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(base, rollouts, settings, tmp_path, monkeypatch):
    real = engine.evaluate

    def breaks(objective, inputs, mask, knobs):
        values = real(objective, inputs, mask, knobs)
        return type(values)(values=values.values * math.inf, metrics=values.metrics)

    monkeypatch.setattr(engine, "evaluate", breaks)
    with pytest.raises(DivergedError, match=r"received NaN or infinity at step 1\. .*lower train\.learning_rate"):
        run(base, rollouts, settings, tmp_path / "run")
    saved = load_file(tmp_path / "run" / "diverged" / "step-000001.safetensors")
    assert {"ids", "mask", "row_index", "logprobs"} <= saved.keys()


@pytest.mark.parametrize("name", ["sft", "reverse_kl"])
def test_a_student_that_is_not_finite_stops_with_its_step_and_can_be_replayed(
    base, rollouts, settings, tmp_path, monkeypatch, name
):
    """Log-probs that are NaN are refused where the objective reads them: no loss is ever computed."""
    real, rollout_set = loop.advance, read_rollouts(rollouts)

    def breaks(given):
        rate = real(given)
        next(iter(trained_tensors(given.model).values())).fill_(math.nan)
        return rate

    monkeypatch.setattr(loop, "advance", breaks)
    scores = {}
    if name == "reverse_kl":
        write_hidden(tmp_path / "teacher", rollout_set, load_model(base), model_digest="t")
        scores = {"teacher_logits": str(tmp_path / "teacher")}
    config = RunConfig(
        base=base, rollouts=rollouts, scores=scores, train=settings.model_copy(update={"objective": name})
    )
    with pytest.raises(DivergedError, match=r"step 2: .*must be finite.*The batch \(rows p\d/\d, .*lower train"):
        train(config, tmp_path / "run")
    path = tmp_path / "run" / "diverged" / "step-000002.safetensors"
    with safe_open(path, "pt") as file:
        facts, ids, index = file.metadata(), file.get_tensor("ids"), file.get_tensor("row_index")
    rows = [rollout_set.rollouts[i] for i in index.tolist()]
    assert facts["objective"] == name
    assert json.loads(facts["rows"]) == [f"{row.problem_id}/{row.sample}" for row in rows]
    assert ids[0, : len(rows[0].prompt_ids)].tolist() == list(rows[0].prompt_ids)


def test_a_gradient_that_is_not_finite_keeps_every_row_of_the_step(base, rollouts, settings, tmp_path, monkeypatch):
    real = engine.total

    def breaks(values, *args):  # finite, with a slope that is not
        return real(values + (values.detach() - values).abs().sqrt(), *args)

    monkeypatch.setattr(engine, "total", breaks)
    with pytest.raises(DivergedError, match="every gradient must be finite, received NaN or infinity at step 1"):
        run(base, rollouts, settings, tmp_path / "run", token_budget=1)
    saved = load_file(tmp_path / "run" / "diverged" / "step-000001.safetensors")
    assert len(saved["ids"]) == settings.batch_size


def test_rows_that_do_not_fit_are_refused_before_training(base, rollouts, settings, tmp_path):
    with pytest.raises(DegenerateError, match=r"received 0 of 24: the longest row allowed is 2 tokens"):
        run(base, rollouts, settings, tmp_path / "run", max_length=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "dpoo"}, r'received "dpoo"\. Did you mean "dpo"\?'),
        ({"objective": "dpo", "knobs": {"betta": 0.1}}, r'Did you mean "beta"\?'),
        ({"objective": "dpo", "normalizer": "token"}, "one value per pair"),
        ({"objective": "opd"}, "reads teacher_logprobs: give a scores folder"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(base, rollouts, settings, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(base, rollouts, settings, tmp_path / "run", **changes)


def test_adapter_targets_that_the_model_has_not_are_listed(base, settings):
    lora = settings.lora.model_copy(update={"targets": ("q_proj", "c_attn")})
    with pytest.raises(ModelError, match=r"received c_attn, which it has not\. It has: .*down_proj"):
        add_adapter(load_model(base), lora, init_seed=0)


def test_a_head_that_the_architecture_transforms_is_refused(base, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(base)
    check_head(model, torch.tensor([3, 4, 5]))
    model.config.logit_scale = 0.5  # says that it scales, and does not
    with pytest.raises(ModelError, match="must equal the model's own"):
        check_head(model, torch.tensor([3, 4, 5]))


def test_train_config_refuses_unknown_keys():
    with pytest.raises(ValueError, match="learning_rat"):
        TrainConfig.model_validate({"learning_rat": 1.0})


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_trains(base, rollouts, settings, tmp_path, name):
    objective, rollout_set = find(name), read_rollouts(rollouts)
    scores = {}
    for role, seed, kind in (("teacher_logprobs", 3, "logprobs"), ("signal", 4, "signal")):
        if role in inputs(objective):
            columns = score_rollouts(tiny_model(seed), rollout_set.rollouts)
            scores[role] = str(write_scores(tmp_path / role, rollout_set, columns, model_digest=str(seed), kind=kind))
    for role in LOGITS & set(inputs(objective)):
        frozen = load_model(base) if role == "reference_logits" else tiny_model(3)
        digest = model_digest(base) if role == "reference_logits" else "3"
        scores[role] = str(write_hidden(tmp_path / role, rollout_set, frozen, model_digest=digest))
    required = {knob: 0.5 for knob, what in knobs(objective).items() if what.required}
    values = settings.model_copy(update={"objective": name, "num_steps": 3, "knobs": required})
    out = train(RunConfig(base=base, rollouts=rollouts, scores=scores, train=values), tmp_path / "run")
    lines = read_metrics(out / "metrics.jsonl")
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines)
    assert len(lines) == 3


def test_distributions_over_another_token_map_are_refused(rollouts, settings, tmp_path):
    base = str(tmp_path / "base")
    tiny_model().save_pretrained(base)
    tokens = {f"w{i}": i for i in range(48)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(tokens, unk_token="w0"))).save_pretrained(base)
    rollout_set = read_rollouts(rollouts)
    values = settings.model_copy(update={"objective": "reverse_kl", "num_steps": 1})

    def run_with(name, over):
        facts = {"token_map_digest": digest_of(over)}
        folder = write_hidden(tmp_path / name, rollout_set, tiny_model(3), model_digest="3", facts=facts)
        config = RunConfig(base=base, rollouts=rollouts, scores={"teacher_logits": str(folder)}, train=values)
        return train(config, tmp_path / f"run-{name}")

    assert run_with("same", tokens).is_dir()
    with pytest.raises(ProvenanceError, match=r"must be over the student's token map .* received distributions over"):
        run_with("other", {**tokens, "w1": 2, "w2": 1})
    assert not (tmp_path / "run-other").exists()
