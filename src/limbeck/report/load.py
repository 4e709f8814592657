"""A results folder as plain values. Reads only; what is absent is empty, what is malformed is refused with its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.digests import sound
from limbeck.errors import DataError, FolderError
from limbeck.geometry.table import read_measurements
from limbeck.parquet import DAMAGES, read_parquet
from limbeck.records import read_json
from limbeck.types import Measurement

RUN_KEYS = (
    "run", "arm", "seed", "init_seed", "objective", "normalizer", "credit", "selection", "learning_rate", "items",
    "rows", "right_share", "steps", "epochs", "update_norm", "rollouts_digest", "init_digest", "adapter_digest",
    "seconds", "stop_norm", "pair_rule", "final_nll", "role", "knobs", "mixed_groups", "all_right_groups",
    "all_wrong_groups", "rows_too_long", "batch_size", "subspace", "rewards",
)  # fmt: skip
SCORES = pa.schema([("name", pa.string()), ("problem_id", pa.string()), ("right", pa.float64())])
FILES = (
    "study.json", "arms.json", "comparison.json", "measurements.parquet", "paths.json", "training.json",
    "rollouts.json", "samples.json", "provenance.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything a study wrote, as read; an absent file is an empty value and listed in ``missing``.

    ``measurements`` are those of more than one matrix, ``modules`` the cosines of single matrices with the reference's first run,
    ``scores`` the share of right samples by result and problem.
    """

    study: dict[str, Any]
    arms: list[dict[str, Any]]
    comparison: dict[str, Any]
    measurements: list[Measurement]
    modules: list[Measurement]
    paths: list[dict[str, Any]]
    training: dict[str, list[dict[str, Any]]]
    rollouts: dict[str, Any]
    samples: list[dict[str, Any]]
    provenance: dict[str, Any]
    live: dict[str, Any]
    frontier: dict[str, Any]
    missing: tuple[str, ...]
    factorial: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def load(folder: Path | str) -> Results:
    """Read a results folder.

    Raises:
        FolderError: there is no such folder, or none of the files of a study is in it.
        DataError: a file is not what its name promises.
    """
    folder = Path(folder)
    present = [name for name in FILES if (folder / name).is_file()]
    if not present:
        raise FolderError(
            f"a results folder must hold study.json and what a study writes beside it, received {folder} with none of "
            "them. Point to the folder that the study wrote."
        )
    missing = tuple(name for name in FILES if name not in present)
    study = {"name": folder.name, "question": "", "seeds": [], "arms": [], "config": {}, "reference_arm": ""}
    study |= _mapping(folder / "study.json")
    runs = _records(folder / "arms.json", ("run", "arm"))
    return Results(
        study=study,
        arms=[dict.fromkeys(RUN_KEYS) | run for run in runs],
        comparison=_comparison(folder / "comparison.json"),
        measurements=_measurements(folder / "measurements.parquet", [("aggregation", "!=", "module")]),
        modules=_measurements(folder / "measurements.parquet", _beside_reference(study["reference_arm"], runs)),
        paths=_records(folder / "paths.json", ("a", "b", "loss", "alphas", "mean", "low", "high")),
        training=_mapping(folder / "training.json"),
        rollouts=_mapping(folder / "rollouts.json"),
        samples=_records(folder / "samples.json", ("problem_id", "prompt", "answer", "responses")),
        provenance=_mapping(folder / "provenance.json"),
        live=_mapping(folder / "live.json"),
        frontier=_mapping(folder / "frontier.json"),
        factorial=_mapping(folder / "factorial.json"),
        missing=missing,
        scores=_scores(folder / "scores.parquet"),
    )


def _mapping(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, received a {type(value).__name__}. Write it again.")
    return value


def _records(path: Path, required: Sequence[str]) -> list[dict[str, Any]]:
    value = read_json(path) if path.is_file() else []
    if not isinstance(value, list):
        raise DataError(f"{path} must hold a JSON list, received a {type(value).__name__}. Write it again.")
    return _checked(path, value, required)


def _checked(path: Path, records: Sequence[Any], required: Sequence[str]) -> list[dict[str, Any]]:
    for index, record in enumerate(records):
        lacks = [key for key in required if not isinstance(record, dict) or key not in record]
        if lacks:
            raise DataError(
                f"{path}: every entry needs {', '.join(required)}; received entry {index} without {', '.join(lacks)}. "
                "Write it again with this version."
            )
    return list(records)


def _comparison(path: Path) -> dict[str, Any]:
    value = _mapping(path)
    if not value:
        return {}
    return value | {
        "arms": _checked(path, value.get("arms", []), ("name", "value", "low", "high")),
        "pairs": _checked(path, value.get("pairs", []), ("a", "b", "difference", "low", "high", "p", "p_holm")),
    }


def _beside_reference(arm: str, runs: Sequence[Mapping[str, Any]]) -> list[list[tuple[str, str, str]]]:
    """Which rows of single modules are drawn: cosines with the reference's first run. Many arms have millions of others."""
    lead = next((str(run["run"]) for run in runs if run["arm"] == arm), "")
    cosine = [("aggregation", "=", "module"), ("metric", "=", "cosine")]
    return [[*cosine, (side, "=", lead)] for side in ("arm", "other")]


def _scores(path: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    try:
        rows = read_parquet(sound(path), SCORES).to_pylist() if path.is_file() else []
    except DAMAGES as error:
        raise DataError(f"{path} must be a Parquet file of right answers, received {error}. Write it again.") from error
    for row in rows:
        found.setdefault(row["name"], {})[row["problem_id"]] = row["right"]
    return found


def _measurements(path: Path, chosen: Sequence[Any]) -> list[Measurement]:
    return read_measurements(path, pq.filters_to_expression(list(chosen))) if path.is_file() else []
