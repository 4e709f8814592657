"""What the machine is said to have."""

from __future__ import annotations

import os

import psutil
import pytest

from limbeck.doctor import machine
from limbeck.doctor.finding import size


def test_the_machine_is_described():
    found = {finding.name: finding for finding in machine.examine_machine()}
    assert list(found) == ["versions", "device", "cores", "memory"]
    assert found["versions"].level == "ok"
    assert "torch" in found["versions"].facts
    assert 1 <= found["cores"].facts["usable"] <= os.cpu_count()


def test_versions_are_held_against_the_requirements(monkeypatch):
    wanted = ["torch>=999", "not-there>=1", "numpy>=1", 'pytest>=999; extra == "dev"']
    monkeypatch.setattr(machine.metadata, "requires", lambda name: wanted)
    found = machine.examine_machine()[0]
    assert found.level == "problem"
    assert "torch must be >=999" in found.says
    assert "not-there must be >=1, received none" in found.says
    assert "numpy must" not in found.says
    assert "pytest" not in found.says


@pytest.mark.parametrize("limit", ["max", "1000000000"])
def test_a_containers_limit_counts(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("400000000")
    (tmp_path / "memory.stat").write_text("anon 300000000\ninactive_file 100000000\n")
    found, whole = machine.room(), psutil.virtual_memory().total
    if limit == "max":
        assert found.total == whole
    else:
        assert found.total == 10**9
        assert found.available == min(7 * 10**8, found.available)
        assert found.available > 0


def test_threads_beyond_the_cores_are_told(monkeypatch):
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 999)
    assert {finding.name: finding.level for finding in machine.examine_machine()}["cores"] == "note"


def test_sizes_are_readable():
    assert [size(n) for n in (999, 1.5e6, 28e9, 3e12)] == ["1 kB", "1.5 MB", "28 GB", "3000 GB"]
