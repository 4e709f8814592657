"""A live run before its first step: what it reads is found, compared and refused where it cannot work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.batches.collate import BEHAVIOR
from limbeck.config import LiveConfig, RunConfig, settings_of
from limbeck.errors import ConfigError, DataError
from limbeck.objectives import inputs
from limbeck.objectives.vocabulary import check_same_map
from limbeck.problems.grading import GRADER_ID
from limbeck.problems.prompts import prompt_ids, stop_ids
from limbeck.rollouts.store import read_rollouts
from limbeck.storage import local
from limbeck.train.engine import Engine
from limbeck.train.job import Job
from limbeck.train.live import Stage, run_live, stages_of
from limbeck.train.live_draw import Group, Source
from limbeck.train.live_score import FrozenModels
from limbeck.train.models import load_model, load_tokenizer, model_digest
from limbeck.train.rewards import RewardFunction, rewards_of
from limbeck.types import Problem, RolloutSet, problems_digest
from limbeck.worlds.named import problems_named, read_problems

PLACES = ("problems", "teacher", "sampling_batch")  # of a live section: known by digest, or without effect
Tick = Callable[[Mapping[str, Any]], None]


def live_job(
    config: RunConfig, model: PreTrainedModel, processes: Accelerator, *, reward: RewardFunction | None, tick: Tick
) -> Job:
    """Everything that a live run of these settings needs.

    Args:
        config: with a ``live`` section.
        model: the base, as loaded.
        processes: who takes part.
        reward: the user's; by default the grader's verdict.
        tick: told the line of every step.

    Raises:
        ConfigError: settings that cannot work together.
        DataError: fewer problems than a step asks for.
        ModelError: a teacher whose ids mean other tokens.
    """
    live = _live(config)
    stages = stages_of(live, config.train)
    given = read_rollouts(local(config.rollouts)) if config.rollouts else None
    _check(config, stages, processes)
    tokenizer = load_tokenizer(config.base)
    frozen = _frozen(config, stages, model, tokenizer)
    named = problems_named(live.problems, live.format, live.num_problems, live.problems_seed)
    problems = [problem for problem, _ in read_problems(named)]
    rooms = [_room(m) for m in (model, frozen.teacher) if m is not None]
    prompts = _fitting(problems, tokenizer, min(rooms) - live.max_new_tokens)
    _check_number(live, len(prompts), len(problems))
    if given is not None:
        _check_given(live, stages, given, min(rooms))
    source = Source(
        live=live,
        problems=[problem for problem in problems if problem.id in prompts],
        prompts=prompts,
        tokenizer=tokenizer,
        stops=_stops(live, frozen, tokenizer, model),
        rewards=rewards_of(reward, limit_seconds=live.reward_seconds),
        given=_groups(given),
        seed=config.train.seed,
        writer=frozen.teacher if live.writer == "teacher" else None,
    )
    updates = config.train.num_steps * live.inner_epochs * live.minibatches

    def walk(engine: Engine, out: Path, after: Callable[[int], None]) -> int:
        with source.rewards:
            return run_live(engine._replace(config=config.train), source, frozen, stages, out, after=after, tick=tick)

    return Job(
        config=config.train.model_copy(update={"num_steps": updates}),
        frozen={},
        identity={
            "live": {name: value for name, value in settings_of(live, "live").items() if name not in PLACES},
            "problems": problems_digest(problems),
            "teacher": model_digest(live.teacher) if live.teacher else "",
            "rollouts": given.digest if given else "",
            "reward": _reward_name(reward),
        },
        record={},
        walk=walk,
        facts=lambda steps: {
            "objective": " > ".join(stage.objective.name for stage in stages),
            "normalizer": " > ".join(config.train.normalizer or stage.objective.normalizer for stage in stages),
            "credit": " > ".join(stage.config.credit or stage.objective.credit for stage in stages),
            "problems": len(prompts),
            "problems_too_long": len(problems) - len(prompts),
            "problems_digest": problems_digest(problems),
            "teacher_digest": model_digest(live.teacher) if live.teacher else "",
            "rollouts_digest": given.digest if given else "",
            "student_fraction": live.student_fraction,
            **({} if live.fresh else {"writer": live.writer, "staleness": live.staleness, "importance": live.weighs}),
            "one_sided_stops": sorted(frozen.one_sided),
            "reward": _reward_name(reward),
        },
    )


def _live(config: RunConfig) -> LiveConfig:
    assert config.live is not None  # the caller asked
    return config.live


def _check(config: RunConfig, stages: Sequence[Stage], processes: Accelerator) -> None:
    """Refuse, before anything is sampled, settings that cannot work together."""
    live, train = _live(config), config.train
    if processes.distributed_type == DistributedType.FSDP:
        raise ConfigError(
            "a live run samples on every process and needs the whole student there, received FSDP. Launch without it."
        )
    if config.anchor or train.kl_budget is not None or train.kl_every:
        raise ConfigError(
            "anchor, train.kl_budget and train.kl_every are measured on a fixed rollout set, received one of them in a "
            "live run. Leave it out; live.reference_every measures the KL to the base on what the student writes."
        )
    if live.staleness and (live.writer == "teacher" or processes.num_processes > 1):
        raise ConfigError(
            "live.staleness is of a student that writes, on one process, received "
            f"live.writer = {live.writer!r} on {processes.num_processes}. Leave one of them out."
        )
    if config.scores:
        raise ConfigError("a live run scores its own rollouts, received scores. Leave them out.")
    if bool(config.rollouts) != (live.student_fraction < 1):
        raise ConfigError(
            "a live run reads rollouts exactly where the student does not answer every prompt, received "
            f"rollouts = {config.rollouts!r} and live.student_fraction = {live.student_fraction}. Give both or neither."
        )
    if live.stages and (train.objective, train.knobs, train.credit) != ("sft", {}, None):
        raise ConfigError(
            f"live.stages stand in place of train.objective, train.knobs and train.credit, received {train.objective!r} "
            "beside them. Name objectives in the stages alone."
        )
    ends = [0, *(stage.until for stage in stages)]
    if ends != sorted(set(ends)) or ends[-1] < train.num_steps:
        raise ConfigError(
            f"live.stages must end one after another and last to the end, step {train.num_steps}; received until = "
            f"{', '.join(map(str, ends[1:]))}. Leave out the last stage's until."
        )
    for stage in stages:
        _check_stage(live, stage)


def _check_stage(live: LiveConfig, stage: Stage) -> None:
    name, read = stage.objective.name, inputs(stage.objective)
    if "signal" in read:
        raise ConfigError(f"{name} reads a signal that only a fixed rollout set has. Train it on rollouts instead.")
    if any(item.startswith("teacher") for item in read) and not live.teacher:
        raise ConfigError(f"{name} reads a teacher, received none. Give live.teacher (--teacher).")
    if live.sampling_temperature != 1 and any(item in BEHAVIOR for item in read):
        raise ConfigError(
            f"{name} compares student and sampler, so live.sampling_temperature must be 1, received "
            f"{live.sampling_temperature:g}: the ratio would be that of two temperatures. Set it to 1."
        )
    if live.writer == "teacher" and not live.teacher:
        raise ConfigError('live.writer = "teacher" needs one, received none. Give live.teacher (--teacher).')
    if live.samples < 2 and {"advantages", "pairs"} & set(read):
        raise ConfigError(
            f"{name} compares rollouts of one problem, so live.samples must be at least 2, received {live.samples}."
        )


def _frozen(
    config: RunConfig, stages: Sequence[Stage], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> FrozenModels:
    """The teacher where a stage reads it, its token map and end tokens compared with the student's."""
    live = _live(config)
    num_ids = max(tokenizer.get_vocab().values()) + 1
    reads = any(name.startswith("teacher") for stage in stages for name in inputs(stage.objective))
    reads = reads or live.writer == "teacher"
    if not (reads and live.teacher):
        return FrozenModels(base=config.base, teacher=None, num_ids=num_ids, one_sided=frozenset())
    theirs = load_tokenizer(live.teacher)
    check_same_map(tokenizer.get_vocab(), theirs.get_vocab())
    teacher = load_model(live.teacher, dtype=model.dtype).requires_grad_(False)
    one_sided = set(stop_ids(tokenizer, model.generation_config)) ^ set(stop_ids(theirs, teacher.generation_config))
    return FrozenModels(base=config.base, teacher=teacher, num_ids=num_ids, one_sided=frozenset(one_sided))


def _stops(
    live: LiveConfig, frozen: FrozenModels, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> list[int]:
    """Where an answer ends: at the student's end tokens, and at those of a teacher that writes."""
    own = stop_ids(tokenizer, model.generation_config)
    return [*own, *sorted(frozen.one_sided.difference(own))] if live.writer == "teacher" else list(own)


def _room(model: nn.Module) -> int:
    """The longest row that a model can read."""
    return getattr(model.config, "max_position_embeddings", None) or 1 << 30


def _fitting(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, room: int) -> dict[str, tuple[int, ...]]:
    """Prompt ids of the problems that leave room for a whole answer, by problem id."""
    prompts = {problem.id: prompt_ids(tokenizer, problem.prompt) for problem in problems}
    return {name: ids for name, ids in prompts.items() if len(ids) <= room}


def _check_number(live: LiveConfig, fitting: int, num: int) -> None:
    if fitting < live.prompts_per_step:
        raise DataError(
            f"a step needs live.prompts_per_step = {live.prompts_per_step} problems whose prompt leaves room for "
            f"{live.max_new_tokens} tokens, received {fitting} of {num}. Lower either, or give more problems."
        )


def _check_given(live: LiveConfig, stages: Sequence[Stage], given: RolloutSet, room: int) -> None:
    """Refuse answers of others that are too few, too long, or of unknown probability where a ratio needs it."""
    if len(given.groups) < live.prompts_per_step:
        raise DataError(
            f"given rollouts must hold at least live.prompts_per_step = {live.prompts_per_step} problems, received "
            f"{len(given.groups)}. Lower it, or sample more."
        )
    longest = int(given.outline.tokens.max())
    if longest > room:
        raise DataError(
            f"given rollouts must fit the context of student and teacher, {room} tokens, received one of {longest}. Drop it, "
            "or sample with a lower max_new_tokens."
        )
    reading = [stage.objective.name for stage in stages if set(BEHAVIOR) & set(inputs(stage.objective))]
    unknown = int((~given.outline.known).sum())
    temperature = given.provenance.get("sampling_temperature", 1.0)
    if reading and (unknown or temperature != 1.0):
        raise ConfigError(
            f"{reading[0]} compares the student with who wrote a rollout, so given ones must carry their sampler's log-probs at "
            f"temperature 1, received {unknown} without and temperature {temperature}. Take an objective that reads none, such "
            "as jsd or sft, or rollouts of a sampler that gives them."
        )


def _groups(given: RolloutSet | None) -> list[Group]:
    """Groups under names of their own, so that nothing is compared across two samplers."""
    if given is None:
        return []
    return [
        tuple(replace(given.rollouts[i], problem_id=f"given/{name}") for i in rows)
        for name, rows in given.groups.items()
    ]


def _reward_name(reward: RewardFunction | None) -> str:
    return GRADER_ID if reward is None else f"{reward.__module__}.{reward.__qualname__}"
