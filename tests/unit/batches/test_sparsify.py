"""Some tokens for all: which are kept, what they weigh, and which rule is unbiased."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
import torch

from limbeck.batches.sparsify import token_weights
from limbeck.config import SparsifyConfig

MASK = torch.tensor([[False, True, True, True, True, False]])
RATIO = torch.tensor([[9.0, 0.5, -2.0, 1.0, 0.5, 9.0]])


def weights(rule: str, share: float, *, mask=MASK, names=("a",), ratio=RATIO) -> torch.Tensor:
    return token_weights(SparsifyConfig(rule=rule, share=share), mask, names, ratio)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.3])
def test_random_is_unbiased_by_enumeration(share):
    values, num = torch.tensor([0.7, -1.3, 2.9, 0.4], dtype=torch.float64), -int(-share * 4 // 1)
    found = Counter(tuple(weights("random", share, names=(f"7/{i}",))[0, 1:5].tolist()) for i in range(1500))
    choices = list(combinations(range(4), num))
    assert len(found) == len(choices)  # every choice there is, and no other
    sums = [sum(w * v for w, v in zip(row, values.tolist(), strict=True)) for row in found]
    assert sum(sums) / len(sums) == pytest.approx(values.sum().item())  # all of them equally likely: the full sum
    expected = 1500 / len(choices)
    chi2 = sum((count - expected) ** 2 / expected for count in found.values())
    assert chi2 < 25  # 5 degrees of freedom at most: p above 1e-4


def test_top_is_not_unbiased_and_ties_go_by_position():
    assert weights("top", 0.25)[0].tolist() == [0, 0, 0, 4, 0, 0]
    assert weights("top", 0.5)[0].tolist() == [0, 2, 0, 2, 0, 0]
    assert weights("top_abs", 0.25)[0].tolist() == [0, 0, 4, 0, 0, 0]
    assert weights("bottom", 0.5)[0].tolist() == [0, 2, 2, 0, 0, 0]


@pytest.mark.parametrize("rule", ["random", "top", "top_abs", "bottom"])
def test_all_tokens_are_the_mask_and_one_is_the_least(rule):
    assert torch.equal(weights(rule, 1.0), MASK.float())
    assert weights(rule, 0.01).sum() == 4
    assert weights(rule, 0.01).count_nonzero() == 1


def test_a_row_does_not_know_its_batch():
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    both = weights("random", 0.5, mask=mask, names=("a", "b"), ratio=None)
    alone = weights("random", 0.5, mask=mask[1:], names=("b",), ratio=None)
    assert torch.equal(both[1:], alone)
    assert both[0].tolist().count(1.5) == 2  # ceil(1.5) of three


def test_shares_are_rounded_up_by_what_they_mean():
    mask = torch.ones(1, 30, dtype=torch.bool)
    assert weights("random", 0.1, mask=mask, ratio=None).count_nonzero() == 3
