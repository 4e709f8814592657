"""The rollouts of one live step: problems drawn, answered by the student as it is now, graded, kept or left.

Everything is a function of seed, step and the student's weights. Which problems come when is a hash of the seed, and
each answer draws from a stream named by step, turn, problem and sample: a resumed run samples what the undisturbed
one sampled, and two arms with one seed are asked the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from limbeck.config import LiveConfig
from limbeck.problems.prompts import text_of
from limbeck.rollouts.sample import Completion, Decoding, complete
from limbeck.train.engine import Engine, precision
from limbeck.train.processes import gathered
from limbeck.train.rewards import Rewarded, Rewards
from limbeck.types import Problem, Rollout, RolloutSet

Group = tuple[Rollout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the rollouts of a live run come from.

    Attributes:
        live: sizes and limits.
        problems: what the student is asked.
        prompts: problem id to the ids that the student reads.
        tokenizer: the student's, which turns answers into text.
        stops: ids that end an answer.
        rewards: what answers are worth.
        given: groups that somebody else wrote, for the prompts that the student does not answer.
        writer: who answers in the student's place; None for the student itself.
        seed: of the order and of the sampling.
    """

    live: LiveConfig
    problems: Sequence[Problem]
    prompts: Mapping[str, tuple[int, ...]]
    tokenizer: PreTrainedTokenizerBase
    stops: Sequence[int]
    rewards: Rewards
    given: Sequence[Group]
    seed: int
    writer: nn.Module | None = None


class Drawn(NamedTuple):
    """What a step has to learn from (no rollouts: nothing), and what became of everything that was sampled.

    The first ``num_own`` rollouts are the student's, the others were given.
    """

    rollout_set: RolloutSet
    num_own: int
    facts: dict[str, float]
    failures: tuple[str, ...]


def draw(engine: Engine, source: Source, step: int) -> Drawn:
    """Sample and grade the groups of a step; every process of the run gets all of them.

    With dynamic sampling only groups with signal are kept, and more are drawn while some are missing.
    """
    live = source.live
    num_own = num_answered(step, live.prompts_per_step, live.student_fraction)
    kept: list[Group] = []
    seen: list[Group] = []
    failures: list[str] = []
    turns = 0
    while num_own and turns < (live.dynamic_sampling or 1) and len(kept) < num_own:
        turn = (step - 1) * (live.dynamic_sampling or 1) + turns
        known = {group[0].problem_id for group in seen}
        places = positions(_ids(source.problems), turn, num=live.prompts_per_step, seed=source.seed)
        asked = [p for p in (source.problems[i] for i in places) if p.id not in known]
        groups, failed = _answered(engine, source, asked if live.dynamic_sampling else asked[:num_own], turn)
        seen += groups
        failures += failed
        kept += [group for group in groups if has_signal(group)] if live.dynamic_sampling else groups
        turns += 1
    own = kept[:num_own]
    others = _given(source, step, live.prompts_per_step - num_own)
    rollouts = tuple(rollout for group in [*own, *others] for rollout in group)
    facts = {
        **_shares(seen),
        "groups": len(own) + len(others),
        "groups_sampled": len(seen) + len(failures),
        "groups_without_reward": len(failures),
        "groups_given": len(others),
        "turns": turns,
        "tokens_sampled": sum(len(rollout.response_ids) for group in seen for rollout in group),
        "rollouts_sampled": (len(seen) + len(failures)) * live.samples,
    }
    provenance = {"step": step, "seed": source.seed, "sampling_temperature": live.sampling_temperature}
    num_rows = sum(map(len, own))
    return Drawn(RolloutSet(rollouts=rollouts, provenance=provenance), num_rows, facts, tuple(failures))


def num_answered(step: int, num: int, fraction: float) -> int:
    """How many of a step's prompts the student answers, so that the share holds over steps.

    >>> [num_answered(step, 2, 0.25) for step in (1, 2, 3, 4)]
    [0, 1, 0, 1]
    """
    return int(step * num * fraction) - int((step - 1) * num * fraction)


def positions(ids: tuple[str, ...], turn: int, *, num: int, seed: int) -> list[int]:
    """Positions of the problems of one turn: epochs shuffled by a hash, the incomplete end of an epoch left out.

    >>> positions(("a", "b", "c"), 0, num=2, seed=0), positions(("a", "b", "c"), 1, num=2, seed=0)
    ([2, 0], [2, 1])
    """
    epoch, place = divmod(turn, len(ids) // num)
    return list(_order(ids, f"{seed}/{epoch}")[place * num : (place + 1) * num])


@lru_cache(maxsize=4)
def _order(ids: tuple[str, ...], name: str) -> tuple[int, ...]:
    rank = [hashlib.sha256(f"{name}/{problem_id}".encode("utf-8", "surrogatepass")).digest() for problem_id in ids]
    return tuple(sorted(range(len(ids)), key=rank.__getitem__))


def has_signal(group: Group) -> bool:
    """Whether the rewards of a group differ: only then does a comparison inside the group say anything."""
    return any(rollout.reward != group[0].reward for rollout in group)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model without dropout or anything else that only training does; each module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode


def _ids(problems: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(problem.id for problem in problems)


def _answered(engine: Engine, source: Source, problems: Sequence[Problem], turn: int) -> tuple[list[Group], list[str]]:
    """Every problem's group, each process answering its share, and why groups got no reward."""
    mine = problems[engine.accelerator.process_index :: engine.accelerator.num_processes]
    own = _my_answers(engine, source, mine, turn) if mine else []
    found = gathered(engine.accelerator, own, len(problems))
    groups = [group for group, reason in found if not reason]
    return groups, [reason for _, reason in found if reason]


def _my_answers(engine: Engine, source: Source, problems: Sequence[Problem], turn: int) -> list[tuple[Group, str]]:
    live = source.live
    prompts = [source.prompts[problem.id] for problem in problems]
    asked = [(i, sample) for i in range(len(problems)) for sample in range(live.samples)]
    decoding = Decoding(
        sampling_temperature=live.sampling_temperature,
        max_new_tokens=live.max_new_tokens,
        batch_size=live.sampling_batch,
        seed=source.seed,
    )
    bf16 = precision(engine.config, engine.accelerator.device) == "bf16"
    with (
        evaluating(engine.model if source.writer is None else source.writer) as model,
        torch.autocast(engine.accelerator.device.type, torch.bfloat16, enabled=bf16),
    ):
        done = complete(
            model,  # type: ignore[arg-type]
            [prompts[i] for i, _ in asked],
            [f"{turn}/{problems[i].id}/{sample}" for i, sample in asked],
            decoding,
            stop_ids=source.stops,
        )
    groups = [done[i * live.samples : (i + 1) * live.samples] for i in range(len(problems))]
    texts = [[text_of(source.tokenizer, completion.ids) for completion in group] for group in groups]
    rewarded = source.rewards(list(zip(problems, texts, strict=True)))
    return [
        (_group(*parts), parts[-1].failure) for parts in zip(problems, prompts, groups, texts, rewarded, strict=True)
    ]


def _group(
    problem: Problem, prompt: tuple[int, ...], completions: list[Completion], texts: list[str], rewarded: Rewarded
) -> Group:
    rewards = rewarded.rewards or (0.0,) * len(texts)  # without rewards the group is dropped
    return tuple(
        Rollout(
            problem_id=problem.id,
            sample=sample,
            prompt_ids=prompt,
            response_ids=completion.ids,
            behavior_logprobs=completion.logprobs,
            reward=reward,
            finish=completion.finish,
            response=text,
        )
        for sample, (completion, text, reward) in enumerate(zip(completions, texts, rewards, strict=True))
    )


def _given(source: Source, step: int, num: int) -> list[Group]:
    """Groups of the given rollouts, in an order of their own, for the prompts that the student does not answer."""
    if not num:
        return []
    ids = tuple(group[0].problem_id for group in source.given)
    places = positions(ids, step - 1, num=source.live.prompts_per_step, seed=source.seed)[:num]
    return [source.given[i][: source.live.samples] for i in places]


def _shares(groups: Sequence[Group]) -> dict[str, float]:
    """What the student's own answers came to, all that were sampled and graded."""
    rollouts = [rollout for group in groups for rollout in group]
    if not rollouts:
        return {}
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    right = [[rollout.reward > 0 for rollout in group] for group in groups]
    return {
        "reward": sum(rollout.reward for rollout in rollouts) / len(rollouts),
        "signal_share": sum(map(has_signal, groups)) / len(groups),
        "all_right_share": sum(map(all, right)) / len(groups),
        "all_wrong_share": sum(not any(group) for group in right) / len(groups),
        "response_tokens": sum(lengths) / len(lengths),
        "truncated_share": sum(rollout.finish == "length" for rollout in rollouts) / len(rollouts),
    }
