"""One objective at a time on small batches: its values, its pull on log-probs, and comparison."""

import torch
from tests.laws.batches import gradients, make, settings, tracked

from limbeck.objectives import OBJECTIVES, evaluate

LENGTHS = (3, 1, 4, 2)


def close(ours, theirs, rtol=1e-9):
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=rtol, atol=1e-12)


def pull(name, batch, **given):
    """Values and gradient on log-probs of one objective on a batch that may hold more tensors than it reads."""
    row = OBJECTIVES[name]
    leaf_batch, leaves = tracked(batch)
    out = evaluate(row, *leaf_batch, settings(row, **given))
    at = [k for k in batch.inputs if k in ("logprobs", "entropy", "logits")].index("logprobs")
    return out.values.detach(), gradients(out.values.sum(), leaves)[at]


def same(first, second):
    for ours, theirs in zip(first, second, strict=True):
        close(ours, theirs)


def joined(*names, seed=0, fresh=False, **replace):
    """One batch with every tensor that the named objectives read."""
    batch = make(OBJECTIVES[names[0]], LENGTHS, seed=seed)
    for name in names[1:]:
        more = make(OBJECTIVES[name], LENGTHS, seed=seed)
        batch.inputs.update({k: v for k, v in more.inputs.items() if k not in batch.inputs})
    if fresh:
        batch.inputs["old_logprobs"] = batch.inputs["logprobs"].clone()
    batch.inputs.update(replace)
    return batch


def cell(value):
    return torch.tensor([[value]], dtype=torch.float64)


def one(name, *, given=None, **tensors):
    """Value and weight -dv/ds of an objective at a single token."""
    row = OBJECTIVES[name]
    ready = {k: cell(v) for k, v in tensors.items()}
    ready["logprobs"].requires_grad_()
    values = evaluate(row, ready, torch.ones(1, 1, dtype=torch.bool), settings(row, **(given or {}))).values
    (gradient,) = torch.autograd.grad(values.sum(), ready["logprobs"])
    return values.item(), -gradient.item()
