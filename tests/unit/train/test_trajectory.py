"""Snapshots along a run are what kept checkpoints give in float64; a run that is killed has the same; nothing else is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.reference import geometry as reference
from typer.testing import CliRunner

from limbeck import cli
from limbeck.config import RunConfig
from limbeck.digests import file_digest
from limbeck.errors import ConfigError, FolderError, ProvenanceError
from limbeck.folders import amend, read_manifest
from limbeck.geometry.adapters import read_adapter
from limbeck.geometry.table import read_measurements
from limbeck.geometry.trajectory import store
from limbeck.geometry.trajectory.snapshot import of_weights
from limbeck.geometry.trajectory.suite import measure
from limbeck.train import loop
from limbeck.train.models import load_model
from limbeck.train.run import train

STEPS = (4, 7, 11)


@pytest.fixture
def trained(base, rollouts, settings, tmp_path):
    def run(name: str, **changes) -> Path:
        values = {"num_steps": 11, "trajectory": 3, "checkpoint_every": 5, **changes}
        config = RunConfig(base=base, rollouts=rollouts, train=settings.model_copy(update=values))
        return train(config, tmp_path / name)

    return run


def rows_of(run: Path, **options):
    rows = measure([run], draws=20, **{"workers": 1, **options})
    return {(r.metric, r.side, r.k, r.step, r.other, r.aggregation, r.module or r.kind, r.null.id): r for r in rows}


def updates(run: Path, base: str, method: str) -> dict[str, list[np.ndarray]]:
    """Updates of every kept step in float64."""
    start = load_model(base).state_dict()
    out: dict[str, list[np.ndarray]] = {}
    for step in STEPS:
        folder = run / "kept" / f"step-{step:06d}"
        if method == "lora":
            for name, factors in read_adapter(folder).modules.items():
                out.setdefault(name, []).append(factors.left.double().numpy() @ factors.right.double().numpy())
            continue
        for name, weight in load_file(folder / "model" / "model.safetensors").items():
            out.setdefault(name.removesuffix(".weight"), []).append((weight.double() - start[name].double()).numpy())
    return out


@pytest.mark.parametrize("method", ["full", "lora"])
def test_snapshots_are_what_kept_checkpoints_give(trained, base, method):
    run = trained("run", method=method, keep=STEPS, trajectory_k=12)
    found, truth = rows_of(run, nulls="none"), updates(run, base, method)
    assert sorted(p.name for p in (run / store.FOLDER).iterdir()) == [
        "base.safetensors", "scalars.jsonl", *(f"step-{step:06d}.safetensors" for step in STEPS),
    ]  # fmt: skip
    start = load_model(base).state_dict()
    matrices = {name: path for name, path in truth.items() if path[0].ndim == 2}
    assert len(matrices) == (15 if method == "full" else 8)
    compared = 0
    for name, path in truth.items():
        weight = start[f"{name}.weight"]
        for place, (step, update) in enumerate(zip(STEPS, path, strict=True)):
            norm = found[
                "frobenius_norm", "", 0, step, "", "module", name, "N-WALK" if method == "full" else "N-WALK-ROW"
            ]
            assert norm.value == pytest.approx(np.linalg.norm(update), rel=1e-5)
            before = path[place - 1] if place else np.zeros_like(update)
            grown = found["increment_norm", "", 0, step, "previous", "module", name, ""]
            assert grown.value == pytest.approx(np.linalg.norm(update - before), rel=1e-4)
            visible = (weight.double() + torch.from_numpy(update)).float().bfloat16() == weight.bfloat16()
            seen = found["sparsity_visible", "", 0, step, "", "module", name, "N-ROUND"]
            assert seen.value == pytest.approx(visible.double().mean().item(), abs=3 / weight.numel())
    for name, path in matrices.items():
        for step, update in zip(STEPS, path, strict=True):
            spectrum = np.linalg.svd(update, compute_uv=False)
            spectrum = spectrum[spectrum > 1e-9 * spectrum[0]]
            for metric, k in (("stable_rank", 0), ("participation", 0), ("topk_energy", 4), ("topk_energy", 8)):
                row = found[metric, "", k, step, "", "module", name, ""]
                assert row.value == pytest.approx(reference.spectral(spectrum, metric, k), rel=1e-5), (name, metric)
            if method == "full":
                hill = found["hill", "", 10, step, "", "module", name, ""]
                assert hill.value == pytest.approx(reference.spectral(spectrum, "hill", 10), rel=1e-4)
        for side in ("left", "right"):
            for step, update, other in zip(STEPS[:2], path, path[1:], strict=False):
                for label, end in (
                    (("end", path[-1]),) if step == STEPS[0] else (("end", path[-1]), ("previous", path[0]))
                ):
                    row = found["sim_k", side, 4, step, label, "module", name, ""]
                    if "gap_ratio" not in row.reason:
                        assert row.value == pytest.approx(reference.sim_k(update, end, side, 4), abs=1e-4), (name, side)
                        compared += 1
                assert other is not update
    assert compared > 2 * len(matrices)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_same_numbers_with_nulls_come_twice_and_in_means(trained, method):
    run = trained("run", method=method)
    found = rows_of(run)
    walk = "N-WALK" if method == "full" else "N-WALK-ROW"
    for null, ids in ((walk, (walk, "")), ("N-EXCH", ("N-EXCH",)), ("N-EXCH-NORM", ("N-EXCH-NORM",))):
        row = found["sim_k", "left", 4, 4, "end", "module-mean", "", null]
        assert row.null.q05 <= row.null.mean <= row.null.q95
        assert 0 < row.value <= 1
        kinds = [r for key, r in found.items() if key[:6] == ("sim_k", "left", 4, 4, "end", "module") and key[7] in ids]
        defined = [r.value for r in kinds if np.isfinite(r.value)]
        assert row.value == pytest.approx(np.mean(defined))
    assert ("sim_k", "left", 4, 11, "end", "module-mean", "", walk) not in found
    assert ("sim_k", "left", 4, 4, "previous", "module-mean", "", walk) not in found
    total = found["frobenius_norm", "", 0, 11, "", "stacked", "", walk].value
    assert total == pytest.approx(read_manifest(run)["update_norm"], rel=1e-5)
    if method == "lora":  # the draws of a matrix are its own, whoever works beside
        again = rows_of(run, workers=2)
        assert [repr(row) for row in again.values()] == [repr(row) for row in found.values()]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_killed_run_has_the_same_trajectory(trained, monkeypatch, method):
    whole = trained("whole", method=method)
    real = loop.gradient

    def dies(*args, **settings):
        if (
            settings["step"] == 9
        ):  # the newest checkpoint is of step 5, the snapshots before it of step 4, after it of 7
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(loop, "gradient", dies)
    with pytest.raises(KeyboardInterrupt):
        trained("cut", method=method)
    monkeypatch.setattr(loop, "gradient", real)
    cut = trained("cut", method=method)
    names = sorted(p.name for p in (whole / store.FOLDER).iterdir())
    assert names == sorted(p.name for p in (cut / store.FOLDER).iterdir())
    assert all(file_digest(whole / store.FOLDER / n) == file_digest(cut / store.FOLDER / n) for n in names)


def test_a_run_that_ends_early_has_its_last_step_among_them(trained):
    run = trained("run", method="full", stop_norm=1e-6)
    last = read_manifest(run)["steps"]
    assert last < STEPS[0]
    assert store.steps_in(run / store.FOLDER) == [last]
    assert read_manifest(run)["trajectory"]["snapshots"] == 1


def test_training_is_the_same_with_and_without(trained):
    one, other = trained("with", method="full"), trained("without", method="full", trajectory=0)
    assert file_digest(one / "model/model.safetensors") == file_digest(other / "model/model.safetensors")
    assert not (other / store.FOLDER).exists()


def test_a_large_matrix_is_followed_by_its_leading_directions():
    """Above the size that is decomposed whole: Ritz values, begun near the last directions, within what their residual says."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(260, 300, generator=generator).bfloat16()
    power = torch.arange(1, 261) ** -1.0
    left, right = (torch.linalg.qr(torch.randn(n, 260, generator=generator)).Q for n in (260, 300))
    first = base.float() + 0.01 * (left * power) @ right.T
    second = first + 0.004 * torch.linalg.qr(torch.randn(260, 260, generator=generator)).Q * power @ right.T
    one = of_weights(base, first, base, 32, {})
    two = of_weights(base, second, first, 32, one.tensors)
    assert two.facts["update_exactness"] == "ritz"
    update = second.double().numpy() - base.double().numpy()
    values = np.linalg.svd(update, compute_uv=False)
    assert two.facts["stable_rank"] == pytest.approx(np.sum(values**2) / values[0] ** 2, rel=1e-4)
    assert np.allclose(two.tensors["update.values"].numpy()[:16], values[:16], rtol=1e-3)
    frame = two.tensors["update.right"].double().numpy()[:, :16]
    truth = np.linalg.svd(update)[2][:16].T
    assert np.sum((frame.T @ truth) ** 2) / 16 > 0.999
    grown = np.linalg.svd(second.double().numpy() - first.double().numpy(), compute_uv=False)
    assert np.allclose(two.tensors["increment.values"].numpy()[:16], grown[:16], rtol=1e-3)


def test_the_command_and_what_it_refuses(trained, tmp_path):
    run = trained("run", method="lora", num_steps=4, trajectory=2)
    call = ["measure", "--trajectory", str(run), "--out", str(tmp_path / "out"), "--draws", "20"]
    done = CliRunner().invoke(cli.app, call)
    assert done.exit_code == 0, done.stderr
    rows = read_measurements(tmp_path / "out" / "measurements.parquet")
    assert {r.step for r in rows} == {2, 4}
    assert {r.arm for r in rows} == {"run"}
    assert "sim_k" in done.stderr
    without = trained("without", method="lora", trajectory=0, num_steps=1)
    with pytest.raises(FolderError, match=r"received .*without without\. Train it with train\.trajectory = 20"):
        measure([without])
    with pytest.raises(ConfigError, match="at most num_steps = 2 snapshots, received 3"):
        trained("long", num_steps=2)
    lines = (run / store.FOLDER / store.SCALARS).read_text().splitlines()
    assert json.loads(lines[0])["step"] == 2
    (run / store.FOLDER / store.SCALARS).write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ProvenanceError, match=r"scalars.jsonl must match its manifest's digest"):
        measure([run])
    amend(run, store.FOLDER)
    with pytest.raises(FolderError, match=r"every one of its 2 snapshots, received .* at 1"):
        measure([run])
