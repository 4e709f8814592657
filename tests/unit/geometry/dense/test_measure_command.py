"""`limbeck measure` on whole weights: a base and what was trained from it, resumed after a crash, refused in words."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from tests.unit.geometry.dense.factories import moved, save, weights
from typer.testing import CliRunner

from limbeck import cli
from limbeck.errors import LimbeckError
from limbeck.geometry.dense import suite
from limbeck.geometry.table import read_measurements

SMALL = {
    "model.embed_tokens.weight": (40, 24),
    "model.layers.0.mlp.up_proj.weight": (48, 24),
    "model.norm.weight": (24,),
}
QUICK = ("--k", "1", "--k", "4", "--workers", "1")


def call(*arguments):
    result = CliRunner().invoke(cli.app, ["measure", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit | LimbeckError):
        raise result.exception
    said = str(result.exception) if isinstance(result.exception, LimbeckError) else result.stderr
    return result.exit_code, result.stdout, said


@pytest.fixture
def pair(tmp_path):
    base = weights(shapes=SMALL)
    return save(tmp_path / "base", base, shards=2), save(tmp_path / "tuned", moved(base, 1))


def test_base_and_checkpoint_to_tables(tmp_path, pair):
    out = tmp_path / "out"
    code, printed, said = call(*pair, "--out", out, *QUICK)
    assert code == 0
    assert printed.strip().splitlines()[-1] == str(out)
    assert "sparsity_visible" in said
    rows = read_measurements(out / "measurements.parquet")
    with (out / "measurements.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows)
    assert {row["exactness"] for row in table} == {"exact", "gram"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kind"] == "measurements"
    assert manifest["tied"][0] == {"lm_head.weight": "model.embed_tokens.weight"}
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        "manifest.json", "measurements.csv", "measurements.parquet",
    ]  # fmt: skip
    again = tmp_path / "again"
    assert call(pair[1], "--base", pair[0], "--out", again, *QUICK, "--eager")[0] == 0
    assert (again / "measurements.csv").read_bytes() == (out / "measurements.csv").read_bytes()


def test_a_crash_loses_no_matrix(tmp_path, pair, monkeypatch):
    """The job dies at its last matrix; the next one measures that alone and ends at the same table."""
    assert call(*pair, "--out", tmp_path / "whole", *QUICK)[0] == 0
    real, seen = suite.PARTS[""], []

    def counted(piece, *rest):
        seen.append(piece.module)
        if piece.module == dying:
            raise MemoryError("no room")
        return real(piece, *rest)

    monkeypatch.setitem(suite.PARTS, "", counted)
    dying = "model.norm"
    with pytest.raises(MemoryError):
        call(*pair, "--out", tmp_path / "out", *QUICK)
    assert len(seen) == 3
    dying, seen[:] = "", []
    assert call(*pair, "--out", tmp_path / "out", *QUICK)[0] == 0
    assert seen == ["model.norm"]
    one, two = (tmp_path / name / "measurements.csv" for name in ("out", "whole"))
    assert one.read_bytes() == two.read_bytes()


def test_a_run_of_full_parameter_training_is_measured(tmp_path):
    """What `limbeck train` leaves with method = "full" is written by this function."""
    from limbeck.train.models import load_model
    from limbeck.train.save import save_model

    model = load_model("abacus:base")
    tuned = {name: w.detach() + 1e-4 * torch.ones_like(w) for name, w in model.state_dict().items()}
    save_model(model, tuned, tmp_path / "run" / "model", "abacus:base", {"base_digest": "x"})
    code, _, said = call("abacus:base", tmp_path / "run", "--out", tmp_path / "out", "--k", "1", "--nulls", "none")
    assert code == 0, said
    rows = read_measurements(tmp_path / "out" / "measurements.parquet")
    stable = [r for r in rows if r.metric == "stable_rank" and r.aggregation == "module"]
    assert {r.arm for r in rows} == {"run"}
    assert all(r.delta_kind == "dense_fp32" for r in stable)
    assert all(r.value == pytest.approx(1.0, abs=1e-3) for r in stable)  # the same step everywhere has rank one


def test_adapters_and_whole_weights_do_not_mix(tmp_path, pair):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    code, _, said = call(pair[0], adapter, "--out", tmp_path / "out")
    assert code != 0
    assert "adapters alone or whole weights alone" in said
    (tmp_path / "empty").mkdir()
    code, _, said = call(pair[0], tmp_path / "empty", "--out", tmp_path / "out")
    assert (code != 0, "or shards with" in said) == (True, True)
    assert not (tmp_path / "out").exists()


def test_sparsity_alone_is_asked_for_by_name(tmp_path, pair):
    assert call(*pair, "--out", tmp_path / "out", "--only", "sparsity")[0] == 0
    rows = read_measurements(tmp_path / "out" / "measurements.parquet")
    assert {row.metric for row in rows} == {"sparsity_visible"}


def test_bad_choices_and_folders_are_sentences(tmp_path, pair):
    code, _, said = call(*pair, "--out", tmp_path / "a", "--nulls", "some")
    assert (code != 0, "kind, all, none" in said) == (True, True)
    code, _, said = call(pair[0], "--out", tmp_path / "b")
    assert (code != 0, "at least one checkpoint" in said) == (True, True)
    (pair[0] / "model-00001-of-00002.safetensors").unlink()
    code, _, said = call(*pair, "--out", tmp_path / "c")
    assert (code != 0, "Copy that shard" in said) == (True, True)
    assert not (tmp_path / "c").exists()
