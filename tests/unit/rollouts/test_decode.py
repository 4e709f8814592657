"""The draw against its definition in float64, and the cache buffer against the library's own layer."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from limbeck.rollouts.decode import BLOCK, ROOM, Reserved, draw


def test_a_hot_distribution_is_sampled_in_its_proportions():
    p = torch.tensor([0.5, 0.2, 0.2, 0.1])
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    token, logprob = draw((p.log() * 2).expand(10_000, 4), 2.0, uniform)
    torch.testing.assert_close(torch.bincount(token, minlength=4) / 10_000, p, rtol=0, atol=2e-4)
    torch.testing.assert_close(logprob, p.log()[token], rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocab", [1, BLOCK - 1, BLOCK, 3 * BLOCK, 5000])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws_are_inverse_cdf_over_the_whole_vocabulary(vocab, temperature):
    generator = torch.Generator().manual_seed(vocab)
    logits, uniform = torch.randn(200, vocab, generator=generator) * 3, torch.rand(200, generator=generator)
    token, logprob = draw(logits, temperature, uniform)
    exact = (logits.double() / temperature).log_softmax(-1)
    upper = exact.exp().cumsum(-1).gather(1, token[:, None])[:, 0]
    lower = upper - exact.exp().gather(1, token[:, None])[:, 0]
    assert ((lower - 1e-6 <= uniform) & (uniform <= upper + 1e-6)).all()
    torch.testing.assert_close(logprob.double(), exact.gather(1, token[:, None])[:, 0], rtol=0, atol=2e-6)


def test_greedy_takes_the_first_of_the_largest_and_scores_it_at_temperature_one():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    token, logprob = draw(logits, 0.0, torch.tensor([0.99]))
    assert token.tolist() == [1]
    torch.testing.assert_close(logprob, logits.log_softmax(-1)[:, 1])


def test_what_has_no_probability_is_never_drawn():
    """Excluded words at both ends and in the middle, and the smallest and largest numbers that a stream can give."""
    logits = torch.full((4, 3 * BLOCK + 5), float("-inf"))
    logits[:, [BLOCK + 3, 2 * BLOCK + 1]] = 0.0
    token, logprob = draw(logits, 1.0, torch.tensor([0.0, 0.499, 0.5, 1 - 2**-24]))
    assert token.tolist() == [BLOCK + 3, BLOCK + 3, 2 * BLOCK + 1, 2 * BLOCK + 1]
    torch.testing.assert_close(logprob, torch.full((4,), 0.5).log())


def test_the_buffer_holds_what_the_librarys_layer_holds():
    generator = torch.Generator().manual_seed(0)
    plain = DynamicLayer()
    prompt = torch.randn(2, 3, 5, 4, generator=generator)
    plain.update(prompt, -prompt)
    ours = Reserved(plain)
    for step in range(ROOM + 3):
        if step in (0, 10):
            kept = torch.tensor([1, 0, 0] if step == 0 else [2, 0])
            plain.reorder_cache(kept)
            ours.reorder_cache(kept)
        new = torch.randn(len(plain.keys), 3, 1, 4, generator=generator)
        for expected, held in zip(plain.update(new, new + 1), ours.update(new, new + 1), strict=True):
            assert torch.equal(expected, held)
        assert plain.get_mask_sizes(1) == ours.get_mask_sizes(1)
