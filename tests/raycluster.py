"""A Ray cluster on this machine for tests: one node of two CPUs, gone when the process that asked for it is."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEAD = """
import ray, sys
found = ray.init(
    num_cpus={cpus}, num_gpus=0, object_store_memory=100 << 20, include_dashboard=False, logging_level="ERROR",
    _temp_dir={folder!r},
)
print(found.address_info["address"], flush=True)
sys.stdin.read()
"""


@contextmanager
def cluster(cpus: int = 2) -> Iterator[dict[str, str]]:
    """The environment in which ``auto`` is this cluster; nobody else has the token that it asks for."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: the names of sockets are
    found = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD.format(cpus=cpus, folder=folder)],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | found | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert head.stdin is not None
        assert head.stdout is not None
        address = head.stdout.readline().strip()
        assert address, "the cluster did not start"
        yield found | {"RAY_ADDRESS": address}
    finally:
        head.communicate()  # closes its input, at which it ends the cluster
        shutil.rmtree(folder, ignore_errors=True)
