"""The verb that reads stage 1 out as a token signal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.options import Out, Overwrite, app


@app.command()
def signal(
    rollouts: Annotated[Path, typer.Option(help="The rollouts that all scores belong to.")],
    teacher: Annotated[list[Path], typer.Option(help="`limbeck score` of a stage-1 policy; repeatable.")],
    contrast: Annotated[
        list[Path],
        typer.Option(help="Scores of what it is held against, the base or an unlearned twin; one a teacher."),
    ],
    out: Out,
    reference: Annotated[Path | None, typer.Option(help="Scores of the base, to state drifts.")] = None,
    scale: Annotated[str, typer.Option(help="none, or std: divide by one standard deviation.")] = "none",
    limit: Annotated[float, typer.Option(help="Clamp after scaling, nats.")] = 5.0,
    length: Annotated[str, typer.Option(help="none, or inverse: every rollout weighs the same.")] = "none",
    combine: Annotated[str, typer.Option(help="Of several teachers: mean, or agree: 0 where signs differ.")] = "mean",
    overwrite: Overwrite = False,
) -> None:
    """Token log-ratios of stage-1 policies as a signal for stage 2 (ERPD-style); no model is asked again."""
    from limbeck.batches.score import read_scores
    from limbeck.batches.signal import SignalConfig, Teacher, make_signal, write_signal
    from limbeck.config import parse
    from limbeck.errors import ConfigError
    from limbeck.folders import refuse_existing
    from limbeck.rollouts.store import read_rollouts

    if len(contrast) not in (1, len(teacher)):
        raise ConfigError(
            f"give --contrast once, or once a teacher = {len(teacher)}, received {len(contrast)}. One serves them all."
        )
    refuse_existing(out, overwrite=overwrite)
    values = {"scale": scale, "limit": limit, "length": length, "combine": combine}
    config = parse(SignalConfig, values, where="signal")
    rollout_set = read_rollouts(rollouts)
    others = contrast * len(teacher) if len(contrast) == 1 else contrast
    teachers = [
        Teacher(path.name, read_scores(path, rollout_set), {other.name: read_scores(other, rollout_set)})
        for path, other in zip(teacher, others, strict=True)
    ]
    anchor = read_scores(reference, rollout_set) if reference else None
    made = make_signal(rollout_set, teachers, anchor, config)
    agreement = made.facts["agreement"]
    shown = "no problem has both" if agreement is None else f"{agreement:.1%}"
    typer.echo(
        f"signal: mean {made.facts['mean']:.3g}, standard deviation {made.facts['std']:.3g} nats; right above wrong rollouts "
        f"of one problem: {shown}",
        err=True,
    )
    typer.echo(write_signal(out, rollout_set, made, overwrite=overwrite))
