"""Adapter folders written by PEFT itself are read as PEFT merges them; everything else gets a sentence."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from limbeck.errors import ModelError
from limbeck.geometry.adapters import read_adapter
from limbeck.geometry.delta import init_digest, same_base

WEIGHTS = "adapter_model.safetensors"


class Block(nn.Module):
    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.q_proj = Conv1D(10, 6) if transposed else nn.Linear(6, 10)
        self.o_proj = nn.Linear(10, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o_proj(self.q_proj(x))


class Toy(nn.Module):
    def __init__(self, *, transposed: bool = False) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(7, 6)
        self.layers = nn.ModuleList(Block(transposed=transposed) for _ in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return x


def save(
    folder: Path, *, transposed: bool = False, dtype: torch.dtype = torch.float32, **settings
) -> dict[str, torch.Tensor]:
    """Write a trained-looking adapter with PEFT; return what PEFT itself adds to each weight, as (out, in), fp64."""
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj"], **settings})
    model = get_peft_model(Toy(transposed=transposed), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
            parameter.data = parameter.data.to(dtype).float()
    expected = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            update = module.get_delta_weight("default").detach().double()
            wide = isinstance(module.get_base_layer(), Conv1D | nn.Embedding)
            expected[name] = update.T if wide else update
    model.save_pretrained(folder)
    return expected


def edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"o_proj": 2, "layers.1.q_proj": 7}, "alpha_pattern": {"0.q_proj": 3, r"layers\.1\..*": 5}},
        {"rank_pattern": {"o_proj": 2}, "use_rslora": True},
        {"transposed": True, "fan_in_fan_out": True, "target_modules": ["q_proj"]},
        {"init_lora_weights": "gaussian", "target_modules": ["embed_tokens", "q_proj"]},
        {"dtype": torch.bfloat16},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_reads_what_peft_would_add_to_the_weights(tmp_path, settings):
    expected = save(tmp_path / "arm", **settings)
    delta = read_adapter(tmp_path / "arm")
    assert list(delta.modules) == sorted(expected)
    assert delta.name == "arm"
    for name, update in expected.items():
        left, right = delta.modules[name]
        assert left.dtype == right.dtype == torch.float32
        torch.testing.assert_close(left.double() @ right.double(), update, rtol=1e-6, atol=1e-6)


def test_names_bases_and_inits_come_from_the_folder(tmp_path):
    save(tmp_path / "runs" / "sft" / "adapter")
    folder = tmp_path / "runs" / "sft"
    edit(folder / "adapter", base_model_name_or_path="Qwen/Qwen3-4B")
    plain = read_adapter(folder)
    assert (plain.name, plain.base, plain.init_digest) == ("sft", "Qwen/Qwen3-4B", "")
    (folder / "adapter" / "limbeck.json").write_text(json.dumps({"init_digest": "aa", "base_digest": "bb"}))
    known = read_adapter(folder / "adapter", name="mine")
    assert (known.name, known.init_digest) == ("mine", "aa")
    assert same_base(known.base, plain.base)
    edit(folder / "adapter", base_model_name_or_path="/elsewhere/copy")
    assert same_base(read_adapter(folder).base, known.base)
    (folder / "adapter" / "limbeck.json").write_text(json.dumps({"base_digest": "cc"}))
    assert not same_base(read_adapter(folder).base, known.base)


def test_init_digest_sees_every_bit_and_no_order():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    assert init_digest({"a": a, "b": b}) == init_digest({"b": b, "a": a.clone()})
    nudged = a.clone()
    nudged[0, 0] = torch.nextafter(nudged[0, 0], torch.tensor(9.0))
    assert init_digest({"a": nudged, "b": b}) != init_digest({"a": a, "b": b})
    assert init_digest({"a": a.reshape(3, 2), "b": b}) != init_digest({"a": a, "b": b})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_dora": True}, "use_dora must be off, received True: DoRA rescales the rows"),
        ({"modules_to_save": ["lm_head"]}, "whole modules were trained beside the factors"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights must be one of true, gaussian, orthogonal, received 'pissa'",
        ),
        ({"init_lora_weights": "olora"}, "received 'olora'"),
        ({"init_lora_weights": "loftq"}, "received 'loftq'"),
        ({"init_lora_weights": "corda"}, "received 'corda'"),
        ({"init_lora_weights": "eva"}, "received 'eva'"),
        ({"init_lora_weights": False}, "received False"),
        ({"bias": "all"}, "bias must be 'none', received 'all'"),
        ({"peft_type": "IA3"}, "peft_type must be LORA, received 'IA3'"),
        ({"r": 3}, "rank must be the configured one = 3, received 4"),
        ({"r": "four"}, "r must be a finite number, received 'four'"),
        ({"lora_alpha": None}, "lora_alpha must be a finite number, received None"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern must hold regular expressions"),
        ({"rank_pattern": [1]}, "rank_pattern must be an object, received list"),
    ],
)
def test_variants_and_damaged_settings_are_refused_by_name(tmp_path, changes, sentence):
    save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ModelError) as caught:
        read_adapter(tmp_path)
    assert sentence in str(caught.value)


Q0 = "base_model.model.layers.0.q_proj.lora_"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ({Q0 + "A.weight": None}, "must have both lora_A and lora_B, received lora_B only"),
        ({Q0 + "B.weight": torch.zeros(10, 3)}, "must be (rank, in) and lora_B (out, rank) with rank >= 1"),
        ({Q0 + "A.weight": torch.zeros(0, 6), Q0 + "B.weight": torch.zeros(10, 0)}, "received (0, 6) and (10, 0)"),
        ({Q0 + "A.weight": torch.zeros(4, 6, 1, 1)}, "Convolutions and damaged files"),
        ({Q0 + "A.weight": torch.full((4, 6), torch.nan)}, "weights must be finite, received 24 NaN or infinite"),
        ({Q0 + "A.weight": torch.zeros(4, 6, dtype=torch.int8)}, "received torch.int8"),
        (
            {"lm_head.weight": torch.zeros(2, 2)},
            "every tensor must be a lora_A or lora_B factor, received 'lm_head.weight'",
        ),
    ],
)
def test_damaged_weights_are_refused_with_a_sentence(tmp_path, damage, sentence):
    save(tmp_path)
    tensors = {**load_file(tmp_path / WEIGHTS), **damage}
    save_file({k: v for k, v in tensors.items() if v is not None}, tmp_path / WEIGHTS)
    with pytest.raises(ModelError) as caught:
        read_adapter(tmp_path)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      ", None, 200])
def test_truncated_empty_or_foreign_weight_files(tmp_path, content):
    save(tmp_path)
    path = tmp_path / WEIGHTS
    path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[: content or -1])
    with pytest.raises(ModelError, match=r"must be a complete safetensors file|received an empty file"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000])
def test_config_that_is_no_object(tmp_path, text):
    save(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"must be readable JSON|must hold a JSON object"):
        read_adapter(tmp_path)


def test_a_folder_without_an_adapter(tmp_path):
    with pytest.raises(ModelError, match=r"must hold adapter_config.json, received .* without one"):
        read_adapter(tmp_path)
    save(tmp_path)
    (tmp_path / "limbeck.json").write_text('{"init_digest": 3}')
    with pytest.raises(ModelError, match="init_digest must be a string, received int"):
        read_adapter(tmp_path)


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_never_opened(tmp_path):
    save(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    witness = tmp_path / "touched"
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Touch(witness)))
    with pytest.raises(ModelError, match=r"a pickle and is never opened.*safe_serialization=True"):
        read_adapter(tmp_path)
    assert not witness.exists()
    pickle.loads((tmp_path / "adapter_model.bin").read_bytes())  # the control: opening it does touch the file
    assert witness.exists()
