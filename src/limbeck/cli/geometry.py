"""The verb that measures what training did to the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.cli.options import Out, Overwrite, app

if TYPE_CHECKING:  # a verb imports what it needs when it runs
    from limbeck.geometry.dense.checkpoints import Checkpoint
    from limbeck.types import Measurement

OneK = Annotated[
    list[int] | None,
    typer.Option("--k", help="Leading directions for angles; repeatable. 1, 10 (whole weights: and 64)."),
]


@app.command()
def measure(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="PEFT LoRA adapters or runs, from anywhere; or whole weights: the base, then checkpoints of it."
        ),
    ],
    out: Out,
    base: Annotated[
        str | None,
        typer.Option(
            help="Adapters: what they were trained on; not read. Whole weights: the base, if not given first."
        ),
    ] = None,
    k: OneK = None,
    draws: Annotated[
        int | None,
        typer.Option(
            min=20, help="Adapters: draws of the simulated nulls, 200; trajectories: orders that are tried, 50."
        ),
    ] = None,
    spectra: Annotated[
        str, typer.Option(help="Whole weights: gram (every singular value) or ritz (the leading ones, with residuals).")
    ] = "gram",
    nulls: Annotated[
        str,
        typer.Option(help="Whole weights, trajectories: nulls drawn for one matrix of each kind, for all, or none."),
    ] = "kind",
    pairs: Annotated[
        bool, typer.Option("--pairs/--no-pairs", help="Whole weights: also compare every two checkpoints.")
    ] = True,
    only: Annotated[
        str, typer.Option(help="Whole weights: sparsity counts changed 16-bit codes and nothing else, without nulls.")
    ] = "",
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="The snapshots of runs that were trained with train.trajectory.")
    ] = False,
    successive: Annotated[
        bool,
        typer.Option(
            "--successive", help="Whole weights: the checkpoints are one run's, in order; the rows of --trajectory."
        ),
    ] = False,
    eager: Annotated[
        bool, typer.Option("--eager", help="Whole weights: plain reads instead of mapping, for network file systems.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Matrices at a time; the machine's cores by default.")
    ] = None,
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Adapters or checkpoints to measurements.parquet: norms, ranks, cosines, angles, sparsity, each beside its null."""
    from limbeck.errors import ConfigError
    from limbeck.geometry.dense.checkpoints import is_adapter, is_checkpoint, open_checkpoint
    from limbeck.worlds import resolve

    if trajectory:
        chosen = {"draws": draws or 50, "nulls": nulls, "seed": seed}
        _measure_trajectories(folders, out, chosen, workers=workers, overwrite=overwrite)
        typer.echo(out)
        return
    whole = [is_checkpoint(resolve(str(folder))) for folder in folders]
    if successive and not all(whole):
        raise ConfigError(
            f"--successive takes whole weights, received {folders[whole.index(False)]} without. Of adapters, a run that was "
            "trained with train.trajectory has snapshots: --trajectory."
        )
    if successive:
        given = [Path(base), *folders] if base else folders
        chosen = {"draws": draws or 50, "nulls": nulls, "seed": seed}
        _measure_successive(given, out, chosen, eager=eager, workers=workers, overwrite=overwrite)
    elif not any(whole):
        chosen = {"ks": k or [1, 10], "draws": draws or 200, "seed": seed, "workers": workers}
        _measure_adapters(folders, out, chosen, base=base, overwrite=overwrite)
    elif all(whole):
        given = [Path(base), *folders] if base else folders
        chosen = {"ks": k or [1, 10, 64], "spectra": spectra, "nulls": nulls, "pairs": pairs, "only": only}
        chosen |= {"seed": seed}
        _measure_checkpoints(given, out, chosen, eager=eager, workers=workers, overwrite=overwrite)
    else:
        adapter = folders[whole.index(False)]
        if not is_adapter(adapter):
            open_checkpoint(adapter)  # says what such a folder must hold
        raise ConfigError(
            f"measure takes adapters alone or whole weights alone, received both ({adapter} holds no whole weights). "
            "Leave the base out, its weights are not needed for adapters; or save the adapter merged into its base in fp32."
        )
    typer.echo(out)


def _measure_trajectories(
    folders: list[Path], out: Path, chosen: dict, *, workers: int | None, overwrite: bool
) -> None:
    from limbeck.folders import publish
    from limbeck.geometry.trajectory.suite import measure as measure_all
    from limbeck.progress import bar
    from limbeck.report.terminal import short_names

    facts: dict[str, object] = {"runs": [str(path) for path in folders], **chosen}
    with publish(out, overwrite=overwrite, kind="measurements", facts=facts) as temporary:
        with bar("measure", 1.0) as advance:
            rows = measure_all(folders, short_names(folders), **chosen, workers=workers, progress=advance)
        _write(temporary, rows)
    _show_course(rows)


def _measure_successive(
    folders: list[Path], out: Path, chosen: dict, *, eager: bool, workers: int | None, overwrite: bool
) -> None:
    """Checkpoints of one run: first the snapshots that it would have recorded, each finished one kept, then their rows."""
    from limbeck.folders import claim, seal
    from limbeck.geometry.trajectory.checkpoints import record, steps_of
    from limbeck.geometry.trajectory.suite import measure as measure_all
    from limbeck.progress import bar
    from limbeck.report.terminal import short_names
    from limbeck.rollouts.journal import JOURNAL, Journal

    opened = _opened(folders, eager)
    steps = steps_of(folders[1:])
    claim(out, overwrite=overwrite)
    identity = {"checkpoints": [checkpoint.identity() for checkpoint in opened], "steps": steps}
    with Journal(out / JOURNAL, identity, restart=overwrite) as journal, bar("read", 1.0) as advance:
        record(
            opened[0], opened[1:], steps, out, workers=workers, done=journal.done, keep=journal.append, progress=advance
        )
    with bar("measure", 1.0) as advance:
        rows = measure_all([out], [short_names([out])[0]], **chosen, workers=workers, progress=advance)
    _write(out, rows)
    (out / JOURNAL).unlink()
    seal(
        out, kind="measurements", facts={"base": str(folders[0]), "checkpoints": folders[1:], "steps": steps, **chosen}
    )
    _show_course(rows)


def _measure_adapters(folders: list[Path], out: Path, chosen: dict, *, base: str | None, overwrite: bool) -> None:
    from limbeck.folders import publish
    from limbeck.geometry.adapters import read_adapter
    from limbeck.geometry.suite import measure as measure_all
    from limbeck.geometry.table import write_measurements
    from limbeck.progress import bar
    from limbeck.report.terminal import measurement_table, short_names

    facts: dict[str, object] = {"adapters": [str(path) for path in folders]}
    with publish(out, overwrite=overwrite, kind="measurements", facts=facts) as temporary:
        deltas = [read_adapter(path, name=name) for path, name in zip(folders, short_names(folders), strict=True)]
        facts["base"] = base or deltas[0].base
        with bar("measure", 1.0) as advance:
            rows = measure_all(deltas, **chosen, progress=advance)
        write_measurements(temporary / "measurements.parquet", rows)
    typer.echo(measurement_table(rows), err=True)


def _measure_checkpoints(
    folders: list[Path], out: Path, chosen: dict, *, eager: bool, workers: int | None, overwrite: bool
) -> None:
    from limbeck.folders import claim, seal
    from limbeck.geometry.dense.suite import measure as measure_all
    from limbeck.progress import bar
    from limbeck.report.terminal import DENSE_SHOWN, measurement_table
    from limbeck.rollouts.journal import JOURNAL, Journal

    opened = _opened(folders, eager)
    claim(out, overwrite=overwrite)
    identity = {"checkpoints": [checkpoint.identity() for checkpoint in opened], **chosen}
    with Journal(out / JOURNAL, identity, restart=overwrite) as journal, bar("measure", 1.0) as advance:
        rows = measure_all(
            opened[0], opened[1:], **chosen, workers=workers, done=journal.done, keep=journal.append, progress=advance
        )
    _write(out, rows)
    (out / JOURNAL).unlink()
    aliases = [dict(checkpoint.aliases) for checkpoint in opened]
    seal(
        out, kind="measurements", facts={"base": str(folders[0]), "checkpoints": folders[1:], "tied": aliases, **chosen}
    )
    typer.echo(measurement_table(rows, shown=DENSE_SHOWN), err=True)


def _opened(folders: Sequence[Path], eager: bool) -> list[Checkpoint]:
    """The base first, then checkpoints, under names that tell them apart."""
    from limbeck.geometry.dense.checkpoints import open_checkpoint
    from limbeck.report.terminal import short_names
    from limbeck.worlds import resolve

    paths = [Path(resolve(str(folder))) for folder in folders]
    return [open_checkpoint(p, name=name, eager=eager) for p, name in zip(paths, short_names(paths), strict=True)]


def _write(folder: Path, rows: Sequence[Measurement]) -> None:
    from limbeck.geometry.table import write_csv, write_measurements

    write_measurements(folder / "measurements.parquet", rows)
    write_csv(folder / "measurements.csv", rows)


def _show_course(rows: Sequence[Measurement]) -> None:
    from limbeck.report.terminal import TRAJECTORY_SHOWN, measurement_table

    few = [row for row in rows if row.k in (0, 16) and row.null.id != "N-EXCH"]
    typer.echo(measurement_table(few, shown=TRAJECTORY_SHOWN), err=True)
