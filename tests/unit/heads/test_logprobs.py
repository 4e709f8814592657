"""The chunked head against the naive one: values and gradients, tied, biased, scaled, capped, whatever the chunk."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import ModelError
from limbeck.heads import Head, score_tokens
from limbeck.heads import logprobs as module

TOKENS, HIDDEN, VOCAB = 13, 6, 29


def naive(hidden, head, targets):
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logp = logits.log_softmax(-1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def inputs(dtype, seed=0, *, bias=True):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator, dtype=dtype, requires_grad=True)
    offset = torch.randn(VOCAB, generator=generator, dtype=dtype, requires_grad=True) if bias else None
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    mix = torch.randn(2, TOKENS, generator=generator, dtype=dtype)
    return hidden, weight, offset, targets, mix


@pytest.mark.parametrize("chunk_bytes", [1, 4 * VOCAB * 5, 1 << 20])
@pytest.mark.parametrize(("bias", "scale", "softcap"), [(False, 1.0, 0.0), (True, 1.0, 0.0), (True, 0.3, 2.0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_the_naive_head_in_value_and_gradient(chunk_bytes, bias, scale, softcap, dtype, tolerance):
    hidden, weight, offset, targets, mix = inputs(dtype, bias=bias)
    leaves = [t for t in (hidden, weight, offset) if t is not None]
    head = Head(weight=weight, bias=offset, scale=scale, softcap=softcap)
    expected = naive(hidden, head, targets)
    wanted = torch.autograd.grad((expected[0] * mix[0] + expected[1] * mix[1]).sum(), leaves)
    found = score_tokens(hidden, head, targets, chunk_bytes=chunk_bytes)
    received = torch.autograd.grad((found.logprobs * mix[0] + found.entropy * mix[1]).sum(), leaves)
    torch.testing.assert_close(found.logprobs, expected[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.entropy, expected[1], rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(received, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=10 * tolerance, atol=10 * tolerance)


def test_gradcheck():
    hidden, weight, offset, targets, _ = inputs(torch.float64)

    def function(h, w, b):
        return tuple(
            score_tokens(h, Head(weight=w, bias=b, scale=0.5, softcap=3.0), targets, chunk_bytes=4 * VOCAB * 4)
        )

    assert torch.autograd.gradcheck(function, (hidden, weight, offset))


def test_a_frozen_weight_gets_no_gradient_and_costs_none():
    hidden, weight, _, targets, _ = inputs(torch.float32)
    frozen = weight.detach()
    score_tokens(hidden, Head(weight=frozen), targets).logprobs.sum().backward()
    assert frozen.grad is None
    assert hidden.grad is not None


def test_no_tensor_larger_than_a_chunk_of_logits_exists(monkeypatch):
    largest = 0
    real = module._logits

    def spy(*args):
        nonlocal largest
        logits = real(*args)
        largest = max(largest, logits.numel())
        return logits

    monkeypatch.setattr(module, "_logits", spy)
    hidden, weight, _, targets, _ = inputs(torch.float32)
    score_tokens(hidden, Head(weight=weight), targets, chunk_bytes=4 * VOCAB * 3).logprobs.sum().backward()
    assert largest == 3 * VOCAB


def test_uniform_logits_have_the_entropy_of_the_vocabulary():
    head = Head(weight=torch.zeros(32, 4))
    entropy = score_tokens(torch.randn(5, 4), head, torch.zeros(5, dtype=torch.long)).entropy
    torch.testing.assert_close(entropy, torch.full((5,), 3.4657), rtol=0, atol=1e-4)


def test_no_tokens_is_no_error():
    head = Head(weight=torch.zeros(32, 4))
    assert score_tokens(torch.zeros(0, 4), head, torch.zeros(0, dtype=torch.long)).logprobs.shape == (0,)


def test_a_head_of_another_size_is_refused():
    with pytest.raises(ModelError, match="hidden states of size 5, received 4"):
        score_tokens(torch.zeros(1, 4), Head(weight=torch.zeros(32, 5)), torch.zeros(1, dtype=torch.long))
