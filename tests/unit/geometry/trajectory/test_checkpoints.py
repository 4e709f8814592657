"""`limbeck measure --successive`: the checkpoints that a run left give the numbers of the run's own snapshots."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests.unit.geometry.dense.factories import save, weights
from typer.testing import CliRunner

from limbeck import cli
from limbeck.errors import ConfigError, LimbeckError, ModelError
from limbeck.geometry.dense.checkpoints import open_checkpoint
from limbeck.geometry.table import read_measurements
from limbeck.geometry.trajectory import checkpoints, store

SMALL = {
    "model.embed_tokens.weight": (40, 24),
    "model.layers.0.mlp.up_proj.weight": (48, 24),
    "model.norm.weight": (24,),
}
UP = "model.layers.0.mlp.up_proj"


def call(*arguments):
    result = CliRunner().invoke(cli.app, ["measure", *map(str, arguments)])
    if isinstance(result.exception, LimbeckError):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stderr


def course(seed: int, *, persistent: bool) -> list[dict[str, torch.Tensor]]:
    """A base and four checkpoints: increments of rank 4, along the same directions or each along its own."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    points = [weights(shapes=SMALL)]
    frames = {name: (draw(shape[0], 4), draw(4, shape[1])) for name, shape in SMALL.items() if len(shape) == 2}
    for _ in range(4):
        if not persistent:
            frames = {name: (draw(*left.shape), draw(*right.shape)) for name, (left, right) in frames.items()}
        steps = {name: left @ right for name, (left, right) in frames.items()}
        points.append({name: w + 1e-3 * steps.get(name, draw(*w.shape)) for name, w in points[-1].items()})
    return points


def saved(root, points, dtype=torch.float32):
    folders = [root / "base", *(root / f"checkpoint-{10 * n}" for n in range(1, len(points)))]
    return [save(folder, point, dtype=dtype) for folder, point in zip(folders, points, strict=True)]


def found(out, **wanted):
    rows = read_measurements(out / "measurements.parquet")
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def similarity(one: torch.Tensor, other: torch.Tensor, k: int) -> float:
    frames = [torch.linalg.svd(matrix.double())[2][:k] for matrix in (one, other)]
    return float((frames[0] @ frames[1].T).square().sum()) / k


def test_similarities_are_those_of_the_updates_in_float64(tmp_path):
    points = course(0, persistent=False)
    call(*saved(tmp_path, points), "--successive", "--out", tmp_path / "out", "--workers", "1")
    name = UP + ".weight"
    base, *later = (point[name] for point in points)
    rows = found(tmp_path / "out", metric="sim_k", side="right", k=4, other="end", aggregation="module", module=UP)
    walked = {row.step: row for row in rows if row.null.id.startswith("N-WALK")}
    assert list(walked) == [10, 20, 30]
    for index, step in enumerate(walked):
        expected = similarity(later[index] - base, later[-1] - base, 4)
        assert walked[step].value == pytest.approx(expected, abs=1e-6)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["steps"] == [10, 20, 30, 40]
    assert not (tmp_path / "out" / "journal.jsonl").exists()


@pytest.mark.parametrize("persistent", [False, True])
def test_what_persists_is_above_the_walk_and_what_does_not_is_at_it(tmp_path, persistent):
    folders = saved(tmp_path, course(1, persistent=persistent))
    call(*folders, "--successive", "--out", tmp_path / "out", "--nulls", "all")
    rows = found(tmp_path / "out", metric="sim_k", side="left", k=4, other="end", aggregation="module", step=10)
    for row in (row for row in rows if row.null.id == "N-WALK"):
        if persistent:
            assert row.value > 0.99 > row.null.q95
        else:
            assert row.null.q05 - 0.1 < row.value < row.null.q95 + 0.1


def test_stored_in_bf16_is_said_so_and_an_interrupted_measurement_goes_on(tmp_path, monkeypatch):
    folders = saved(tmp_path, course(2, persistent=True), torch.bfloat16)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    call(*folders, "--successive", "--out", whole, "--eager")
    assert {row.delta_kind for row in found(whole)} == {"bf16_visible"}
    write, written = store.write, []

    def killed(folder, step, kept):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(step)
        write(folder, step, kept)

    monkeypatch.setattr(store, "write", killed)
    CliRunner().invoke(cli.app, ["measure", *map(str, folders), "--successive", "--out", str(cut)])
    assert written == [10, 20]
    monkeypatch.setattr(store, "write", lambda folder, step, kept: (written.append(step), write(folder, step, kept)))
    call(*folders, "--successive", "--out", cut)
    assert written == [10, 20, 30, 40]
    names = ("arm",)  # the output folder's name, which differs
    one, other = (
        [{k: v for k, v in vars_of(row).items() if k not in names} for row in found(out)] for out in (whole, cut)
    )
    assert str(one) == str(other)


def test_another_measurement_that_was_given_up_here_leaves_nothing(tmp_path, monkeypatch):
    folders, out = saved(tmp_path, course(4, persistent=True)), tmp_path / "out"
    write = store.write

    def killed(folder, step, kept):
        if step == 40:
            raise KeyboardInterrupt
        write(folder, step, kept)

    monkeypatch.setattr(store, "write", killed)
    CliRunner().invoke(cli.app, ["measure", *map(str, folders), "--successive", "--out", str(out)])
    assert store.steps_in(out / store.FOLDER) == [10, 20, 30]
    call(folders[0], folders[2], folders[3], "--successive", "--out", out, "--overwrite")
    assert {row.step for row in found(out)} == {20, 30}


def vars_of(row):
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def test_bad_courses_are_refused_in_words(tmp_path):
    folders = saved(tmp_path, course(3, persistent=True))
    with pytest.raises(ConfigError, match="in the order of their steps, received \\[20, 10\\]"):
        call(folders[0], folders[2], folders[1], "--successive", "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="two checkpoints or more, received 1"):
        call(*folders[:2], "--successive", "--out", tmp_path / "out")
    bad = weights(shapes=SMALL)
    bad["model.layers.0.mlp.up_proj.weight"][3, 4] = math.nan
    nan = save(tmp_path / "checkpoint-50", bad)
    base, early, late = (open_checkpoint(path) for path in (folders[0], folders[1], nan))
    with pytest.raises(ModelError, match=r"checkpoint-50: weights must be finite, received 1 .*up_proj"):
        checkpoints.record(base, [early, late], [10, 50], tmp_path / "course")
