"""Divergences from hidden states against the plain form on whole logits: value, gradient, metrics, padding, precision."""

from __future__ import annotations

from functools import partial

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
    logits_of,
    same,
)

from limbeck.errors import ModelError, ShapeError
from limbeck.heads import Head, cut, forward_kl, jsd, jsd_rescaled, reverse_kl, skew_forward, skew_reverse
from limbeck.heads import chunked as one_sided
from limbeck.heads import logits_of as rows_logits
from limbeck.objectives import divergences as plain

FUNCTIONS = {
    "reverse_kl": plain.reverse_kl,
    "forward_kl": plain.forward_kl,
    "jsd": partial(plain.jsd, beta=0.2),
    "jsd_rescaled": plain.jsd_rescaled,
    "skew_forward": plain.skew_forward,
    "skew_reverse": partial(plain.skew_reverse, kd_temperature=2.0, tau_squared=True),
    "forward_kl_topk_tail": partial(plain.forward_kl_topk_tail, k=4),
    "reverse_kl_topk_tail": partial(plain.reverse_kl_topk_tail, k=4),
    "jsd_topk_tail": partial(plain.jsd_topk_tail, k=4),
}
FAST = {
    "reverse_kl": (reverse_kl, plain.reverse_kl),
    "forward_kl": (forward_kl, plain.forward_kl),
    "jsd": (partial(jsd, beta=0.2), partial(plain.jsd, beta=0.2)),
    "jsd_rescaled": (partial(jsd_rescaled, beta=0.7), partial(plain.jsd_rescaled, beta=0.7)),
    "skew_forward": (skew_forward, plain.skew_forward),
    "skew_forward, 0": (partial(skew_forward, skew=0.0), partial(plain.skew_forward, skew=0.0)),
    "skew_reverse": (skew_reverse, plain.skew_reverse),
    "skew_reverse, 0": (partial(skew_reverse, skew=0.0), partial(plain.skew_reverse, skew=0.0)),
}


def sides(dtype, *, bias=True, scale=1.0, softcap=0.0, vocab=VOCAB):
    """Student and teacher of different hidden size; coefficients."""
    hidden, weight, offset, _, mix = inputs(dtype, bias=bias, vocab=vocab)
    other_hidden, other_weight, other_offset, _, _ = inputs(dtype, 1, bias=bias, hidden_size=4, vocab=vocab)
    other = Head(other_weight.detach(), None if other_offset is None else other_offset.detach())
    return hidden, Head(weight, offset, scale, softcap), other_hidden.detach(), other, mix[0]


def chunked(function, hidden, head, other_hidden, other, **settings):
    """Both sides' logits a few rows at a time."""

    def beside(logits, other_rows):
        return function(logits, rows_logits(other_rows, other))

    return one_sided(beside, hidden, head, other_hidden, **settings)


def compare(found, expected, leaves, mix, tolerance):
    assert found.metrics.keys() == expected.metrics.keys()
    same([found.values], [expected.values], tolerance)
    same([found.metrics[name] for name in expected.metrics], expected.metrics.values(), tolerance)
    same(*(torch.autograd.grad((o.values * mix).sum(), leaves) for o in (found, expected)), 10 * tolerance)


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_chunks_equal_the_plain_form(chunk_bytes, name, dtype, tolerance):
    hidden, head, other_hidden, other, mix = sides(dtype, scale=0.3, softcap=2.0)
    found = chunked(FUNCTIONS[name], hidden, head, other_hidden, other, chunk_bytes=chunk_bytes)
    expected = FUNCTIONS[name](logits_of(hidden, head), logits_of(other_hidden, other))
    compare(found, expected, leaves_of(hidden, head), mix, tolerance)


@pytest.mark.parametrize("kd_temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize(("bias", "scale", "softcap"), HEADS)
@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_blocks_equal_the_plain_form(chunk_bytes, bias, scale, softcap, name, dtype, tolerance, kd_temperature):
    hidden, head, other_hidden, other, mix = sides(dtype, bias=bias, scale=scale, softcap=softcap)
    fast, slow = FAST[name]
    found = fast(hidden, head, other_hidden, other, kd_temperature=kd_temperature, chunk_bytes=chunk_bytes)
    expected = slow(logits_of(hidden, head), logits_of(other_hidden, other), kd_temperature=kd_temperature)
    compare(found, expected, leaves_of(hidden, head), mix, tolerance)


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("name", ["jsd", "skew_forward", "skew_reverse"])
def test_ids_that_one_side_all_but_excludes_stay_finite_and_exact(name, scale):
    hidden, head, other_hidden, other, mix = sides(torch.float32, bias=False, scale=scale)
    fast, slow = FAST[name]
    found, expected = (
        fast(hidden, head, other_hidden, other),
        slow(logits_of(hidden, head), logits_of(other_hidden, other)),
    )
    assert torch.isfinite(found.values).all()
    compare(found, expected, leaves_of(hidden, head), mix, 1e-4)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
def test_values_are_what_numpy_says(name):
    hidden, head, other_hidden, other, _ = sides(torch.float64)
    arrays = [t.detach().numpy() for t in (hidden, head.weight, head.bias, other_hidden, other.weight, other.bias)]
    p, q = log_softmax(*arrays[:3], tau=2.0), log_softmax(*arrays[3:], tau=2.0)
    wanted = (np.exp(p) * (p - q)).sum(1) if name == "reverse_kl" else (np.exp(q) * (q - p)).sum(1)
    found = FAST[name][0](hidden, head, other_hidden, other, kd_temperature=2.0).values.detach()
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("fast", [reverse_kl, forward_kl, jsd, jsd_rescaled, skew_forward, skew_reverse])
def test_gradcheck(fast):
    hidden, head, other_hidden, other, _ = sides(torch.float64)
    hidden, other_hidden = hidden.detach()[:3].requires_grad_(), other_hidden[:3]

    def function(h, w, b):
        return fast(h, Head(w, b, 0.5, 3.0), other_hidden, other, chunk_bytes=4 * 40).values

    assert torch.autograd.gradcheck(function, (hidden, head.weight, head.bias))


CHUNKED = {name: partial(chunked, function) for name, function in FUNCTIONS.items()}
every = pytest.mark.parametrize("name", [*CHUNKED, *(f"{name} in blocks" for name in FAST)])


def function_of(name):
    return CHUNKED.get(name) or FAST[name.removesuffix(" in blocks")][0]


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_self_distillation_is_zero_in_value_and_gradient(name, dtype):
    hidden, head, _, _, _ = sides(dtype, bias=False)
    values = function_of(name)(hidden, head, hidden.detach(), Head(head.weight.detach()), chunk_bytes=4 * 40).values
    gradient = torch.autograd.grad(values.sum(), [hidden, head.weight])
    assert values.abs().max() < 1e-6
    assert max(g.abs().max() for g in gradient) < 1e-6


@every
def test_padding_of_different_width_changes_nothing(name):
    narrow = sides(torch.float64, vocab=100)
    hidden, head, other_hidden, other, mix = narrow
    padded = Head(torch.cat([head.weight, torch.ones(4, 6)]), torch.cat([head.bias, torch.full((4,), 50.0)]))
    other_padded = Head(torch.cat([other.weight, torch.ones(9, 4)]), torch.cat([other.bias, torch.full((9,), 50.0)]))
    expected = function_of(name)(*narrow[:4]).values
    found = function_of(name)(hidden, cut(padded, 100), other_hidden, cut(other_padded, 100)).values
    same([found], [expected], 1e-12)
    leaves = [hidden, head.weight, head.bias]
    same(*(torch.autograd.grad((v * mix).sum(), leaves) for v in (found, expected)), 1e-12)


@every
def test_a_bias_of_minus_infinity_on_both_sides_is_padding_too(name):
    hidden, head, other_hidden, other, _ = sides(torch.float64)
    unused = torch.arange(VOCAB) >= 20
    head = head._replace(bias=head.bias.detach().masked_fill(unused, -torch.inf))
    other = other._replace(bias=other.bias.masked_fill(unused, -torch.inf))
    function = partial(function_of(name), chunk_bytes=4 * 40)
    outs = [
        function(hidden, head, other_hidden, other).values,
        function(hidden, cut(head, 20), other_hidden, cut(other, 20)).values,
    ]
    same([outs[0]], [outs[1]], 1e-12)
    same(*(torch.autograd.grad(out.sum(), [hidden, head.weight]) for out in outs), 1e-12)


@pytest.mark.parametrize("name", ["jsd", "reverse_kl in blocks", "forward_kl in blocks", "jsd in blocks"])
def test_a_bf16_teacher_beside_an_fp32_student(name):
    hidden, head, _, _, _ = sides(torch.float32, bias=False)
    teacher = hidden.detach().bfloat16(), Head(head.weight.detach().bfloat16())
    values = function_of(name)(hidden, head, *teacher).values
    assert values.dtype == torch.float32
    assert (values >= -1e-7).all()
    assert (values < 1e-2).all()  # rounding apart they are one model


@pytest.mark.parametrize("fast", [reverse_kl, forward_kl, jsd, skew_forward])
def test_no_tensor_larger_than_a_block_of_logits_exists(fast):
    hidden, head, other_hidden, other, _ = sides(torch.float32, bias=False)
    with Largest() as seen:
        fast(hidden, head, other_hidden, other, chunk_bytes=2 * 4 * VOCAB * 7).values.sum().backward()
    assert seen.elements == 7 * VOCAB  # half of the budget for either side


def test_no_tensor_larger_than_a_chunk_of_rows_exists():
    hidden, head, other_hidden, other, _ = sides(torch.float32, bias=False)
    with Largest() as seen:
        chunked(plain.jsd, hidden, head, other_hidden, other, chunk_bytes=4 * VOCAB * 7).values.sum().backward()
    assert seen.elements == 7 * VOCAB


@every
def test_the_teacher_gets_no_gradient_and_no_tokens_is_no_error(name):
    hidden, head, other_hidden, other, _ = sides(torch.float32)
    other_hidden.requires_grad_()
    function_of(name)(hidden, head, other_hidden, other).values.sum().backward()
    assert other_hidden.grad is None
    out = function_of(name)(hidden[:0], head, other_hidden[:0], other)
    assert out.values.shape == (0,)
    assert all(metric.shape == (0,) for metric in out.metrics.values())
    out.values.sum().backward()


def test_what_cannot_be_compared_is_refused():
    hidden, head, other_hidden, other, _ = sides(torch.float32)
    with pytest.raises(ShapeError, match=r"same ids, received 29 and 28.*heads\.cut"):
        reverse_kl(hidden, head, other_hidden, cut(other, 28))
    with pytest.raises(ShapeError, match=f"same tokens, received {TOKENS} and 3"):
        chunked(plain.jsd, hidden, head, other_hidden[:3], other)
    with pytest.raises(ModelError, match="hidden states of size 4, received 6"):
        forward_kl(hidden, head, hidden, other)
    for wrong in (0, 30):
        with pytest.raises(ShapeError, match=f"between 1 and the head's 29 ids, received {wrong}"):
            cut(head, wrong)
