"""An evaluation that is killed ends as one that is not; whatever holds a checkpoint is opened alike; protocols by hand."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from limbeck import cli
from limbeck.config import LoraConfig
from limbeck.digests import file_digest
from limbeck.errors import ConfigError, FolderError, ModelError, ProvenanceError
from limbeck.evals.checkpoints import Location, locate, opened
from limbeck.evals.jobs import Job, from_checkpoint
from limbeck.evals.protocols import describe, outcomes, protocols
from limbeck.evals.resume import recorded
from limbeck.evals.tables import FILE, read_table
from limbeck.folders import read_manifest
from limbeck.problems.prompts import template_digest
from limbeck.records import write_json
from limbeck.rollouts.journal import JOURNAL
from limbeck.rollouts.protocol import Prompt
from limbeck.rollouts.sample import Completion, Decoding
from limbeck.train.models import add_adapter, load_model, load_tokenizer, model_digest
from limbeck.types import Finish, Outcome, Score, ScoreTable
from limbeck.worlds import resolve
from limbeck.worlds.abacus.generator import generate

BASE = "abacus:base"
PROBLEMS = [problem for problem, _ in generate("test", 12, seed=3)]


def job(out, **changes):
    decoding = Decoding(sampling_temperature=1.0, max_new_tokens=64, batch_size=4, seed=1)
    return Job(**{"problems": PROBLEMS, "decoding": decoding, "num_samples": 2, "name": "t", "out": out, **changes})


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / FILE).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return from_checkpoint(job(tmp_path_factory.mktemp("eval") / "whole"), BASE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with an adapter, a run with a whole model, both with the same weights in effect."""
    root = tmp_path_factory.mktemp("runs")
    tuned = add_adapter(load_model(BASE), LoraConfig(rank=2, alpha=4.0), init_seed=1)
    for name, tensor in tuned.named_parameters():
        if "lora_" in name:
            tensor.data.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05)
    tuned.save_pretrained(root / "lora" / "adapter")
    merged = tuned.merge_and_unload()
    merged.save_pretrained(root / "full" / "model")
    load_tokenizer(BASE).save_pretrained(root / "full" / "model")
    for run, part in (("lora", "adapter"), ("full", "model")):
        write_json(root / run / "config.json", {"base": BASE, "rollouts": "r", "train": {}})
        write_json(root / run / part / "limbeck.json", {"base_digest": model_digest(BASE)})
    return root


# resuming


def test_a_killed_evaluation_ends_with_the_same_table_bit_for_bit(whole, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "limbeck", "eval", "--base", BASE, "--problems", "abacus:test", "--num", "16"]
    command += ["--sampling-temperature", "1", "--max-new-tokens", "64", "--batch-size", "2", "--out", str(out)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = out / JOURNAL
    while first.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert 3 < journal.read_bytes().count(b"\n") < 17  # the header and some answers, not all
    with journal.open("ab") as file:
        file.write(b'{"key": "torn')
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-1] == str(out)
    assert not journal.exists()
    decoding = Decoding(sampling_temperature=1.0, max_new_tokens=64, batch_size=2)
    problems = [problem for problem, _ in generate("test", 16, seed=0)]
    from_checkpoint(job(tmp_path / "x", decoding=decoding, problems=problems, num_samples=1), BASE)
    assert digest(out) == digest(tmp_path / "x")
    assert read_manifest(out, "scores")["digest"] == read_manifest(tmp_path / "x", "scores")["digest"]


def test_answers_on_record_are_not_asked_again_and_a_cut_batch_is_asked_whole(tmp_path):
    asked = []

    def sampler(prompts, *, advance=lambda num: None):
        asked.append([prompt.key for prompt in prompts])
        advance(len(prompts))
        return [Completion(ids=(len(p.ids), 9), logprobs=(0.0, 0.0), finish=Finish.STOP) for p in prompts]

    prompts = [Prompt(key=f"p{i}", ids=(1,) * (9 - i), text="") for i in range(5)]
    path = tmp_path / JOURNAL
    first = recorded(sampler, path, {"job": "a"}, batch_size=2)(prompts)
    assert asked == [["p4", "p3"], ["p2", "p1"], ["p0"]]  # shortest first, whatever was done before
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:7])  # three answers and a torn one
    asked.clear()
    seen = []
    again = recorded(sampler, path, {"job": "a"}, batch_size=2)(prompts, advance=seen.append)
    assert asked == [["p2", "p1"], ["p0"]]
    assert sum(seen) == 5
    assert [(c.ids, c.finish) for c in again] == [(c.ids, c.finish) for c in first]
    with pytest.raises(FolderError, match=r"other settings: asked for job = \"b\""):
        recorded(sampler, path, {"job": "b"}, batch_size=2)(prompts)
    with pytest.raises(FolderError, match="other settings"):
        recorded(sampler, path, {"job": "a"}, batch_size=2)(prompts[:4])
    asked.clear()
    recorded(sampler, path, {"job": "b"}, batch_size=9, restart=True)(prompts)
    assert asked == [["p4", "p3", "p2", "p1", "p0"]]


def test_a_table_says_what_made_it(whole):
    table = read_table(whole)
    assert table.template_digest == template_digest(load_tokenizer(BASE))
    assert (table.model_digest, table.adapter_digest) == (model_digest(BASE), "none")
    assert table.correct.shape == (12, 2)
    assert {score.outcome for score in table.scores} <= set(Outcome)
    assert read_manifest(whole)["num_problems"] == 12


# checkpoints


def test_every_kind_of_checkpoint_is_opened(runs):
    base = str(resolve(BASE))
    assert locate(BASE) == Location(BASE, None, BASE)
    assert locate(base) == Location(base, None, base)
    adapter = runs / "lora" / "adapter"
    assert locate(runs / "lora") == Location(BASE, adapter, BASE)
    assert locate(adapter, base) == Location(base, adapter, base)
    model = str(runs / "full" / "model")
    assert locate(runs / "full") == Location(model, None, model)
    assert locate(runs / "full").identity == (model_digest(model), "none")
    weights = adapter / "adapter_model.safetensors"
    assert locate(runs / "lora").identity == (model_digest(BASE), file_digest(weights))
    ids = torch.tensor([[3, 5, 7, 9]])
    logits = []
    for what in (runs / "lora", runs / "full", BASE):
        with opened(locate(what)) as checkpoint, torch.no_grad():
            logits.append(checkpoint.model(input_ids=ids.to(checkpoint.model.device)).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)
    assert (logits[0] - logits[2]).abs().max() > 1e-2


def test_a_run_of_another_base_and_no_checkpoint_at_all_are_refused(runs, tmp_path):
    for run in ("lora", "full"):
        with pytest.raises(ProvenanceError, match="a run or an adapter must meet the base it was trained on"):
            locate(runs / run, "abacus:teacher")
    with pytest.raises(ModelError, match="a checkpoint must be a model folder, a run folder"):
        locate(tmp_path)
    shutil.copytree(runs / "lora" / "adapter", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    write_json(tmp_path / "adapter" / "adapter_config.json", config | {"base_model_name_or_path": None})
    with pytest.raises(ModelError, match="does not say what it was trained on"):
        locate(tmp_path / "adapter")


def test_a_whole_model_without_tokenizer_uses_that_of_its_base(runs, tmp_path):
    shutil.copytree(runs / "full", tmp_path / "full")
    for file in (tmp_path / "full" / "model").glob("tokenizer*"):
        file.unlink()
    assert locate(tmp_path / "full").tokenizer == BASE


def test_eval_takes_runs_and_says_what_is_missing(runs, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(cli.app, ["eval", "--problems", "abacus:test", "--num", "4", *arguments])

    tables = {}
    for run in ("lora", "full"):
        result = call("--run", str(runs / run), "--max-new-tokens", "48", "--out", str(tmp_path / run))
        assert result.stdout.splitlines()[-1] == str(tmp_path / run)
        tables[run] = read_table(tmp_path / run)
    assert [s.response for s in tables["lora"].scores] == [s.response for s in tables["full"].scores]
    assert tables["full"].name == "full"
    for arguments, message in (
        (("--out", "x"), "needs --base, a model, or --run"),
        (("--base", BASE, "--server", "http://localhost:1", "--out", "x"), "--server goes with --tokenizer"),
        (("--base", BASE, "--samples", "4", "--out", "x"), "several answers a problem need a sampling temperature"),
    ):
        with pytest.raises(ConfigError, match=message):
            raise call(*arguments).exception


# protocols


def table(*rows):
    """Per problem its answers, each a string; the right one is "4"."""
    scores = tuple(
        Score(problem_id=f"p{i}", sample=j, correct=text == "4", answer="4", extracted=text, finish=Finish.STOP,
              response_tokens=1, outcome=Outcome.CORRECT if text == "4" else Outcome.WRONG if text else Outcome.UNPARSED)
        for i, row in enumerate(rows) for j, text in enumerate(row)
    )  # fmt: skip
    return ScoreTable(name="t", scores=scores, problems_digest="d", grader="g", decoding="T=1")


def test_protocols_by_hand():
    found = {name: e.value for name, e in protocols(table("4465", ["7", "7", "4", ""], ["", "", "", ""])).items()}
    assert list(found) == ["avg@4", "pass@2", "pass@4", "maj@4"]
    assert found["avg@4"] == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert found["pass@2"] == pytest.approx(((1 - 1 / 6) + (1 - 3 / 6) + 0) / 3)  # 1 - C(wrong, 2) / C(4, 2)
    assert found["pass@4"] == pytest.approx(2 / 3)
    assert found["maj@4"] == pytest.approx((1 + 0 + 0) / 3)
    tie = protocols(table("4477", "4444"))["maj@4"].value
    assert tie == pytest.approx((0.5 + 1) / 2)
    assert list(protocols(table("4", "5"))) == ["pass@1"]
    assert outcomes(table("44", ["", "7"])) == {"correct": 2, "unparsed": 1, "wrong": 1}


def test_success_in_the_last_sample_alone_counts():
    found = {name: e.value for name, e in protocols(table("7894")).items()}
    assert (found["avg@4"], found["pass@4"], found["maj@4"]) == (0.25, 1.0, 0.25)


def test_what_is_not_known_is_said():
    text = describe(table("4", "5"))
    assert "pass@1     0.5000   95 %: " in text
    assert text.count("not known") == 3
