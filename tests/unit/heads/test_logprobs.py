"""The blocked head against the naive one: values and gradients, tied, biased, scaled, capped, whatever the block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.unit.heads.naive import (
    CHUNKS,
    HEADS,
    PRECISIONS,
    TOKENS,
    VOCAB,
    Largest,
    inputs,
    leaves_of,
    log_softmax,
    same,
)
from tests.unit.heads.naive import scores as naive

from limbeck.errors import ModelError, ShapeError
from limbeck.heads import Head, score_tokens


def frozen(head):
    return head._replace(weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize(("bias", "scale", "softcap"), HEADS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_equals_the_naive_head_in_value_and_gradient(chunk_bytes, bias, scale, softcap, dtype, tolerance, trainable):
    hidden, weight, offset, targets, mix = inputs(dtype, bias=bias)
    head = Head(weight=weight, bias=offset, scale=scale, softcap=softcap)
    head = head if trainable else frozen(head)
    found, expected = score_tokens(hidden, head, targets, chunk_bytes=chunk_bytes), naive(hidden, head, targets)
    same(found, expected, tolerance)
    for part in (slice(0, 1), slice(1, 2), slice(0, 2)):  # log-probs alone, entropy alone, both
        totals = [sum((o * m).sum() for o, m in zip(out[part], mix[part], strict=True)) for out in (found, expected)]
        received, wanted = (torch.autograd.grad(t, leaves_of(hidden, head), retain_graph=True) for t in totals)
        same(received, wanted, 10 * tolerance)


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, 0.0), (0.3, 2.0)])
def test_values_are_what_numpy_says(scale, softcap):
    hidden, weight, offset, targets, _ = inputs(torch.float64)
    found = score_tokens(hidden, Head(weight=weight, bias=offset, scale=scale, softcap=softcap), targets)
    logp = log_softmax(*(t.detach().numpy() for t in (hidden, weight, offset)), scale=scale, softcap=softcap)
    np.testing.assert_allclose(found.logprobs.detach(), logp[np.arange(TOKENS), targets], rtol=1e-12)
    np.testing.assert_allclose(found.entropy.detach(), -(np.exp(logp) * logp).sum(1), rtol=1e-12)


@pytest.mark.parametrize("trainable", [False, True])
def test_gradcheck(trainable):
    hidden, weight, offset, targets, _ = inputs(torch.float64)
    hidden, targets = hidden.detach()[:3].requires_grad_(), targets[:3]

    def function(*parts):
        h, w, b = parts if trainable else (*parts, weight.detach(), offset.detach())
        return tuple(score_tokens(h, Head(weight=w, bias=b, scale=0.5, softcap=3.0), targets, chunk_bytes=4 * 40))

    assert torch.autograd.gradcheck(function, (hidden, weight, offset) if trainable else (hidden,))


def test_a_frozen_weight_gets_no_gradient():
    hidden, weight, _, targets, _ = inputs(torch.float32)
    fixed = weight.detach()
    score_tokens(hidden, Head(weight=fixed), targets).logprobs.sum().backward()
    assert fixed.grad is None
    assert hidden.grad is not None


def test_only_the_weight_may_be_trainable():
    hidden, weight, _, targets, mix = inputs(torch.float64, bias=False)
    head = Head(weight=weight)
    found, expected = (f(hidden.detach(), head, targets)[0] for f in (score_tokens, naive))
    same(*(torch.autograd.grad((out * mix[0]).sum(), [weight]) for out in (found, expected)), 1e-10)


def products(head, *, entropy=False):
    """Matrix products that scoring and its backward take."""
    hidden, _, _, targets, _ = inputs(torch.float32)
    with torch.profiler.profile() as trace:
        found = score_tokens(hidden, head, targets)
        (found.logprobs + (found.entropy if entropy else 0)).sum().backward()
    return sum(event.count for event in trace.key_averages() if event.key in ("aten::mm", "aten::addmm_"))


def test_a_frozen_head_takes_two_products_a_trainable_one_four():
    weight = torch.randn(VOCAB, 6)
    assert products(Head(weight=weight)) == 2
    assert products(Head(weight=weight), entropy=True) == 4
    assert products(Head(weight=weight.requires_grad_())) == 4


@pytest.mark.parametrize("trainable", [False, True])
def test_no_tensor_larger_than_a_block_of_logits_exists(trainable):
    hidden, weight, _, targets, _ = inputs(torch.float32)
    head = Head(weight=weight.detach().requires_grad_(trainable))
    with Largest() as seen:
        score_tokens(hidden, head, targets, chunk_bytes=4 * VOCAB * 7).logprobs.sum().backward()
    assert seen.elements == 7 * VOCAB  # above the hidden states' 13 * 6 and the weight's 29 * 6, below 13 * 29


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_confident_tokens_gradient_survives_bf16(seed, trainable):
    _, weight, _, targets, mix = inputs(torch.bfloat16, seed, bias=False)
    weight = weight.detach()
    hidden = (2 * weight[targets]).requires_grad_()  # the target's logit is 2 * |w|**2
    found = score_tokens(hidden, Head(weight=weight.clone().requires_grad_(trainable)), targets)
    assert found.logprobs.dtype == torch.float32
    found.logprobs.mul(mix[0]).sum().backward()
    p = (hidden.detach() @ weight.T).double().softmax(-1)  # of the logits as the model's own head rounds them
    doubt = 1 - p[torch.arange(TOKENS), targets]
    assert doubt.min() < 0.01
    wanted = mix[0].double()[:, None] * ((torch.nn.functional.one_hot(targets, VOCAB) - p) @ weight.double())
    error = (hidden.grad.double() - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert (error < 0.02 + 1e-6 / doubt).all()  # a few roundings of 2**-8, and fp32's of a log-prob


def test_uniform_logits_have_the_entropy_of_the_vocabulary():
    head = Head(weight=torch.zeros(32, 4))
    entropy = score_tokens(torch.randn(5, 4), head, torch.zeros(5, dtype=torch.long)).entropy
    torch.testing.assert_close(entropy, torch.full((5,), 3.4657), rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk_bytes", [4, 4 * 8, 1 << 20])
def test_words_of_minus_infinity_are_as_good_as_absent(chunk_bytes):
    hidden, weight, offset, targets, _ = inputs(torch.float64)
    padded = Head(weight=weight, bias=torch.where(torch.arange(VOCAB) < 20, offset.detach(), -torch.inf))
    absent = Head(weight=weight[:20], bias=offset.detach()[:20])
    outs = [score_tokens(hidden, head, targets % 20, chunk_bytes=chunk_bytes) for head in (padded, absent)]
    same(outs[0], outs[1], 1e-12)
    same(*(torch.autograd.grad(sum(o.sum() for o in out), [hidden, weight]) for out in outs), 1e-12)


def test_huge_logits_stay_finite_and_match():
    hidden, weight, _, targets, _ = inputs(torch.float64, bias=False)
    head = Head(weight=1000 * weight)
    found, expected = score_tokens(hidden, head, targets, chunk_bytes=64), naive(hidden, head, targets)
    same(found, expected, 1e-9)
    same(*(torch.autograd.grad(out[0].sum(), [hidden]) for out in (found, expected)), 1e-8)


@pytest.mark.parametrize("trainable", [False, True])
def test_no_tokens_is_no_error(trainable):
    head = Head(weight=torch.zeros(32, 4, requires_grad=trainable))
    hidden = torch.zeros(0, 4, requires_grad=True)
    logprobs = score_tokens(hidden, head, torch.zeros(0, dtype=torch.long)).logprobs
    assert logprobs.shape == (0,)
    logprobs.sum().backward()
    assert hidden.grad.shape == (0, 4)


def test_a_head_of_another_size_is_refused():
    with pytest.raises(ModelError, match="hidden states of size 5, received 4"):
        score_tokens(torch.zeros(1, 4), Head(weight=torch.zeros(32, 5)), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("target", [-100, 32])
def test_targets_outside_the_vocabulary_are_refused(target):
    with pytest.raises(ShapeError, match=f"ids from 0 to 31, received {target} to {target}"):
        score_tokens(torch.zeros(1, 4), Head(weight=torch.zeros(32, 4)), torch.tensor([target]))
