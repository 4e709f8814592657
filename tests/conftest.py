"""Shape annotations are checked on every call while tests run; torch keeps to one thread so that timing is fair."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

sys.path.insert(0, str(Path(__file__).parent))
import pytest
from jaxtyping import install_import_hook

hook = install_import_hook("limbeck", "typecheck.checked")

import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def servers_here(monkeypatch):
    """Servers on this machine: tries follow each other at once, no key and no proxy from the outside."""
    monkeypatch.setattr("limbeck.rollouts.server.retries.BASE_SECONDS", 0.01)
    for name in ("LIMBECK_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
