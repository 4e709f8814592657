"""Real trainings and their peaks: takes runs' settings as JSON and a folder; prints each run's highest memory in bytes.

The first run is tiny and not measured: after it everything that a run imports is there. Each other one is a fork of that
process, and its peak is counted from where the fork begins. One thread throughout: forks may not start a pool of them.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import psutil
import torch

from limbeck.config import RunConfig
from limbeck.train.run import train


def main() -> None:
    torch.set_num_threads(1)
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    small, *others = (RunConfig.model_validate(settings) for settings in json.loads(sys.argv[1]))
    out = Path(sys.argv[2])
    train(small, out / "small")
    for number, config in enumerate(others):
        child = os.fork()
        if not child:
            before = psutil.Process().memory_info().rss
            train(config, out / str(number))
            print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(1)


if __name__ == "__main__":
    main()
