"""Which rollouts train: correct ones (RFT), distinct ones, pairs, a subset of rows. Nothing is dropped without a trace.

A selection holds positions in the rollout set it was made from, so that log-probs scored once for the whole set
serve every selection of it; :func:`take` makes a set of its own. Choices are made by a hash of the seed and the
ids, never by position: a shuffled file gives the same choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck import types
from limbeck.errors import ConfigError, DegenerateError, nearest
from limbeck.rollouts.stored import StoredRollouts
from limbeck.types import RIGHT_ABOVE, Rollout, RolloutSet

Key = tuple[str, int]
Dropped = Mapping[str, tuple[Key, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Positions kept, ascending, and for each reason the (problem, sample) keys that were dropped for it."""

    rule: str
    indices: Sequence[int]
    dropped: Dropped

    def record(self) -> dict[str, Any]:
        """The JSON form for a manifest."""
        return {"rule": self.rule, "kept": len(self.indices), "dropped": _listed(self.dropped)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSelection:
    """Pairs of positions (right, wrong), ordered by problem id, one weight a pair, and what formed none.

    ``num_mixed``, ``num_all_right`` and ``num_all_wrong`` count groups; only mixed ones can give pairs.
    """

    rule: str
    seed: int
    pairs: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    num_mixed: int
    num_all_right: int
    num_all_wrong: int
    dropped: Dropped

    def ids(self, rollout_set: RolloutSet) -> tuple[tuple[Key, Key], ...]:
        """The pairs by key, which outlive a reordering of the file."""
        key = rollout_set.outline.key
        return tuple((key(right), key(wrong)) for right, wrong in self.pairs)

    def record(self, rollout_set: RolloutSet) -> dict[str, Any]:
        """The JSON form for a manifest, pair ids included."""
        return {
            "rule": f"pairs:{self.rule}",
            "seed": self.seed,
            "groups": {"mixed": self.num_mixed, "all_right": self.num_all_right, "all_wrong": self.num_all_wrong},
            "pairs": [[list(right), list(wrong)] for right, wrong in self.ids(rollout_set)],
            "weights": list(self.weights),
            "dropped": _listed(self.dropped),
        }


def is_right(rollout: Rollout, above: float = RIGHT_ABOVE) -> bool:
    """Whether the rollout's reward says right, by :func:`limbeck.types.is_right`."""
    return types.is_right(rollout.reward, above)


def everything(rollout_set: RolloutSet) -> Selection:
    """Keep every rollout, right or wrong."""
    return Selection(rule="all", indices=range(len(rollout_set)), dropped={})


def correct(rollout_set: RolloutSet, *, above: float = RIGHT_ABOVE) -> Selection:
    """Keep the rollouts that reached the answer: RFT is this selection and plain ``sft``.

    Raises:
        DegenerateError: no rollout is correct.
    """
    out = _keep(rollout_set, "correct", "reward_not_above", rollout_set.outline.reward > above)
    if not out.indices:
        raise DegenerateError(
            f"a selection of correct rollouts needs at least one reward above {above}, received none in "
            f"{len(rollout_set)}. Check the grading, or sample from a stronger model."
        )
    return out


def distinct(rollout_set: RolloutSet) -> Selection:
    """Keep one of several rollouts of a problem with equal response ids: the one with the lowest sample number."""
    told = rollout_set.outline
    first: dict[bytes, int] = {}  # digest of a problem and what was answered, to the row that stands for it
    for row, rollout in enumerate(rollout_set.rollouts):
        content = hashlib.sha256(repr((rollout.problem_id, rollout.response_ids)).encode()).digest()
        if told.sample[row] <= told.sample[first.setdefault(content, row)]:
            first[content] = row
    kept = np.zeros(len(told), dtype=bool)
    kept[list(first.values())] = True
    return _keep(rollout_set, "distinct", "duplicate", kept)


def rows(rollout_set: RolloutSet, num: int, seed: int) -> Selection:
    """Keep ``num`` rollouts by hash of seed and key: independent of file order, and a larger ``num`` only adds.

    Raises:
        ConfigError: ``num`` is not between 1 and the number of rollouts.
    """
    if not 1 <= num <= len(rollout_set):
        raise ConfigError(
            f"rows must be between 1 and the {len(rollout_set)} rollouts there are, received {num}. Lower it, or "
            "sample more."
        )
    rank = np.array([_hash(seed, "rows", *key) for key in rollout_set.outline.every_key()], dtype=np.uint64)
    kept = np.zeros(len(rank), dtype=bool)
    kept[np.argsort(rank, kind="stable")[:num]] = True
    return _keep(rollout_set, f"rows(num={num}, seed={seed})", "not_drawn", kept)


def paired(rollout_set: RolloutSet, rule: str = "one_per_group", *, seed: int) -> Selection:
    """Keep the rollouts that :func:`pairs` puts into pairs: what an objective of pairs reads, row by row."""
    formed = pairs(rollout_set, rule, seed=seed).pairs
    kept = np.zeros(len(rollout_set), dtype=bool)
    kept[[row for pair in formed for row in pair]] = True
    return _keep(rollout_set, f"paired:{rule}", "unpaired", kept)


def one_of_each(rollout_set: RolloutSet, right_share: float, *, seed: int) -> Selection:
    """Keep one rollout of every mixed problem: the right one of its pair in a share of them, the wrong one in the others.

    Problems and their number are the same at every share, and a larger share only turns wrong rows into right ones: what
    two shares differ in is whether answers are right, not which questions are asked.

    Args:
        rollout_set: rollouts, of which only mixed groups are kept.
        right_share: of the problems that keep their right rollout, in [0, 1], to the nearest whole problem.
        seed: of the pairs and of which problems keep which.

    Raises:
        DegenerateError: no group is mixed.
    """
    formed = pairs(rollout_set, seed=seed).pairs
    key = rollout_set.outline.key
    order = sorted(formed, key=lambda pair: _hash(seed, "share", key(pair[0])[0]))
    num_right = round(right_share * len(order))
    kept = np.zeros(len(rollout_set), dtype=bool)
    kept[[right if place < num_right else wrong for place, (right, wrong) in enumerate(order)]] = True
    return _keep(rollout_set, f"one_of_each(right_share={right_share:g}, seed={seed})", "other_of_pair", kept)


def within(selection: Selection, outer: Selection) -> Selection:
    """What a selection keeps of what another one kept; both reasons of dropping stay on record."""
    kept = tuple(sorted(set(selection.indices) & set(outer.indices)))
    gone = {key for keys in outer.dropped.values() for key in keys}
    own = {name: tuple(key for key in keys if key not in gone) for name, keys in selection.dropped.items()}
    dropped = {**outer.dropped, **{name: keys for name, keys in own.items() if keys}}
    return Selection(rule=f"{selection.rule} of {outer.rule}", indices=kept, dropped=dropped)


def take(rollout_set: RolloutSet, selection: Selection) -> RolloutSet:
    """The selected rollouts as a set of their own, whose provenance names its parent and every dropped id."""
    parent = {"parent_digest": rollout_set.digest, **selection.record()}
    history = rollout_set.provenance.get("selections", [])
    selections = [*(history if isinstance(history, list) else []), parent]
    rollouts = rollout_set.rollouts
    if isinstance(rollouts, StoredRollouts):
        kept: Sequence[Rollout] = rollouts.take(np.array(selection.indices, dtype=np.int64))
    else:
        kept = tuple(rollouts[i] for i in selection.indices)
    return RolloutSet(rollouts=kept, provenance={**rollout_set.provenance, "selections": selections})


def pairs(
    rollout_set: RolloutSet, rule: str = "one_per_group", *, seed: int, above: float = RIGHT_ABOVE
) -> PairSelection:
    """Pairs of one right and one wrong rollout of the same problem, from mixed groups only.

    ``one_per_group``: one of each by hash. ``zip``: min(c, K - c) disjoint pairs in hash order. ``all``: every one
    of the c (K - c) pairs, each weighted 1 / (c (K - c)), so that a group weighs 1. ``length_matched``: the one
    pair with the closest response lengths, ties by hash.

    Args:
        rollout_set: K rollouts a problem, c of them right.
        rule: how pairs are formed.
        seed: the pair seed; the same pairs come back whatever the order of the file.
        above: a rollout is right if its reward is above this.

    Raises:
        ConfigError: unknown rule.
        DegenerateError: no group is mixed.

    Source: the papers are silent on how pairs are formed; this is our reading of 2606.23740.
    """
    if rule not in PAIR_RULES:
        raise ConfigError(f'pairs has no rule "{rule}". {nearest(rule, PAIR_RULES)}')
    wins = rollout_set.outline.reward > above
    groups = {name: _split(rollout_set, indices, wins) for name, indices in sorted(rollout_set.groups.items())}
    chosen: list[tuple[int, int]] = []
    weights: list[float] = []
    dropped: dict[str, list[Key]] = {"all_right": [], "all_wrong": [], "unpaired": []}
    for name, (right, wrong) in groups.items():
        formed = PAIR_RULES[rule](rollout_set, right, wrong, seed) if right and wrong else []
        chosen += formed
        weights += [1.0 / len(formed) if rule == "all" else 1.0 for _ in formed]
        reason = "unpaired" if right and wrong else "all_right" if right else "all_wrong"
        used = {index for pair in formed for index in pair}
        dropped[reason] += [rollout_set.outline.key(i) for i in rollout_set.groups[name] if i not in used]
    if not chosen:
        raise DegenerateError(
            "pairs need at least one problem with both a right and a wrong rollout, received none in "
            f"{len(groups)} problems. Sample more rollouts a problem, or use an objective without pairs."
        )
    return PairSelection(
        rule=rule,
        seed=seed,
        pairs=tuple(chosen),
        weights=tuple(weights),
        num_mixed=sum(bool(r and w) for r, w in groups.values()),
        num_all_right=sum(not w for _, w in groups.values()),
        num_all_wrong=sum(not r for r, _ in groups.values()),
        dropped={reason: tuple(sorted(keys)) for reason, keys in dropped.items() if keys},
    )


def _one(rollout_set: RolloutSet, right: Sequence[int], wrong: Sequence[int], seed: int) -> list[tuple[int, int]]:
    return _zip(rollout_set, right, wrong, seed)[:1]


def _zip(rollout_set: RolloutSet, right: Sequence[int], wrong: Sequence[int], seed: int) -> list[tuple[int, int]]:
    def order(indices: Sequence[int]) -> list[int]:
        return sorted(indices, key=lambda i: _hash(seed, "pair", *rollout_set.outline.key(i)))

    return list(zip(order(right), order(wrong), strict=False))


def _all(rollout_set: RolloutSet, right: Sequence[int], wrong: Sequence[int], seed: int) -> list[tuple[int, int]]:
    return [(r, w) for r in right for w in wrong]


def _closest(rollout_set: RolloutSet, right: Sequence[int], wrong: Sequence[int], seed: int) -> list[tuple[int, int]]:
    told = rollout_set.outline

    def distance(pair: tuple[int, int]) -> tuple[int, int]:
        first, second = pair
        gap = abs(int(told.response_tokens[first]) - int(told.response_tokens[second]))
        return gap, _hash(seed, "length", *told.key(first), *told.key(second))

    return [min(_all(rollout_set, right, wrong, seed), key=distance)]


PairFormer = Callable[[RolloutSet, Sequence[int], Sequence[int], int], list[tuple[int, int]]]
PAIR_RULES: dict[str, PairFormer] = {"one_per_group": _one, "zip": _zip, "all": _all, "length_matched": _closest}


def _split(rollout_set: RolloutSet, indices: Sequence[int], wins: np.ndarray) -> tuple[list[int], list[int]]:
    """Positions of the right and of the wrong ones, by sample number."""
    ordered = sorted(indices, key=rollout_set.outline.sample.__getitem__)
    return [i for i in ordered if wins[i]], [i for i in ordered if not wins[i]]


def _keep(rollout_set: RolloutSet, rule: str, reason: str, keep: np.ndarray) -> Selection:
    kept = tuple(np.flatnonzero(keep).tolist())
    dropped = tuple(sorted(rollout_set.outline.take(~keep).every_key()))
    return Selection(rule=rule, indices=kept, dropped={reason: dropped} if dropped else {})


def _hash(*parts: object) -> int:
    text = repr(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def _listed(dropped: Dropped) -> dict[str, list[list[object]]]:
    return {reason: [list(key) for key in keys] for reason, keys in dropped.items()}
