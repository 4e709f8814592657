"""A live run killed with -9, started again, samples and ends bit for bit as the undisturbed one; on the world's models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from limbeck.config import LiveConfig, RunConfig, TrainConfig
from limbeck.digests import file_digest
from limbeck.train.record import read_metrics
from limbeck.train.run import train

CLOCKS = ("seconds", "tokens_per_second")


def start(config: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "limbeck", "train", "--config", str(config), "--out", str(out)]
    with (config.parent / "said.txt").open("w") as said:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)


def lines_of(out: Path) -> list[dict]:
    lines = read_metrics(out / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(CLOCKS)} for line in lines]


def test_killed_and_started_again(tmp_path):
    config = RunConfig(
        base="abacus:base",
        train=TrainConfig(
            objective="kdrl", knobs={"beta": 0.1}, num_steps=7, checkpoint_every=2, save_visible=False, trajectory=3
        ),
        live=LiveConfig(
            problems="abacus:train",
            num_problems=40,
            teacher="abacus:teacher",
            prompts_per_step=2,
            samples=4,
            max_new_tokens=64,
            minibatches=2,
            reference_every=3,
        ),
    )
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    process = start(tmp_path / "config.json", tmp_path / "killed")
    while process.poll() is None and len(read_metrics(tmp_path / "killed" / "metrics.jsonl")) < 3:
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(tmp_path / "config.json", tmp_path / "killed")
    assert process.wait(timeout=300) == 0, (tmp_path / "said.txt").read_text()
    train(config, tmp_path / "whole")
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")
    assert any(
        line["signal_share"] > 0 for line in lines_of(tmp_path / "whole")
    )  # the grader found right and wrong ones
    file = "adapter/adapter_model.safetensors"
    assert file_digest(tmp_path / "killed" / file) == file_digest(tmp_path / "whole" / file)
    folders = [tmp_path / name / "trajectory" for name in ("killed", "whole")]
    assert sorted(p.name for p in folders[1].glob("step-*")) == [f"step-{n:06d}.safetensors" for n in (2, 5, 7)]
    for path in folders[1].iterdir():
        assert file_digest(folders[0] / path.name) == file_digest(path)
