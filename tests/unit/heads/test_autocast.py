"""Heads beside bf16 autocast: bf16 products, everything after them wide, fp32 masters with fp32 gradients, and no leak."""

from __future__ import annotations

import pytest
import torch
from tests.unit.heads.naive import inputs, logits_of, scores
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.heads import Head, chunked, forward_kl, likeliest, linear_total, reverse_kl, score_tokens
from limbeck.heads import logits_of as rows_logits
from limbeck.objectives import divergences as plain

VOCAB, HIDDEN = 257, 32
AUTOCAST = {"device_type": "cpu", "dtype": torch.bfloat16}


def sides(seed=0):
    """fp32 masters beside the bf16 hidden states that a decoder under autocast returns, for student and teacher."""
    hidden, weight, _, targets, mix = inputs(torch.float32, seed, bias=False, hidden_size=HIDDEN, vocab=VOCAB)
    other_hidden, other_weight, _, _, _ = inputs(torch.float32, seed + 1, bias=False, hidden_size=HIDDEN, vocab=VOCAB)
    weight = (weight.detach() * HIDDEN**-0.5).requires_grad_()
    teacher = other_hidden.detach().bfloat16(), Head(other_weight.detach() * HIDDEN**-0.5)
    return hidden.detach().bfloat16().requires_grad_(), weight, targets, mix[0], teacher


def jsd(hidden, head, targets, teacher):
    def function(logits, rows):
        return plain.jsd(logits, rows_logits(rows, teacher[1]))

    return chunked(function, hidden, head, teacher[0], chunk_bytes=4 * VOCAB * 5).values


FORMS = {  # ours, and the same on whole logits
    "log-probs": (
        lambda h, head, t, q: score_tokens(h, head, t, chunk_bytes=4000).logprobs,
        lambda h, head, t, q: scores(h, head, t)[0],
    ),
    "entropy": (
        lambda h, head, t, q: score_tokens(h, head, t, chunk_bytes=4000).entropy,
        lambda h, head, t, q: scores(h, head, t)[1],
    ),
    "linear": (
        lambda h, head, t, q: linear_total(h, head, t, torch.ones(len(t)), chunk_bytes=4000).total[None],
        lambda h, head, t, q: scores(h, head, t)[0].sum()[None],
    ),
    "reverse_kl": (
        lambda h, head, t, q: reverse_kl(h, head, *q, t, chunk_bytes=4000).values,
        lambda h, head, t, q: plain.reverse_kl(logits_of(h, head), logits_of(*q)).values,
    ),
    "forward_kl": (
        lambda h, head, t, q: forward_kl(h, head, *q, t, chunk_bytes=4000).values,
        lambda h, head, t, q: plain.forward_kl(logits_of(h, head), logits_of(*q)).values,
    ),
    "jsd": (jsd, lambda h, head, t, q: plain.jsd(logits_of(h, head), logits_of(*q)).values),
}
every = pytest.mark.parametrize("name", FORMS)
backward_inside = pytest.mark.parametrize("inside", [False, True])


def rounded(head):
    return head._replace(weight=head.weight.bfloat16().float())


def relative(ours, theirs):
    return ((ours.float() - theirs).norm() / theirs.norm()).item()


@every
@backward_inside
@pytest.mark.parametrize("trainable", [False, True])
def test_close_to_fp32_on_the_same_numbers_with_masters_gradients_in_fp32(name, inside, trainable):
    hidden, weight, targets, mix, teacher = sides()
    weight.requires_grad_(trainable)
    leaves = [hidden, weight] if trainable else [hidden]
    ours, naive = FORMS[name]
    with torch.autocast(**AUTOCAST):
        values = ours(hidden, Head(weight), targets, teacher)
        total = (values * mix[: len(values)]).sum()
        gradients = torch.autograd.grad(total, leaves) if inside else None
    gradients = gradients or torch.autograd.grad(total, leaves)
    wide, exact = hidden.detach().float().requires_grad_(), weight.detach().bfloat16().float().requires_grad_(trainable)
    expected = naive(wide, Head(exact), targets, (teacher[0].float(), rounded(teacher[1])))
    wanted = torch.autograd.grad((expected * mix[: len(values)]).sum(), [wide, exact] if trainable else [wide])

    assert values.dtype == torch.float32
    assert relative(values, expected) < 5e-3  # logits are rounded to 8 bits, and nothing else
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32][: len(leaves)]
    assert all(relative(one, other) < 2e-2 for one, other in zip(gradients, wanted, strict=True))


@every
@backward_inside
def test_nothing_leaks_into_fp32_hidden_states(name, inside):
    """Given fp32 hidden states, everything inside is fp32, whatever surrounds the call."""
    hidden, weight, targets, mix, teacher = sides()
    hidden = hidden.detach().float().requires_grad_()
    teacher = teacher[0].float(), teacher[1]
    ours, _ = FORMS[name]

    def run():
        values = ours(hidden, Head(weight), targets, teacher)
        return values, (values * mix[: len(values)]).sum()

    values, total = run()
    expected = [values, *torch.autograd.grad(total, [hidden, weight])]
    with torch.autocast(**AUTOCAST):
        values, total = run()
        found = [values, *torch.autograd.grad(total, [hidden, weight])] if inside else None
    found = found or [values, *torch.autograd.grad(total, [hidden, weight])]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


class Casts(TorchDispatchMode):
    """How many elements of fp32 tensors as wide as the hidden states were cast down."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if "_to_copy" in str(function) and out.dtype == torch.bfloat16 and out.shape[-1] == HIDDEN and len(out) > 13:
            self.elements += out.numel()
        return out


@pytest.mark.parametrize("name", ["log-probs", "linear"])
def test_the_weight_is_cast_once_and_not_once_a_chunk(name):
    hidden, weight, targets, _, teacher = sides()
    with Casts() as seen, torch.autocast(**AUTOCAST):
        FORMS[name][0](hidden, Head(weight.detach()), targets, teacher)
    assert seen.elements == VOCAB * HIDDEN


def test_the_gradient_of_a_confident_token_is_not_drowned():
    """1 - p = 1e-4 is below the precision of bf16; from log-probs of a bf16 softmax its gradient would be 0."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator) * 0.01
    weight[3] = torch.ones(HIDDEN)
    hidden = torch.full((1, HIDDEN), 0.46).bfloat16().requires_grad_()
    target = torch.tensor([3])
    with torch.autocast(**AUTOCAST):
        found = score_tokens(hidden, Head(weight), target)
    (gradient,) = torch.autograd.grad(found.logprobs.sum(), hidden)
    wide = hidden.detach().float().requires_grad_()
    logp, _ = scores(wide, Head(weight.bfloat16().float()), target)
    (wanted,) = torch.autograd.grad(logp.sum(), wide)
    assert 1e-5 < -logp.item() < 1e-3
    assert found.logprobs.item() == pytest.approx(logp.item(), rel=0.2)
    assert torch.nn.functional.cosine_similarity(gradient.float(), wanted).item() > 0.999
    naive = (hidden.detach() @ weight.bfloat16().T).softmax(-1)[0, 3]
    assert naive.item() == 1.0  # the control


def test_likeliest_ids_under_autocast_are_wide():
    hidden, weight, _, _, _ = sides()
    with torch.autocast(**AUTOCAST):
        found = likeliest(hidden, Head(weight), 4)
    assert found.logprobs.dtype == torch.float32
    torch.testing.assert_close(found.logprobs.exp().sum(1), torch.ones(len(hidden)), rtol=1e-5, atol=1e-5)
