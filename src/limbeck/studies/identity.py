"""What identifies the rollouts and problems of a study: settings, and the content of the models and files that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.digests import file_digest
from limbeck.objectives.vocabulary import check_same_map
from limbeck.problems.files import find_source
from limbeck.studies.config import SOURCES, StudyConfig
from limbeck.studies.sections import ProblemsConfig, RolloutsConfig, ServerConfig
from limbeck.train.models import input_digest, load_tokenizer, tokenizer_digest

Params = dict[str, Any]
MANNER = ("urls", "concurrency", "timeout_seconds", "patience_seconds")  # of a server, in no digest


def check_vocabulary(student: str, teacher: str) -> None:
    """A teacher's token ids are trained on and scored as they are, so they must mean the same to the student."""
    if teacher != student:
        check_same_map(load_tokenizer(student).get_vocab(), load_tokenizer(teacher).get_vocab())


def rollouts_params(config: StudyConfig, given: RolloutsConfig) -> Params:
    """Settings of a step that samples from a model on disk, or reads a file."""
    if given.path:
        path = Path(given.path)
        identity = file_digest(path) if path.is_file() else file_digest(path / "manifest.json")
        return {
            "path": given.path,
            "file_digest": identity,
            "tokenizer": config.student,
            "student": input_digest(config.student),
        }
    params = given.model_dump(mode="json", exclude={*SOURCES, "problems"})
    teacher = config.student if given.by == "student" else str(config.teacher)
    check_vocabulary(config.student, teacher)
    return {
        **params,
        "teacher": teacher,
        "teacher_digest": input_digest(teacher),
        "problems": problems_of(given.problems),
    }


def served_params(config: StudyConfig, given: RolloutsConfig, server: ServerConfig) -> tuple[Params, Params]:
    """What identifies rollouts of a server, and how it is asked for them, which identifies nothing.

    Raises:
        ConfigError: no address of a server; here too, so that nothing is written of one with a password in it.
    """
    server.opened()
    asked = server.model_dump(mode="json")
    manner = {name: asked.pop(name) for name in MANNER}
    params = {
        **given.model_dump(mode="json", include={"samples", "sampling_temperature", "max_new_tokens", "seed"}),
        "server": asked,
        "tokenizer_digest": tokenizer_digest(config.student),
        "problems": problems_of(given.problems),
    }
    return params, {"tokenizer": config.student, "asked": manner}


def problems_of(config: ProblemsConfig) -> Params:
    """What identifies a set of problems."""
    unset = {name for name in ("fields", "template") if not getattr(config, name)}
    values = config.model_dump(mode="json", exclude=unset)
    return {**values, "file_digest": find_source(config.path).digest} if config.path else values
