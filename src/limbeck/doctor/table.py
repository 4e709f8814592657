"""What every objective of the table would do with these rollouts, asked of the code that prepares a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from limbeck.batches.collate import BEHAVIOR, TrainingData, collate
from limbeck.config import RunConfig
from limbeck.doctor.finding import Finding
from limbeck.errors import LimbeckError, ShapeError
from limbeck.objectives import INPUTS, OBJECTIVES, check_knobs, inputs
from limbeck.train.data import Prepared, prepare
from limbeck.train.scores import check_scores
from limbeck.types import Objective, RolloutSet

ON_THE_WAY = ("reference_logprobs",)  # a run scores the base itself where nobody gives them


class Usable(NamedTuple):
    """What is left of the rollouts for objectives of one unit and credit rule.

    ``moving`` counts the items whose credit is not 0; all of them where none is read. ``refused`` says why there are none.
    """

    prepared: Prepared | None
    moving: int
    refused: str


class Asked(NamedTuple):
    """The run as it was set, what it reads, and the names of inputs that need no further work."""

    config: RunConfig
    rollout_set: RolloutSet
    context: int | None
    given: frozenset[str]


def asked(config: RunConfig, rollout_set: RolloutSet, context: int | None) -> Asked:
    """What to ask objectives about.

    Args:
        config: its objective is the chosen one; its selection, pairs and limits are everyone's.
        rollout_set: the rollouts.
        context: the model's longest row.
    """
    known = bool(rollout_set.outline.known.all())
    carried = known and rollout_set.provenance.get("sampling_temperature", 1.0) == 1.0
    given = {*config.scores, *ON_THE_WAY, *(BEHAVIOR if carried else ())}
    return Asked(config, rollout_set, context, frozenset(given))


def examine_objectives(about: Asked) -> list[Finding]:
    """One finding an objective; only the chosen one's is a problem, where the run would be refused."""
    known: dict[tuple[object, ...], Usable] = {}
    found = []
    for objective in OBJECTIVES.values():
        reads = inputs(objective)
        credit = [name for name in reads if INPUTS[name].axes == "batch" or name == "advantages"]
        kind = (objective.unit, objective.credit, *credit)  # all that `prepare` looks at
        if kind not in known:
            known[kind] = usable(about, objective)
        found.append(_finding(about, objective, known[kind]))
    return found


def usable(about: Asked, objective: Objective) -> Usable:
    """What a run with this objective would train on."""
    own = about.config.train.model_copy(update={"objective": objective.name})
    try:
        prepared = prepare(own, objective, about.rollout_set, {}, context=about.context)
    except LimbeckError as error:
        return Usable(None, 0, str(error))
    credit = prepared.data.columns.get("advantages")
    first = np.asarray(prepared.data.items)[:, 0]
    return Usable(prepared, len(first) if credit is None else int(np.count_nonzero(np.asarray(credit)[first])), "")


def _finding(about: Asked, objective: Objective, own: Usable) -> Finding:
    reads, config = inputs(objective), about.config
    chosen = objective.name == config.train.objective
    needs = _needs(about, objective, own.prepared)
    makes = [name for name in ON_THE_WAY if name in reads and name not in config.scores]
    items, rows = (len(own.prepared.data.items), own.prepared.facts["rows"]) if own.prepared else (0, 0)
    says, _, remedy = own.refused.partition(". ")
    if not own.refused:
        says = f"{items} pairs of {rows} rows" if objective.unit == "pair" else f"{items} rows"
        says += f", {own.moving} of them with credit other than 0" if "advantages" in reads else ""
        says += "".join(f"; {name} is made on the way" for name in makes)
        says += f"; needs {', '.join(needs)}" if needs else ""
    refused = own.refused or (_refused(about, objective) if chosen else "")
    remedy = remedy or refused or _remedy(needs) or _unset_knobs(objective, config if chosen else None)
    if "advantages" in reads and not own.moving:
        remedy = remedy or "Sample more answers a problem, until groups are mixed, or take an objective without credit."
    return Finding(
        about="objectives",
        name=f"{objective.name} (chosen)" if chosen else objective.name,
        level="problem" if chosen and refused else "note" if remedy else "ok",
        says=says,
        remedy=remedy,
        facts={
            "chosen": chosen, "unit": objective.unit, "reads": list(reads), "items": items, "rows": rows,
            "moving": own.moving, "needs": needs, "makes": makes,
        },
    )  # fmt: skip


def _needs(about: Asked, objective: Objective, prepared: Prepared | None) -> list[str]:
    """Inputs that neither these data nor the run's own settings have, asked of the function that makes batches."""
    if prepared is None:
        return []
    return [name for name in inputs(objective) if name not in about.given and not _there(prepared.data, name)]


def _there(data: TrainingData, name: str) -> bool:
    try:
        collate(data, [0], (name,))
    except ShapeError:
        return False
    return name not in BEHAVIOR


def _refused(about: Asked, objective: Objective) -> str:
    """What `limbeck train` would answer to the run as it was set; empty where it would start."""
    try:
        check_scores(about.config, objective, about.rollout_set)
    except LimbeckError as error:
        return str(error)
    return ""


def _unset_knobs(objective: Objective, config: RunConfig | None) -> str:
    """What has no default and was not set."""
    try:
        check_knobs(objective, config.train.knobs if config else {})
    except LimbeckError as error:
        return str(error)
    return ""


def _remedy(needs: Sequence[str]) -> str:
    remedies = dict.fromkeys(INPUTS[name].remedy for name in needs)
    return "".join(f"{remedy[0].upper()}{remedy[1:]}. " for remedy in remedies).rstrip()
