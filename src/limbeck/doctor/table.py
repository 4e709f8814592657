"""What every objective of the table would do with these rollouts, asked of the code that prepares a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from limbeck.batches.collate import BEHAVIOR, TrainingData, collate
from limbeck.config import RunConfig
from limbeck.doctor.finding import Finding
from limbeck.errors import LimbeckError, ShapeError
from limbeck.objectives import INPUTS, OBJECTIVES, check_knobs, inputs
from limbeck.train.data import Prepared, prepare
from limbeck.train.run import check
from limbeck.train.scores import check_scores
from limbeck.types import Objective, RolloutSet

found = partial(Finding, about="objectives")
ON_THE_WAY = ("reference_logprobs",)  # a run scores the base itself where nobody gives them


class Usable(NamedTuple):
    """What is left of the rollouts for objectives of one unit and credit rule.

    ``rows`` of them move the student: where credit is 0 or all are on one side, they do not. ``refused`` says why there are none.
    """

    prepared: Prepared | None
    moving: int
    refused: str


def examine_objectives(config: RunConfig, rollout_set: RolloutSet, context: int | None) -> list[Finding]:
    """One finding an objective; the chosen one's is a problem where the run would be refused.

    Args:
        config: the run as it was set; its objective is the chosen one, its selection, pairs and limits are everyone's.
        rollout_set: the rollouts.
        context: the model's longest row.
    """
    known: dict[tuple[str, ...], Usable] = {}
    return [_finding(config, rollout_set, context, row, known) for row in OBJECTIVES.values()]


def chosen_data(config: RunConfig, rollout_set: RolloutSet, context: int | None) -> TrainingData | None:
    """What the run would train on; None where nothing is left."""
    usable = _usable(config, rollout_set, context, OBJECTIVES[config.train.objective])
    return usable.prepared.data if usable.prepared else None


def _finding(
    config: RunConfig,
    rollout_set: RolloutSet,
    context: int | None,
    objective: Objective,
    known: dict[tuple[str, ...], Usable],
) -> Finding:
    reads = inputs(objective)
    kind = (
        objective.unit,
        objective.credit,
        *(name for name in reads if INPUTS[name].axes == "batch"),
        str("advantages" in reads),
    )
    if kind not in known:
        known[kind] = _usable(config, rollout_set, context, objective)
    usable = known[kind]
    chosen = objective.name == config.train.objective
    missing = _missing(config, objective, usable.prepared, rollout_set)
    unset = _unset_knobs(objective) if not chosen else ""
    num = len(usable.prepared.data.items) if usable.prepared else 0
    rows = usable.prepared.facts["rows"] if usable.prepared else 0
    facts = {
        "chosen": chosen, "unit": objective.unit, "items": num, "rows": rows, "moving": usable.moving, "reads": list(reads),
        "needs": missing, "makes": [name for name in ON_THE_WAY if name in reads and name not in config.scores],
    }  # fmt: skip
    name = f"{objective.name} (chosen)" if chosen else objective.name
    if usable.refused:
        says, _, remedy = usable.refused.partition(". ")
        level = "problem" if chosen else "note"
        return found(name=name, level=level, says=says, remedy=remedy or "Take another objective.", facts=facts)
    refused = _refused(config, objective, rollout_set) if chosen else ""
    what = "pairs" if objective.unit == "pair" else "rows"
    says = f"{num} {what}" + (f" of {rows} rows" if what == "pairs" else "")
    says += f", {usable.moving} of them with credit other than 0" if "advantages" in reads else ""
    says += "".join(f"; {name} is made on the way" for name in facts["makes"])
    says += f"; needs {', '.join(missing)}" if missing else ""
    if refused or missing or unset or ("advantages" in reads and not usable.moving):
        remedy = (
            refused or _remedy(missing) or unset or "Sample groups that are mixed, or take an objective without credit."
        )
        return found(name=name, level="problem" if refused else "note", says=says, remedy=remedy, facts=facts)
    return found(name=name, says=says, facts=facts)


def _usable(config: RunConfig, rollout_set: RolloutSet, context: int | None, objective: Objective) -> Usable:
    own = config.train.model_copy(update={"objective": objective.name, "max_items": None})
    try:
        prepared = prepare(own, objective, rollout_set, {}, context=context)
    except LimbeckError as error:
        return Usable(None, 0, str(error))
    advantages = prepared.data.columns.get("advantages")
    rows = [item[0] for item in prepared.data.items]
    return Usable(prepared, sum(advantages[row] != 0 for row in rows) if advantages else len(rows), "")


def _missing(config: RunConfig, objective: Objective, prepared: Prepared | None, rollout_set: RolloutSet) -> list[str]:
    """Inputs that neither these data nor the run's own settings have, asked of the function that makes batches."""
    if prepared is None:
        return []
    given = {*config.scores, *ON_THE_WAY, *(BEHAVIOR if ratios_known(rollout_set) else ())}
    return [name for name in inputs(objective) if name not in given and not _there(prepared.data, name)]


def ratios_known(rollout_set: RolloutSet) -> bool:
    """Whether the rollouts carry their sampler's log-probs as a run takes them: all of them, at temperature 1."""
    unknown = any(math.isnan(x) for r in rollout_set.rollouts for x in r.behavior_logprobs)
    return not unknown and rollout_set.provenance.get("sampling_temperature", 1.0) == 1.0


def _there(data: TrainingData, name: str) -> bool:
    try:
        collate(data, [0], (name,))
    except ShapeError:
        return False
    return name not in BEHAVIOR


def _refused(config: RunConfig, objective: Objective, rollout_set: RolloutSet) -> str:
    """What `limbeck train` would answer to the run as it was set; empty where it would start."""
    try:
        check(config.train)
        check_scores(config, objective, rollout_set)
    except LimbeckError as error:
        return str(error)
    return ""


def _unset_knobs(objective: Objective) -> str:
    try:
        check_knobs(objective, {})
    except LimbeckError as error:
        return str(error)
    return ""


def _remedy(missing: Sequence[str]) -> str:
    remedies = dict.fromkeys(INPUTS[name].remedy for name in missing)
    return "; ".join(f"{remedy[0].upper()}{remedy[1:]}" for remedy in remedies) + "." if missing else ""
