"""On a CUDA device: heads against float64, the same run as on a CPU, sampled log-probs scored again, the peak foretold."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from limbeck.batches.score import score_rollouts
from limbeck.config import LoraConfig, TrainConfig, parse
from limbeck.heads import Head, cut, reverse_kl, score_tokens
from limbeck.rollouts.sample import Decoding
from limbeck.rollouts.store import write_rollouts
from limbeck.studies.inputs import problems_named, read_problems
from limbeck.studies.sampling import sample_rollouts
from limbeck.train.models import load_model, load_tokenizer
from limbeck.train.record import read_metrics
from limbeck.train.run import RunConfig, train

from .doctor.test_forecast import LENGTHS, predicted, write
from .train.toy import tiny_model, tiny_rollouts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OBJECTIVES = {"token": "sft", "sequence": "rift:source", "pair": "dpo", "policy": "grpo"}


def sides(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Hidden states, weights of two heads, the teacher's states, targets: the same numbers anywhere."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((3000, 64), (40_000, 64), (40_000, 32), (3000, 32))
    floats = [torch.randn(*shape, generator=draw, dtype=torch.float64).to(device, dtype) for shape in shapes]
    targets = torch.randint(39_000, (3000,), generator=draw).to(device)
    return (floats[0].requires_grad_(), floats[1].requires_grad_(), *floats[2:], targets)


@pytest.mark.parametrize("name", ["scores", "reverse_kl"])
def test_heads_in_many_blocks_equal_float64(name):
    found = {}
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.float64)):
        hidden, weight, other, states, targets = sides(device, dtype)
        head, teacher = cut(Head(weight, scale=0.2), 39_000), cut(Head(other, scale=0.2), 39_000)
        if name == "scores":
            scored = score_tokens(hidden, head, targets)
            values = scored.logprobs + 0.1 * scored.entropy
        else:
            values = reverse_kl(hidden, head, states, teacher).values
        grads = torch.autograd.grad(values.sum(), (hidden, weight))
        found[device] = [t.detach().cpu().double() for t in (values, *grads)]
    for ours, reference in zip(found["cuda"], found["cpu"], strict=True):
        assert ((ours - reference).norm() / reference.norm()).item() < 1e-5


def test_a_run_is_that_of_a_cpu(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    write_rollouts(tiny_rollouts(), tmp_path / "rollouts")
    common = {"learning_rate": 3e-3, "batch_size": 7, "num_steps": 12, "token_budget": 50, "precision": "fp32"}
    configs = {
        f"{unit}-{method}": RunConfig(
            base=str(tmp_path / "base"),
            rollouts=str(tmp_path / "rollouts"),
            train=TrainConfig(
                objective=name, method=method, optimizer=own, lora=LoraConfig(rank=4, alpha=8.0), **common
            ),
        )
        for unit, name in OBJECTIVES.items()
        for method, own in (("lora", "adamw"), ("full", "sgd"))
    }
    script = (
        "import json, sys\nfrom limbeck.config import parse\nfrom limbeck.train.run import RunConfig, train\n"
        "for name, values in json.loads(sys.argv[1]).items():\n"
        "    train(parse(RunConfig, values, where='run'), sys.argv[2] + '/' + name)\n"
    )
    given = json.dumps({name: config.model_dump(mode="json") for name, config in configs.items()})
    command = [sys.executable, "-c", script, given, str(tmp_path / "cpu")]
    subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True, timeout=300)
    for name, config in configs.items():
        train(parse(RunConfig, config.model_dump(mode="json"), where="run"), tmp_path / "cuda" / name)
        here, there = ([row["loss"] for row in read_metrics(tmp_path / d / name)] for d in ("cuda", "cpu"))
        assert here == pytest.approx(there, abs=2e-4), name
        file = "adapter/adapter_model.safetensors" if config.train.method == "lora" else "model/model.safetensors"
        a, b = (load_file(tmp_path / device / name / file) for device in ("cuda", "cpu"))
        assert max((a[key] - b[key]).abs().max().item() for key in a) < 5e-4, name


def test_ligers_kernels_change_rounding_alone_and_only_the_run_that_asks(tmp_path):
    pytest.importorskip("liger_kernel")
    tiny_model().save_pretrained(tmp_path / "base")
    write_rollouts(tiny_rollouts(), tmp_path / "rollouts")
    losses = []
    for number, liger in enumerate((False, True, False)):
        own = TrainConfig(learning_rate=3e-3, batch_size=7, num_steps=12, precision="fp32", liger=liger)
        run = RunConfig(base=str(tmp_path / "base"), rollouts=str(tmp_path / "rollouts"), train=own)
        train(run, tmp_path / str(number))
        losses.append([row["loss"] for row in read_metrics(tmp_path / str(number))])
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    assert losses[2] == losses[0]


def test_sampled_logprobs_are_the_models_own():
    problems = [p for p, _ in read_problems(problems_named("abacus:train", "jsonl", 8, 0))]
    model = load_model("abacus:base")
    decoding = Decoding(sampling_temperature=1.0, max_new_tokens=64)
    sampled = sample_rollouts(model, load_tokenizer("abacus:base"), problems, decoding, samples=4, source={})
    scores = score_rollouts(model, sampled.rollouts, token_budget=2048)
    for rollout, own in zip(sampled.rollouts, scores, strict=True):
        assert rollout.behavior_logprobs == pytest.approx(own, abs=1e-3)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_on_the_device_is_predicted_within_a_quarter(tmp_path, method, precision):
    made = write(tmp_path / "made", LENGTHS, vocab=12_000, hidden=512, layers=5)
    config = TrainConfig(method=method, precision=precision, num_steps=2, batch_size=len(LENGTHS))
    expected = predicted(made, config)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train(RunConfig(base=made["base"], rollouts=made["rollouts"], train=config), tmp_path / "run")
    assert expected == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.25)
