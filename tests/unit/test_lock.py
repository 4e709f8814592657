"""What `make setup` installs is pinned by version and hash, and by the same versions as the constraints."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
LOCKED = {
    canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.MULTILINE)
}
PINNED = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
}
OF_THE_BUILD = {"editables", "hatchling", "setuptools", "tomlkit", "trove-classifiers"}


def test_every_locked_package_has_a_hash_and_the_constraints_version():
    blocks = re.split(r"\n(?=\w)", LOCK.strip())
    assert len(blocks) == len(LOCKED) > 100
    assert [block.split("\n")[0] for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", block)] == []
    elsewhere = {
        name for name in LOCKED.keys() - PINNED.keys() if "emscripten" not in LOCK.split(name)[1].split("\n")[0]
    }
    assert elsewhere == OF_THE_BUILD
    assert {name: LOCKED[name] for name in LOCKED.keys() & PINNED.keys() if LOCKED[name] != PINNED[name]} == {}


def test_every_requirement_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in (*project["dependencies"], *extras["dev"], *extras["build"])]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        version = PINNED[name] if name == "torch" else LOCKED[name]
        assert requirement.specifier.contains(version), requirement
