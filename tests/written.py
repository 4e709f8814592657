"""A server in a process of its own that answers with what was written before: ``python tests/written.py ANSWERS LOG SECONDS``.

ANSWERS is JSON, from a prompt's ids as JSON to ids of several answers; the request's seed says which of them. LOG gets each seed
as it comes. Imports no library, so it starts at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from serving import completion, serving

Ids = tuple[int, ...]


class Running(NamedTuple):
    """Such a server."""

    pid: int
    url: str
    log: Path

    @property
    def seeds(self) -> list[int]:
        """Of all requests so far."""
        return [int(seed) for seed in self.log.read_text().split()]


@contextmanager
def writing(folder: Path, answers: Mapping[Ids, Sequence[Ids]], seconds: float = 0.0) -> Iterator[Running]:
    """Start one, with files in a new folder; each answer takes so long. It is killed at the end, if not before."""
    folder.mkdir()
    given, log = folder / "answers.json", folder / "log"
    given.write_text(json.dumps({json.dumps(list(prompt)): several for prompt, several in answers.items()}))
    log.touch()
    command = [sys.executable, __file__, str(given), str(log), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Running(process.pid, process.stdout.readline().strip(), log)
        finally:
            process.kill()


def main(given: str, log: str, seconds: str) -> None:
    answers = json.loads(Path(given).read_text())

    def answer(path: str, body: dict) -> dict:
        with Path(log).open("a") as file:
            file.write(f"{body['seed']}\n")
        time.sleep(float(seconds))
        several = answers[json.dumps(body["prompt"])]
        ids = several[body["seed"] % len(several)]
        return completion(ids, [-0.5] * len(ids))

    with serving(answer) as server:
        print(server.url, flush=True)
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
