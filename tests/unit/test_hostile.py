"""Files that strangers made: each gets its sentence, in bounded time and memory, through Python and the command line."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.hostile import CASES, VERBS, Case
from tests.hostile.__main__ import BEGIN, END, PAGE, section

from limbeck.errors import LONGEST, LimbeckError

MEMORY_BYTES = 2 << 30  # beyond what a process has: twice the largest file that a case may become


@contextmanager
def little_memory() -> Iterator[None]:
    """Whatever asks for more fails here and not somewhere else on the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.timeout(120)  # a hang, on a machine with other work
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=[f"{case.verb}: {case.wrong}" for case in CASES])
def test_what_a_stranger_made_gets_its_sentence(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    given = case.make(tmp_path)
    with little_memory():
        if not case.sentence:
            VERBS[case.verb](given)
            return
        with pytest.raises(LimbeckError, match=re.escape(case.sentence)) as refusal:
            VERBS[case.verb](given)
    assert len(str(refusal.value)) <= (1500 if "10,000 characters" not in case.wrong else LONGEST)
    assert not Path("/tmp/limbeck-owned").exists()


def command(case: Case, given: Path, out: Path) -> list[str]:
    """The command line that opens what the case made."""
    words = {"import": ["import", given, "--model", "abacus:base"], "scores import": ["scores", "import", given]}[
        case.verb
    ]
    return [sys.executable, "-m", "limbeck", *map(str, words), "--out", str(out)]


def named(verb: str, wrong: str) -> Case:
    return next(case for case in CASES if (case.verb, case.wrong) == (verb, wrong))


@pytest.mark.parametrize(
    "case",
    [
        named("import", "millions of values in kilobytes"),
        named("scores import", "an archive of many bombs"),
    ],
    ids=lambda case: f"{case.verb}: {case.wrong}",
)
def test_the_command_line_says_it_in_one_sentence_and_ends(case: Case, tmp_path: Path):
    given = case.make(tmp_path)
    limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))  # noqa: E731
    done = subprocess.run(
        command(case, given, tmp_path / "result"), capture_output=True, text=True, timeout=300, preexec_fn=limit,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("limbeck: ")
    assert case.sentence in done.stderr
    assert not (tmp_path / "result").exists()


def test_the_table_in_the_docs_is_that_of_the_cases():
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == section().strip()


def test_each_case_has_a_name_of_its_own():
    names = [(case.verb, case.wrong) for case in CASES]
    assert len(set(names)) == len(names)
