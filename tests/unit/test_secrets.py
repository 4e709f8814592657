"""Keys are sent and never written, nothing is unpickled or run that came in a file, and cells are no formulas."""

from __future__ import annotations

import ast
import csv
import os
import pickle
from pathlib import Path

import pytest
from typer.testing import CliRunner

import limbeck
from limbeck import cli
from limbeck.evals.exchange import read_log, write_file
from limbeck.geometry.table import write_csv
from limbeck.problems.prompts import stop_ids
from limbeck.report.parts import Sheet
from limbeck.studies.config import load_study
from limbeck.studies.study import run_study
from limbeck.train.models import load_tokenizer
from limbeck.types import Measurement, Score, ScoreTable
from serving import completion, serving

KEY = "sk-planted-5b1f0c9e2d"
SOURCES = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in Path(limbeck.__file__).parent.rglob("*.py")]


def holding_the_key(root: Path) -> list[str]:
    """Files under a folder, hidden ones too, that have the key in them, or in their name."""
    return [str(p) for p in root.rglob("*") if KEY in p.name or (p.is_file() and KEY.encode() in p.read_bytes())]


def test_the_search_finds_a_key(tmp_path):
    (tmp_path / ".hidden").write_text(f"x{KEY}x")
    assert holding_the_key(tmp_path)


@pytest.fixture
def planted(servers_here, monkeypatch):
    for name in ("LIMBECK_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, KEY)


def test_answers_from_a_server_are_written_without_its_key(planted, tmp_path):
    end = stop_ids(load_tokenizer("abacus:base"))[0]
    answer = lambda path, body: completion([20, 21, end], [-0.5] * 3)  # noqa: E731
    commands = {
        "sampled": ["sample", "--model", "m", "--problems", "abacus:train", "--samples", "2"],
        "scored": ["eval", "--base", "m", "--problems", "abacus:test"],
    }
    with serving(answer) as server:
        for name, command in commands.items():
            where = ["--server", server.url, "--tokenizer", "abacus:base", "--num", "3", "--out", str(tmp_path / name)]
            done = CliRunner().invoke(cli.app, [*command, *where])
            assert done.exit_code == 0, done.exception
            assert KEY not in done.output
        assert {asked["headers"]["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    assert (tmp_path / "scored" / "manifest.json").is_file()
    assert not holding_the_key(tmp_path)


def test_a_study_is_written_without_the_keys_around_it(planted, tmp_path):
    end = stop_ids(load_tokenizer("abacus:base"))[0]
    small = (
        "rollouts.server.model=m",
        "rollouts.problems.num=6", "rollouts.samples=2", "train.num_steps=1", "train.batch_size=4", "eval.problems.num=4",
        "paths.pairs=[]", "eval.max_new_tokens=24", "rollouts.max_new_tokens=24", "geometry.cka_problems=2",
        "geometry.draws=20", "workers=1",
    )  # fmt: skip
    text = 'name = "x"\nquestion = "y"\nstudent = "abacus:base"\nteacher = "abacus:teacher"\nreference_arm = "sft"\n[[arms]]\n'
    (tmp_path / "study.toml").write_text(text + 'name = "sft"\n[[arms]]\nname = "dft"\ntrain = { objective = "dft" }\n')
    with serving(lambda path, body: completion([20, 21, end], [-0.5] * 3)) as server:
        settings = (f'rollouts.server.urls=["{server.url}"]', *small)
        run_study(load_study(str(tmp_path / "study.toml"), settings), tmp_path / "out")
        assert {asked["headers"]["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    assert (tmp_path / "out" / "results" / "comparison.json").is_file()
    assert not holding_the_key(tmp_path)


def test_nothing_is_unpickled_and_no_code_comes_with_a_model():
    calls = [
        (path, node, ast.unparse(node.func))
        for path, tree in SOURCES
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]
    loads = [node for _, node, name in calls if name == "torch.load"]
    assert loads
    for node in loads:
        assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    for path, node, name in calls:
        assert name not in ("pickle.load", "pickle.loads", "joblib.load", "dill.load", "eval", "exec", "np.load"), path
        for keyword in node.keywords:
            assert keyword.arg != "trust_remote_code" or ast.unparse(keyword.value) == "False", path
            assert keyword.arg not in ("allow_pickle", "shell"), path
        without = (
            "GenerationConfig",
            "PeftModel",
        )  # read no code; the second no pickle, where read_adapter was before it
        if name.endswith(".from_pretrained") and not name.startswith(without):
            assert any(k.arg == "trust_remote_code" for k in node.keywords), path


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_state_that_is_a_pickle_of_something_else_runs_nothing(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"optimizer": Evil()}, "state.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load("state.pt", map_location="cpu", weights_only=True)
    assert not Path("owned").exists()


FORMULAS = ["=1+1", "+1+cmd|' /C calc'!A0", "-2+3+cmd", "@SUM(A1)", "\t=1", "\r=1", "'=1", "-x"]
HARMLESS = ["2 = 2", "-0.5", "+3", "1e-5", "x", "", "it's"]


def cells(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [cell for row in csv.reader(file) for cell in row]


def test_no_cell_of_a_csv_file_is_a_formula(tmp_path):
    texts = FORMULAS + HARMLESS
    (tmp_path / "sheet.csv").write_text(
        Sheet("x", ["t", "v"], [[t, -1.5] for t in texts]).csv(), encoding="utf-8", newline=""
    )
    write_csv(tmp_path / "measured.csv", [Measurement(metric=t, aggregation="", value=-1.5, unit="") for t in texts])
    rows = [
        Score(
            problem_id=f"{t}{n}",
            sample=0,
            correct=False,
            answer=t,
            extracted=t,
            finish=None,
            response_tokens=1,
            response=t,
        )
        for n, t in enumerate(texts)
    ]
    table = ScoreTable(name="t", scores=tuple(rows), problems_digest="d", grader="g", decoding="=1")
    write_file(table, tmp_path / "scores.csv")
    for name in ("sheet.csv", "measured.csv", "scores.csv"):
        for cell in cells(tmp_path / name):
            assert not cell.startswith(("=", "@", "\t", "\r"))
            assert not cell.startswith(("+", "-")) or float(cell) is not None
    assert cells(tmp_path / "sheet.csv").count("-1.5") == len(texts)
    assert cells(tmp_path / "measured.csv").count("-1.5") == len(texts)
    back = {score.problem_id: score for score in read_log(tmp_path / "scores.csv").scores}
    assert back == {score.problem_id: score for score in rows}
