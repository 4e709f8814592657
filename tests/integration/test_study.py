"""A whole study on the embedded world and on a user's own files: killed, continued, equal however it is run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from limbeck.digests import is_complete
from limbeck.folders import read_manifest
from limbeck.records import read_json
from limbeck.report import build
from limbeck.report.load import load
from limbeck.studies.config import load_study
from limbeck.studies.study import run_study
from limbeck.train.models import load_model, load_tokenizer
from limbeck.worlds.abacus.generator import generate

SMALL = (
    "rollouts.problems.num=30",
    "train.num_steps=4",
    "train.batch_size=8",
    "train.checkpoint_every=2",
    "eval.problems.num=40",
    "paths.problems=32",
    'paths.pairs=[["sft","dpo"]]',
    "paths.alphas=[0.0,0.5,1.0]",
    "geometry.cka_problems=12",
    "geometry.draws=20",
)


def run_digests(out: Path) -> dict[str, dict[str, str]]:
    """Step folder to the digests of the files that must not depend on when, where or in how many processes it ran."""
    kept = {}
    for folder in sorted((out / "steps").iterdir()):
        if folder.is_dir() and is_complete(folder):
            files = read_manifest(folder)["files"]
            kept[folder.name] = {
                name: digest
                for name, digest in files.items()
                if name not in ("metrics.jsonl", "config.json") and "checkpoints" not in name
            }
    return kept


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study") / "quickstart"
    results = run_study(load_study("quickstart", (*SMALL, "workers=1")), out)
    build(results, out)
    return out


def test_results_hold_what_the_study_promises(finished):
    results = finished / "results"
    study, arms = read_json(results / "study.json"), read_json(results / "arms.json")
    assert len(arms) == 8
    assert {arm["rollouts_digest"] for arm in arms} == {read_json(results / "rollouts.json")["digest"]}
    assert len({arm["init_digest"] for arm in arms}) == 2  # one shared, one of the second initialisation
    comparison = read_json(results / "comparison.json")
    names = [arm["name"] for arm in comparison["arms"]]
    assert names[:2] == ["base", "teacher"]
    assert len(names) == 10
    assert len(comparison["pairs"]) == 45
    assert all(pair["p"] <= pair["p_holm"] <= 1 for pair in comparison["pairs"])
    assert study["reference_arm"] == "sft"
    losses = {line["loss"] for line in read_json(results / "paths.json")}
    assert losses == {"ce_bare", "ce_cot", "ce_solution", "accuracy"}
    rows = pq.read_table(results / "measurements.parquet").to_pylist()
    metrics = {row["metric"] for row in rows}
    assert {
        "cosine",
        "principal_angle_smallest",
        "erank",
        "stable_rank",
        "frobenius_norm",
        "cka_debiased",
        "leading_overlap",
    } <= metrics
    norms = {
        row["arm"]: row["value"]
        for row in rows
        if row["metric"] == "frobenius_norm" and row["aggregation"] == "stacked" and not row["kind"]
    }
    for arm in arms:
        assert norms[arm["run"]] == pytest.approx(arm["update_norm"], rel=1e-6)


def test_the_ends_of_a_path_score_what_the_arms_scored(finished):
    comparison = read_json(finished / "results" / "comparison.json")
    assert comparison["n"] == 40
    (line,) = [x for x in read_json(finished / "results" / "paths.json") if x["loss"] == "accuracy"]
    step = next((finished / "steps").glob("eval-sft-s0-*"))
    scores = pq.read_table(step / "scores.parquet").to_pylist()
    order = [problem.id for problem, _ in generate("test", 40, seed=0)][:32]
    right = {row["problem_id"]: row["correct"] for row in scores}
    assert line["mean"][0] == pytest.approx(sum(right[name] for name in order) / 32)


def test_raw_measurements_are_what_the_tables_are_made_of(finished):
    results = finished / "results"
    scores = load(results).scores
    accuracy = {arm["name"]: arm["value"] for arm in read_json(results / "comparison.json")["arms"]}
    assert {name: sum(right.values()) / 40 for name, right in scores.items()} == pytest.approx(accuracy)
    items = pq.read_table(results / "path_items.parquet").to_pylist()
    for line in read_json(results / "paths.json"):
        means = [
            [row["value"] for row in items if (row["loss"], row["alpha"]) == (line["loss"], alpha)]
            for alpha in line["alphas"]
        ]
        assert [sum(x) / len(x) for x in means] == pytest.approx(line["mean"], rel=1e-5)
    (pair,) = [p for p in read_json(results / "comparison.json")["pairs"] if (p["a"], p["b"]) == ("base", "sft-s0")]
    table = (finished / "figures" / "retained.csv").read_text().splitlines()
    row = dict(
        zip(table[0].split(","), next(line for line in table if line.startswith("sft,")).split(","), strict=True)
    )
    assert float(row["kept"]) == pytest.approx(pair["both_right"] / (pair["both_right"] + pair["a_only"]))
    assert float(row["gained"]) == pytest.approx(pair["b_only"] / (pair["b_only"] + pair["both_wrong"]))


def test_the_report_is_one_file_that_needs_no_network(finished):
    page = (finished / "report.html").read_text()
    assert "Content-Security-Policy" in page
    assert len(page) < 8_000_000
    assert list((finished / "figures").glob("*.csv"))


def test_a_finished_study_is_not_run_again_but_a_changed_one_reuses_its_steps(finished, tmp_path):
    digests = run_digests(finished)
    made = {path: path.stat().st_mtime_ns for path in finished.glob("steps/*/manifest.json")}
    config = load_study("quickstart", (*SMALL, "workers=1", "eval.alpha=0.01"))
    run_study(config, finished, overwrite=True)
    after = run_digests(finished)
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    assert all(after[name] == files for name, files in digests.items())
    assert len(after) == len(digests) + 1  # the comparison alone depends on alpha


def test_killed_and_continued_in_several_processes_it_ends_with_the_same_digests(finished, tmp_path):
    out = tmp_path / "killed"
    settings = [part for setting in (*SMALL, "workers=2") for part in ("--set", setting)]
    command = [sys.executable, "-m", "limbeck", "study", "run", "quickstart", "--out", str(out), *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and len(list(out.glob("steps/train-*/metrics.jsonl"))) < 2:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "report.html").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(out / "report.html")
    assert run_digests(out) == {
        name: files for name, files in run_digests(finished).items() if name in run_digests(out)
    }
    assert len(run_digests(out)) == len(read_json(out / "results" / "provenance.json")["steps"])
    assert not [path for path in out.rglob("*") if "partial" in path.name]


@pytest.fixture
def own_files(tmp_path) -> Path:
    """A user's folder: a model saved by transformers, rollouts and problems in files of their own."""
    load_model("abacus:base").save_pretrained(tmp_path / "model")
    tokenizer = load_tokenizer("abacus:base")
    tokenizer.pad_token = None  # models without one are common
    tokenizer.save_pretrained(tmp_path / "model")
    with (tmp_path / "rollouts.jsonl").open("w") as file:
        for problem, text in generate("train", 12, seed=77):
            for response, reward in ((text, 1), (text.rsplit(" ", 1)[0] + " 1000", 0)):
                file.write(
                    json.dumps(
                        {"problem_id": problem.id, "prompt": problem.prompt, "response": response, "reward": reward}
                    )
                    + "\n"
                )
    with (tmp_path / "test.jsonl").open("w") as file:
        for problem, _ in generate("test", 30, seed=77):
            file.write(json.dumps({"prompt": problem.prompt, "answer": problem.answer}) + "\n")
    (tmp_path / "study.toml").write_text(
        """
name = "mine"
question = "Does it work on my files?"
student = "model"
workers = 1
rollouts = { path = "rollouts.jsonl" }
train = { num_steps = 2, batch_size = 4, lora = { rank = 4 } }
eval = { max_new_tokens = 96, problems = { path = "test.jsonl" } }
geometry = { cka_problems = 8, draws = 20 }
paths = { pairs = [["sft", "dpo"]], problems = 30, accuracy = false }
arms = [{ name = "sft" }, { name = "rft", train = { selection = "correct" } }, { name = "dpo", train = { objective = "dpo" } }]
"""
    )
    return tmp_path


def test_own_model_and_own_rollouts_pass_through_every_stage(own_files):
    out = own_files / "out"
    results = run_study(load_study(str(own_files / "study.toml")), out)
    page = build(results, out)
    assert page.is_file()
    arms = {arm["arm"]: arm for arm in read_json(results / "arms.json")}
    assert arms["rft"]["items"] == 12
    assert arms["dpo"]["items"] == 12
    assert arms["sft"]["items"] == 24
    assert [arm["name"] for arm in read_json(results / "comparison.json")["arms"]] == [
        "base",
        "sft-s0",
        "rft-s0",
        "dpo-s0",
    ]
    assert {line["loss"] for line in read_json(results / "paths.json")} == {"ce_bare"}  # no solutions in the file
