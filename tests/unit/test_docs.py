"""What the docs show is run: the README's study and commands, the objective that the design page adds."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import torch
from typer.testing import CliRunner

from limbeck import cli
from limbeck.studies.config import load_study

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def block(text: str, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


def test_the_readme_study_is_a_study(tmp_path):
    (tmp_path / "study.toml").write_text(block(README, "toml"))
    study = load_study(str(tmp_path / "study.toml"))
    assert [arm.name for arm in study.arms] == ["sft", "rft", "dpo", "sft-seed"]
    assert study.training(study.arm("dpo"), 0).learning_rate == 1e-5


def test_every_verb_and_option_in_the_readme_exists():
    commands = re.findall(r"(?:`|^)limbeck ((?:study |world )?[a-z]+)((?: [^\n|`]*)?)", README, re.MULTILINE)
    assert len(commands) > 10
    for verb, rest in commands:
        result = CliRunner().invoke(cli.app, [*verb.split(), "--help"])
        assert result.exit_code == 0, verb
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in result.stdout, (verb, option)


def test_links_in_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_objective_that_the_design_page_adds_works_as_shown():
    code = textwrap.dedent(block(DESIGN, "python"))
    imports = (
        "from typing import Annotated\nfrom limbeck.objectives.offline import Tokens\n"
        "from limbeck.objectives.signature import Domain\nfrom limbeck.types import Values\n"
    )
    namespace: dict = {}
    exec(compile(imports + code, "design.md", "exec", dont_inherit=True), namespace)
    logprobs = torch.tensor([[-3.0, -0.5]], requires_grad=True)
    values = namespace["floor"](logprobs, floor=-1.0)
    assert values.values.tolist() == [[4.0, 0.0]]
    values.values.sum().backward()
    assert logprobs.grad.tolist() == [[-4.0, 0.0]]
