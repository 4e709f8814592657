"""The forward pass: packed rows equal padded ones, autocast stays close, and what would leak is refused."""

from __future__ import annotations

import pytest
import torch
from tests.unit.train.toy import tiny_model, tiny_rollouts
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
)
from transformers.utils import logging

from limbeck.batches.collate import TrainingData, collate
from limbeck.batches.forward import Student, check_packing, hidden_states
from limbeck.batches.packing import fit, pack
from limbeck.batches.whole import Whole
from limbeck.errors import ModelError
from limbeck.heads import Head
from limbeck.objectives import OBJECTIVES, check_knobs

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
PACKABLE = {
    "qwen3": (Qwen3Config, {}),
    "llama": (LlamaConfig, {}),
    "mistral, a window of 4": (MistralConfig, {"sliding_window": 4}),
    "gemma3, windows of 4 and whole": (
        Gemma3TextConfig,
        {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
LEAKING = {
    "bloom": (BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "opt": (OPTConfig, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64}),
}


def make(config, settings, attention="eager"):
    torch.manual_seed(0)
    logging.set_verbosity_error()
    return AutoModelForCausalLM.from_config(config(**settings), attn_implementation=attention).eval()


def ragged(*, rows=9, seed=0):
    rollouts = tiny_rollouts(seed=seed).rollouts[:rows]
    data = TrainingData(rollouts=rollouts, items=[(i,) for i in range(rows)], weights=[1.0] * rows)
    return collate(data, range(rows), ())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PACKABLE)
def test_packed_rows_score_and_learn_as_padded_ones(name, attention):
    config, more = PACKABLE[name]
    model, batch = make(config, {**SHAPE, **more}, attention), ragged()
    mix = torch.randn(2, *batch.mask.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for packing in (False, True):
        scored = Student(model, packing=packing)(batch)
        total = (scored.logprobs * mix[0] + scored.entropy * mix[1]).sum()
        found.append([scored.logprobs, scored.entropy, *torch.autograd.grad(total, list(model.parameters()))])
    assert fit(batch.lengths.tolist(), int(batch.lengths.max()))[1] < len(batch.lengths)  # some rows share a bin
    for padded, packed in zip(*found, strict=True):
        scale = padded.abs().max().item()
        torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5 * max(scale, 1.0))


def test_a_row_does_not_see_its_neighbor_in_the_bin():
    model, batch = make(Qwen3Config, SHAPE), ragged()
    student = Student(model, packing=True)
    before = student(batch).logprobs
    row = int(batch.lengths.argmin())
    changed = batch.ids.clone()
    changed[row] = (changed[row] + 5) % 48
    after = student(
        type(batch)(ids=changed, **{n: getattr(batch, n) for n in ("lengths", "mask", "row_index", "inputs")})
    )
    others = torch.arange(len(changed)) != row
    torch.testing.assert_close(after.logprobs[others], before[others], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(after.logprobs[row], before[row])


@pytest.mark.parametrize("name", LEAKING)
def test_an_architecture_whose_rows_would_see_each_other_is_refused_by_name(name):
    config, more = LEAKING[name]
    settings = {k: SHAPE[k] for k in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")} | more
    model = make(config, settings)
    with pytest.raises(ModelError, match=rf"{type(model).__name__} with eager attention rows see each other"):
        Student(model, packing=True)


def test_the_probe_leaves_training_modes_as_they_were():
    model = make(Qwen3Config, SHAPE)
    model.model.layers[0].train()
    before = [module.training for module in model.modules()]
    check_packing(model)
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("sizes", [[5], [5, 5, 5], [9, 1, 4, 4, 2, 7, 3], list(range(2, 40))])
def test_every_token_has_one_place_and_bins_are_no_more_than_rows(sizes):
    lengths = torch.tensor(sizes)
    ids = torch.arange(1, len(sizes) * max(sizes) + 1).reshape(len(sizes), -1)
    packed = pack(ids, lengths)
    inside = torch.arange(max(sizes))[None] < lengths[:, None]
    places = packed.places[inside]
    assert len(places.unique()) == sum(sizes)
    assert torch.equal(packed.ids.flatten()[places], ids[inside])
    time = torch.arange(max(sizes)).expand_as(ids)
    assert torch.equal(packed.positions.flatten()[places], time[inside])
    assert sum(sizes) <= packed.ids.numel() <= ids.numel()


def test_one_bin_for_all_rows_is_to_be_had():
    packed = pack(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1]), width=4)
    assert packed.ids.tolist() == [[1, 2, 3, 4]]
    assert packed.positions.tolist() == [[0, 1, 2, 0]]


@pytest.mark.parametrize("packing", [False, True])
def test_under_bf16_autocast_scores_and_gradients_stay_close_and_wide(packing):
    model, batch = make(Qwen3Config, SHAPE | {"initializer_range": 0.1}), ragged()
    student = Student(model, packing=packing)
    exact = student(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = student(batch)
    assert found.logprobs.dtype == torch.float32
    assert 0 < (found.logprobs - exact.logprobs).abs().max().item() < 0.1
    wanted = list(model.parameters())
    ours, theirs = (torch.autograd.grad(x.logprobs.sum(), wanted) for x in (found, exact))
    assert all(g.dtype == torch.float32 for g in ours)
    gap = [((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True) if b.norm() > 1e-3]
    assert max(gap) < 0.1


@pytest.mark.parametrize("name", ["reverse_kl", "jsd"])
def test_whole_distributions_under_bf16_autocast_stay_close_and_wide(name):
    model, batch, row = tiny_model(), ragged(), OBJECTIVES[name]
    generator = torch.Generator().manual_seed(3)
    batch.inputs["teacher_hidden"] = torch.randn(*batch.mask.shape, 32, generator=generator)
    whole = Whole(row, check_knobs(row, {}), Head(torch.randn(48, 32, generator=generator) * 0.2), "teacher_logits")
    student = Student(model)
    exact = student(batch, whole).values
    with torch.autocast("cpu", torch.bfloat16):
        found = student(batch, whole).values
    assert found is not None
    assert found.dtype == torch.float32
    assert ((found - exact).norm() / exact.norm()).item() < 0.05
    (gradient,) = torch.autograd.grad(found.sum(), [model.lm_head.weight])
    (wanted,) = torch.autograd.grad(exact.sum(), [model.lm_head.weight])
    assert gradient.dtype == torch.float32
    assert ((gradient - wanted).norm() / wanted.norm()).item() < 0.05


def test_hidden_states_of_packed_rows_lie_where_padded_ones_do():
    model, batch = make(Qwen3Config, SHAPE, "sdpa"), ragged()
    padded, packed = (hidden_states(model, batch.ids, batch.lengths, packing=way) for way in (False, True))
    inside = torch.arange(batch.ids.shape[1])[None] < batch.lengths[:, None]
    torch.testing.assert_close(packed[inside], padded[inside], rtol=1e-5, atol=1e-5)
