"""Arms that a new study can start with: names as a user gives them, what they set, and what they need to run."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from limbeck.batches.collate import BEHAVIOR
from limbeck.errors import ConfigError, nearest
from limbeck.objectives import OBJECTIVES, find, inputs, knobs
from limbeck.studies.facts import RolloutFacts
from limbeck.types import Objective

SEED_NULL = "seed-null"
DEFAULT = ("sft", "rft", "dft", "dpo", SEED_NULL)
NOTES = {
    "sft": "Cross-entropy on every rollout, right or wrong.",
    "rft": "The same loss on right rollouts only: a selection, not a loss.",
    SEED_NULL: "What a second seed alone changes.",
}
GENTLER = 0.1  # pair objectives are published with about a tenth of the others' learning rate


class Ground(NamedTuple):
    """What arms of a new study can stand on."""

    facts: RolloutFacts | None  # of a rollouts file; None where a teacher is yet to write
    teacher: bool
    problems: bool  # to be answered live
    learning_rate: float
    batch_size: int


def arm_of(name: str, first: str, ground: Ground) -> tuple[dict[str, Any], str]:
    """The keys of an arm, and what it needs in a sentence.

    Args:
        name: ``rft``, ``seed-null`` or an objective.
        first: the study's first arm, whose seed the null changes.
        ground: what the study has.

    Raises:
        ConfigError: no such arm, or one that cannot run on this ground.
    """
    if name == first == SEED_NULL:
        raise ConfigError(f"{SEED_NULL} is the first arm at another seed, received no arm before it. Name that first.")
    if name == SEED_NULL:
        arm, needs = arm_of(first, first, ground)
        null = {"name": f"{arm['name']}-seed", "role": "null", "note": NOTES[SEED_NULL], "seeds": [1]}
        return {**null, **{key: arm[key] for key in ("train", "live") if key in arm}}, needs
    if name == "rft":
        _refuse_without_right(name, ground)
        return {"name": "rft", "note": NOTES["rft"], "train": {"selection": "correct"}}, _needs_right(ground)
    if name not in OBJECTIVES:
        raise ConfigError(
            f'an arm must be an objective, rft or {SEED_NULL}, received "{name}". '
            f"{nearest(name, ('rft', SEED_NULL, *OBJECTIVES))}"
        )
    objective = find(name)
    _refuse(objective, ground)
    arm = {"name": name.replace(":", "-"), "note": NOTES.get(name) or _summary(objective)}
    train: dict[str, Any] = {} if name == "sft" else {"objective": name}
    if objective.unit == "pair":  # as many rows a step as the others have
        train |= {"learning_rate": GENTLER * ground.learning_rate, "batch_size": max(1, ground.batch_size // 2)}
    arm |= {"train": train} if train else {}
    arm |= {"live": {}} if _is_live(objective) else {}
    return arm, _needs(objective, ground)


def possible(names: Sequence[str], ground: Ground) -> tuple[list[str], list[str]]:
    """Those of the names that can run on this ground, and a sentence for each that cannot."""
    kept, refused = [], []
    for name in names:
        try:
            arm_of(name, names[0], ground)
            kept.append(name)
        except ConfigError as error:
            refused.append(f"{name} was left out: {error}")
    return kept, refused


def _is_live(objective: Objective) -> bool:
    return any(name in BEHAVIOR for name in inputs(objective))


def _refuse(objective: Objective, ground: Ground) -> None:
    reads = inputs(objective)
    if "signal" in reads:
        raise ConfigError(f"{objective.name} reads a signal out of other arms. See the packaged study erpd for how.")
    if any(name.startswith("teacher") for name in reads) and not ground.teacher:
        raise ConfigError(f"{objective.name} reads a teacher, received none. Pass --teacher and --problems.")
    if _is_live(objective) and not ground.problems:
        raise ConfigError(
            f"{objective.name} learns from the student's own answers, received no problems. Pass --problems."
        )
    if objective.unit == "pair" and ground.facts and ground.facts.mixed == 0:
        raise ConfigError(
            f"{objective.name} needs a problem with a right and a wrong rollout, received none. Add a reward or an answer."
        )
    for name, knob in knobs(objective).items():
        if knob.required:
            raise ConfigError(
                f"{objective.name} needs a value for {name} ({knob.meaning}), which its source does not give. Write this "
                f"arm by hand: train = {{ objective = {objective.name!r}, knobs = {{ {name} = ... }} }}."
            )


def _refuse_without_right(name: str, ground: Ground) -> None:
    facts = ground.facts
    if facts and facts.right in (0, facts.rows):
        raise ConfigError(
            f"{name} trains on right rollouts alone, received {facts.right} right of {facts.rows}: nothing to select. Add a "
            "reward or an answer to the rows."
        )


def _needs_right(ground: Ground) -> str:
    facts = ground.facts
    if facts is None or facts.right is None:
        return "Needs right rollouts among the graded ones."
    return f"Needs right rollouts: {facts.right} of {facts.rows} are."


def _needs(objective: Objective, ground: Ground) -> str:
    """What is read besides the text of a rollout, in words."""
    reads, facts = inputs(objective), ground.facts
    needs = []
    if objective.unit == "pair":
        has = f": {facts.mixed} of {facts.problems} have both" if facts and facts.mixed is not None else ""
        needs.append(f"problems with right and wrong rollouts{has}")
    elif {"rewards", "advantages", "correct", "group_all_wrong"} & set(reads):
        needs.append("rewards")
    if any(name.startswith("reference") for name in reads):
        needs.append("what the untouched student says of the rollouts, which a step of the study asks it once")
    if any(name.startswith("teacher") for name in reads):
        needs.append("what the teacher says of them, with the student's token ids")
    if _is_live(objective):
        needs.append("problems, which the student answers as it trains")
    return f"Needs {'; '.join(needs)}." if needs else "Needs nothing but rollouts."


def _summary(objective: Objective) -> str:
    first = (inspect.getdoc(objective.function) or "").split("\n\n")[0]
    return " ".join(first.split()).replace("``", "`")
