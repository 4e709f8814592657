"""A whole study of a factorial at one length of update, with merges of its arms, from its file to its page."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from limbeck import cli
from limbeck.folders import read_manifest
from limbeck.records import read_json
from limbeck.report import build
from limbeck.report.answer import sentences
from limbeck.report.load import load
from limbeck.report.merges import merges
from limbeck.report.view import View
from limbeck.studies.config import load_study
from limbeck.studies.study import run_study

STUDY = """
name = "small"
question = "Does every part of it run?"
student = "abacus:base"
teacher = "abacus:teacher"
seeds = [0, 1]
workers = 1
reach_norm = 0.3
primary = [["adamw", "base"], ["adamw", "sgd"]]
rollouts = { samples = 2, sampling_temperature = 1.4, max_new_tokens = 48, problems = { split = "train", num = 12 } }
train = { num_steps = 3, batch_size = 8, warmup_fraction = 0.0, save_visible = false, lora = { rank = 4 } }
eval = { max_new_tokens = 48, problems = { split = "test", num = 16 } }
geometry = { draws = 20, cka_problems = 0 }

[factorial.optimizer]
adamw = { optimizer = "adamw", learning_rate = 1e-3 }
sgd = { optimizer = "sgd", learning_rate = 0.05 }

[[arms]]
name = "merged"
merge = { arms = ["adamw", "sgd"] }
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("factorial")
    (root / "study.toml").write_text(STUDY)
    build(run_study(load_study(str(root / "study.toml")), root / "out"), root / "out")
    return root / "out"


def arms(finished):
    return {arm["run"]: arm for arm in read_json(finished / "results" / "arms.json")}


def test_runs_end_at_the_length_that_was_asked_for(finished):
    norms = [arm["update_norm"] for run, arm in arms(finished).items() if not run.startswith("merged")]
    assert norms == pytest.approx([0.3] * 4, rel=0.35)
    rates = {arm["learning_rate"] for run, arm in arms(finished).items() if run.startswith("sgd")}
    assert len(rates) == 1  # found at the first seed, used at both


def test_the_variance_is_split_among_factors_seeds_and_error(finished):
    found = read_json(finished / "results" / "factorial.json")
    assert set(found["shares"]) == {"direction", "stable rank", "accuracy", "log norm"}
    terms = [share["term"] for share in found["shares"]["direction"]]
    assert terms == ["optimizer", "seed", "cell x seed"]
    assert sum(share["share"] for share in found["shares"]["direction"]) == pytest.approx(1)
    assert len(found["runs"]) == 4
    sheet = (finished / "figures" / "variance_shares.csv").read_text()
    assert sheet.count("direction,") == 3


def test_the_first_screen_begins_with_what_the_study_asked(finished):
    told = sentences(View(load(finished / "results")))
    assert [said.about for said in told[:5]] == ["named", *["decides"] * 4]
    assert told[0].text.count("less") == 2
    assert {said.text.partition(":")[0] for said in told[1:5]} == {
        f"Variance of {response}" for response in ("accuracy", "direction", "length", "stable rank")
    }
    assert "Variance of direction" in (finished / "report.html").read_text()


def test_a_merge_is_measured_by_nothing_but_its_answers(finished):
    merged = arms(finished)["merged-s1"]
    parts = read_manifest(next((finished / "steps").glob("train-merged-s1-*")), "run")["parts"]
    assert merged["objective"] == "merge"
    assert {part["run"] for part in parts} == {"adamw-s1", "sgd-s1"}
    assert "merged-s1" in {arm["name"] for arm in read_json(finished / "results" / "comparison.json")["arms"]}
    (told,) = merges(View(load(finished / "results")))
    assert told.parts == ("adamw", "sgd")
    both = [arms(finished)[f"{name}-s0"]["update_norm"] for name in told.parts]
    expected = sum(x**2 for x in both) + 2 * told.cosine[0] * both[0] * both[1]  # of the sum, by the cosine
    assert arms(finished)["merged-s0"]["update_norm"] ** 2 == pytest.approx(expected, rel=1e-4)
    page = (finished / "report.html").read_text()
    assert all(
        title in page
        for title in ("Named before the run", "Merged updates", "What decides", "What accuracy varies with")
    )


def test_a_finished_study_is_a_pilot_of_the_next(finished):
    call = [
        "power",
        "--pilot",
        str(finished),
        "--pair",
        "adamw,sgd",
        "--difference",
        "0.3",
        "--discordance",
        "0.5",
    ]
    result = CliRunner().invoke(cli.app, call)
    assert result.exit_code == 0, result.stderr
    assert "crossed_t" in result.stdout
    refused = CliRunner().invoke(cli.app, [*call[:3], "--pair", "adamw,none", "--difference", "0.3"])
    assert "received adamw and none" in str(refused.exception)
