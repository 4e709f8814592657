"""The command line in a process that has imported everything: each call is a fork, which starts at once.

Lines of JSON in and out: ``{"run": [ARGUMENT, ...], "said": PATH}`` gives the id of a process that leads its own group,
``{"wait": ID}`` its exit code, negative for a signal. With ``"sleep": FOLDER`` in place of ``run`` two worker processes run steps
that sleep.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


class Server:
    """The side of the tests."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, *arguments: object, key: str = "run") -> Call:
        """``limbeck ARGUMENT ...``."""
        self._count += 1
        said = self._folder / f"said-{self._count}"
        asked = list(map(str, arguments)) if key == "run" else str(arguments[0])
        return Call(self._ask({key: asked, "said": str(said)}), said, self._ask)

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, question: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Call:
    """One command that runs."""

    def __init__(self, pid: int, path: Path, ask: Callable[[dict[str, Any]], int]) -> None:
        self.pid, self._path, self._ask = pid, path, ask

    @property
    def said(self) -> str:
        """On stdout and stderr so far."""
        return self._path.read_text() if self._path.exists() else ""

    def wait(self) -> int:
        """Its exit code."""
        return self._ask({"wait": self.pid})


def _sleep(root: Path) -> None:
    from limbeck.studies.executors import Processes
    from limbeck.studies.runner import run_plan
    from limbeck.studies.step import Plan

    plan = Plan()
    for number in range(3):
        plan.add(f"nap/{number}", "sleep", {"seconds": 600.0, "number": number}, {}, 1.0)
    run_plan(
        list(plan.steps.values()), root, on=partial(Processes, 2), show=lambda *told: None, kinds="tinysteps:KINDS"
    )


def _serve() -> None:
    import limbeck.report
    import limbeck.studies.study
    import limbeck.train.run  # noqa: F401
    from faultpoints import ended, forked
    from limbeck.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that started the tests may have it ignored
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            print(ended(asked["wait"]), flush=True)
            continue
        sys.argv = ["limbeck", *asked.get("run", ())]
        work = main if "run" in asked else partial(_sleep, Path(asked["sleep"]))
        print(forked(work, Path(asked["said"])), flush=True)


if __name__ == "__main__":
    _serve()
