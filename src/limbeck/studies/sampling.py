"""Rollouts, once, for every arm: a teacher answers, a grader judges, a set with its provenance comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.problems.grading import GRADER_ID, Outcome, grade_all
from limbeck.problems.prompts import prompt_ids, stop_ids, template_digest, text_of
from limbeck.rollouts.sample import Decoding, complete
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
    rows = [(problem, sample) for problem in problems for sample in range(samples)]
    prompts = {problem.id: prompt_ids(tokenizer, problem.prompt) for problem in problems}
    completions = complete(
        model,
        [prompts[problem.id] for problem, _ in rows],
        [f"{problem.id}/{sample}" for problem, sample in rows],
        decoding,
        stop_ids=stop_ids(tokenizer),
        advance=advance,
    )
    texts = [text_of(tokenizer, c.ids) for c in completions]
    grades = grade_all(texts, [problem.answer for problem, _ in rows])
    rollouts = tuple(
        Rollout(
            problem_id=problem.id,
            sample=sample,
            prompt_ids=prompts[problem.id],
            response_ids=completion.ids,
            behavior_logprobs=completion.logprobs,
            reward=float(grade.outcome == Outcome.CORRECT),
            finish=completion.finish,
            response=text,
        )
        for (problem, sample), completion, text, grade in zip(rows, completions, texts, grades, strict=True)
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
