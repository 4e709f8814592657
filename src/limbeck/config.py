"""What a user may set: pydantic models that refuse unknown keys and answer with the nearest match.

TOML by hand, JSON by machine, both read by the same models. A field's docstring gives its meaning, unit and "off".
"""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limbeck.errors import ConfigError, nearest
from limbeck.types import Normalizer


class Config(BaseModel):
    """Base of every section: frozen, no unknown keys, field docs from docstrings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LoraConfig(Config):
    """The adapter that every arm of a study shares."""

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """Numerator of the scale alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping an adapter input; 0 is off. With it, gradients depend on how a step is cut."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Last names of the linear modules that get an adapter."""


class TrainConfig(Config):
    """One run: an objective, the rows it sees, and how the optimizer walks."""

    objective: str = "sft"
    """A name from `limbeck objectives`."""
    knobs: dict[str, float | int | str | bool] = Field(default_factory=dict)
    """The objective's own settings; `limbeck objectives NAME` lists them."""
    selection: Literal["all", "correct", "distinct"] = "all"
    """Which rollouts are trained on: all, the right ones (RFT), or those without duplicates."""
    pairs: Literal["one_per_group", "zip", "all", "length_matched"] = "one_per_group"
    """How right and wrong rollouts of one problem become pairs; read by pair objectives only."""
    max_items: int | None = Field(default=None, ge=1)
    """Keep this many rows (or pairs), chosen by a hash of data_seed and their names; off by default."""
    credit: str | None = None
    """Advantage rule; by default the one that the objective was published with."""
    normalizer: Normalizer | None = None
    """Divisor of the summed values; by default the one that the objective was published with."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak rate of AdamW."""
    batch_size: int = Field(default=32, ge=1)
    """Items (rows or pairs) an optimizer step."""
    num_steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled decay, on adapter factors."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    stop_norm: float | None = Field(default=None, gt=0)
    """Stop at the first step whose update has this Frobenius norm; off by default."""
    token_budget: int = Field(default=8192, ge=1)
    """Padded tokens a micro-batch; changes speed and memory, never the gradient."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest row in tokens; longer ones are dropped and counted. By default the model's context."""
    seed: int = 0
    """Order of the data, and dropout where it is on: what a second seed changes."""
    data_seed: int = 0
    """Which pairs are made and which rows `max_items` keeps; the same for all seeds of an arm."""
    init_seed: int = 0
    """Initial adapter factors; arms that share it start at the same point."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between resumable checkpoints."""
    lora: LoraConfig = LoraConfig()


C = TypeVar("C", bound=Config)


def parse(model: type[C], values: Mapping[str, Any], *, where: str) -> C:
    """Validate one section.

    Raises:
        ConfigError: one sentence per fault, the first three.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(" ".join(_sentence(model, fault, where) for fault in error.errors()[:3])) from error


def load(path: Path) -> dict[str, Any]:
    """A TOML or JSON file as a dictionary.

    Raises:
        ConfigError: no such file, text that is neither, or a file that is not a table of keys.
    """
    if not path.is_file():
        raise ConfigError(f"a config must be an existing TOML or JSON file, received {path}. Check the path.")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not UTF-8, not the language, or nested by the thousand
        raise ConfigError(
            f"{path} must be {path.suffix.lstrip('.').upper() or 'TOML'}: {error}. Fix that line."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a table of keys, received {values!s:.40}. Put it in braces, under keys.")
    return values


def override(values: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Apply ``a.b=c`` settings; values are read as TOML where they parse, else as text.

    >>> override({"train": {"seed": 0}}, ["train.seed=3", "train.objective=dpo"])
    {'train': {'seed': 3, 'objective': 'dpo'}}

    Raises:
        ConfigError: a setting of another form, or a key that leads through a plain value or past a list's end.
    """
    out = copy.deepcopy(values)
    for setting in settings:
        key, sign, text = setting.partition("=")
        *parents, last = key.split(".")
        if not sign or not all((*parents, last)):
            raise ConfigError(f"--set must look like section.key=value, received {setting!r}. Write it so.")
        node: Any = out
        for depth, parent in enumerate(parents):
            slot: Any = _slot(node, parents[:depth], parent, setting)
            node = node[slot] if isinstance(node, list) else node.setdefault(slot, {})
        node[_slot(node, parents, last, setting)] = _value(text)
    return out


def _slot(node: Any, above: Sequence[str], part: str, setting: str) -> str | int:
    """The key or index by which ``part`` is reached in what stands at ``above``."""
    if isinstance(node, dict):
        return part
    name = ".".join(above)
    if not isinstance(node, list):
        raise ConfigError(f"--set {setting}: {name} must be a section, received {node!r:.40}. Set {name} itself.")
    if part not in map(str, range(len(node))):
        raise ConfigError(
            f"--set {setting}: after {name} must come the place of one of its {len(node)} entries, counted from 0, "
            f'received "{part}". Write {name}.0 for the first, or add entries in the file.'
        )
    return int(part)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _sentence(model: type[BaseModel], fault: Any, where: str) -> str:
    path = [str(part) for part in fault["loc"]]
    section = ".".join([where, *path[:-1]])
    if fault["type"] == "extra_forbidden":
        return f'[{section}] has no key "{path[-1]}". {nearest(path[-1], _keys(model, path[:-1]))}'
    name = ".".join([where, *path])
    return f"{name}: {fault['msg'][0].lower()}{fault['msg'][1:]}, received {fault['input']!r:.80}."


def _keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        kind = model.model_fields[part].annotation if part in model.model_fields else None
        arguments = [kind, *getattr(kind, "__args__", ())]
        inner = [k for k in arguments if isinstance(k, type) and issubclass(k, BaseModel)]
        model = inner[0] if inner else model
    return list(model.model_fields)
