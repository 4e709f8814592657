"""The offline loop: plan, resume, then per step gradient, advance, record."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from limbeck.batches.collate import TrainingData, plan
from limbeck.train import checkpoint, record, trust
from limbeck.train.engine import Engine, advance, finite_norm, gradient, outside_when_due
from limbeck.train.trust import Probe
from limbeck.types import Objective


def run_steps(
    engine: Engine,
    data: TrainingData,
    objective: Objective,
    out: Path,
    *,
    probe: Probe | None = None,
    after: Callable[[int], None] = lambda step: None,
    tick: Callable[[int], None] = lambda num: None,
) -> int:
    """Train the engine's student in place, from the newest checkpoint in ``out`` if there is one.

    Args:
        engine: student, optimizers, settings; its normalizer overrides the published one.
        data: items with the columns that the objective reads.
        objective: the row of ``OBJECTIVES``.
        out: gets ``metrics.jsonl`` and ``checkpoints/``.
        probe: what the KL to the reference is measured on; needed where the settings ask for it.
        after: called after every step.
        tick: called with 1 after every step.

    Returns:
        The last step taken; fewer than ``num_steps`` when ``stop_norm`` was reached or ``kl_budget`` spent.

    Raises:
        DivergedError: a loss, gradient or weight is not finite; the step's inputs are saved in ``out/diverged``.
        DegenerateError: the KL budget is smaller than the first step.
    """
    config, log = engine.config, record.Log(out / "metrics.jsonl", engine.accelerator)
    begin = checkpoint.resume(out / "checkpoints", engine)
    log.cut_back(begin)
    tick(begin)
    steps = plan(data.keys, batch_size=config.batch_size, num_steps=config.num_steps, seed=config.seed)
    for step, items in enumerate(steps, start=1):
        if step <= begin:
            continue
        clock = time.monotonic()
        line = gradient(engine, data, items, objective, step=step, out=out)
        undo = trust.Undo(engine, config.kl_budget) if config.kl_budget is not None else None
        line["learning_rate"] = advance(engine)
        if probe is not None and trust.due(config, step):
            line |= trust.measure(engine, probe)
        spent = undo is not None and undo.spent(step, line)
        line["update_norm"] = finite_norm(engine, step, out)
        line |= outside_when_due(engine, step)
        log.append({"step": step, **line, "seconds": round(time.monotonic() - clock, 4)})
        if spent:  # the line says what the step would have cost; the student is as it was before
            return step - 1
        stopping = config.stop_norm is not None and line["update_norm"] >= config.stop_norm
        after(step)
        if step % config.checkpoint_every == 0 and step < config.num_steps and not stopping:
            checkpoint.save(out / "checkpoints", step, engine)
        tick(1)
        if stopping:
            return step
    return config.num_steps
