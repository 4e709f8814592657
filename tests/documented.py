"""The commands that README and docs show, what is added where one is run, and a folder with everything that they name."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from limbeck import cli
from limbeck.config import LoraConfig
from limbeck.evals.tables import write_table
from limbeck.train.models import add_adapter, load_model, load_tokenizer
from limbeck.types import Finish, Score, ScoreTable
from limbeck.worlds.abacus.generator import generate

ROOT = Path(__file__).parents[1]
GENERATED = {"generated/cli.md", "generated/metrics.md"}  # by `make site`
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if str(path.relative_to(ROOT / "docs" if path.name != "README.md" else ROOT)) not in GENERATED
}
MARK = "<!-- run by a test -->"
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
MARKED = re.compile(rf"{MARK}\n(```.*?```)", re.DOTALL)
SMALL = {  # what is added where a command begins so, by the first that fits: an option given twice counts as given last
    "study run study.toml": "--steps runs/steps --set workers=1 --set seeds=[0] --set train.num_steps=1 --set train.batch_size=8 "
    "--set eval.problems.num=4 --set eval.max_new_tokens=32 --set geometry.draws=20 --set geometry.cka_problems=0",
    "study run opd-geometry": "--set workers=1 --set seeds=[0] --set rollouts.problems.num=4 --set train.num_steps=1 "
    "--set train.trajectory=0 --set train.batch_size=8 --set live.num_problems=16 --set live.prompts_per_step=2 "
    "--set live.samples=4 --set eval.problems.num=6 --set eval.max_new_tokens=32 "
    """--set 'arms=[{name="sft"}, {name="opd", train={objective="opd"}, live={}}]'""",
    "study run": "--set workers=1 --set rollouts.problems.num=8 --set train.num_steps=1 --set train.batch_size=8 "
    "--set eval.problems.num=8 --set eval.max_new_tokens=32 --set geometry.draws=20 --set geometry.cka_problems=0",
    "study plan study.toml": "--no-probe",
    "(sample|eval) .*--server": "--num 4 --samples 2 --max-new-tokens 16",
    "sample": "--num 6 --samples 4 --max-new-tokens 64",
    "train .*--problems": "--set train.num_steps=1 --set live.prompts_per_step=2 --set live.samples=2 "
    "--set live.max_new_tokens=96",
    "train .*train.trajectory": "--set train.num_steps=2 --set train.trajectory=2 --set train.batch_size=4",
    "train": "--set train.num_steps=1 --set train.batch_size=4",
    "measure (--successive|--trajectory)": "--draws 20 --nulls none",
    "measure (base-folder|models)": "--only sparsity",
    "measure": "--draws 20",
    "eval": "--num 4 --max-new-tokens 32",
}
CALL = re.compile(r"(?:\$ | *entrypoint: |accelerate launch .* -m )?(limbeck .*)")
TASKS = ("0", "15")  # of an array of jobs: two arms at one seed
CLUSTER = """
scontrol() { echo main; }
srun() { while [[ $1 == --* ]]; do shift; done; "$@"; }
ray() { :; }
sleep() { :; }
limbeck() { printf '%q ' limbeck "$@"; echo; }
accelerate() { printf '%q ' accelerate "$@"; echo; }
export -f scontrol srun ray sleep limbeck accelerate
"""


def commands(text: str) -> Iterator[str]:
    """Lines of code blocks that call limbeck, without comments and what a shell does with the output."""
    for _, language, body in FENCE.findall(text):
        if language in ("", "sh", "bash", "console", "yaml"):
            job = "#SBATCH" in body
            for line in called(body) if job else body.replace("\\\n", " ").splitlines():
                if found := CALL.match(line):
                    yield re.sub(r"\s+(#|[>|] ).*", "", found[1])


def called(script: str) -> list[str]:
    """What a script starts, each once, by limbeck and by accelerate, with all words as bash makes them.

    bash runs the script itself; the cluster's programs are functions that hand on, or leave out, what they are given.
    """
    found: list[str] = []
    for task in TASKS:
        job = {"SLURM_JOB_NODELIST": "main,other[1-3]", "SLURM_NNODES": "4", "SLURM_NODEID": "0"}
        done = subprocess.run(
            ["bash", "-c", CLUSTER + script],
            env=os.environ | job | {"SLURM_ARRAY_TASK_ID": task},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found += done.stdout.splitlines()
    return [line.rstrip() for line in dict.fromkeys(found)]


def marked(text: str) -> list[str]:
    """Commands of the blocks that say that they are run, which takes nothing but the embedded world."""
    return [line for part in MARKED.findall(text) for line in commands(part)]


def is_synopsis(command: str) -> bool:
    """Whether a command shows what may be given, in capitals, brackets or dots, and names nothing.

    >>> [is_synopsis(f"limbeck {rest}") for rest in ("measure BASE --out a", "train ...", "doctor a [--json]", "watch a")]
    [True, True, True, False]
    """
    return re.search(r"\s(\[|\.\.\.|[A-Z][A-Z-]+(?=\s|$))", command) is not None


@cache
def tree() -> typer.core.TyperGroup:
    return typer.main.get_command(cli.app)


def verb_of(words: list[str]) -> tuple[typer.core.TyperCommand, str, list[str]]:
    """The command that the words name, its full name, and what is left of them."""
    command, names = tree(), ["limbeck"]
    while hasattr(command, "commands"):
        assert words, f"{' '.join(names)} needs a verb"
        assert words[0] in command.commands, f"{' '.join(names)} has no verb {words[0]}"
        command, words = command.commands[words[0]], words[1:]
        names.append(command.name)
    return command, " ".join(names[1:]), words


def run(command: str, more: str = "") -> Result:
    """The command as shown, in this process and folder, made small; ends with the exit code that it gave."""
    shown = command.removeprefix("limbeck ")
    added = next((small for begins, small in SMALL.items() if re.match(begins, shown)), "")
    return CliRunner().invoke(cli.app, shlex.split(f"{shown} {added} {more}"))


def users_folder(root: Path) -> Path:
    """Everything that README and docs call path/to/model, rollouts.jsonl, adapter-a, base-scores and so on."""
    draw = torch.Generator().manual_seed(0)
    for name, source in (("model", "abacus:base"), ("teacher", "abacus:teacher")):
        load_model(source).save_pretrained(root / "path" / "to" / name)
        load_tokenizer(source).save_pretrained(root / "path" / "to" / name)
    for number, name in enumerate(("base-folder", "sft-folder", "opd-folder", "checkpoint-500", "checkpoint-1000")):
        model = load_model("abacus:base")
        for weight in model.parameters():
            weight.data += 1e-3 * number * torch.randn(weight.shape, generator=draw)
        model.save_pretrained(root / name)
    for name in "abc":
        model = add_adapter(load_model("abacus:base"), LoraConfig(rank=4), init_seed=0)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                weight.data.normal_(0, 0.01, generator=draw)
        model.save_pretrained(root / f"adapter-{name}")
    rows = [
        {"problem_id": problem.id, "prompt": problem.prompt, "response": response, "reward": reward}
        for problem, text in generate("train", 12, seed=77)
        for response, reward in ((text, 1), (text.rsplit(" ", 1)[0] + " 1000", 0))
    ]
    asked = [{"prompt": problem.prompt, "answer": problem.answer} for problem, _ in generate("test", 8, seed=77)]
    for name, lines in (("rollouts", rows), ("train", asked), ("test", asked)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    worked = [
        {"uid": f"m{i}", "question": line["prompt"], "solution": f"#### {line['answer']}"}
        for i, line in enumerate(asked)
    ]
    pq.write_table(pa.Table.from_pylist(worked), root / "math.parquet")
    for name in ("base-scores", *(f"runs/{arm}-s{seed}" for arm in ("sft", "dpo") for seed in range(3))):
        write_table(_scores(name, torch.rand(30, generator=draw)), root / name)
    return root


def _scores(name: str, chances: torch.Tensor) -> ScoreTable:
    scores = tuple(
        Score(problem_id=f"p{i:03d}", sample=0, correct=bool(chance < 0.5), answer="4", extracted="4", finish=Finish.STOP,
              response_tokens=1)
        for i, chance in enumerate(chances)
    )  # fmt: skip
    return ScoreTable(name=Path(name).name, scores=scores, problems_digest="d", grader="g", decoding="greedy")
