"""Every other command of the docs, page by page, each in a copy of a user's folder that has what the page names."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from documented import MARKED, PAGES, commands, is_synopsis, run, users_folder, verb_of
from limbeck.problems.prompts import response_ids
from limbeck.train.models import load_tokenizer
from serving import completion, serving

BY_ITSELF = {
    "README.md": "integration/test_readme.py",
    "docs/evaluation.md": "unit/evals/test_evaluation_page.py",
    "docs/scale.md": "integration/test_scale.py",  # recipes for clusters: read there by what would run them
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
    "docs/servers.md": [f"{IMPORT} rollouts/given"],
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


@pytest.mark.parametrize("page", COMMANDS)
def test_they_run(page, folder, request, tmp_path, monkeypatch):
    here = Path(shutil.copytree(folder, tmp_path / "user", symlinks=True))
    monkeypatch.chdir(here)
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        (here / f"{name}.toml").write_text(STUDY.replace('"six"', f'"{name}"'))
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
        answer = response_ids(load_tokenizer("abacus:base"), "3 + 4 = 7. #### 7")
        with serving(lambda path, body: completion(answer, None, model=body["model"])) as server:
            yield re.sub(r"http://\S+", server.url, command), ""
    elif " --serve" in command:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        reader = threading.Thread(target=look_and_leave, args=(f"http://127.0.0.1:{port}/",))
        reader.start()
        try:
            yield command, f"--port {port}"
        finally:
            reader.join()
            signal.signal(signal.SIGINT, before)
    else:  # a storage, and a cluster, that every machine has
        here = re.sub(r" --on \S+", "", command).replace(" /shared/", " ").replace(BUCKET, "memory://bucket")
        yield here, ""


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
