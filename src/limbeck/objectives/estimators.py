"""Estimates of a KL divergence from sampled tokens, and which of them may carry a gradient.

With D = logprobs - other on samples from the student: k1 = D and k3 = exp(-D) + D - 1 have the mean
KL(student||other); k2 = D**2 / 2 is biased as a value. Back-propagated, k1 has mean gradient zero, k2 follows
KL(student||other) and k3 follows the other direction, KL(other||student) (law: ``test_estimator_gradients``).
So: k1 only as the cost of a policy gradient, k2 for back-propagation, k3 as a reported value.
"""

from jaxtyping import Float
from torch import Tensor

Tokens = Float[Tensor, "*tokens"]
# nats; beyond it exp meets the end of float32 and a gradient becomes infinite, or NaN where clipped
LOG_RATIO_LIMIT = 20.0


def k1(logprobs: Tokens, other_logprobs: Tokens) -> Tokens:
    """D, detached: a value or a policy-gradient cost. Back-propagated it would have mean gradient zero."""
    return (logprobs - other_logprobs).detach()


def k2(logprobs: Tokens, other_logprobs: Tokens) -> Tokens:
    """D**2 / 2: biased as a value, and with the mean gradient of KL(student||other) on the student's samples."""
    return 0.5 * (logprobs - other_logprobs).square()


def k3(logprobs: Tokens, other_logprobs: Tokens) -> Tokens:
    """exp(-D) + D - 1, at least 0. Its gradient follows KL(other||student), as the customary GRPO penalty does.

    Below D = -20 nats exp goes on along its tangent, so that value and gradient stay finite and keep their direction.
    """
    below = other_logprobs - logprobs
    near = below.clamp(max=LOG_RATIO_LIMIT)
    return near.exp() * (1 + (below - near)) - below - 1


def k3_plus(logprobs: Tokens, other_logprobs: Tokens) -> Tokens:
    """The value of k3 with the gradient of k2, straight through."""
    through = k2(logprobs, other_logprobs)
    return k3(logprobs, other_logprobs).detach() + through - through.detach()
