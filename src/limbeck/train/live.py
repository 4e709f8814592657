"""The on-policy loop: draw problems, answer them, grade, credit, score by teacher and base, update, record.

Nothing of a step outlives it but the student: a run is resumed from its newest checkpoint and samples again what it
would have sampled. Advantages are assigned over whole groups, frozen models are asked only where the objective reads
them, and the divisor of every update is counted before its first forward pass, as in the offline loop.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limbeck.batches.collate import TrainingData, live_tokens, plan
from limbeck.config import LiveConfig, TrainConfig
from limbeck.errors import DegenerateError, ModelError
from limbeck.objectives import find, inputs
from limbeck.train import checkpoint, record
from limbeck.train.data import prepare
from limbeck.train.engine import Engine, advance, finite_norm, gradient, outside_when_due
from limbeck.train.live_draw import Drawn, Source, draw
from limbeck.train.live_record import Clock, Watch, distances, joined
from limbeck.train.live_score import FrozenModels, columns_of, frozen_heads, own_logprobs, reference_logprobs
from limbeck.train.stale import Past
from limbeck.types import Objective

QUIET_STEPS = 10  # without anything to learn, in a row, before a sentence is said
SAMPLER_TOLERANCE = 0.1  # nats a token between sampler and trainer, fp32, before the first update
FEW_GROUPS = 8  # before the share of groups without a reward means anything


class Stage(NamedTuple):
    """One objective of a run, its settings in full, and the last step that follows it."""

    objective: Objective
    config: TrainConfig
    until: int


def run_live(
    engine: Engine,
    source: Source,
    frozen: FrozenModels,
    stages: Sequence[Stage],
    out: Path,
    *,
    after: Callable[[int], None] = lambda step: None,
    tick: Callable[[Mapping[str, Any]], None] = lambda line: None,
) -> int:
    """Train the engine's student in place on what it writes itself, from the newest checkpoint in ``out`` if there is one.

    Args:
        engine: student, optimizers, settings; a step is one batch of rollouts and all updates on it.
        source: where rollouts come from.
        frozen: teacher and base.
        stages: objectives in the order in which they follow each other.
        out: gets ``metrics.jsonl`` and ``checkpoints/``.
        after: called after every step.
        tick: told the line of every step.

    Returns:
        The last step taken; fewer than ``num_steps`` when ``stop_norm`` was reached.

    Raises:
        DivergedError: a loss, gradient or weight is not finite.
        DegenerateError: the reward function failed on too many groups.
        ModelError: the sampler's log-probs are not the trainer's.
    """
    config, log = engine.config, record.Log(out / "metrics.jsonl", engine.accelerator)
    begin = checkpoint.resume(out / "checkpoints", engine)
    log.cut_back(begin)
    history = record.read_metrics(out / "metrics.jsonl")
    past = Past(engine, source.live.staleness)
    if not begin:
        past.note(0)
    for line in history:
        tick(line)
    for step in range(begin + 1, config.num_steps + 1):
        clock = Clock()
        stage = next(stage for stage in stages if step <= stage.until)
        walker = engine._replace(config=stage.config)
        with clock("sample"), past.writing(step):
            drawn = draw(walker, source, step)
        columns = _columns(walker, source.live, frozen, stage, drawn, step, clock)
        with clock("update"):
            line = _update(walker, source.live, frozen, stage, drawn, columns, step=step, out=out)
            line["update_norm"] = finite_norm(engine, step, out)
            line |= outside_when_due(engine, step)
            line |= {"age": past.age(step)} if source.live.staleness else {}
            past.note(step)
        line = {"step": step, "objective": stage.objective.name, **drawn.facts, **line}
        passes = source.live.inner_epochs
        kept = sum(len(rollout.response_ids) for rollout in drawn.rollout_set.rollouts)
        line |= clock.facts(sampled=int(drawn.facts["tokens_sampled"]), kept=kept, passes=passes)
        log.append(line)
        history.append(line)
        tick(line)
        _complain(source.live, history, drawn)
        after(step)
        stopping = config.stop_norm is not None and line["update_norm"] >= config.stop_norm
        if step % config.checkpoint_every == 0 and step < config.num_steps and not stopping:
            checkpoint.save(out / "checkpoints", step, engine)
        if stopping:
            return step
    return config.num_steps


def stages_of(live: LiveConfig, config: TrainConfig) -> list[Stage]:
    """The stages of a run, a single one where none are given."""
    if not live.stages:
        return [Stage(find(config.objective), config, config.num_steps)]
    given = [stage.model_dump(include={"objective", "knobs", "credit"}) for stage in live.stages]
    return [
        Stage(find(stage.objective), config.model_copy(update=values), stage.until or config.num_steps)
        for stage, values in zip(live.stages, given, strict=True)
    ]


def _columns(
    engine: Engine, live: LiveConfig, frozen: FrozenModels, stage: Stage, drawn: Drawn, step: int, clock: Clock
) -> dict[str, Sequence[Any]]:
    """What frozen models say; a KL to the base that only the record reads has a clock of its own."""
    rollouts = drawn.rollout_set.rollouts
    if not rollouts:
        return {}
    found: dict[str, Sequence[Any]] = {}
    if any(name.startswith(("teacher", "reference")) for name in inputs(stage.objective)):
        with clock("score"):
            found = columns_of(engine, frozen, stage.objective, rollouts)
    if not live.weighs and "old_logprobs" in inputs(stage.objective):
        with clock("score"):
            found["old_logprobs"] = own_logprobs(engine, rollouts)
    every = live.reference_every
    due = bool(every) and ((step - 1) % every == 0 or step == engine.config.num_steps)
    if due and "reference_logprobs" not in found:
        with clock("measure"):
            found["reference_logprobs"] = reference_logprobs(engine, frozen, rollouts)
    return found


def _update(
    engine: Engine,
    live: LiveConfig,
    frozen: FrozenModels,
    stage: Stage,
    drawn: Drawn,
    columns: Mapping[str, Sequence[Any]],
    *,
    step: int,
    out: Path,
) -> dict[str, Any]:
    """Every optimizer step on the rollouts of one step; one that has nothing to learn leaves the weights alone."""
    data = _data(stage, drawn, columns)
    if data is None:
        return {**_wait(engine, live), "rollouts_digest": drawn.rollout_set.digest[:16]}
    walker = engine._replace(frozen=frozen_heads(engine, frozen, stage.objective))
    watch, lines, rates = Watch(data, drawn.num_own), [], []
    for items in _cuts(data, live, seed=engine.config.seed, step=step):
        if items:
            line = gradient(
                walker, data, items, stage.objective, step=step, out=out, length=live.max_new_tokens, watch=watch
            )
            if not lines:
                _check_sampler(engine, stage.objective, watch, live)
            lines.append(line)
            if line["grad_norm"] == 0:  # not even momentum or decay moves a student that learned nothing
                _forget(walker)
        rates.append(advance(walker))
    return {
        **joined(lines),
        **watch.facts(engine.accelerator, spread=not live.fresh),
        **(distances(drawn.rollout_set.rollouts[: drawn.num_own], columns) if live.fresh else {}),
        "learning_rate": rates[-1],
        "skipped": sum(line["grad_norm"] == 0 for line in lines) + (len(rates) - len(lines)),
        "rollouts_digest": drawn.rollout_set.digest[:16],
    }


def _data(stage: Stage, drawn: Drawn, columns: Mapping[str, Sequence[Any]]) -> TrainingData | None:
    """What the rollouts come to under the stage's selection and credit; None where nothing is left."""
    if not drawn.rollout_set.rollouts:
        return None
    try:
        data = prepare(stage.config, stage.objective, drawn.rollout_set, columns, context=None).data
    except DegenerateError:  # no right answer to select, no pair to form
        return None
    live = [i for i in range(len(data.items)) if all(live_tokens(data, row) for row in data.rows_of([i]))]
    if not live:
        return None
    items, weights = np.asarray(data.items)[live], np.asarray(data.weights)[live]
    return TrainingData(rollouts=data.rollouts, items=items, weights=weights, columns=data.columns)


def _cuts(data: TrainingData, live: LiveConfig, *, seed: int, step: int) -> list[list[int]]:
    """The items of each optimizer step: every pass goes over all of them once, in an order of its own."""
    size = -(-len(data.items) // live.minibatches)
    orders = plan(data.keys, batch_size=len(data.items), num_steps=live.inner_epochs, seed=(seed << 32) + step)
    return [order[i * size : (i + 1) * size] for order in orders for i in range(live.minibatches)]


def _wait(engine: Engine, live: LiveConfig) -> dict[str, Any]:
    """The schedule goes on, the student stays: arms that skip steps still end at the same rate."""
    updates = live.inner_epochs * live.minibatches
    return {"learning_rate": [advance(engine) for _ in range(updates)][-1], "skipped": updates}


def _forget(engine: Engine) -> None:
    for walker in engine.walkers:
        walker.optimizer.zero_grad()


def _check_sampler(engine: Engine, objective: Objective, watch: Watch, live: LiveConfig) -> None:
    """Before anything moved, the sampler's log-probs must be the trainer's: else its weights are not the student's."""
    trusted = engine.config.precision == "fp32" or engine.accelerator.device.type == "cpu"
    own = live.fresh and live.student_fraction == 1
    if not trusted or engine.config.lora.dropout or not own or live.sampling_temperature != 1:
        return
    gap = watch.gap()
    if math.isfinite(gap) and gap > SAMPLER_TOLERANCE:
        raise ModelError(
            f"the sampler's log-probs must be the trainer's within {SAMPLER_TOLERANCE} nats on fresh rollouts, received a "
            f"gap of {gap:.2g}. The model samples with other weights than it trains, or not as it reads in one pass."
        )


def _complain(live: LiveConfig, history: Sequence[Mapping[str, Any]], drawn: Drawn) -> None:
    """Say what a run cannot mend by itself; stop where there is no point in going on."""
    failed = sum(line["groups_without_reward"] for line in history)
    asked = sum(line["groups_sampled"] for line in history)
    if drawn.failures:
        warnings.warn(
            f"the reward function gave no rewards for {len(drawn.failures)} of {drawn.facts['groups_sampled']} groups: "
            f"{drawn.failures[0]}. They were left out.",
            RuntimeWarning,
            stacklevel=2,
        )
    if asked >= FEW_GROUPS and failed > live.reward_failures * asked:
        raise DegenerateError(
            f"the reward function must answer for at least {1 - live.reward_failures:.0%} of the groups, received rewards "
            f"for {asked - failed} of {asked}; the last failure: {drawn.failures[-1] if drawn.failures else 'earlier'}. "
            "Mend the function, or raise live.reward_failures; the run goes on from its newest checkpoint."
        )
    recent = [line["skipped"] for line in history[-QUIET_STEPS:]]
    if len(history) % QUIET_STEPS == 0 and len(recent) == QUIET_STEPS and all(recent):
        warnings.warn(
            f"the last {QUIET_STEPS} steps had nothing to learn from: in every group all rewards were equal. Take problems "
            "that the student sometimes gets right, more samples a problem, or an objective that reads a teacher.",
            RuntimeWarning,
            stacklevel=2,
        )
