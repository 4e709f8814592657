"""From a rollout set to what one arm trains on: selection, credit, pairs, scores. Everything counted, nothing silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from limbeck.batches.collate import TrainingData, by_hash
from limbeck.config import TrainConfig
from limbeck.errors import ConfigError, DegenerateError
from limbeck.objectives import inputs
from limbeck.rollouts import credit, select
from limbeck.rollouts.relabel import relabelled
from limbeck.types import RIGHT_ABOVE, Objective, RolloutSet


class Prepared(NamedTuple):
    """Training data, the counts that the run's record states, and what was selected or dropped, by name."""

    data: TrainingData
    facts: dict[str, object]
    selection: dict[str, object]


def prepare(
    config: TrainConfig,
    objective: Objective,
    rollout_set: RolloutSet,
    scores: Mapping[str, Sequence],
    *,
    context: int | None,
) -> Prepared:
    """Select rows, assign credit over whole groups, form items, and attach the scores that the objective reads.

    Args:
        config: selection, pair rule, credit, limits.
        objective: its signature decides which columns are needed.
        rollout_set: all rollouts; credit is assigned before any row is dropped.
        scores: name of a per-token input to one list (or tensor) per rollout, in the order of ``rollout_set``.
        context: the model's longest row in tokens, if it has one.

    Raises:
        DegenerateError: nothing is left to train on, with the counts.
    """
    rule = config.credit or objective.credit
    _check_mirror(config, objective, rule)
    rollout_set = relabelled(rollout_set, config.rewards, seed=config.data_seed)
    told = rollout_set.outline
    limit = min(x for x in (config.max_length, context, 1 << 30) if x)
    fits = told.tokens <= limit
    if not fits.any():
        shortest = told.tokens.min()
        raise DegenerateError(
            f"a run needs at least one trainable row, received 0 of {len(told)}: the longest row allowed is {limit} "
            f"tokens and the shortest has {shortest}. Raise train.max_length or use a model with a longer context."
        )
    columns = {**_credit_columns(objective, rule, rollout_set), **scores}
    items, weights, facts, selection = _items(config, objective, rollout_set, fits)
    data = TrainingData(rollouts=rollout_set.rollouts, items=items, weights=weights, columns=columns)
    if config.max_items and config.max_items < len(items):
        data = fewer(data, config.max_items, seed=config.data_seed)
    used = told.take(data.used_rows)
    facts |= {
        "items": len(data.items),
        "rows": len(used),
        "rows_too_long": int((~fits).sum()),
        "right_share": float((used.reward > RIGHT_ABOVE).mean()),
        "response_tokens": int(used.response_tokens.sum()),
        "credit": rule if "advantages" in columns else "",
    }
    too_long = [list(key) for key in told.take(~fits).every_key()]
    return Prepared(data, facts, {**selection, "too_long": too_long, "items": data.keys})


def _check_mirror(config: TrainConfig, objective: Objective, rule: str) -> None:
    if config.rewards == "mirror" and "advantages" in inputs(objective) and rule not in credit.ODD:
        raise ConfigError(
            f'rewards = "mirror" must turn every advantage into its negative, which {", ".join(credit.ODD)} do, received '
            f'credit "{rule}". Set train.credit to one of these.'
        )


def fewer(data: TrainingData, num: int, *, seed: int) -> TrainingData:
    """So many items, chosen by a hash of their names: a shuffled file gives the same choice."""
    kept = np.sort(by_hash(data.keys, str(seed))[:num])
    items, weights = np.asarray(data.items)[kept], np.asarray(data.weights)[kept]
    return TrainingData(rollouts=data.rollouts, items=items, weights=weights, columns=data.columns)


def _credit_columns(objective: Objective, rule: str, rollout_set: RolloutSet) -> dict[str, Sequence | np.ndarray]:
    """What the objective reads of rewards and groups, one number per rollout, over the whole set."""
    names = inputs(objective)
    told = rollout_set.outline
    rewards, groups = torch.tensor(told.reward), torch.tensor(told.problem)
    columns: dict[str, Sequence | np.ndarray] = {"rewards": rewards.numpy()}
    if "advantages" in names:
        if not rule:
            raise ConfigError(
                f"{objective.name} reads advantages: set train.credit to one of {', '.join(credit.CREDITS)}."
            )
        columns["advantages"] = credit.assign(rule, rewards, groups).numpy()
    if "correct" in names:
        columns["correct"] = credit.correct(rewards).numpy()
    if "group_all_wrong" in names:
        columns["group_all_wrong"] = credit.group_all_wrong(rewards, groups).numpy()
    return columns


class _Chosen(NamedTuple):
    items: Int[np.ndarray, "items rows"]
    weights: Float[np.ndarray, " items"]
    facts: dict[str, object]
    record: dict[str, object]


def _items(config: TrainConfig, objective: Objective, rollout_set: RolloutSet, fits: np.ndarray) -> _Chosen:
    if objective.unit == "pair":
        return _pairs(config, rollout_set, fits)
    selection = _selected(config, rollout_set)
    rows = np.array(selection.indices, dtype=np.int64)
    rows = rows[fits[rows]]
    if not len(rows):
        raise DegenerateError(
            f'selection "{config.selection}" must leave at least one rollout, received 0 of {len(rollout_set)}. '
            "Grade the rollouts, or train on all of them."
        )
    return _Chosen(rows[:, None], np.ones(len(rows)), {"selection": config.selection}, selection.record())


def _selected(config: TrainConfig, rollout_set: RolloutSet) -> select.Selection:
    seed = config.data_seed
    rules: dict[str, Callable[[], select.Selection]] = {
        "all": lambda: select.everything(rollout_set),
        "correct": lambda: select.correct(rollout_set),
        "distinct": lambda: select.distinct(rollout_set),
        "paired": lambda: select.paired(rollout_set, config.pairs, seed=seed),
    }
    selection = rules[config.selection]()
    if config.right_share is None:
        return selection
    return select.within(selection, select.one_of_each(rollout_set, config.right_share, seed=seed))


def _pairs(config: TrainConfig, rollout_set: RolloutSet, fits: np.ndarray) -> _Chosen:
    selection = select.pairs(rollout_set, rule=config.pairs, seed=config.data_seed)
    pairs = np.array(selection.pairs)
    kept = fits[pairs].all(axis=1)
    if not kept.any():
        raise DegenerateError(
            f"pairs must fit the longest row allowed, received {len(selection.pairs)} pairs that all hold a longer one. "
            "Raise train.max_length, or use a model with a longer context."
        )
    facts: dict[str, object] = {
        "pair_rule": config.pairs,
        "mixed_groups": selection.num_mixed,
        "all_right_groups": selection.num_all_right,
        "all_wrong_groups": selection.num_all_wrong,
    }
    return _Chosen(pairs[kept], np.array(selection.weights)[kept], facts, selection.record(rollout_set))
