"""The step that lets every run read the same solutions and compares their hidden states, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from limbeck.evals.apply import applied
from limbeck.evals.features import response_means
from limbeck.evals.paths import reading
from limbeck.folders import publish
from limbeck.geometry.adapters import read_adapter
from limbeck.geometry.representation import cka, row_shuffle_null
from limbeck.geometry.table import write_measurements
from limbeck.studies.chains import kept
from limbeck.studies.inputs import read_problems
from limbeck.train.models import load_model, load_tokenizer
from limbeck.types import Measurement, Null

States = list[Tensor]  # one (items, hidden) matrix per layer
Place = tuple[str, int | None]  # a run and the step that it keeps, None for its end
BASE: Place = ("base", None)
NULL_DRAWS = 20


def compare_states(params: dict[str, Any], inputs: dict[str, Path], out: Path, tell: Callable[[float], None]) -> None:
    """CKA of every run, or of kept steps, with the base, and of pairs: every two, or those that are named.

    The text is the problems' solutions, or their answers.
    """
    points = [(run, step) for run, step in params.get("points", [[run, None] for run in inputs])]
    model, tokenizer = load_model(params["base"]), load_tokenizer(params["base"])
    rows = [
        reading(tokenizer, problem, solution)
        for problem, solution in read_problems(params["problems"])[: params["num"]]
    ]
    states: dict[Place, States] = {BASE: response_means(model, rows)}
    for run, step in points:
        with applied(model, read_adapter(kept(inputs[run], step), name=run)):
            states[run, step] = response_means(model, rows)
        tell(0.7 * len(states) / (len(points) + 1))
    named = [((a, None), (b, None)) for a, b in params["pairs"]] if "pairs" in params else combinations(points, 2)
    pairs: list[tuple[Place, Place]] = [*((point, BASE) for point in points), *named]
    measured: list[Measurement] = []
    for index, (one, other) in enumerate(pairs, start=1):
        found = compare_layers(one[0], other[0], states[one], states[other], seed=index)
        measured += found if one[1] is None else [replace(row, step=one[1]) for row in found]
        tell(0.7 + 0.3 * index / len(pairs))
    with publish(out, kind="measurements") as temporary:
        write_measurements(temporary / "measurements.parquet", measured)


def compare_layers(arm: str, other: str, x: States, y: States, *, seed: int) -> list[Measurement]:
    """Debiased and biased CKA of each layer; layer -1 is the embedding. The null shuffles items.

    A null is drawn per pair at the last layer only and stands beside every layer of that pair: it depends on the number of
    items far more than on the layer.
    """
    rng = np.random.default_rng(seed)
    out = []
    for debiased in (True, False):
        null = row_shuffle_null(x[-1], y[-1], debiased=debiased, rng=rng, draws=NULL_DRAWS)
        out += [
            _measurement(arm, other, layer - 1, a, b, debiased, null)
            for layer, (a, b) in enumerate(zip(x, y, strict=True))
        ]
    return out


def _measurement(arm: str, other: str, layer: int, x: Tensor, y: Tensor, debiased: bool, null: Null) -> Measurement:
    value, reason = cka(x, y, debiased=debiased)
    return Measurement(
        metric="cka_debiased" if debiased else "cka",
        aggregation="layer",
        layer=layer,
        arm=arm,
        other=other,
        value=value,
        unit="none",
        null=null,
        reason=reason,
    )
