"""What a run is said to need, held against what it takes: a real training in another process, and real optimizers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from limbeck.config import LoraConfig, RunConfig, TrainConfig
from limbeck.doctor import forecast as module
from limbeck.doctor.forecast import forecast, full_passes, least, loaded_as, passes_of
from limbeck.doctor.stored import stored
from limbeck.objectives import find
from limbeck.rollouts.store import write_rollouts
from limbeck.train.data import prepare
from limbeck.train.engine import Engine, make_engine
from limbeck.train.models import add_adapter, load_model, unfreeze
from limbeck.types import Finish, Rollout, RolloutSet

LENGTHS = (96, 96, 64, 96, 48, 96)
SFT = find("sft")


def write(folder: Path, lengths, *, vocab: int, hidden: int, layers: int, dtype: torch.dtype = torch.float32) -> dict:
    """A random Qwen3, stored in a type, and rows of random tokens; the settings of a run on them."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True,
        max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(dtype).save_pretrained(folder / "base")
    draw = random.Random(0)
    rows = [
        Rollout(
            problem_id=f"p{i}", sample=0, prompt_ids=(2, 3, 4), response_ids=tuple(draw.choices(range(2, vocab), k=length - 3)),
            behavior_logprobs=(-1.0,) * (length - 3), reward=1.0, finish=Finish.STOP, response="",
        )
        for i, length in enumerate(lengths)
    ]  # fmt: skip
    write_rollouts(RolloutSet(rollouts=tuple(rows), provenance={}), folder / "rollouts")
    return {"base": str(folder / "base"), "rollouts": str(folder / "rollouts"), "rows": rows}


def engine_of(base: str, config: TrainConfig) -> Engine:
    model = load_model(base, dtype=loaded_as(config))
    lora = config.method == "lora"
    return make_engine(add_adapter(model, config.lora, init_seed=0) if lora else unfreeze(model), config)


def predicted(made: dict, config: TrainConfig) -> int:
    engine = engine_of(made["base"], config)
    rollout_set = RolloutSet(rollouts=tuple(made["rows"]), provenance={})
    data = prepare(config, SFT, rollout_set, {}, context=None).data
    shape = stored(Path(made["base"]))
    found = forecast(engine, SFT, passes_of(data, config, engine), stored=shape)
    assert least(shape, config) < found.peak
    return found.peak


def test_the_peak_of_a_real_training_is_predicted_within_a_quarter(tmp_path):
    small = write(tmp_path / "small", (8, 8), vocab=64, hidden=128, layers=1)
    whole = write(tmp_path / "whole", LENGTHS, vocab=12_000, hidden=512, layers=5)
    half = write(tmp_path / "half", LENGTHS, vocab=12_000, hidden=512, layers=5, dtype=torch.bfloat16)
    settings = {"num_steps": 1, "batch_size": len(LENGTHS)}
    few = {"num_steps": 1, "batch_size": 3, "precision": "bf16"}  # bf16 products are slow on a CPU without them
    runs = [
        (whole, TrainConfig(**settings | {"num_steps": 2})),
        (whole, TrainConfig(method="full", **settings | {"num_steps": 2})),
        (half, TrainConfig(**settings)),
        (half, TrainConfig(**few)),
        (whole, TrainConfig(method="full", **few)),
    ]
    configs = [
        RunConfig(base=made["base"], rollouts=made["rollouts"], train=train).model_dump(mode="json")
        for made, train in [(small, TrainConfig(num_steps=1, batch_size=2)), *runs]
    ]
    script = Path(__file__).with_name("run_measured.py")
    command = [sys.executable, str(script), json.dumps(configs), str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = [int(line) for line in done.stdout.splitlines()]
    weights = 4 * sum(p.numel() for p in load_model(whole["base"]).parameters())
    assert weights > 80e6  # large enough to matter
    for (made, train), peak in zip(runs, measured, strict=True):
        assert peak > weights * (5 if train.method == "full" else 0.5 if train.precision == "bf16" else 1.5)
        assert predicted(made, train) == pytest.approx(peak, rel=0.25), (made["base"], train)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor", "muon"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_optimizer_keeps_as_much_as_is_said(tmp_path, optimizer, method):
    made = write(tmp_path, (8,), vocab=64, hidden=128, layers=1)
    config = TrainConfig(method=method, optimizer=optimizer, lora=LoraConfig(rank=4))
    engine = engine_of(made["base"], config)
    said = module._optimizer_bytes(engine)
    for walker in engine.walkers:
        for group in walker.optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        walker.optimizer.step()
    kept = [t for w in engine.walkers for state in w.optimizer.state.values() for t in state.values()]
    own = sum(t.numel() * t.element_size() for t in kept if isinstance(t, torch.Tensor) and t.dim())
    assert said == own
    assert said > 0


def test_more_rows_and_fuller_training_need_more(tmp_path):
    made = write(tmp_path, (8,), vocab=64, hidden=128, layers=2)
    shape = stored(Path(made["base"]))
    peaks = {}
    for name, settings in {
        "lora": {},
        "full": {"method": "full"},
        "more": {"token_budget": 4096},
        "again": {"token_budget": 4096, "gradient_checkpointing": True},
    }.items():
        config = TrainConfig(**{"token_budget": 256, **settings})
        engine = engine_of(made["base"], config)
        peaks[name] = forecast(engine, SFT, full_passes(config, engine), stored=shape).peak
    assert peaks["lora"] < peaks["full"] < peaks["more"]
    assert peaks["again"] < peaks["more"]


def test_a_frozen_base_under_bf16_products_takes_half(tmp_path):
    made = write(tmp_path, (8,), vocab=64, hidden=128, layers=1)
    shape = stored(Path(made["base"]))
    whole, half = (least(shape, TrainConfig(precision=precision)) for precision in ("fp32", "bf16"))
    assert whole == 2 * half == 4 * shape.entries
    assert least(shape, TrainConfig(precision="bf16", method="full")) == 4 * whole  # gradients and two moments


def test_headers_tell_the_size_of_a_model(tmp_path):
    made = write(tmp_path, (8,), vocab=64, hidden=128, layers=1)
    shape = stored(Path(made["base"]))
    assert shape.entries == sum(p.numel() for p in load_model(made["base"]).parameters())
    assert (shape.dtypes, shape.alike) == (("F32",), True)
    half = stored(Path(__file__).parents[3] / "src/limbeck/worlds/abacus/base")
    assert (half.dtypes, half.alike) == (("BF16",), True)
