"""Two gloo processes, started as a user starts them, end where one does; sharded weights leave files that load anywhere."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.batches.distributions import write_hidden
from limbeck.config import LoraConfig, SparsifyConfig, SubspaceConfig, TrainConfig
from limbeck.folders import read_manifest
from limbeck.geometry.trajectory.store import read_scalars
from limbeck.rollouts.store import read_rollouts, write_rollouts
from limbeck.train.models import load_model
from limbeck.train.record import read_metrics
from limbeck.train.run import RunConfig, train

from ..unit.train.toy import tiny_model, tiny_rollouts

SCRIPT = """
import json, sys
from pathlib import Path
from limbeck.config import parse
from limbeck.train.run import RunConfig, train
for name, values in json.loads(Path(sys.argv[1]).read_text()).items():
    train(parse(RunConfig, values, where="run"), Path(sys.argv[2]) / name)
"""
RAGGED = TrainConfig(  # 7 items a step in micro-batches of a few rows: the last process runs out of work first
    learning_rate=3e-3, batch_size=7, num_steps=20, checkpoint_every=6, token_budget=50, lora=LoraConfig(rank=4, alpha=8.0)
)  # fmt: skip
OBJECTIVES = {"token": "sft", "sequence": "rift:source", "pair": "dpo"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("world")
    tiny_model().save_pretrained(folder / "base")
    write_rollouts(tiny_rollouts(), folder / "rollouts")
    return {"base": str(folder / "base"), "rollouts": str(folder / "rollouts")}


def launch(arguments: list[str], *options: str, num: int = 2) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the launcher names what it starts after GPUs; without one the processes speak gloo
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    options = options if "--use_fsdp" in options else ("--multi_gpu", *options)
    command = [*launcher, f"--num_processes={num}", f"--main_process_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *options, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def launch_runs(configs: dict[str, RunConfig], out: Path, *options: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "script.py").write_text(SCRIPT)
    (out / "configs.json").write_text(json.dumps({k: c.model_dump(mode="json") for k, c in configs.items()}))
    launch([str(out / "script.py"), str(out / "configs.json"), str(out)], *options)


def weights(out: Path) -> dict[str, torch.Tensor]:
    file = out / "adapter" / "adapter_model.safetensors"
    return load_file(file if file.is_file() else out / "model" / "model.safetensors")


def gap(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_two_processes_end_at_the_weights_of_one(world, tmp_path):
    configs = {
        f"{unit}-{method}": RunConfig(
            **world, train=RAGGED.model_copy(update={"objective": name, "method": method, "optimizer": optimizer})
        )
        for unit, name in OBJECTIVES.items()
        for method, optimizer in (("lora", "adamw"), ("full", "sgd"))
    }
    held = {
        "method": "full",
        "optimizer": "sgd",
        "subspace": SubspaceConfig(k=3),
        "sparsify": SparsifyConfig(share=0.5),
    }
    configs["inside"] = RunConfig(**world, train=RAGGED.model_copy(update=held))
    launch_runs(configs, tmp_path / "two")
    assert read_manifest(tmp_path / "two" / "token-lora", "run")["processes"] == 2
    for name, config in configs.items():
        train(config, tmp_path / "one" / name)
        assert gap(tmp_path / "one" / name, tmp_path / "two" / name) < 1e-6, name
        one, two = (read_metrics(tmp_path / folder / name / "metrics.jsonl") for folder in ("one", "two"))
        for a, b in zip(one, two, strict=True):
            for key in a.keys() - {"seconds", "accuracy", "leak_bf16", "leak_bf16_energy"}:  # decided by roundings
                assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-6), key


def test_the_command_line_trains_on_two_processes(world, tmp_path):
    settings = [f"--set=train.{key}={value}" for key, value in {"batch_size": 7, "num_steps": 2}.items()]
    folders = ["--base", world["base"], "--rollouts", world["rollouts"], "--out", str(tmp_path / "run")]
    launch(["train", *folders, "--objective", "sft", *settings], "-m", "limbeck")
    assert read_manifest(tmp_path / "run", "run")["processes"] == 2


@pytest.fixture(scope="module")
def sharded(world, tmp_path_factory) -> tuple[dict[str, RunConfig], Path]:
    """Runs by name and what two processes with sharded weights made of them, side by side with one process's."""
    root, teacher, rollout_set = (
        tmp_path_factory.mktemp("sharded"),
        tiny_model(3),
        read_rollouts(Path(world["rollouts"])),
    )
    write_hidden(root / "hidden", rollout_set, teacher, model_digest="3")
    configs = {
        method: RunConfig(**world, train=RAGGED.model_copy(update={"method": method, "trajectory": 4}))
        for method in ("lora", "full")
    }
    whole = RAGGED.model_copy(update={"objective": "reverse_kl", "num_steps": 6})
    configs["whole"] = RunConfig(**world, scores={"teacher_logits": str(root / "hidden")}, train=whole)
    options = ["--use_fsdp", "--fsdp_version=2", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP"]
    launch_runs(configs, root / "two", *options)
    for name, config in configs.items():
        train(config, root / "one" / name)
    return configs, root


@pytest.mark.parametrize("method", ["lora", "full"])
def test_sharded_weights_end_at_the_weights_of_one_process_and_load_anywhere(sharded, tmp_path, method):
    configs, root = sharded
    one, two = (root / folder / method for folder in ("one", "two"))
    assert gap(one, two) < 2e-5
    lines = [read_scalars(folder / "trajectory") for folder in (one, two)]
    places = [[(line["step"], line["module"]) for line in side] for side in lines]
    assert places[0] == places[1]
    for key in ("frobenius_norm", "increment_norm"):
        a, b = ([line[key] for line in side] for side in lines)
        assert b == pytest.approx(a, rel=1e-2, abs=1e-5)
    newest = sorted((two / "checkpoints").glob("step-*"))[-1]
    assert newest.name == "step-000018"
    # its checkpoint continues on one plain process
    resumed = tmp_path / "resumed"
    shutil.copytree(two, resumed)
    (resumed / "manifest.json").unlink()  # as if it had been killed after that checkpoint
    train(configs[method], resumed)
    assert gap(resumed, one) < 2e-5
    if method == "full":
        load_model(str(two / "model"))


def test_distillation_from_whole_distributions_on_sharded_weights(sharded):
    """The head's weight is whole inside the forward pass alone, where the values of such an objective are made."""
    _, root = sharded
    lines = [read_metrics(root / folder / "whole" / "metrics.jsonl") for folder in ("one", "two")]
    assert [line["loss"] for line in lines[1]] == pytest.approx([line["loss"] for line in lines[0]], rel=1e-4)
    assert lines[0][-1]["loss"] < lines[0][0]["loss"]
    assert gap(root / "one" / "whole", root / "two" / "whole") < 2e-5
