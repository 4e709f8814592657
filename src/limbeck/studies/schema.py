"""The JSON schema of a study's TOML: what editors complete keys from, and what they say of each.

Keys, domains and meanings are those of the pydantic models; objectives and their knobs those of the table. What an arm gives
as overrides of a section of the study is described as that section, nothing of it required.
"""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

from limbeck.config import LiveConfig
from limbeck.objectives import OBJECTIVES, Knob, knobs
from limbeck.rollouts.credit import CREDITS
from limbeck.studies.config import StudyConfig

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "limbeck study"
OVERRIDES = {  # where a section stands as a plain table, because an arm gives a part of it
    ("ArmConfig", "train"): "TrainConfig",
    ("ArmConfig", "live"): "LiveConfig",
    ("ArmConfig", "rollouts"): "RolloutsConfig",
    ("StudyConfig", "live"): "LiveConfig",
}
TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


@cache
def study_schema() -> Schema:
    """The schema of a study file; every key has a description, and unknown ones are refused."""
    root = StudyConfig.model_json_schema()
    models: dict[str, Schema] = root.pop("$defs")
    live = LiveConfig.model_json_schema()
    models |= {**live.pop("$defs"), "LiveConfig": {name: value for name, value in live.items() if name != "required"}}
    for (owner, key), section in OVERRIDES.items():
        holder = root if owner == "StudyConfig" else models[owner]
        described = holder["properties"][key].get("description", "")
        holder["properties"][key] = {"$ref": f"#/$defs/{section}", "description": described}
    for name in ("TrainConfig", "StageConfig"):
        _name_objectives(models[name])
    models["ArmConfig"]["properties"]["tune"]["propertyNames"] = {"enum": sorted(_all_knobs())}
    plain = {name: _plain(model) for name, model in sorted(models.items())}
    return {"$schema": DIALECT, **_plain(root), "title": TITLE, "$defs": plain}


def describe(section: str, key: str) -> str:
    """What a key means: the docstring of its field.

    >>> describe("StudyConfig", "teacher")
    'Samples the rollouts unless `rollouts.path` or `rollouts.server` is given; evaluated beside the arms.'
    """
    schema = study_schema()
    return (schema if section == "StudyConfig" else schema["$defs"][section])["properties"][key]["description"]


def _name_objectives(model: Schema) -> None:
    """Names to complete, every knob there is, and for each objective its own knobs alone."""
    properties = model["properties"]
    properties["objective"]["enum"] = list(OBJECTIVES)
    properties["knobs"] |= {"properties": _all_knobs(), "additionalProperties": False}
    credit = next(kind for kind in properties["credit"]["anyOf"] if kind["type"] == "string")
    credit["enum"] = list(CREDITS)
    model["allOf"] = [
        {
            "if": {"properties": {"objective": {"const": name}}, "required": ["objective"]},
            "then": {"properties": {"knobs": {"properties": _knobs_of(name), "additionalProperties": False}}},
        }
        for name in OBJECTIVES
    ]


def _settable(objective: str) -> dict[str, Knob]:
    return {name: knob for name, knob in knobs(OBJECTIVES[objective]).items() if not knob.by_loop}


def _knobs_of(objective: str) -> Schema:
    return {name: _knob_schema(knob) for name, knob in _settable(objective).items()}


def _all_knobs() -> Schema:
    """Every knob with whose it is; where several objectives have one of a name, any of their domains will do."""
    owners: dict[str, list[str]] = {}
    for objective in OBJECTIVES:
        for name in _settable(objective):
            owners.setdefault(name, []).append(objective)
    out: Schema = {}
    for name, whose in sorted(owners.items()):
        meanings = dict.fromkeys(_settable(objective)[name].meaning for objective in whose)
        out[name] = {"description": f"{'; '.join(meanings)}. Of {', '.join(whose)}."}
    return out


def _knob_schema(knob: Knob) -> Schema:
    unit = f", {knob.unit}" if knob.unit else ""
    out: Schema = {"description": f"{knob.meaning}{unit}; {knob.domain}", "type": TYPES[knob.kind]}
    if knob.choices:
        out["enum"] = list(knob.choices)
    elif knob.kind in (int, float) and knob.domain:
        out |= _interval(knob.domain)
    return out if knob.required else {**out, "default": knob.default}


def _interval(domain: str) -> Schema:
    """What :class:`~limbeck.objectives.Domain` admits.

    >>> _interval("[0, 1)")
    {'minimum': 0.0, 'exclusiveMaximum': 1.0}
    >>> _interval("0 or (1, inf)")
    {'anyOf': [{'const': 0}, {'exclusiveMinimum': 1.0}]}
    """
    text = domain.removeprefix("0 or ")
    low, high = (float(part) for part in text[1:-1].split(","))
    out: Schema = {}
    if math.isfinite(low):
        out["minimum" if text[0] == "[" else "exclusiveMinimum"] = low
    if math.isfinite(high):
        out["maximum" if text[-1] == "]" else "exclusiveMaximum"] = high
    return {"anyOf": [{"const": 0}, out]} if text != domain else out


def _plain(model: Schema) -> Schema:
    """A model as a table of TOML has it: no null, no titles made of names, no defaults that are tables themselves.

    Raises:
        KeyError: a field without a docstring.
    """
    out = copy.deepcopy(model)
    out.pop("title", None)
    for name, field in out.get("properties", {}).items():
        field.pop("title", None)
        kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
        if len(kinds) == 1:
            del field["anyOf"]
            out["properties"][name] = field = {**kinds[0], **field}
        field["description"] = " ".join(field["description"].split())
        if isinstance(field.get("default"), dict) or field.get("default", ...) is None:
            del field["default"]
    return out
