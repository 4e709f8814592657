"""The step that splits a factorial study's variance: how much of direction, rank, accuracy and length each factor decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import ConfigError
from limbeck.evals.tables import read_table
from limbeck.folders import publish, read_manifest
from limbeck.geometry.adapters import read_adapter
from limbeck.geometry.direction import cosines, inner_products
from limbeck.geometry.spectrum import singular_values, stable_rank
from limbeck.records import plain, write_json
from limbeck.stats.factorial import ERRORS, Share, split
from limbeck.stats.multiplicity import holm
from limbeck.studies.config import StudyConfig
from limbeck.studies.grid import cells_of, name_of
from limbeck.studies.runs import Runs, run_name
from limbeck.studies.step import Plan
from limbeck.types import Delta


def add_factorial(plan: Plan, runs: Runs, config: StudyConfig) -> None:
    """One step over every cell and seed; none where there is one seed, which leaves no error to hold an effect against.

    Raises:
        ConfigError: cells of other seeds than the rest.
    """
    cells = {name_of(cell): list(cell) for cell in cells_of(config.factorial)}
    arms = [config.arm(name) for name in cells]
    given = {config.seeds_of(arm) for arm in arms}
    if len(given) > 1:
        raise ConfigError(
            "every arm of a factorial must run at the same seeds, or its variance cannot be split, received "
            f"{' and '.join(str(list(seeds)) for seeds in sorted(given))}. Leave the arms' own seeds out."
        )
    if not cells or len(config.seeds_of(arms[0])) < 2:
        return
    members = [(arm, seed) for arm in arms for seed in config.seeds_of(arm)]
    names = [run_name(arm.name, seed) for arm, seed in members]
    levels = [[cells[arm.name][place] for arm, _ in members] for place in range(len(config.factorial))]
    adapters = all(arm.start is None and config.training(arm, 0).method == "lora" for arm in arms)
    params = {
        "arms": [arm.name for arm, _ in members], "seeds": [seed for _, seed in members],
        "levels": dict(zip(config.factorial, levels, strict=True)), "adapters": adapters, "errors": list(ERRORS),
    }  # fmt: skip
    read = {f"run:{name}": runs.final[name] for name in names} | {f"table:{name}": runs.table(name) for name in names}
    plan.add("factorial", "factorial", params, read, 5)


def split_variance(params: dict[str, Any], inputs: dict[str, Path], out: Path, tell: Callable[[float], None]) -> None:
    """Shares of the factors in accuracy and length, and of adapters in direction and stable rank as well, by both errors."""
    folders = [path for role, path in inputs.items() if role.startswith("run:")]
    numbers = {
        "accuracy": [_accuracy(path) for role, path in inputs.items() if role.startswith("table:")],
        "log norm": [math.log(read_manifest(path, "run")["update_norm"]) for path in folders],
    }
    responses = {}
    if params["adapters"]:
        deltas = [read_adapter(path) for path in folders]
        tell(0.3)
        responses["direction"] = cosines(inner_products(deltas))
        numbers = {"stable rank": [_stable_rank(delta) for delta in deltas], **numbers}
    tell(0.7)
    responses |= {name: np.outer(values, values) for name, values in numbers.items()}
    levels, seeds = params["levels"], params["seeds"]
    shares = {
        error: {name: _corrected(split(inner, levels, seeds, error=error)) for name, inner in responses.items()}
        for error in params["errors"]
    }
    rows = [
        {"arm": arm, "seed": seed, **{name: values[place] for name, values in numbers.items()}}
        for place, (arm, seed) in enumerate(zip(params["arms"], params["seeds"], strict=True))
    ]
    found = {"levels": levels, "shares": shares["own"], "pooled": shares["pooled"], "runs": rows}
    with publish(out, kind="factorial") as folder:
        write_json(folder / "factorial.json", plain(found))


def _corrected(shares: Sequence[Share]) -> list[dict[str, Any]]:
    """Shares as records, with p corrected over the factors and their interactions by Holm's rule."""
    tested = [share.p for share in shares if not math.isnan(share.p)]
    adjusted = iter(holm(tested))
    return [share._asdict() | {"p_holm": math.nan if math.isnan(share.p) else next(adjusted)} for share in shares]


def _accuracy(table: Path) -> float:
    return float(read_table(table).correct.double().mean())


def _stable_rank(delta: Delta) -> float:
    """Mean over matrices."""
    return float(np.mean([stable_rank(singular_values(factors)).item() for factors in delta.modules.values()]))
