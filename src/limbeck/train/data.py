"""From a rollout set to what one arm trains on: selection, credit, pairs, scores. Everything counted, nothing silent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from limbeck.batches.collate import TrainingData
from limbeck.config import TrainConfig
from limbeck.errors import ConfigError, DegenerateError
from limbeck.objectives import inputs
from limbeck.rollouts import credit, select
from limbeck.types import Objective, RolloutSet


class Prepared(NamedTuple):
    """Training data and the counts that the run's record states."""

    data: TrainingData
    facts: dict[str, object]


def prepare(
    config: TrainConfig,
    objective: Objective,
    rollout_set: RolloutSet,
    scores: Mapping[str, Sequence[Sequence[float]]],
    *,
    context: int | None,
) -> Prepared:
    """Select rows, assign credit over whole groups, form items, and attach the scores that the objective reads.

    Args:
        config: selection, pair rule, credit, limits.
        objective: its signature decides which columns are needed.
        rollout_set: all rollouts; credit is assigned before any row is dropped.
        scores: name of a per-token input to one list per rollout, in the order of ``rollout_set``.
        context: the model's longest row in tokens, if it has one.

    Raises:
        DegenerateError: nothing is left to train on, with the counts.
    """
    rollouts = rollout_set.rollouts
    limit = min(x for x in (config.max_length, context, 1 << 30) if x)
    fits = [len(r.prompt_ids) + len(r.response_ids) <= limit for r in rollouts]
    if not any(fits):
        shortest = min(len(r.prompt_ids) + len(r.response_ids) for r in rollouts)
        raise DegenerateError(
            f"a run needs at least one trainable row, received 0 of {len(rollouts)}: the longest row allowed is {limit} "
            f"tokens and the shortest has {shortest}. Raise train.max_length or use a model with a longer context."
        )
    rule = config.credit or objective.credit
    columns = {**_credit_columns(objective, rule, rollout_set), **scores}
    items, weights, facts = _items(config, objective, rollout_set, fits)
    if config.max_items and config.max_items < len(items):
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(config.seed))
        kept = sorted(order[: config.max_items].tolist())
        items, weights = [items[i] for i in kept], [weights[i] for i in kept]
    data = TrainingData(rollouts=rollouts, items=items, weights=weights, columns=columns)
    used = [rollouts[row] for item in items for row in item]
    facts |= {
        "items": len(items),
        "rows": len(used),
        "rows_too_long": len(rollouts) - sum(fits),
        "right_share": sum(r.reward > 0 for r in used) / len(used),
        "response_tokens": sum(len(r.response_ids) for r in used),
        "credit": rule if "advantages" in columns else "",
    }
    return Prepared(data, facts)


def _credit_columns(objective: Objective, rule: str, rollout_set: RolloutSet) -> dict[str, Sequence]:
    """What the objective reads of rewards and groups, one number per rollout, over the whole set."""
    names = inputs(objective)
    rewards = torch.tensor([r.reward for r in rollout_set.rollouts], dtype=torch.float64)
    groups = [r.problem_id for r in rollout_set.rollouts]
    columns: dict[str, Sequence] = {"rewards": rewards.tolist()}
    if "advantages" in names:
        if not rule:
            raise ConfigError(
                f"{objective.name} reads advantages: set train.credit to one of {', '.join(credit.CREDITS)}."
            )
        columns["advantages"] = credit.assign(rule, rewards, groups).tolist()
    if "correct" in names:
        columns["correct"] = credit.correct(rewards).tolist()
    if "group_all_wrong" in names:
        columns["group_all_wrong"] = credit.group_all_wrong(rewards, groups).tolist()
    return columns


def _items(
    config: TrainConfig, objective: Objective, rollout_set: RolloutSet, fits: Sequence[bool]
) -> tuple[list[tuple[int, ...]], list[float], dict[str, object]]:
    if objective.unit == "pair":
        selection = select.pairs(rollout_set, rule=config.pairs, seed=config.seed)
        kept = [i for i, pair in enumerate(selection.pairs) if all(fits[row] for row in pair)]
        facts: dict[str, object] = {
            "pair_rule": config.pairs,
            "mixed_groups": selection.num_mixed,
            "all_right_groups": selection.num_all_right,
            "all_wrong_groups": selection.num_all_wrong,
        }
        if not kept:
            raise DegenerateError(
                f"{objective.name} needs problems with a right and a wrong rollout, received {selection.num_mixed} mixed, "
                f"{selection.num_all_right} all-right and {selection.num_all_wrong} all-wrong groups. "
                "Sample more rollouts a problem, or at a higher temperature."
            )
        return [tuple(selection.pairs[i]) for i in kept], [selection.weights[i] for i in kept], facts
    chosen = range(len(rollout_set))
    if config.selection == "correct":
        chosen = select.correct(rollout_set).indices
    elif config.selection == "distinct":
        chosen = select.distinct(rollout_set).indices
    rows = [i for i in chosen if fits[i]]
    if not rows:
        raise DegenerateError(
            f'selection "{config.selection}" must leave at least one rollout, received 0 of {len(rollout_set)}. '
            "Grade the rollouts, or train on all of them."
        )
    return [(i,) for i in rows], [1.0] * len(rows), {"selection": config.selection}
