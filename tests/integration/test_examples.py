"""The examples run, on data made here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    """Its cells by a plain interpreter: a kernel would bring twenty packages and run the same lines."""
    text = (EXAMPLES / "library.ipynb").read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    script = "\n".join("".join(cell["source"]) for cell in cells)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = [line for cell in cells for line in printed(cell)]
    assert len(done.stdout.splitlines()) == len(shown)
    exact = [line for cell in cells if "exact" in cell["metadata"].get("tags", ()) for line in printed(cell)]
    assert exact
    assert [line for line in exact if line not in done.stdout] == []
    assert not any(re.search(r"(?<!\w)/\w+/", line) for line in shown)
    assert len(text) < 30_000


def printed(cell):
    return "".join(part for out in cell["outputs"] for part in out.get("text", ())).splitlines()


def test_the_pictures_show_what_their_page_says(tmp_path):
    pytest.importorskip("matplotlib", reason="the pictures are drawn with matplotlib")
    spec = importlib.util.spec_from_file_location("metric_pictures", EXAMPLES / "metric_pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    page = (EXAMPLES.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert set(re.findall(r"images/metrics/(\w+)\.svg", page)) == set(pictures.PICTURES)
    few = {name: pictures.PICTURES[name] for name in ("direction", "angles", "between")}  # the others take longer
    said = pictures.main(tmp_path, few)
    assert sorted(path.stem for path in tmp_path.glob("*.svg")) == sorted(few)
    assert said["direction"]["one_A_at_half"] > 0.5 > 0.1 > said["direction"]["two_A_at_all"]
    assert round(said["angles"]["smallest_inside"]) == 28
    assert said["between"]["end"] < 0 < said["between"]["bump"]
    assert abs(said["between"]["cka_debiased"]) < 0.05 < 0.6 < said["between"]["cka"]
