"""The machine: versions, device, cores, and the memory that is free on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from packaging.requirements import Requirement

from limbeck.doctor.finding import Finding, size
from limbeck.folders import versions

found = partial(Finding, about="machine")
CGROUP = Path("/sys/fs/cgroup")


class Room(NamedTuple):
    """Memory of this machine, or of the container that limits it, in bytes."""

    total: int
    available: int


def room() -> Room:
    """What a process may use now; a control group's limit counts like the machine's own."""
    memory = psutil.virtual_memory()
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None or limit > memory.total:
        return Room(memory.total, memory.available)
    stat = CGROUP / "memory.stat"
    kept = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    free = limit - used + int(kept.get("inactive_file", 0))  # files that were read make room when asked to
    return Room(limit, max(0, min(memory.available, free)))


def device_room() -> Room | None:
    """Memory of the accelerator; None without one."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return Room(total, free)


def process_bytes() -> int:
    """Resident memory of this process."""
    return psutil.Process().memory_info().rss


def examine_machine() -> list[Finding]:
    """Versions against what limbeck asks for, device, cores, memory."""
    return [_versions(), _device(), _cores(), _memory()]


def _versions() -> Finding:
    installed, unmet = versions(), list(_unmet())
    says = ", ".join(f"{name} {version}" for name, version in installed.items())
    if unmet:
        says = f"{'; '.join(unmet)}. Installed: {says}"
        return found(
            name="versions", level="problem", says=says, remedy="Install limbeck again: pip install -U limbeck.",
            facts=installed,
        )  # fmt: skip
    return found(name="versions", says=says, facts=installed)


def _unmet() -> Iterator[str]:
    """Requirements of the installed package that what is installed beside it does not meet."""
    try:
        required = metadata.requires("limbeck") or []
    except metadata.PackageNotFoundError:  # run from its source
        return
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "none"
        if version == "none" or not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} must be {requirement.specifier}, received {version}"


def _device() -> Finding:
    memory = device_room()
    if memory is None:
        return found(name="device", says="CPU, fp32", facts={"device": "cpu"})
    kind = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    name = torch.cuda.get_device_name()
    return found(
        name="device", says=f"{name}, products in {kind}; {size(memory.available)} of {size(memory.total)} free",
        facts={"device": name, "count": torch.cuda.device_count(), **memory._asdict()},
    )  # fmt: skip


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    facts = {"cores": os.cpu_count(), "usable": usable, "threads": threads}
    if threads > usable:
        return found(
            name="cores", level="note", says=f"{threads} threads for {usable} usable cores wait for each other",
            remedy=f"Set OMP_NUM_THREADS={usable}.", facts=facts,
        )  # fmt: skip
    return found(name="cores", says=f"{usable} usable, torch computes on {threads}", facts=facts)


def _memory() -> Finding:
    memory = room()
    return found(name="memory", says=f"{size(memory.available)} of {size(memory.total)} free", facts=memory._asdict())


def _number(path: Path) -> int | None:
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdecimal() else None
