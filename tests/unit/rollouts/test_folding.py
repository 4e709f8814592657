"""Folding an adapter: the same function while it lasts, and the very same tensors afterwards."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from limbeck.config import LoraConfig
from limbeck.problems.prompts import prompt_ids, stop_ids
from limbeck.rollouts.folding import folded
from limbeck.rollouts.sample import Decoding, complete
from limbeck.train.models import add_adapter, load_model, load_tokenizer
from limbeck.worlds.abacus.generator import generate

BASE = "abacus:base"


def adapted(*, use_dora: bool = False) -> nn.Module:
    model = load_model(BASE)
    if use_dora:
        config = PeftLoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], use_dora=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is on its way out
            model = get_peft_model(model, config).eval()
    else:
        model = add_adapter(model, LoraConfig(rank=8), init_seed=0).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def adapted_layers(model: nn.Module) -> int:
    return sum(isinstance(module, LoraLinear) for module in model.modules())


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(20, 60)[None]).logits


def test_the_function_is_the_same_and_the_tensors_come_back():
    model = adapted()
    before = {name: (tensor, tensor.clone()) for name, tensor in model.named_parameters()}
    layers, expected = adapted_layers(model), logits(model)
    with folded(model):
        assert adapted_layers(model) == 0
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)
        assert not torch.equal(logits(model), expected)  # it did take the other way
    assert adapted_layers(model) == layers > 0
    assert torch.equal(logits(model), expected)
    for name, tensor in model.named_parameters():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_an_error_while_folded_leaves_the_adapter_in_place():
    model = adapted()
    layers = adapted_layers(model)
    with pytest.raises(KeyError), folded(model):
        raise KeyError
    assert adapted_layers(model) == layers


def test_folded_log_probs_are_as_near_to_float64_as_unfolded_ones():
    model = adapted()
    expected, unfolded = logits(adapted().double()).log_softmax(-1), logits(model).log_softmax(-1)
    with folded(model):
        ours = logits(model).log_softmax(-1)
    gap, theirs = ((x - expected).abs().max().item() for x in (ours, unfolded))
    assert gap < max(2 * theirs, 1e-5)


def test_samples_of_an_adapted_model_are_those_of_the_unfolded_one(monkeypatch):
    model, tokenizer = adapted(), load_tokenizer(BASE)
    prompts = [prompt_ids(tokenizer, problem.prompt) for problem, _ in generate("test", 6, seed=8)]

    def sampled():
        settings = Decoding(sampling_temperature=1.0, max_new_tokens=40, seed=2)
        return complete(model, prompts, list("abcdef"), settings, stop_ids=stop_ids(tokenizer))

    ours = sampled()
    monkeypatch.setattr("limbeck.rollouts.sample.folded", lambda model: torch.no_grad())
    unfolded = sampled()
    assert [completion.ids for completion in ours] == [completion.ids for completion in unfolded]
    for a, b in zip(ours, unfolded, strict=True):
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=0, atol=5e-5)


def test_what_cannot_be_folded_exactly_is_left_as_it_is():
    narrow = adapted().to(torch.bfloat16)
    variant = adapted(use_dora=True)
    hooked = adapted()
    for module in [m for m in hooked.modules() if isinstance(m, LoraLinear)]:
        module.register_forward_hook(lambda *_: None)
    merged = adapted()
    merged.merge_adapter()
    off = adapted()
    off.base_model.disable_adapter_layers()
    for model in (narrow, variant, hooked, merged, off):
        layers, expected = adapted_layers(model), logits(model)
        with folded(model):
            assert adapted_layers(model) == layers > 0
            assert torch.equal(logits(model), expected)


def test_narrow_products_leave_the_adapter_unfolded():
    model = adapted()
    with torch.autocast("cpu", torch.bfloat16), folded(model):
        assert adapted_layers(model) > 0


def test_a_model_without_an_adapter_passes_through():
    model = load_model(BASE)
    with folded(model) as same:
        assert same is model
