"""Embedded worlds: problems, a tokenizer, a base and a teacher that need no download. A model's name is ``world:model``."""

from __future__ import annotations

from pathlib import Path

from limbeck.errors import ConfigError, nearest
from limbeck.storage import local

ROOT = Path(__file__).parent
WORLDS = ("abacus",)


def resolve(name: str) -> Path:
    """The folder of a model: a path as it is, the copy of a URL's, or ``world:model`` inside the package.

    >>> resolve("abacus:base").name
    'base'
    """
    world, sign, model = name.partition(":")
    if not sign or world not in WORLDS:
        return local(name).expanduser()
    folder = ROOT / world / model
    known = sorted(p.parent.name for p in (ROOT / world).glob("*/config.json"))
    if model not in known:
        raise ConfigError(f'world "{world}" has no model "{model}". {nearest(model, known)}')
    return folder


def check_world(name: str) -> None:
    """Refuse a world that does not exist, naming the nearest."""
    if name not in WORLDS:
        raise ConfigError(f'there is no world "{name}". {nearest(name, WORLDS)}')
