"""Rollouts, once, for every arm: a teacher answers, a grader judges, a set with its provenance comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.evals.evaluate import answer_all
from limbeck.problems.grading import GRADER_ID, Outcome
from limbeck.problems.prompts import template_digest
from limbeck.rollouts.sample import Decoding
from limbeck.types import Problem, Rollout, RolloutSet, problems_digest


def sample_rollouts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    decoding: Decoding,
    *,
    samples: int,
    source: dict[str, str],
    advance: Callable[[int], None] = lambda num: None,
) -> RolloutSet:
    """``samples`` graded answers to every problem; reward 1 for a correct answer, else 0.

    ``behavior_logprobs`` are those of the distribution that was sampled from, at its temperature.
    """
    answers = answer_all(model, tokenizer, problems, decoding, num_samples=samples, advance=advance)
    rollouts = tuple(
        Rollout(
            problem_id=answer.problem.id,
            sample=answer.sample,
            prompt_ids=answer.prompt_ids,
            response_ids=answer.completion.ids,
            behavior_logprobs=answer.completion.logprobs,
            reward=float(answer.grade.outcome == Outcome.CORRECT),
            finish=answer.completion.finish,
            response=answer.text,
        )
        for answer in answers
    )
    provenance = {
        **source,
        "problems_digest": problems_digest(problems),
        "template_digest": template_digest(tokenizer),
        "grader": GRADER_ID,
        "sampling_temperature": decoding.sampling_temperature,
        "max_new_tokens": decoding.max_new_tokens,
        "seed": decoding.seed,
        "samples": samples,
    }
    return RolloutSet(rollouts=rollouts, provenance=provenance)
