"""The command line: quick to start, a sentence for every mistake, the result's path alone on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from limbeck import cli
from limbeck.errors import LimbeckError

VERBS = [
    "study",
    "watch",
    "doctor",
    "sample",
    "import",
    "score",
    "train",
    "eval",
    "measure",
    "compare",
    "report",
    "objectives",
    "metrics",
    "world",
]


def call(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr, as a shell would see them."""
    result = CliRunner().invoke(cli.app, list(arguments))
    if isinstance(result.exception, LimbeckError):
        return result.exception.exit_code, result.stdout, str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def adapter(
    folder: Path, *, base: str = "some/base", rank: int = 4, modules=("q_proj", "v_proj"), seed: int = 0
) -> str:
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 8,
        "base_model_name_or_path": base,
        "target_modules": list(modules),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for layer in range(2):
        for module in modules:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, 24, generator=generator)
            tensors[f"{name}.lora_B.weight"] = torch.randn(16, rank, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


def test_help_lists_the_verbs_and_does_not_import_torch():
    code = (
        "import sys, limbeck.cli as c\n"
        "try: c.app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'scipy', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert verb in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb):
    code, out, _ = call(verb, "--help")
    assert code == 0
    assert "Usage" in out


def test_a_mistyped_option_is_a_usage_error():
    assert call("measure", "--outt", "x")[0] == 2


def test_measure_works_on_adapters_from_anywhere(tmp_path):
    one, other = adapter(tmp_path / "one"), adapter(tmp_path / "other", rank=6, seed=1)
    code, out, err = call("measure", one, other, "--base", "some/base", "--out", str(tmp_path / "out"), "--draws", "20")
    assert code == 0
    assert out.strip() == str(tmp_path / "out")
    assert "init_unknown" in err
    assert (tmp_path / "out" / "measurements.parquet").is_file()
    code, _, message = call("measure", one, other, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "--overwrite" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"base": "another/base"}, "base"), ({"modules": ("q_proj", "k_proj")}, "v_proj")],
)
def test_adapters_that_cannot_be_compared_are_refused(tmp_path, changes, message):
    one, other = adapter(tmp_path / "one"), adapter(tmp_path / "other", **changes)
    code, _, said = call("measure", one, other, "--out", str(tmp_path / "out"))
    assert code == 1
    assert message in said
    assert not (tmp_path / "out").exists()


def test_objectives_and_metrics_print_their_tables():
    assert "offline_grpo:krafton" in call("objectives")[1]
    code, out, _ = call("objectives", "dpo")
    assert code == 0
    assert "beta" in out
    assert "dpo" in call("objectives", "dpoo")[2]
    assert "principal_angle_smallest" in call("metrics")[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'name = "x"\nquestion = "?"\nstudent = "abacus:base"\nteecher = "abacus:teacher"\n[[arms]]\nname = "sft"',
            '"teecher"',
        ),
        (
            'name = "x"\nquestion = "?"\nstudent = "abacus:base"\n[[arms]]\nname = "sft"',
            "rollouts.server or a teacher",
        ),
        (
            'name = "x"\nquestion = "?"\nstudent = "nowhere/model"\nteacher = "abacus:teacher"\n[[arms]]\nname = "sft"',
            "nowhere",
        ),
        (
            'name = "x"\nquestion = "?"\nstudent = "abacus:base"\nteacher = "abacus:teacher"\n[[arms]]\nname = "a"\n'
            'train = { objective = "dpoo" }',
            '"dpo"',
        ),
        (
            'name = "x"\nquestion = "?"\nstudent = "abacus:base"\nteacher = "abacus:teacher"\n[[arms]]\nname = "a"\n'
            'train = { objective = "dpo", knobs = { betta = 1.0 } }',
            '"beta"',
        ),
        (
            'name = "x"\nquestion = "?"\nstudent = "abacus:base"\nteacher = "abacus:teacher"\n[[arms]]\nname = "a"\n'
            "train = { learning_rat = 1.0 }",
            '"learning_rate"',
        ),
        (
            'name = "x"\nquestion = "?"\nstudent = "abacus:base"\nteacher = "abacus:teacher"\n[[arms]]\nname = "a"\n'
            'match_norm = "b"',
            "must name an arm",
        ),
        ("name = ", "must be TOML"),
    ],
)
def test_a_study_that_cannot_run_says_so_before_anything_runs(tmp_path, text, message):
    (tmp_path / "study.toml").write_text(text)
    code, _, said = call("study", "run", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out"))
    assert code in (1, 2)
    assert message in said
    assert not (tmp_path / "out" / "steps").exists()


def test_an_unknown_study_names_the_nearest(tmp_path):
    code, _, said = call("study", "run", "quickstrat", "--out", str(tmp_path / "out"))
    assert code == 2
    assert 'Did you mean "quickstart"?' in said


def test_packaged_studies_plan_without_running():
    for name in ("quickstart", "offline-losses"):
        code, out, _ = call("study", "plan", name, "--no-probe")
        assert code == 0
        assert "train/sft-s0" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 1"),
        ('{"prompt": "A box holds 3 coins."}', "prompt"),
        ('{"prompt": "A box", "response": "", "reward": 1}', "response"),
        ('{"prompt": "A box", "response": "Start 3.", "reward": "good"}', "reward"),
    ],
)
def test_rollouts_that_cannot_be_read_are_refused_with_file_and_line(tmp_path, line, message):
    (tmp_path / "r.jsonl").write_text(line + "\n")
    code, _, said = call("import", str(tmp_path / "r.jsonl"), "--model", "abacus:base", "--out", str(tmp_path / "out"))
    assert code == 1
    assert message in said
    assert "r.jsonl" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    one = adapter(tmp_path / "one")
    code, _, said = call("measure", one, one, "--out", str(tmp_path / "mine"), "--overwrite")
    assert code == 2
    assert "did not write" in said
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_main_prints_one_sentence_and_the_exit_code(tmp_path):
    command = [
        sys.executable,
        "-m",
        "limbeck",
        "compare",
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        "--out",
        str(tmp_path / "c"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("limbeck: ")
    assert "Traceback" not in done.stderr
