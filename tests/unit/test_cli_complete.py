"""Shell completion: the shell's own question, answered with names and without importing what takes seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from limbeck import cli
from limbeck.cli import complete
from limbeck.objectives import OBJECTIVES
from limbeck.studies.config import packaged
from limbeck.worlds import WORLDS
from limbeck.worlds.named import SPLITS


def offered(line: str) -> set[str]:
    """What zsh would be offered after this line."""
    asked = {"_LIMBECK_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}
    result = CliRunner().invoke(cli.app, [], env=asked, prog_name="limbeck")
    return {part for part in result.stdout.split('"') if part and "(" not in part and ")" not in part and part.strip()}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("limbeck study run q", {"quickstart"}),
        ("limbeck study plan ", set(packaged())),
        ("limbeck objectives grpo", {name for name in OBJECTIVES if name.startswith("grpo")}),
        ("limbeck train --objective dr", {"dr_grpo"}),
        ("limbeck world build a", set(WORLDS)),
        ("limbeck study new --student ab", {"abacus:base", "abacus:teacher"}),
        ("limbeck study new --arms sft,simp", {"sft,simpo"}),
    ],
)
def test_names_complete(line, expected):
    assert {part.replace("\\", "") for part in offered(line)} == expected


def test_what_is_read_off_files_is_what_there_is():
    assert complete.objectives("") == sorted(OBJECTIVES)
    assert complete.studies("") == sorted(packaged())
    assert complete.worlds("") == sorted(WORLDS)
    assert complete.splits("") == sorted(f"{world}:{split}" for world in WORLDS for split in SPLITS)


def test_completion_can_be_installed_and_imports_nothing_heavy():
    assert "--install-completion" in CliRunner().invoke(cli.app, ["--help"]).stdout
    code = (
        "import os, sys\n"
        "os.environ |= {'_LIMBECK_COMPLETE': 'complete_bash', 'COMP_WORDS': 'limbeck objectives dp', 'COMP_CWORD': '2'}\n"
        "import limbeck.cli as c\n"
        "try: c.app(prog_name='limbeck')\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["dpo", "dpo_norm"]
