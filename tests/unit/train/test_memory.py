"""How a step is cut where nobody said: by what the layers keep until backward."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from limbeck.batches.collate import micro_batches
from limbeck.config import LoraConfig, TrainConfig
from limbeck.objectives import find
from limbeck.rollouts.store import read_rollouts
from limbeck.train import memory
from limbeck.train.data import prepare
from limbeck.train.engine import gradient, make_engine, trainable
from limbeck.train.models import add_adapter, load_model

from .toy import tiny_model

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0)


def tuned(layers: int = 2):
    model = tiny_model()
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    return add_adapter(model, LORA, init_seed=0)


def budget(**settings) -> int:
    return memory.micro_batch_tokens(tuned(), TrainConfig(lora=LORA, **settings), Accelerator(cpu=True))


def test_what_is_set_is_taken_and_what_is_not_follows_memory(monkeypatch):
    per_token = memory.kept_per_token(tuned())
    assert budget() == 8192  # a small model keeps little
    monkeypatch.setattr(memory, "KEPT_BYTES", 100 * per_token)
    assert budget() == 100
    assert budget(token_budget=640) == 640
    monkeypatch.setattr(memory, "KEPT_BYTES", 1)
    assert budget() == 1  # an item is never split: every one alone


def test_every_layer_keeps_the_same_and_parameters_are_not_counted(monkeypatch):
    whole, half = memory.kept_per_token(tuned()), memory.kept_per_token(tuned(1))
    # of 4 bytes: at the least the input, q and its norm, gate, up and their product's two factors
    assert whole - half > 4 * (32 + 2 * 32 + 3 * 64)
    assert whole - half < 4 * 3 * (32 + 2 * 32 + 3 * 64)
    monkeypatch.setattr(memory, "PROBE_TOKENS", 16)
    assert memory.kept_per_token(tuned()) == pytest.approx(whole, rel=0.02)  # whatever the rows' length
    for layer in (model := tuned()).get_base_model().model.layers:
        layer.mlp.down_proj = torch.nn.Linear(64, 32, bias=False)  # trains and is kept no second time
    assert memory.kept_per_token(model) == whole + 2 * 4 * 64


def test_a_step_is_cut_by_what_is_kept_and_its_gradient_is_the_same(base, rollouts, tmp_path, monkeypatch):
    rollout_set, objective = read_rollouts(rollouts), find("sft")
    bound = 30 * memory.kept_per_token(add_adapter(load_model(base), LORA, init_seed=0))
    monkeypatch.setattr(memory, "KEPT_BYTES", bound)
    found = []
    for tokens in (None, 1 << 20):
        config = TrainConfig(batch_size=8, num_steps=1, lora=LORA, token_budget=tokens)
        engine = make_engine(add_adapter(load_model(base), LORA, init_seed=0), config)
        data, _, _ = prepare(config, objective, rollout_set, {}, context=None)
        cuts = micro_batches(data, range(8), token_budget=engine.config.pass_tokens)
        gradient(engine, data, range(8), objective, step=1, out=tmp_path)
        if tokens is None:
            assert all(len(cut) == 1 or len(cut) * max(map(data.width, cut)) <= 30 for cut in cuts)
        found.append((len(cuts), torch.cat([p.grad.flatten() for p in trainable(engine)])))
    (several, cut), (one, whole) = found
    assert several > one == 1
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-7)
