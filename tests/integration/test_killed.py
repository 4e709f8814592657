"""A run killed with -9 where it stands, started again, ends bit for bit where the undisturbed one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limbeck.config import LoraConfig, RunConfig, TrainConfig
from limbeck.digests import file_digest
from limbeck.rollouts.store import write_rollouts
from limbeck.train.record import read_metrics
from limbeck.train.run import train

from ..unit.train.toy import tiny_model, tiny_rollouts


def start(config: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "limbeck", "train", "--config", str(config), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (config.parent / "said.txt").open("w") as said:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_killed_and_started_again(tmp_path, method):
    tiny_model().save_pretrained(tmp_path / "base")
    write_rollouts(tiny_rollouts(), tmp_path / "rollouts")
    lora = LoraConfig(rank=4, alpha=8.0, dropout=0.1)
    settings = TrainConfig(
        method=method, batch_size=8, num_steps=150, checkpoint_every=7, trajectory=15, trajectory_k=8, lora=lora
    )
    config = RunConfig(base=str(tmp_path / "base"), rollouts=str(tmp_path / "rollouts"), train=settings)
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    out, kills = tmp_path / "killed", 0
    for after in (30, 90):  # wherever it then is: in a step, in a checkpoint, in a line of the record
        process = start(tmp_path / "config.json", out)
        while process.poll() is None and len(read_metrics(out / "metrics.jsonl")) < after:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    process = start(tmp_path / "config.json", out)
    assert process.wait(timeout=300) == 0, (tmp_path / "said.txt").read_text()
    assert kills == 2
    whole = train(config, tmp_path / "whole")
    file = "adapter/adapter_model.safetensors" if method == "lora" else "model/model.safetensors"
    assert file_digest(out / file) == file_digest(whole / file)
    snapshots = sorted((whole / "trajectory").iterdir())
    assert len(snapshots) == 17
    assert all(file_digest(out / "trajectory" / path.name) == file_digest(path) for path in snapshots)
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (out, whole)]
    assert [{**line, "seconds": 0} for line in lines[0]] == [{**line, "seconds": 0} for line in lines[1]]
