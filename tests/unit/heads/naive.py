"""The plain head, with every logit at once, and numpy's float64 word on the values; random inputs; a spy on memory."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOKENS, HIDDEN, VOCAB = 13, 6, 29
HEADS = [(False, 1.0, 0.0), (True, 1.0, 0.0), (True, 0.3, 2.0)]  # bias, scale, softcap
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-5)]
CHUNKS = [1, 4 * VOCAB * 5, 4 * 40, 1 << 20]


def logits_of(hidden, head):
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    return head.softcap * torch.tanh(logits / head.softcap) if head.softcap else logits


def scores(hidden, head, targets):
    logp = logits_of(hidden, head).log_softmax(-1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def inputs(dtype, seed=0, *, bias=True, hidden_size=HIDDEN, vocab=VOCAB):
    """Hidden states, weight, bias (all with gradient), targets and two rows of coefficients."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, hidden_size, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab, hidden_size, generator=generator, dtype=dtype, requires_grad=True)
    offset = torch.randn(vocab, generator=generator, dtype=dtype, requires_grad=True) if bias else None
    targets = torch.randint(vocab, (TOKENS,), generator=generator)
    mix = torch.randn(2, TOKENS, generator=generator, dtype=dtype)
    return hidden, weight, offset, targets, mix


def leaves_of(hidden, head):
    return [t for t in (hidden, head.weight, head.bias) if t is not None and t.requires_grad]


def same(received, wanted, tolerance):
    for ours, theirs in zip(received, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def log_softmax(hidden, weight, bias, scale=1.0, softcap=0.0, tau=1.0):
    """numpy, float64, from arrays."""
    z = scale * (hidden @ weight.T + bias)
    z = (softcap * np.tanh(z / softcap) if softcap else z) / tau
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


class Largest(TorchDispatchMode):
    """The largest tensor that any operation inside made, in elements."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out
