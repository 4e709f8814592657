"""Runs whose update is held to a subspace: what the published form leaks, and that the exact one does not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from limbeck.config import RunConfig, SubspaceConfig, TrainConfig, settings_of
from limbeck.errors import ConfigError, DegenerateError, FolderError, ModelError
from limbeck.folders import read_manifest
from limbeck.records import read_json
from limbeck.train import loop
from limbeck.train import run as run_module
from limbeck.train.frames import keep_frames, read_subspace
from limbeck.train.models import load_model
from limbeck.train.record import read_metrics
from limbeck.train.run import train
from limbeck.train.subspace import Frame, Subspace, hidden_matrices, leak

ROWS, K = 96, 16
EXAMPLE = Path(__file__).parents[3] / "examples" / "subspace_leak.py"
WEIGHTS = "model/model.safetensors"
HIDDEN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def walk():
    """The regression of ``examples/subspace_leak.py``: 96 x 128, 300 steps, 16 directions of the input."""
    spec = importlib.util.spec_from_file_location("subspace_leak", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.walk


def test_a_projected_gradient_leaks_through_adam_and_decay_and_not_through_sgd(walk):
    plain, decayed, adam = walk("sgd"), walk("sgd", decay=1e-3), walk("adam")
    assert plain[0]["leak"] < 1e-5
    assert plain[1] == K
    assert decayed[0]["leak"] > 0.02
    assert adam[0]["leak"] > 0.1
    assert adam[0]["leak_energy"] == pytest.approx(adam[0]["leak"] ** 2)
    assert adam[1] == ROWS


@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", 0.0), ("sgd", 1e-3), ("adam", 0.0), ("adam", 0.1)])
def test_a_projected_update_does_not_leak(walk, optimizer, decay):
    found, rank = walk(optimizer, decay=decay, exact=True)
    assert found["leak"] < 1e-5
    assert found["leak"] < 2 * found["leak_floor"] + 1e-6
    assert rank == K
    assert found["leak_bf16"] > 100 * found["leak"]  # what bf16 storage shows is another matter


def test_projections_are_projections():
    update = torch.randn(12, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows, columns = (torch.linalg.qr(torch.randn(n, 3, dtype=torch.float64)).Q for n in (12, 9))
    right, left, both = Frame(None, columns), Frame(rows, None), Frame(rows, columns)
    assert torch.allclose(right.inside(update), update @ columns @ columns.T)
    assert torch.allclose(left.inside(update), rows @ rows.T @ update)
    assert torch.allclose(both.inside(update), rows @ rows.T @ update @ columns @ columns.T)
    for given, free in ((right, 12 * 3), (left, 3 * 9), (both, 9)):
        assert given.free((12, 9)) == free
        outside = Subspace({"w": given}, exact=True, complement=True).project("w", update)
        assert given.inside(outside).abs().max() < 1e-12
        assert torch.allclose(given.inside(given.inside(update)), given.inside(update))


def test_the_leak_is_the_share_outside():
    model = nn.Linear(2, 1, bias=False)
    start = {"weight": torch.zeros(1, 2)}
    subspace = Subspace({"weight": Frame(None, torch.tensor([[1.0], [0.0]]))}, exact=True)
    with torch.no_grad():
        model.weight.copy_(torch.zeros(1, 2))
    assert leak(subspace, model, start) == {}
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 3.0]]))
    found = leak(subspace, model, start)
    assert found == pytest.approx(
        {"leak": 0.6, "leak_energy": 0.36, "leak_floor": 0.0, "leak_bf16": 0.6, "leak_bf16_energy": 0.36}
    )


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def whole(settings) -> TrainConfig:
    return settings.model_copy(update={"method": "full", "num_steps": 6, "keep": (4,), "save_visible": False})


def run(base, rollouts, settings, out, subspace=None, **changes):
    given = SubspaceConfig(**subspace) if subspace else None
    values = settings.model_copy(update={**changes, "subspace": given})
    return train(RunConfig(base=base, rollouts=rollouts, train=values), out)


def update(base, out) -> dict[str, torch.Tensor]:
    before, after = load_file(f"{base}/model.safetensors"), load_file(out / WEIGHTS)
    return {name: after[name].double() - before[name].double() for name in before}


@pytest.fixture
def free(base, rollouts, whole, tmp_path):
    return run(base, rollouts, whole, tmp_path / "free")


@pytest.mark.parametrize("side", ["right", "left", "both"])
def test_a_run_stays_in_the_frame_of_another_and_keeps_the_rest(base, rollouts, whole, free, tmp_path, side):
    out = run(base, rollouts, whole, tmp_path / side, {"of": str(free), "k": 3, "side": side})
    moved, other = update(base, out), update(base, free)
    hidden = hidden_matrices(load_model(base))
    for name, delta in moved.items():
        if name not in hidden:
            assert not delta.any()  # embeddings, norms: as they were, bit for bit
            continue
        U, _, Vh = torch.linalg.svd(other[name])
        inside = delta
        inside = inside @ Vh[:3].T @ Vh[:3] if side != "left" else inside
        inside = U[:, :3] @ U[:, :3].T @ inside if side != "right" else inside
        assert delta.norm() > 0
        assert (delta - inside).norm() < 1e-5 * delta.norm()
    facts = read_manifest(out, "run")["subspace"]
    sizes = [(3 if side != "right" else p.shape[0]) * (3 if side != "left" else p.shape[1]) for p in hidden.values()]
    assert (facts["matrices"], facts["free_parameters"]) == (len(hidden), sum(sizes))
    lines = [line for line in read_metrics(out / "metrics.jsonl") if "leak" in line]
    assert [line["step"] for line in lines] == [3, 4, 6]
    assert all(line["leak"] < 1e-5 for line in lines)
    assert facts["leak"] == lines[-1]["leak"]


def test_the_published_form_leaks_in_a_run_too(base, rollouts, whole, free, tmp_path):
    out = run(base, rollouts, whole, tmp_path / "run", {"of": str(free), "k": 3, "how": "gradient"})
    assert read_manifest(out, "run")["subspace"]["leak"] > 0.05


def test_an_interrupted_run_ends_where_an_undisturbed_one_does(base, rollouts, whole, free, tmp_path, monkeypatch):
    subspace = {"of": str(free / "kept" / "step-000004"), "k": 2, "rest": "free"}
    calm = run(base, rollouts, whole, tmp_path / "calm", subspace)
    gradient = loop.gradient

    def dies(*args, step, **kwargs):
        if step == 5:
            raise KeyboardInterrupt
        return gradient(*args, step=step, **kwargs)

    monkeypatch.setattr(loop, "gradient", dies)
    with pytest.raises(KeyboardInterrupt):
        run(base, rollouts, whole, tmp_path / "torn", subspace)
    monkeypatch.undo()
    with pytest.raises(FolderError, match=r"subspace\.k"):
        run(base, rollouts, whole, tmp_path / "torn", {**subspace, "k": 1})
    torn = run(base, rollouts, whole, tmp_path / "torn", subspace)
    assert (torn / WEIGHTS).read_bytes() == (calm / WEIGHTS).read_bytes()
    facts = [read_manifest(out, "run")["subspace"] for out in (torn, calm)]
    assert facts[0] == facts[1]
    assert facts[0]["leak"] < 1e-5


@pytest.mark.parametrize("how", ["update", "gradient"])
def test_all_directions_constrain_nothing(base, rollouts, whole, free, tmp_path, how):
    out = run(base, rollouts, whole, tmp_path / "run", {"k": 64, "rest": "free", "side": "both", "how": how})
    assert (out / WEIGHTS).read_bytes() == (free / WEIGHTS).read_bytes()


def test_the_complement_stays_outside(base, rollouts, whole, tmp_path):
    out = run(base, rollouts, whole, tmp_path / "run", {"of": "base", "k": 3, "complement": True})
    moved, before = update(base, out), load_file(f"{base}/model.safetensors")
    Vh = torch.linalg.svd(before[HIDDEN].double())[2][:3]
    assert (moved[HIDDEN] @ Vh.T).norm() < 1e-5 * moved[HIDDEN].norm()
    assert read_manifest(out, "run")["subspace"]["leak"] < 1e-5


def test_random_frames_come_from_seeds_alone(base, whole, tmp_path):
    model = load_model(base)

    def found(name: str, run: int, **given) -> torch.Tensor:
        settings = whole.model_copy(update={"subspace": SubspaceConfig(**given), "seed": run})
        (tmp_path / name).mkdir()
        keep_frames(RunConfig(base=base, train=settings), model, tmp_path / name)
        columns = read_subspace(settings.subspace, model, tmp_path / name).frames[HIDDEN].columns
        assert torch.allclose(columns.T @ columns, torch.eye(16), atol=1e-6)
        return columns

    one = found("one", 0)
    assert torch.equal(one, found("same", 0))
    assert not torch.allclose(one, found("other", 1))
    assert not torch.allclose(one, found("own", 0, seed=1))


def test_the_update_of_an_adapter_has_a_frame(base, rollouts, whole, settings, tmp_path):
    tuned = run(base, rollouts, settings, tmp_path / "lora", num_steps=4)
    out = run(base, rollouts, whole, tmp_path / "run", {"of": str(tuned), "k": 16})
    facts = read_manifest(out, "run")["subspace"]
    assert facts["without_direction"] == 6  # of 14 matrices the adapter has eight, the others stay
    moved = update(base, out)
    assert not moved[HIDDEN].any()
    assert torch.linalg.matrix_rank(moved["model.layers.0.self_attn.q_proj.weight"], rtol=1e-4) == 4


def test_transposed_weights_have_the_same_sides(tmp_path):
    config = GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    settings = TrainConfig(method="full", subspace=SubspaceConfig(of="base", k=2))
    keep_frames(RunConfig(base="", train=settings), model, tmp_path)
    found = read_subspace(settings.subspace, model, tmp_path).frames["transformer.h.0.mlp.c_fc.weight"]
    assert found.columns is None  # stored (in, out): the input is the rows
    assert found.rows.shape == (8, 2)


def test_what_cannot_be_held_is_refused(base, rollouts, whole, settings, free, tmp_path):
    with pytest.raises(ConfigError, match=r'train\.method = "full"'):
        run(base, rollouts, settings, tmp_path / "a", {"of": "random"})
    with pytest.raises(DegenerateError, match="not zero"):
        run(base, rollouts, whole, tmp_path / "b", {"of": base, "against": base})
    with pytest.raises(ConfigError, match="against"):
        run(base, rollouts, whole, tmp_path / "c", {"of": base})
    with pytest.raises(ModelError, match="a checkpoint must be"):
        run(base, rollouts, whole, tmp_path / "d", {"of": str(tmp_path)})
    config = GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="the same shapes"):
        run(base, rollouts, whole, tmp_path / "e", {"of": str(tmp_path / "other"), "against": base})


def test_sharded_weights_are_refused(base, rollouts, whole, tmp_path, monkeypatch):
    sharded = SimpleNamespace(is_main_process=True, distributed_type=DistributedType.FSDP, is_fsdp2=True)
    monkeypatch.setattr(run_module, "make_accelerator", lambda: sharded)
    with pytest.raises(ConfigError, match="received FSDP"):
        run(base, rollouts, whole, tmp_path / "run", {"of": "random"})


def test_settings_that_are_off_are_no_part_of_an_identity(base, rollouts, whole, free):
    assert "subspace" not in read_json(free / "identity.json")["train"]
    assert "subspace" in settings_of(whole.model_copy(update={"subspace": SubspaceConfig()}), "train")
