"""Heads of two and of 200,000 words, of one token, and logits at the far ends: the plain head's values in float64."""

from __future__ import annotations

import pytest
import torch
from tests.unit.heads.naive import logits_of, scores
from tests.unit.heads.test_divergences import FAST

from limbeck.heads import Head, score_tokens

SIZE = 4
VOCABULARIES = (2, 200_000)


def side(vocab: int, seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(3, SIZE, generator=draw)).requires_grad_(), torch.randn(vocab, SIZE, generator=draw)


def agree(values, exact, hidden, wide, slack=1.0):
    (grad,), (expected,) = (torch.autograd.grad(x.sum(), h) for x, h in ((values, hidden), (exact, wide)))
    torch.testing.assert_close(values.double(), exact, rtol=1e-4, atol=1e-4)
    largest = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(grad.double(), expected, rtol=1e-3, atol=3e-4 * max(largest, slack))


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
@pytest.mark.parametrize("trained", [False, True])
def test_scores(vocab, scale, trained):
    hidden, weight = side(vocab, 0, scale)
    wide = hidden.detach().double().requires_grad_()
    targets = torch.tensor([0, 1, vocab - 1])
    found = score_tokens(hidden, Head(weight.requires_grad_(trained)), targets)
    exact = scores(wide, Head(weight.detach().double()), targets)
    agree(found.logprobs + found.entropy, sum(exact), hidden, wide)
    assert bool((found.logprobs <= 0).all())
    assert bool((found.entropy >= -1e-5).all())


@pytest.mark.parametrize(("vocab", "temperature"), [(2, 1e-3), (2, 100.0), (200_000, 1.0)])
@pytest.mark.parametrize(("fused", "plain"), FAST.values(), ids=list(FAST))
def test_divergences(fused, plain, vocab, temperature):
    hidden, weight = side(vocab, 0)
    other, other_weight = side(vocab, 1)
    wide = hidden.detach().double().requires_grad_()
    sides = (hidden, Head(weight)), (other.detach(), Head(other_weight))
    found = fused(*sides[0], *sides[1], kd_temperature=temperature).values
    both = logits_of(wide, Head(weight.double())), logits_of(other.detach().double(), Head(other_weight.double()))
    exact = plain(*both, kd_temperature=temperature).values
    assert bool((found >= -1e-5).all())
    agree(found, exact, hidden, wide, slack=1 / temperature)  # rounding of a logit counts that many times
