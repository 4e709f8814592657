"""The axes of a run: what is trained, by which optimizer and schedule, in how much memory; each resumes bit-exactly."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

from limbeck.config import TrainConfig
from limbeck.errors import ConfigError
from limbeck.folders import read_manifest
from limbeck.objectives import find
from limbeck.rollouts.store import read_rollouts
from limbeck.train import loop
from limbeck.train.data import prepare
from limbeck.train.engine import gradient, make_engine, trainable
from limbeck.train.models import add_adapter, load_model, unfreeze
from limbeck.train.optimizer import make_walkers
from limbeck.train.record import read_metrics
from limbeck.train.run import RunConfig, train

METHODS = ("lora", "full")
OPTIMIZERS = ("adamw", "sgd", "muon", "adafactor")
SCHEDULES = ("cosine", "linear", "constant", "wsd")


def run(base, rollouts, settings, out, **changes):
    return train(RunConfig(base=base, rollouts=rollouts, train=settings.model_copy(update=changes)), out)


def result(out) -> dict[str, torch.Tensor]:
    file = out / "adapter" / "adapter_model.safetensors"
    return load_file(file if file.is_file() else out / "model" / "model.safetensors")


@pytest.mark.parametrize(("method", "optimizer"), list(itertools.product(METHODS, OPTIMIZERS)))
def test_every_optimizer_learns_and_resumes_bit_identical(
    base, rollouts, settings, tmp_path, monkeypatch, method, optimizer
):
    rate = {"sgd": 0.5}.get(optimizer, 1e-2)
    changes = {"method": method, "optimizer": optimizer, "learning_rate": rate, "schedule": "wsd"}
    whole = run(base, rollouts, settings, tmp_path / "whole", **changes)
    nll = [line["nll"] for line in read_metrics(whole / "metrics.jsonl")]
    assert nll[-1] < nll[0] - 0.05
    real = loop.gradient

    def dies(*args, **named):
        if named["step"] == 8:
            raise KeyboardInterrupt
        return real(*args, **named)

    monkeypatch.setattr(loop, "gradient", dies)
    with pytest.raises(KeyboardInterrupt):
        run(base, rollouts, settings, tmp_path / "cut", **changes)
    monkeypatch.setattr(loop, "gradient", real)
    cut = run(base, rollouts, settings, tmp_path / "cut", **changes)
    one, other = result(whole), result(cut)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_that_of_transformers(base, rollouts, settings, tmp_path, schedule):
    out = run(base, rollouts, settings, tmp_path / "run", schedule=schedule, warmup_fraction=0.2)
    rates = [line["learning_rate"] for line in read_metrics(out / "metrics.jsonl")]
    names = {"constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.learning_rate)
    own = {"scheduler_specific_kwargs": {"num_decay_steps": 2}} if schedule == "wsd" else {}
    known = get_scheduler(names.get(schedule, schedule), optimizer, 2, 10, **own)
    expected = []
    for _ in range(10):
        expected.append(known.get_last_lr()[0])
        optimizer.step()
        known.step()
    assert rates == pytest.approx(expected)
    assert max(rates) == pytest.approx(settings.learning_rate)


def test_a_full_run_leaves_a_model_that_loads_anywhere_and_its_update_norm(base, rollouts, settings, tmp_path):
    out = run(base, rollouts, settings, tmp_path / "run", method="full")
    facts = read_manifest(out, "run")
    before, after = (dict(load_model(name).named_parameters()) for name in (base, str(out / "model")))
    assert before.keys() == after.keys()
    square = sum((after[name] - before[name]).double().square().sum().item() for name in before)
    assert square**0.5 == pytest.approx(facts["update_norm"], rel=1e-6)
    assert "lm_head.weight" not in load_file(out / "model" / "model.safetensors")  # tied: once
    assert facts["precision"] == "fp32"


@pytest.mark.parametrize("method", METHODS)
def test_what_bf16_storage_shows_is_saved_beside_the_fp32_result(base, rollouts, settings, tmp_path, method):
    out = run(base, rollouts, settings, tmp_path / "run", method=method, num_steps=2, learning_rate=1e-4)
    facts, seen = read_manifest(out, "run"), load_file(out / "visible.safetensors")
    base_weights = dict(load_model(base).named_parameters())
    if method == "full":
        tuned = dict(load_model(str(out / "model")).named_parameters())
    else:
        merged = add_adapter(load_model(base), settings.lora, init_seed=settings.init_seed)
        merged.load_adapter(str(out / "adapter"), "default")
        tuned = dict(merged.merge_and_unload().named_parameters())
    assert seen
    changed = entries = square = 0
    for name, tensor in seen.items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, tuned[name].detach().bfloat16(), rtol=1e-2, atol=0)
        step = tensor.double() - base_weights[name].detach().bfloat16().double()
        changed, entries = changed + int((step != 0).sum()), entries + step.numel()
        square += float(step.square().sum())
    assert facts["visible_share"] == pytest.approx(changed / entries)
    assert 0 < facts["visible_share"] < 1  # so small an update hides in bf16's last place, mostly
    assert facts["visible_norm"] == pytest.approx(square**0.5)
    assert not (run(base, rollouts, settings, tmp_path / "lean", save_visible=False) / "visible.safetensors").exists()


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_and_packing_change_no_gradient(base, rollouts, settings, tmp_path, method):
    objective, rollout_set = find("sft"), read_rollouts(rollouts)
    lora = settings.lora.model_copy(update={"dropout": 0.0})
    found, padding = {}, {}
    for name, changes in {
        "plain": {},
        "recomputed": {"gradient_checkpointing": True},
        "packed": {"packing": True},
    }.items():
        config = settings.model_copy(update={"method": method, "lora": lora, **changes})
        model = load_model(base)
        tuned = add_adapter(model, lora, init_seed=0) if method == "lora" else unfreeze(model)
        engine = make_engine(tuned, config)
        data, _, _ = prepare(config, objective, rollout_set, {}, context=None)
        line = gradient(engine, data, range(8), objective, step=1, out=tmp_path)
        found[name] = torch.cat([p.grad.flatten() for p in trainable(engine)])
        padding[name] = line["padding"]
    assert 0 <= padding["packed"] < padding["plain"] == padding["recomputed"]
    for other in ("recomputed", "packed"):
        torch.testing.assert_close(found[other], found["plain"], rtol=1e-4, atol=1e-6)


def test_bf16_products_train_fp32_weights(base, rollouts, settings, tmp_path):
    finals = {}
    for precision in ("fp32", "bf16"):
        out = run(base, rollouts, settings, tmp_path / precision, precision=precision, method="full")
        assert all(t.dtype == torch.float32 for t in result(out).values())
        finals[precision] = read_metrics(out / "metrics.jsonl")[-1]["nll"]
        assert read_manifest(out, "run")["precision"] == precision
    assert finals["bf16"] == pytest.approx(finals["fp32"], rel=0.02)
    assert finals["bf16"] != finals["fp32"]


def test_a_torch_without_muon_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r'"muon" needs torch 2.9 or newer, received torch '):
        make_walkers(torch.nn.Linear(2, 2), TrainConfig(optimizer="muon"))
