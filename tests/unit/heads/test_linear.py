"""A weighted sum of log-probs against the naive head, and what it costs."""

from __future__ import annotations

import pytest
import torch
from tests.unit.heads.naive import CHUNKS, HEADS, PRECISIONS, TOKENS, VOCAB, Largest, inputs, leaves_of, same, scores

from limbeck.errors import ShapeError
from limbeck.heads import Head, linear_total, score_tokens


def head_of(weight, bias, scale, softcap, *, trainable):
    bias = None if bias is None else bias.detach().requires_grad_(trainable)
    return Head(weight.detach().requires_grad_(trainable), bias, scale, softcap)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize(("bias", "scale", "softcap"), HEADS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_equals_the_naive_sum_in_value_and_gradient(chunk_bytes, bias, scale, softcap, dtype, tolerance, trainable):
    hidden, weight, offset, targets, mix = inputs(dtype, bias=bias)
    head = head_of(weight, offset, scale, softcap, trainable=trainable)
    found = linear_total(hidden, head, targets, mix[0], chunk_bytes=chunk_bytes)
    expected = scores(hidden, head, targets)[0]
    same([found.logprobs], [expected.detach()], tolerance)
    same([found.total], [(mix[0] * expected).sum()], 10 * tolerance)
    totals = -0.7 * found.total, -0.7 * (mix[0] * expected).sum()  # backward scales what forward has made
    same(*(torch.autograd.grad(total, leaves_of(hidden, head)) for total in totals), 10 * tolerance)


def test_log_probs_are_for_metrics_only():
    hidden, weight, _, targets, mix = inputs(torch.float32)
    assert not linear_total(hidden, Head(weight), targets, mix[0]).logprobs.requires_grad
    with torch.no_grad():
        assert not linear_total(hidden, Head(weight), targets, mix[0]).total.requires_grad


@pytest.mark.parametrize(("trainable", "expected"), [(False, 2), (True, 3)])
def test_two_products_or_three(trainable, expected):
    hidden, weight, _, targets, mix = inputs(torch.float32)
    head = head_of(weight, None, 1.0, 0.0, trainable=trainable)
    with torch.profiler.profile() as trace:
        linear_total(hidden, head, targets, mix[0]).total.backward()
    counts = {event.key: event.count for event in trace.key_averages()}
    assert counts.get("aten::mm", 0) + counts.get("aten::addmm_", 0) == expected


@pytest.mark.parametrize("trainable", [False, True])
def test_no_tensor_larger_than_a_chunk_of_rows_exists(trainable):
    hidden, weight, _, targets, mix = inputs(torch.float32)
    head = head_of(weight, None, 1.0, 0.0, trainable=trainable)
    with Largest() as seen:
        linear_total(hidden, head, targets, mix[0], chunk_bytes=4 * VOCAB * 7).total.backward()
    assert seen.elements == 7 * VOCAB


def test_bf16_sums_of_many_chunks_are_kept_wide():
    hidden, weight, _, targets, mix = inputs(torch.bfloat16, bias=False)
    head = Head(weight)
    total = linear_total(hidden, head, targets, mix[0].float(), chunk_bytes=1).total  # a chunk per token
    received = torch.autograd.grad(total, [hidden, weight])
    expected = (mix[0].float() * score_tokens(hidden, head, targets).logprobs).sum()
    for ours, theirs in zip(received, torch.autograd.grad(expected, [hidden, weight]), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs.float()).norm() / theirs.float().norm() < 0.01


@pytest.mark.parametrize("trainable", [False, True])
def test_no_tokens_is_no_error(trainable):
    head = Head(weight=torch.zeros(32, 4, requires_grad=trainable))
    hidden = torch.zeros(0, 4, requires_grad=True)
    found = linear_total(hidden, head, torch.zeros(0, dtype=torch.long), torch.zeros(0))
    found.total.backward()
    assert found.total.item() == 0
    assert hidden.grad.shape == (0, 4)


def test_a_second_backward_is_refused():
    hidden, weight, _, targets, mix = inputs(torch.float32)
    total = linear_total(hidden, Head(weight), targets, mix[0]).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="goes backward once"):
        total.backward()


def test_weights_with_a_gradient_are_refused():
    hidden, weight, _, targets, _ = inputs(torch.float32)
    with pytest.raises(ShapeError, match="weights must be constants"):
        linear_total(hidden, Head(weight), targets, torch.ones(TOKENS, requires_grad=True))
