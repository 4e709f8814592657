"""Every command of docs/evaluation.md, in its order."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

from typer.testing import CliRunner

from limbeck import cli
from limbeck.evals.tables import read_table
from limbeck.records import read_json

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page_work_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").symlink_to(ROOT / "tests" / "data" / "logs")
    (tmp_path / "mine.csv").write_text("problem_id,correct\na,1\nb,0\n")
    commands = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 13
    for command in commands:
        program, *arguments = shlex.split(command)
        result = CliRunner().invoke(cli.app, arguments)
        assert (program, result.exit_code) == ("limbeck", 0), (command, result.exception)
    assert read_table("scores/base-again") == replace(read_table("scores/base"), name="base")
    assert read_table("scores/sampled").correct.shape == (10, 4)
    pair = read_json("comparison-lm/comparison.json")["pairs"][0]
    assert (pair["n"], pair["a_only"], pair["b_only"]) == (5, 0, 3)
