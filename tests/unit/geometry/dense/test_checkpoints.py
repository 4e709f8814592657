"""Reading folders: every layout gives the same tensors, and every broken one is answered in words."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.geometry.dense.factories import CONFIG, SHAPES, moved, save, weights

from limbeck.errors import ModelError
from limbeck.geometry.dense.checkpoints import INDEX, RESUMED, SINGLE, is_checkpoint, open_checkpoint
from limbeck.geometry.dense.layout import match, split
from limbeck.geometry.dense.suite import measure


@pytest.fixture
def base(tmp_path):
    return save(tmp_path / "base", weights(), shards=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("eager", [False, True])
def test_every_layout_reads_the_same_bits(tmp_path, dtype, shards, eager):
    tensors = weights()
    found = open_checkpoint(save(tmp_path / "m", tensors, dtype=dtype, shards=shards), eager=eager)
    assert set(found.tensors) == set(SHAPES)
    for name, tensor in tensors.items():
        read = found.read(name)
        assert read.dtype == dtype
        assert torch.equal(read, tensor.to(dtype))


def test_shards_without_an_index_are_read_too(base):
    (base / INDEX).unlink()
    assert set(open_checkpoint(base).tensors) == set(SHAPES)


def test_a_run_folder_is_opened_at_its_model(tmp_path):
    save(tmp_path / "run" / "model", weights())
    (tmp_path / "run" / "config.json").write_text("{}")
    assert is_checkpoint(tmp_path / "run")
    assert open_checkpoint(tmp_path / "run").name == "run"


def test_tied_weights_are_one(tmp_path):
    tensors = weights()
    both = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    tied = open_checkpoint(save(tmp_path / "tied", both))
    assert tied.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert open_checkpoint(save(tmp_path / "missing", tensors)).aliases == tied.aliases
    assert set(tied.tensors) == set(tensors)
    untied = open_checkpoint(save(tmp_path / "untied", both, tie_word_embeddings=False))
    assert set(untied.tensors) == set(both)
    match(tied, [open_checkpoint(tmp_path / "missing")])


def test_a_tie_that_is_none_is_refused(tmp_path):
    tensors = weights()
    both = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    with pytest.raises(ModelError, match="must be equal, and the stored ones differ"):
        open_checkpoint(save(tmp_path / "torn", both))


def test_wrappers_and_buffers_do_not_count(tmp_path, base):
    wrapped = {f"_orig_mod.module.{name}": tensor for name, tensor in weights(1).items()}
    wrapped["_orig_mod.module.model.rotary_emb.inv_freq"] = torch.ones(4)
    match(open_checkpoint(base), [open_checkpoint(save(tmp_path / "w", wrapped, dtype=torch.float32))])


# --- fused layouts --------------------------------------------------------------------------------------------


GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 3, "hidden_size": 5}


def cut(name, tensor, config):
    return {p.module.rsplit(".", 1)[-1]: p.cut(tensor) for p in split(name, tuple(tensor.shape), config)}


def test_fused_rows_are_taken_apart():
    parts = [torch.randn(rows, 5) for rows in (12, 6, 6)]
    found = cut("model.layers.0.self_attn.qkv_proj.weight", torch.cat(parts), GROUPED)
    assert list(found) == ["q_proj", "k_proj", "v_proj"]
    assert all(torch.equal(found[name], part) for name, part in zip(found, parts, strict=True))
    gate, up = torch.randn(7, 5), torch.randn(7, 5)
    found = cut("model.layers.0.mlp.gate_up_proj.weight", torch.cat([gate, up]), GROUPED)
    assert torch.equal(found["gate_proj"], gate)
    assert torch.equal(found["up_proj"], up)
    bias = cut("model.layers.0.self_attn.qkv_proj.bias", torch.randn(24), GROUPED)
    assert list(bias) == ["bias"]


def test_heads_that_are_interleaved_are_taken_apart():
    """As GPT-NeoX (query, key and value of every head in turn) and Falcon (queries of a group, its key, its value) do."""
    q, k, v = torch.randn(4, 3, 12), torch.randn(4, 3, 12), torch.randn(4, 3, 12)
    config = {"num_attention_heads": 4, "hidden_size": 12}
    fused = torch.stack([q, k, v], 1).reshape(36, 12)
    found = cut("gpt_neox.layers.0.attention.query_key_value.weight", fused, config)
    assert torch.equal(found["k_proj"], k.reshape(12, 12))
    assert torch.equal(found["q_proj"], q.reshape(12, 12))
    grouped = {"num_attention_heads": 4, "num_kv_heads": 2, "hidden_size": 12, "new_decoder_architecture": True}
    k, v = torch.randn(2, 1, 3, 12), torch.randn(2, 1, 3, 12)
    fused = torch.cat([q.reshape(2, 2, 3, 12), k, v], 1).reshape(24, 12)
    found = cut("transformer.h.0.self_attention.query_key_value.weight", fused, grouped)
    assert torch.equal(found["q_proj"], q.reshape(12, 12))
    assert torch.equal(found["v_proj"], v.reshape(6, 12))


def test_transposed_weights_are_turned():
    config = {"model_type": "gpt2", "n_head": 2, "n_embd": 4}
    fused = torch.randn(4, 12)
    found = cut("transformer.h.0.attn.c_attn.weight", fused, config)
    assert torch.equal(found["k_proj"], fused[:, 4:8].T)
    assert cut("transformer.h.0.mlp.c_fc.weight", torch.randn(4, 16), config)["c_fc"].shape == (16, 4)
    assert cut("transformer.wte.weight", torch.randn(9, 4), config)["wte"].shape == (9, 4)


def test_experts_are_matrices_of_their_own():
    stacked = torch.randn(3, 5, 8)
    pieces = split("model.layers.0.mlp.experts.gate_up_proj", (3, 5, 8), {"model_type": "gpt_oss"})
    assert [p.module.rsplit(".", 2)[-2:] for p in pieces[:2]] == [["0", "gate_proj"], ["0", "up_proj"]]
    assert torch.equal(pieces[3].cut(stacked), stacked[1, :, 1::2].T)
    assert len(pieces) == 6
    assert sum(p.entries for p in pieces) == stacked.numel()


# --- bad input ------------------------------------------------------------------------------------------------


def refused(folder, *words):
    with pytest.raises(ModelError) as error:
        open_checkpoint(folder)
    for word in words:
        assert word in str(error.value)


def test_a_missing_shard_is_named(base):
    lost = base / "model-00002-of-00003.safetensors"
    lost.unlink()
    refused(base, "model-00002-of-00003.safetensors", "is not there", "3 tensors are missing", "Copy that shard")
    (base / INDEX).unlink()
    refused(base, "must hold all 3 shards, received 2", "model-00002-of-00003.safetensors is not there")


def test_an_index_that_names_another_file_is_refused(base):
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "model-00009-of-00003.safetensors"
    (base / INDEX).write_text(json.dumps(index))
    refused(base, "names model-00009-of-00003.safetensors", "'model.norm.weight'")
    index["weight_map"]["model.norm.weight"] = "../outside.safetensors"
    (base / INDEX).write_text(json.dumps(index))
    refused(base, "must hold a weight_map of tensor names to files beside it")
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    index["weight_map"]["model.extra.weight"] = index["weight_map"]["model.norm.weight"]
    (base / INDEX).write_text(json.dumps(index))
    refused(base, "come from different saves")


def test_a_truncated_file_is_named(tmp_path):
    folder = save(tmp_path / "m", weights())
    whole = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(whole[:-100])
    refused(folder, SINGLE, "truncated or damaged", "Copy it again")
    (folder / SINGLE).write_bytes(whole[:20])
    refused(folder, "truncated or damaged")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_never_opened(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "touched")))
    assert is_checkpoint(folder)
    refused(folder, "pytorch_model.bin, which is a pickle and is never opened", "save_pretrained", "python -c")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("form", RESUMED)
def test_what_a_run_goes_on_from_is_refused_with_the_way_to_its_course(tmp_path, form):
    for name in form:
        (tmp_path / name).touch()
    refused(tmp_path, "from which a run of limbeck goes on", "--set train.trajectory=20", "--trajectory")


def test_other_folders_are_refused(tmp_path):
    refused(tmp_path / "nowhere", "must be a local folder", "Nothing is downloaded")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "with neither")


def test_quantized_weights_are_refused(tmp_path):
    tensors = weights() | {"model.layers.0.mlp.up_proj.weight": torch.zeros(4, 4)}
    folder = save(tmp_path / "q", tensors)
    data = load_file(folder / SINGLE)
    data["model.layers.0.mlp.up_proj.weight"] = data["model.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    from safetensors.torch import save_file

    save_file(data, folder / SINGLE)
    refused(folder, "bf16, fp16 or fp32", "F8_E4M3", "up_proj", "Dequantize")


def mismatch(one, other):
    with pytest.raises(ModelError) as error:
        match(open_checkpoint(one), [open_checkpoint(other)])
    return str(error.value)


def test_other_architectures_and_sizes_are_named(tmp_path, base):
    tensors = weights()
    extra = save(
        tmp_path / "extra", tensors | {"model.layers.2.mlp.up_proj.weight": torch.zeros(4, 4)}, model_type="llama"
    )
    assert "model_type qwen3 and llama" in mismatch(base, extra)
    assert "'model.layers.2.mlp.up_proj.weight' is only in \"extra\"" in mismatch(base, extra)
    wide = save(tmp_path / "wide", tensors | {"model.layers.0.self_attn.q_proj.weight": torch.zeros(80, 48)})
    said = mismatch(base, wide)
    assert "[64, 48] and [80, 48] for 'model.layers.0.self_attn.q_proj.weight'" in said
    assert "different sizes" in said
    words = save(tmp_path / "words", tensors | {"model.embed_tokens.weight": torch.zeros(99, 48)}, vocab_size=99)
    said = mismatch(base, words)
    assert "[96, 48] and [99, 48]" in said
    assert "vocab_size 96 and 99" in said


@pytest.mark.parametrize("where", ["base", "tuned"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_a_nan_is_named_and_finished_work_is_kept(tmp_path, where, name):
    pair = {"base": weights(), "tuned": moved(weights(), 1)}
    pair[where][name].view(-1)[7] = float("nan")
    opened = [open_checkpoint(save(tmp_path / n, t)) for n, t in pair.items()]
    kept = {}
    with pytest.raises(ModelError, match=rf"received 1 NaN or infinite entries in '{name}'") as error:
        measure(opened[0], opened[1:], ks=(1,), nulls="none", workers=1, keep=kept.__setitem__)
    assert str(tmp_path / where) in str(error.value)
    assert name.removesuffix(".weight") not in kept
    with pytest.raises(ModelError, match=rf"received 1 NaN or infinite entries in '{name}'"):
        measure(opened[0], opened[1:], only="sparsity", workers=1)
    if name == "model.norm.weight":  # the largest come first
        assert len(kept) >= 6
