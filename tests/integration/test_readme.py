"""The README's commands, each run: its placeholders are the embedded world's models, problems and rollouts in a user's folder."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from limbeck import cli
from limbeck.config import LoraConfig
from limbeck.train.models import add_adapter, load_model, load_tokenizer
from limbeck.worlds.abacus.generator import generate

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SMALL = {  # what is added: an option given twice counts as given last
    "study run": "--set workers=1 --set train.num_steps=1 --set train.batch_size=8 --set eval.max_new_tokens=96 "
    "--set geometry.draws=20 --set geometry.cka_problems=0",
    "study plan": "--no-probe",
    "study new": "--out new.toml",
    "train": "--set train.num_steps=1 --set live.prompts_per_step=2 --set live.samples=2 --set live.max_new_tokens=96",
    "measure": "--draws 20",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Everything that the README calls path/to/model, rollouts.jsonl and so on."""
    root = tmp_path_factory.mktemp("user")
    generator = torch.Generator().manual_seed(0)
    for name, source in (("model", "abacus:base"), ("teacher", "abacus:teacher")):
        load_model(source).save_pretrained(root / "path" / "to" / name)
        load_tokenizer(source).save_pretrained(root / "path" / "to" / name)
    for name, noise in (("base-folder", 0.0), ("sft-folder", 1e-3), ("opd-folder", 2e-3)):
        model = load_model("abacus:base")
        for weight in model.parameters():
            weight.data += noise * torch.randn(weight.shape, generator=generator)
        model.save_pretrained(root / name)
    for name in "abc":
        model = add_adapter(load_model("abacus:base"), LoraConfig(rank=4), init_seed=0)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                weight.data.normal_(0, 0.01, generator=generator)
        model.save_pretrained(root / f"adapter-{name}")
    rows = [
        {"problem_id": problem.id, "prompt": problem.prompt, "response": response, "reward": reward}
        for problem, text in generate("train", 12, seed=77)
        for response, reward in ((text, 1), (text.rsplit(" ", 1)[0] + " 1000", 0))
    ]
    asked = [{"prompt": problem.prompt, "answer": problem.answer} for problem, _ in generate("test", 8, seed=77)]
    for name, lines in (("rollouts", rows), ("train", asked), ("test", asked)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "study.toml").write_text(re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1])
    return root


def called() -> list[str]:
    """Commands of code blocks and of running text that name all that they need."""
    blocks = re.findall(r"^(?:# study\.toml: )?(limbeck .*)$", README, re.MULTILINE)
    spans = [
        " ".join(span.split())
        for span in re.findall(r"`(limbeck [^`]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    ]
    named = [span for span in spans if re.search(r"path/to|study\.toml", span)]
    return [*named, *blocks]


def test_every_command_is_among_those_that_run():
    verbs = [" ".join(command.split()[1:3]) for command in called()]
    assert verbs == [
        "study new", "doctor path/to/model", "study plan", "study run", "train --base", "measure adapter-a",
        "measure base-folder", "compare scores-a",
    ]  # fmt: skip


def test_they_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = [
        f"limbeck eval --base path/to/{model} --problems test.jsonl --max-new-tokens 96 --out scores-{name}"
        for model, name in (("model", "a"), ("teacher", "b"))
    ]
    for place, command in enumerate([*before, *called()]):
        words = re.sub(r"runs/\w+", f"runs/{place}", command).split()[1:]
        small = next((SMALL[verb] for verb in SMALL if " ".join(words).startswith(verb)), "")
        result = CliRunner().invoke(cli.app, [*words, *shlex.split(small)])
        assert result.exit_code == 0, (command, result.exception, result.stderr)
    assert (folder / "new.toml").is_file()
    assert len(list(folder.glob("runs/*/report.html"))) == 1
    assert len(list(folder.glob("runs/*/measurements.parquet"))) == 2
