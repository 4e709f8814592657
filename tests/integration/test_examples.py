"""The examples run, on data made here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from limbeck.studies.config import load_study
from limbeck.studies.plan import make_plan
from limbeck.worlds.abacus.generator import generate

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_minimal_loop_learns_and_samples(capsys):
    spec = importlib.util.spec_from_file_location("minimal_loop", EXAMPLES / "minimal_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rewards = module.main(sft_steps=2, grpo_steps=1, batch=4, samples=4)
    assert len(rewards) == 1
    assert 0 <= rewards[0] <= 1
    assert "sft  step 1: loss" in capsys.readouterr().out


def test_files_in_gsm8k_format_become_a_study_that_plans(tmp_path):
    for name, split in (("train", "train"), ("test", "test")):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for problem, text in generate(split, 40, seed=5):
                file.write(json.dumps({"question": problem.prompt, "answer": text.replace(" #### ", "\n#### ")}) + "\n")
    command = [
        sys.executable, str(EXAMPLES / "gsm8k_from_scratch.py"), "--train", str(tmp_path / "train.jsonl"),
        "--test", str(tmp_path / "test.jsonl"), "--out", str(tmp_path / "out"), "--steps", "2", "--eval-problems", "5",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "rollouts.jsonl").read_text().splitlines()]
    assert {row["reward"] for row in rows} == {0.0, 1.0}
    assert len({row["problem_id"] for row in rows}) == len(rows) / 2
    steps = make_plan(load_study(str(tmp_path / "out" / "study.toml")))
    assert {"rollouts", "train/dpo-s0", "eval/base", "compare", "measure", "cka"} <= {step.name for step in steps}
