"""An evaluation that is killed continues where it was: every finished batch of answers is on record at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.records import digest_of
from limbeck.rollouts.journal import Journal
from limbeck.rollouts.protocol import Prompt, Sampler
from limbeck.rollouts.sample import Completion
from limbeck.types import Finish


def recorded(
    sampler: Sampler, journal: Path, identity: Mapping[str, Any], *, batch_size: int, restart: bool = False
) -> Sampler:
    """The sampler, asked in batches whose answers go to a journal; a second call with the same prompts asks only the rest.

    Batches are cut from the prompts alone, shortest first, and one that was cut off is asked again as a whole: an answer
    never depends on where a former call died, not even by the rounding that comes with a batch's company.

    Args:
        sampler: who answers, the same for the same prompts.
        journal: the file of finished answers.
        identity: what must agree for answers to belong together, beside the prompts.
        batch_size: prompts a batch.
        restart: drop what the journal holds where it is that of another job.

    Returns:
        A sampler whose log-probs are unknown (NaN): an evaluation does not read them.
    """

    def sample(prompts: Sequence[Prompt], *, advance: Callable[[int], None] = lambda num: None) -> list[Completion]:
        asked = digest_of([[prompt.key, prompt.ids, prompt.text] for prompt in prompts])
        settings = {**identity, "prompts": asked, "num_prompts": len(prompts), "batch_size": batch_size}
        order = sorted(prompts, key=lambda prompt: len(prompt.ids))
        with Journal(journal, settings, restart=restart) as record:
            for begin in range(0, len(order), batch_size):
                batch = order[begin : begin + batch_size]
                if all(prompt.key in record.done for prompt in batch):
                    advance(len(batch))
                    continue
                for prompt, answer in zip(batch, sampler(batch, advance=advance), strict=True):
                    record.append(prompt.key, {"ids": answer.ids, "finish": answer.finish})
            return [_completion(record.done[prompt.key]) for prompt in prompts]

    return sample


def _completion(record: Mapping[str, Any]) -> Completion:
    ids = tuple(record["ids"])
    return Completion(ids=ids, logprobs=(math.nan,) * len(ids), finish=Finish(record["finish"]))
