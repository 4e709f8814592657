"""Every other command of the docs, page by page, each in a copy of a user's folder that has what the page names."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest

from documented import MARKED, PAGES, commands, is_synopsis, run, users_folder, verb_of
from limbeck.train.models import load_model
from serving import Answer, free_port, samples_of, scores_of, serving

BY_ITSELF = {
    "README.md": "integration/test_readme.py",
    "docs/evaluation.md": "unit/evals/test_evaluation_page.py",
}
COMMANDS = {
    page: found
    for page, text in PAGES.items()
    if page not in BY_ITSELF and (found := [line for line in commands(MARKED.sub("", text)) if not is_synopsis(line)])
}
IMPORT = "limbeck import rollouts.jsonl --model path/to/model --out"
ROLLOUTS, BUCKET = "--base abacus:base --rollouts", "s3://bucket"
BEFORE = {
    "docs/doctor.md": [f"{IMPORT} rlad/rollouts"],
    "docs/trajectories.md": [f"{IMPORT} rollouts/mine"],
    "docs/scale.md": [
        "limbeck sample --model models/qwen3-32b --problems train.jsonl --out given",
        "limbeck score --model path/to/teacher --rollouts given --out scores/given",
        "limbeck eval --base opd-0 --server http://node1:8000 --tokenizer models/qwen3-32b --problems test.jsonl "
        "--samples 4 --sampling-temperature 1 --out scores/opd-0",
    ],
    "docs/storage.md": [
        "limbeck eval --base abacus:base --problems abacus:test --out scores/base",
        f"{IMPORT} rollouts/given",
        f"limbeck train {ROLLOUTS} rollouts/given --out {BUCKET}/runs/sft",
        f"limbeck eval --run {BUCKET}/runs/sft --problems abacus:test --out {BUCKET}/scores/dft-1",
    ],
}
REFUSED = "limbeck doctor abacus:base --rollouts rlad/rollouts --teacher abacus:teacher"  # a problem, as the page says
STUDY = """
name = "six"
question = "Does what the docs show run?"
student = "abacus:base"
rollouts = { by = "student", samples = 2, max_new_tokens = 24, problems = { world = "abacus", split = "train", num = 6 } }
train = { lora = { rank = 2 } }
eval = { problems = { world = "abacus", split = "test", num = 6 } }
arms = [{ name = "sft" }, { name = "dft", train = { objective = "dft" } }]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return users_folder(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A finished study, for the pages that look at one."""
    root = tmp_path_factory.mktemp("study")
    (root / "study.toml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        result = run("limbeck study run study.toml --out six")
    assert result.exit_code == 0, (result.exception, result.stderr)
    return root / "six"


def write_recipes(here: Path) -> None:
    """A small model in the place of the one of 32B, and the files that its page names: a run, two arms, a study."""
    given, resources = re.findall(r"```toml\n(.*?)```", PAGES["docs/scale.md"], re.DOTALL)
    shutil.copytree(here / "path" / "to" / "model", here / "models" / "qwen3-32b")
    (here / "run.toml").write_text(given)
    (here / "study.toml").write_text(STUDY + resources)
    (here / "arms").mkdir()
    arm = given.replace("abacus:base", "models/qwen3-32b").replace('"rollouts"', '"given"')
    (here / "arms" / "sft.toml").write_text(arm)
    scores = '[scores]\nteacher_logprobs = "scores/given"\n'
    (here / "arms" / "opd.toml").write_text(arm.replace('"sft"', '"opd"') + scores)


@pytest.mark.usefixtures("servers_here")
@pytest.mark.parametrize("page", COMMANDS)
def test_they_run(page, folder, request, tmp_path, monkeypatch):
    here = Path(shutil.copytree(folder, tmp_path / "user", symlinks=True))
    monkeypatch.chdir(here)
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        (here / f"{name}.toml").write_text(STUDY.replace('"six"', f'"{name}"'))
    if page == "docs/scale.md":
        write_recipes(here)
    for name in re.findall(r"runs/(?:six|seven|quickstart)\b", PAGES[page]):
        shutil.copytree(request.getfixturevalue("study"), here / name, dirs_exist_ok=True)
    for command in [*BEFORE.get(page, []), *COMMANDS[page]]:
        with taking_part(command) as (said, more):
            result = run(said, more)
        expected = 1 if command.startswith(REFUSED) else 0
        assert result.exit_code == expected, (command, result.exception, result.stderr)


@contextmanager
def taking_part(command: str) -> Iterator[tuple[str, str]]:
    """The other side of a command that needs one: a server to ask, or a reader who looks at a page and leaves."""
    if " --server " in command:
        with ExitStack() as stack:
            urls = {url: stack.enter_context(serving(answer())).url for url in re.findall(r"http://\S+", command)}
            yield re.sub(r"http://\S+", lambda found: urls[found[0]], command), ""
    elif " --serve" in command:
        port = free_port()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        reader = threading.Thread(target=look_and_leave, args=(f"http://127.0.0.1:{port}/",))
        reader.start()
        try:
            yield command, f"--port {port}"
        finally:
            reader.join()
            signal.signal(signal.SIGINT, before)
    else:  # a storage, and a cluster, that every machine has; there a study goes on that was cut off as it ended
        here = re.sub(r" --on \S+", "", command).replace(" /shared/", " ").replace("s3://", "memory://")
        if here != command and (out := re.search(r" study run .* --out (\S+)", here)):
            Path(out[1], "manifest.json").unlink(missing_ok=True)
        yield here, ""


@cache
def answer() -> Answer:
    """What a server of the base does: it samples, and scores what it is given."""
    model = load_model("abacus:base").eval()
    samples, scores = samples_of(model), scores_of(model, "vllm")
    return lambda path, body: (scores if "prompt_logprobs" in body else samples)(path, body)


def look_and_leave(address: str, seconds: float = 120) -> None:
    """Read a page once it is there, then press Ctrl-C; also when it never comes, so that nobody waits for ever."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_page_with_a_synopsis_runs_the_same_verb():
    for page, text in PAGES.items():
        shown = list(commands(text))
        for command in filter(is_synopsis, shown):
            verb = verb_of(command.split()[1:])[1]
            assert any(verb_of(c.split()[1:])[1] == verb for c in shown if not is_synopsis(c)), (page, command)


def test_pages_that_are_run_elsewhere_are():
    for page, test in BY_ITSELF.items():
        assert Path(page).name in (Path(__file__).parents[1] / test).read_text()


def test_no_command_is_left():
    assert sum(map(len, COMMANDS.values())) > 25
