"""The text of a new study: a TOML for a user's model and data, with every key explained above it.

Values are taken from the model and the data where these decide (lengths, names, how many steps two passes are); what remains
is a first choice, and says so. The explanations are the docstrings of the fields.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.errors import ConfigError, DataError
from limbeck.problems.prompts import prompt_ids
from limbeck.problems.sources import FORMATS, Solved
from limbeck.studies.facts import LONGEST, RolloutFacts, rollout_facts, shape_of
from limbeck.studies.recipes import DEFAULT, Ground, arm_of, possible
from limbeck.studies.schema import TITLE, describe, study_schema
from limbeck.studies.sections import RolloutsConfig
from limbeck.train.models import load_tokenizer, model_context, model_folder
from limbeck.worlds import WORLDS
from limbeck.worlds.named import problems_named, read_problems

SCHEMA_FILE = "limbeck-study.schema.json"
WIDTH = 116
SMALL = 10_000_000  # parameters; smaller students learn at a higher rate
PASSES = 2  # over the rollouts
NEW_TOKENS = 512  # where no rollouts say how long answers are
ROOM, WORDY = 32, 2  # answers may have so many times the tokens of the longest response that was seen, in whole steps


class Given(NamedTuple):
    """What a user says of a new study; paths as they were typed."""

    student: str
    rollouts: str | None
    teacher: str | None
    problems: str | None
    test: str | None
    arms: tuple[str, ...] | None
    out: Path


class Entry(NamedTuple):
    """One key of a section, and what decided its value."""

    key: str
    value: Any
    why: str = ""


class Asked(NamedTuple):
    """Problems: the keys that name them, and their texts."""

    entries: list[Entry]
    prompts: list[str]


def new_study(given: Given) -> tuple[str, list[str]]:
    """The text of the TOML, and what its user should know: arms that were left out, what is still to be filled in.

    Raises:
        ConfigError: neither rollouts nor a teacher with problems, both, or an arm that cannot run on them.
        ModelError, DataError: a model or file that cannot be read.
    """
    _check(given)
    model_folder(given.student)
    samples = RolloutsConfig().samples
    facts = rollout_facts(Path(given.rollouts), given.student) if given.rollouts else None
    asked = _problems(given, given.problems) if given.problems else Asked([], [])
    tokens, why = _new_tokens(given, facts, asked)
    rows = facts.rows if facts else samples * len(asked.prompts)
    batch = min(32, rows)
    rate = 2e-3 if shape_of(given.student).parameters < SMALL else 1e-4
    ground = Ground(facts, bool(given.teacher), bool(given.problems), rate, batch)
    names, left_out = (list(given.arms), []) if given.arms else possible(DEFAULT, ground)
    arms = [arm_of(name, names[0], ground) for name in names]
    name = _name(given.student)
    live = any("live" in arm for arm, _ in arms)
    sections = [
        _section("", "StudyConfig", _top(given, name)),
        *_rollout_sections(given, asked, tokens, why),
        _section("train", "TrainConfig", _train(rate, batch, rows)),
        _section("train.lora", "LoraConfig", [Entry("rank", 16), Entry("alpha", 32.0)]),
        *([_section("live", "LiveConfig", _live(given, asked, tokens, why))] if live else []),
        _section("eval", "EvalConfig", [Entry("max_new_tokens", tokens, why)]),
        _section("eval.problems", "ProblemsConfig", _test(given)),
        *_arms(arms),
    ]
    notes = left_out + (
        [] if given.test or _world(given) else [f"Set eval.problems.path in {given.out}: no --test was given."]
    )
    return _head(given) + "\n".join(sections), notes


def write_schema(folder: Path) -> Path:
    """The schema beside a study, so that editors need neither a network nor to know where limbeck is installed.

    Raises:
        ConfigError: another's file has its name.
    """
    path = folder / SCHEMA_FILE
    if path.exists() and f'"title": "{TITLE}"' not in path.read_text(encoding="utf-8"):
        raise ConfigError(f"{path} must be a schema that limbeck wrote, received another file. Move it elsewhere.")
    path.write_text(json.dumps(study_schema(), indent=1) + "\n", encoding="utf-8")
    return path


def _check(given: Given) -> None:
    if bool(given.rollouts) == bool(given.teacher):
        received = "both" if given.rollouts else "neither"
        raise ConfigError(
            f"a new study needs --rollouts FILE, or --teacher MODEL with --problems FILE to sample them, received {received}. "
            "Pass one of the two."
        )
    if given.teacher and not given.problems:
        raise ConfigError("a teacher needs problems to answer, received none. Pass --problems FILE.")


# ------------------------------------------------------------------------------------------------------------ the sections


def _top(given: Given, name: str) -> list[Entry]:
    return [
        Entry("name", name),
        Entry("question", f"Which objective should I use for {name}?"),
        Entry("student", _relative(given.student, given.out)),
        *([Entry("teacher", _relative(given.teacher, given.out))] if given.teacher else []),
        Entry("seeds", [0], "Three or more let the report speak of training and not of two runs alone."),
    ]


def _rollout_sections(given: Given, asked: Asked, tokens: int, why: str) -> list[str]:
    if given.rollouts:
        return [_section("rollouts", "RolloutsConfig", [Entry("path", _relative(given.rollouts, given.out))])]
    usual = RolloutsConfig()
    entries = [Entry(key, getattr(usual, key)) for key in ("samples", "sampling_temperature")]
    return [
        _section("rollouts", "RolloutsConfig", [*entries, Entry("max_new_tokens", tokens, why)]),
        _section("rollouts.problems", "ProblemsConfig", asked.entries),
    ]


def _train(rate: float, batch: int, rows: int) -> list[Entry]:
    steps = max(20, min(1000, math.ceil(PASSES * rows / batch)))
    several = f"{steps * batch / rows:.1f} passes over {rows:,} rollouts."
    return [
        Entry("learning_rate", rate, "A usual first choice for an adapter on a student of this size."),
        Entry("batch_size", batch),
        Entry("num_steps", steps, several),
    ]


def _live(given: Given, asked: Asked, tokens: int, why: str) -> list[Entry]:
    values = {entry.key: entry.value for entry in asked.entries}
    if "world" in values:
        source = [Entry("problems", str(given.problems)), Entry("num_problems", values["num"])]
    else:  # no path of [live] is taken as relative to the file
        source = [Entry("problems", str(Path(str(given.problems)).absolute())), Entry("format", values["format"])]
    return [*source, Entry("max_new_tokens", tokens, why)]


def _test(given: Given) -> list[Entry]:
    if given.test:
        return _problems(given, given.test).entries
    if _world(given):
        return _problems(given, f"{_world(given)}:test").entries
    return [Entry("path", "TEST.jsonl", 'To be set: rows with "prompt" and "answer" that nothing was trained on.')]


def _arms(arms: Sequence[tuple[dict[str, Any], str]]) -> list[str]:
    """One section an arm, under what it needs; a key is explained where it comes first."""
    out, seen = [], set()
    for arm, needs in arms:
        lines = [*_comment(needs), "[[arms]]"]
        for key, value in arm.items():
            lines += [] if key in seen else _comment(describe("ArmConfig", key))
            lines.append(f"{key} = {toml_value(value)}")
            seen.add(key)
        out.append("\n".join(lines) + "\n")
    return out


def _section(title: str, model: str, entries: Sequence[Entry]) -> str:
    """A section: every key under its field's docstring and what decided its value."""
    lines = [f"[{title}]"] if title else []
    for entry in entries:
        lines += [*_comment(describe(model, entry.key)), *_comment(entry.why)]
        lines.append(f"{entry.key} = {toml_value(entry.value)}")
    return "\n".join(lines) + "\n"


def _head(given: Given) -> str:
    """The schema's place, and what to do with the file."""
    return "\n".join(
        [
            f"#:schema ./{SCHEMA_FILE}",
            *_comment(
                "Written by `limbeck study new`. Above each key stands what it means; what is not set has its default, and an "
                "editor that reads the schema completes it. Relative paths are relative to this file."
            ),
            f"# What it would do, and for how long: limbeck study plan {given.out.name}",
            f"# All of it, then the report:         limbeck study run {given.out.name} --out runs/{_name(given.student)}",
            "",
            "",
        ]
    )


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def toml_value(value: Any) -> str:
    """A value in TOML's words; tables stand in one line.

    >>> toml_value({"objective": "dpo", "learning_rate": 1e-5, "seeds": [1], "packing": True})
    '{ objective = "dpo", learning_rate = 1e-05, seeds = [1], packing = true }'
    """
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{key} = {toml_value(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float):
        digits = f"{value:.12g}"
        return digits if set(digits) & set(".e") else f"{digits}.0"
    return str(value).lower() if isinstance(value, bool) else str(value)


# ------------------------------------------------------------------------------------------------------ what the data decide


def _problems(given: Given, name: str) -> Asked:
    """A world's split, or a file in the first of the known formats that can read it."""
    world, sign, split = name.partition(":")
    if sign and world in WORLDS:
        num = 500 if split == "test" else 800
        solved = read_problems(problems_named(name, "", num, 0))
        return Asked([Entry("world", world), Entry("split", split), Entry("num", num)], _prompts(solved))
    first: DataError | None = None
    for kind, read in FORMATS.items():
        try:
            solved = read(name)
        except DataError as error:
            first = first or error
        else:
            return Asked([Entry("path", _relative(name, given.out)), Entry("format", kind)], _prompts(solved))
    assert first is not None  # there are formats, and none of them could
    raise first


def _prompts(solved: Solved) -> list[str]:
    return [problem.prompt for problem, _ in solved]


def _new_tokens(given: Given, facts: RolloutFacts | None, asked: Asked) -> tuple[int, str]:
    """How long an answer may be, and why."""
    context = model_context(given.student)
    if facts:
        longest, prompt = facts.longest_response, facts.longest_prompt
        wanted = -(-WORDY * longest // ROOM) * ROOM
        why = f"The longest response that was seen has {longest} tokens; twice that, as a student may use more words."
    else:
        prompt, wanted = _longest_prompt(given.student, asked.prompts), NEW_TOKENS
        why = "A first choice: longer for long reasoning."
    if context and wanted > context - prompt:
        room = max(1, context - prompt)
        return room, f"{why} The student's context of {context} leaves {room} beside the longest prompt that was seen."
    return wanted, why


def _longest_prompt(student: str, prompts: Sequence[str]) -> int:
    """In tokens, of the longest texts."""
    tokenizer = load_tokenizer(student)
    return max(len(prompt_ids(tokenizer, prompt)) for prompt in sorted(prompts, key=len)[-LONGEST:])


def _world(given: Given) -> str | None:
    """The world whose model the student is."""
    world, sign, _ = given.student.partition(":")
    return world if sign and world in WORLDS else None


def _relative(name: str, out: Path) -> str:
    """A relative path as it is seen from the study's folder; whatever else was given stays as it is."""
    path, split = Path(name), ""
    if not path.exists() and ":" in name:  # one split of a data set's folder
        folder, _, split = name.rpartition(":")
        path, split = Path(folder), f":{split}"
    if path.is_absolute() or not path.exists():
        return name
    here, there = path.resolve(), out.resolve().parent
    return (here.relative_to(there).as_posix() if here.is_relative_to(there) else str(here)) + split


def _name(student: str) -> str:
    """A study's name from its student's.

    >>> _name("models/Qwen3 0.6B/"), _name("abacus:base")
    ('Qwen3-0.6B', 'abacus-base')
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(student).absolute().name).strip("-.") or "study"
