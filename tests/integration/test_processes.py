"""Gloo processes, started as a user starts them, end where one does; sharded weights leave files that load anywhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from documented import PAGES, called, run
from limbeck.batches.distributions import write_hidden
from limbeck.config import LoraConfig, SparsifyConfig, SubspaceConfig, TrainConfig
from limbeck.digests import file_digest
from limbeck.folders import read_manifest
from limbeck.geometry.trajectory.store import read_scalars
from limbeck.rollouts.store import read_rollouts, write_rollouts
from limbeck.train.models import load_model
from limbeck.train.record import read_metrics
from limbeck.train.run import RunConfig, train
from serving import free_port

from ..unit.train.toy import tiny_model, tiny_rollouts

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch.distributed.checkpoint as dcp
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP
from limbeck.config import parse
from limbeck.train.run import RunConfig, train

layers, forward, write = [], Qwen3MLP.forward, dcp.HuggingFaceStorageWriter.write_data

def counted(self, hidden):
    layers.append(1)
    return forward(self, hidden)

def torn(self, plan, planner):
    done = write(self, plan, planner)
    if self.path.parent.name.startswith(".step-000008"):
        [file] = self.path.glob("shard-00001-*")
        os.truncate(file, file.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return done

Qwen3MLP.forward = counted
for name, values in json.loads(Path(sys.argv[1]).read_text()).items():
    layers.clear()
    if name == "killed" and os.environ["RANK"] == "0":
        dcp.HuggingFaceStorageWriter.write_data = torn
    train(parse(RunConfig, values, where="run"), Path(sys.argv[2]) / name)
    if os.environ["RANK"] == "0":
        (Path(sys.argv[2]) / f"{name}.layers").write_text(str(len(layers)))
"""
RAGGED = TrainConfig(  # 7 items a step in micro-batches of a few rows: the last process runs out of work first
    learning_rate=3e-3, batch_size=7, num_steps=20, checkpoint_every=6, token_budget=50, lora=LoraConfig(rank=4, alpha=8.0)
)  # fmt: skip
SHARDED = ("--use_fsdp", "--fsdp_version=2", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP")
OBJECTIVES = {"token": "sft", "sequence": "rift:source", "pair": "dpo"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("world")
    tiny_model().save_pretrained(folder / "base")
    write_rollouts(tiny_rollouts(), folder / "rollouts")
    return {"base": str(folder / "base"), "rollouts": str(folder / "rollouts")}


def launch(arguments: list[str], *options: str, num: int = 2, killed: bool = False) -> None:
    # the launcher names what it starts after GPUs; without one the processes speak gloo
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    options = options if "--use_fsdp" in options else ("--multi_gpu", *options)
    command = [*launcher, *options, f"--num_processes={num}", f"--main_process_port={free_port()}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert "Signal 9" in done.stderr if killed else done.returncode == 0, done.stderr[-3000:]


def launch_runs(configs: dict[str, RunConfig], out: Path, *options: str, **settings: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "script.py").write_text(SCRIPT)
    (out / "configs.json").write_text(json.dumps({k: c.model_dump(mode="json") for k, c in configs.items()}))
    launch([str(out / "script.py"), str(out / "configs.json"), str(out)], *options, **settings)


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


def test_the_lines_of_the_page_train_a_sharded_student(tmp_path, monkeypatch):
    """On two processes for four, and just past the first checkpoint."""
    monkeypatch.chdir(tmp_path)
    page = PAGES["docs/scale.md"]
    settings, script = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("toml", "bash"))
    Path("run.toml").write_text(settings)
    sample, line = called(script)
    assert run(sample).exit_code == 0
    words = shlex.split(line)
    at = words.index("-m")
    launch([*words[at:], "--set", "train.num_steps=5"], *words[2:at])
    manifest = read_manifest(Path("runs/full"), "run")
    assert (words[:2], manifest["processes"]) == (["accelerate", "launch"], 2)
    assert len(list(Path("runs/full/checkpoints/step-000004/shards").iterdir())) == 2


def cut_short(run: Path, copy: Path, step: int) -> Path:
    """A copy of a run's folder as it was when the checkpoint of this step was its newest."""
    shutil.copytree(run, copy)
    (copy / "manifest.json").unlink(missing_ok=True)
    for checkpoint in (copy / "checkpoints").glob("step-*"):
        if int(checkpoint.name[-6:]) > step:
            shutil.rmtree(checkpoint)
    return copy


@pytest.fixture(scope="module")
def four(world, tmp_path_factory) -> tuple[dict[str, RunConfig], Path]:
    """Runs by name and what four processes with sharded weights made of them; the last was killed in a checkpoint."""
    short = RAGGED.model_copy(update={"num_steps": 10, "checkpoint_every": 4, "gradient_checkpointing": True})
    trained = {
        "lora": {"objective": "dpo", "kl_every": 4, "lora": LoraConfig(rank=3, alpha=6.0)},  # one process has no row
        "full": {"method": "full"},
        "plain": {"method": "full", "gradient_checkpointing": False},
        "killed": {"method": "full", "optimizer": "sgd"},
    }
    configs = {name: RunConfig(**world, train=short.model_copy(update=values)) for name, values in trained.items()}
    root = tmp_path_factory.mktemp("four")
    launch_runs(configs, root, *SHARDED, num=4, killed=True)
    return configs, root


@pytest.fixture(scope="module")
def sharded(world, four, tmp_path_factory) -> tuple[dict[str, RunConfig], Path]:
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
    for name in ("lora", "full", "killed"):
        configs[f"four-{name}"] = four[0][name]
        cut_short(four[1] / name, root / "two" / f"four-{name}", 4)
    launch_runs(configs, root / "two", *SHARDED)
    for name, config in configs.items():
        train(config, root / "one" / name)
    return configs, root


@pytest.mark.parametrize("name", ["lora", "full"])
def test_four_processes_with_sharded_weights_have_the_losses_of_one(four, sharded, name):
    runs = four[1] / name, sharded[1] / "one" / f"four-{name}"
    lines = [read_metrics(run / "metrics.jsonl") for run in runs]
    for key in ("loss", "kl_measured"):
        values = [[line[key] for line in side if key in line] for side in lines]
        assert values[0] == pytest.approx(values[1], abs=1e-5)
        assert len(values[0]) == (10 if key == "loss" else 3 if name == "lora" else 0)
    assert gap(*runs) < 2e-5


def test_layers_are_run_again_in_backward_and_change_nothing(four):
    layers = {name: int((four[1] / f"{name}.layers").read_text()) for name in ("full", "plain")}
    probed = 2 * 2  # the head is checked once, by two passes through two layers
    assert layers["full"] - probed == 2 * (layers["plain"] - probed)
    assert gap(four[1] / "full", four[1] / "plain") == 0


def test_each_process_writes_its_part_of_a_checkpoint(four):
    files = sorted((four[1] / "full" / "checkpoints" / "step-000008" / "shards").iterdir())
    assert len(files) == 4
    parts = [load_file(file) for file in files]
    matrix = "model.model.layers.0.mlp.up_proj.weight"
    for name in (matrix, f"state.{matrix}.exp_avg", f"state.{matrix}.exp_avg_sq"):
        assert [part[name].shape for part in parts] == [(64 // 4, 32)] * 4
    digests = read_manifest(files[0].parents[1])["files"]
    assert {f"shards/{file.name}": file_digest(file) for file in files}.items() <= digests.items()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # asked for by peft
@pytest.mark.parametrize("name", ["lora", "full", "killed"])
def test_what_four_processes_saved_goes_on_on_two_and_on_one(four, sharded, tmp_path, name):
    configs, root = sharded
    if name == "killed":  # the main process, while the second checkpoint was written
        left = sorted(path.name for path in (four[1] / name / "checkpoints").iterdir())
        assert [entry for entry in left if not entry.startswith(".")] == ["step-000004"]
        assert [entry for entry in left if entry.startswith(".step-000008")]
    one = root / "one" / f"four-{name}"
    assert gap(root / "two" / f"four-{name}", one) < 2e-5
    assert not list((root / "two" / f"four-{name}" / "checkpoints").glob(".*.partial"))
    resumed = cut_short(four[1] / name, tmp_path / name, 8)
    if name == "full":
        shard = next((resumed / "checkpoints" / "step-000008" / "shards").iterdir())
        os.truncate(shard, shard.stat().st_size - 7)
    with pytest.warns(RuntimeWarning, match="step-000008 is damaged") if name == "full" else nullcontext():
        train(configs[f"four-{name}"], resumed)
    assert gap(resumed, one) < 2e-5
    if name == "lora":
        model = PeftModel.from_pretrained(load_model(configs["lora"].base), str(resumed / "adapter"))
        assert not any(p.isnan().any() for p in model.parameters())


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
