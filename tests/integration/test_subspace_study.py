"""Arms that start from, and are held to the directions of, what another full-parameter arm had: the steps, really run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.folders import read_manifest
from limbeck.records import read_json
from limbeck.studies.config import StudyConfig
from limbeck.studies.plan import make_plan
from limbeck.studies.steps import KINDS
from limbeck.train.models import load_model
from limbeck.train.subspace import hidden_matrices
from limbeck.worlds import resolve

PROBLEMS = {"world": "abacus", "split": "train", "num": 6, "seed": 3}
STUDY = {
    "name": "inside",
    "question": "Do arms run inside the subspace of another?",
    "student": "abacus:base",
    "rollouts": {"by": "student", "samples": 2, "max_new_tokens": 16, "problems": PROBLEMS},
    "train": {"method": "full", "num_steps": 3, "batch_size": 6, "save_visible": False, "schedule": "constant"},
    "arms": [
        {"name": "free", "train": {"keep": [1, 2]}},
        {"name": "inside", "start": "free@1", "subspace": {"of": "free@2", "k": 3}},
        {"name": "again", "start": "free@1", "subspace": {"of": "inside", "k": 2, "side": "left"}},
    ],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root, out = tmp_path_factory.mktemp("inside"), {}
    for step in make_plan(StudyConfig.model_validate(STUDY)):
        if step.kind in ("rollouts", "train", "merge"):
            out[step.name] = root / step.folder
            given = {role: out[name] for role, name in step.inputs.items()}
            KINDS[step.kind](step.params, given, out[step.name], lambda share: None)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t.double() for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def test_a_full_arm_starts_where_the_kept_step_of_another_ended(folders):
    kept = weights(folders["train/free-s0"] / "kept" / "step-000001" / "model")
    merged = weights(folders["merge/free-s0@1"])
    assert kept.keys() <= merged.keys()
    assert all(torch.equal(kept[name], merged[name]) for name in kept)
    assert read_json(folders["train/inside-s0"] / "config.json")["base"] == str(folders["merge/free-s0@1"])


@pytest.mark.parametrize(("arm", "of", "before", "k", "side"), [
    ("inside", "train/free-s0/kept/step-000002", "abacus", 3, "right"),
    ("again", "train/inside-s0", "merge/free-s0@1", 2, "left"),
])  # fmt: skip
def test_its_update_stays_in_the_directions_of_the_named_one(folders, arm, of, before, k, side):
    step, _, rest = of.partition("-s0")
    source = folders[f"{step}-s0"] / rest.lstrip("/")
    anchor = weights(resolve("abacus:base") if before == "abacus" else folders[before])
    other, start, end = (
        weights(source / "model"),
        weights(folders["merge/free-s0@1"]),
        weights(folders[f"train/{arm}-s0"] / "model"),
    )
    moved = 0
    for name in read_directions(folders, arm):
        U, _, Vh = torch.linalg.svd(other[name] - anchor[name])
        update = end[name] - start[name]
        inside = update @ Vh[:k].T @ Vh[:k] if side == "right" else U[:, :k] @ U[:, :k].T @ update
        assert (update - inside).norm() <= 1e-5 * update.norm() + 1e-6
        moved += bool(update.any())
    assert moved > 10
    facts = read_manifest(folders[f"train/{arm}-s0"], "run")["subspace"]
    assert facts["leak"] < 2e-5
    assert len(facts["of"]) == 64  # what it was by digest, not where it lay


def read_directions(folders: dict[str, Path], arm: str) -> list[str]:
    return list(hidden_matrices(load_model(str(folders["merge/free-s0@1"]))))
