"""Who answers: anything that turns prompts into completions, the model in this process or one behind a server.

What asks for rollouts, offline, on-policy or in an evaluation, takes a :class:`Sampler` and does not know which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from transformers import PreTrainedModel

from limbeck.rollouts.sample import Completion, Decoding, complete


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One request for one answer.

    Attributes:
        key: names the request, and with the seed its random stream; unique in a call, ``problem/sample`` by custom.
        ids: what the model reads, template included.
        text: the user's own words, for servers that render the template themselves.
    """

    key: str
    ids: tuple[int, ...]
    text: str


@runtime_checkable
class Sampler(Protocol):
    """Prompts in, one completion for each in the order given. Decoding and stop tokens are the sampler's own.

    ``Completion.logprobs`` has one entry per id: the log-prob under the distribution that was sampled from, NaN where
    the sampler does not know it. ``advance`` is called with the number of prompts just answered.
    """

    def __call__(
        self, prompts: Sequence[Prompt], *, advance: Callable[[int], None] = lambda num: None
    ) -> list[Completion]: ...


def in_process(model: PreTrainedModel, decoding: Decoding, *, stop_ids: Sequence[int]) -> Sampler:
    """The model itself as a sampler, as it is at the time of each call; see :func:`limbeck.rollouts.sample.complete`."""

    def sampler(prompts: Sequence[Prompt], *, advance: Callable[[int], None] = lambda num: None) -> list[Completion]:
        ids, keys = [prompt.ids for prompt in prompts], [prompt.key for prompt in prompts]
        return complete(model, ids, keys, decoding, stop_ids=stop_ids, advance=advance)

    return sampler
