"""A checkpoint and problems in, a score table out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.problems.grading import GRADER_ID, Grade, Outcome, grade_all
from limbeck.problems.prompts import prompt_ids, stop_ids, text_of
from limbeck.rollouts.sample import Completion, Decoding, complete
from limbeck.types import Problem, Score, ScoreTable, problems_digest


class Answer(NamedTuple):
    """One answer to one problem: what was decoded, its text, and what the grader says."""

    problem: Problem
    sample: int
    prompt_ids: tuple[int, ...]
    completion: Completion
    text: str
    grade: Grade


def answer_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    decoding: Decoding,
    *,
    num_samples: int,
    advance: Callable[[int], None] = lambda num: None,
) -> list[Answer]:
    """``num_samples`` graded answers to every problem, problem by problem.

    The random stream of an answer is named by problem and sample, so it does not depend on what else is asked.
    """
    prompts = {problem.id: prompt_ids(tokenizer, problem.prompt) for problem in problems}
    rows = [(problem, sample) for problem in problems for sample in range(num_samples)]
    completions = complete(
        model,
        [prompts[problem.id] for problem, _ in rows],
        [f"{problem.id}/{sample}" for problem, sample in rows],
        decoding,
        stop_ids=stop_ids(tokenizer, model.generation_config),
        advance=advance,
    )
    texts = [text_of(tokenizer, completion.ids) for completion in completions]
    grades = grade_all(texts, [problem.answer for problem, _ in rows])
    return [
        Answer(problem, sample, prompts[problem.id], completion, text, grade)
        for (problem, sample), completion, text, grade in zip(rows, completions, texts, grades, strict=True)
    ]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    decoding: Decoding,
    *,
    name: str,
    num_samples: int = 1,
    advance: Callable[[int], None] = lambda num: None,
) -> ScoreTable:
    """Answer every problem ``num_samples`` times and grade each answer.

    Args:
        model: any causal language model in eval mode.
        tokenizer: its tokenizer, with the chat template that prompts are rendered by.
        problems: the set; its digest goes into the table.
        decoding: greedy by default.
        name: whose table this is.
        num_samples: answers a problem; more than one needs a sampling temperature above 0.
        advance: called with the number of answers just finished.
    """
    answers = answer_all(model, tokenizer, problems, decoding, num_samples=num_samples, advance=advance)
    scores = tuple(
        Score(
            problem_id=answer.problem.id,
            sample=answer.sample,
            correct=answer.grade.outcome == Outcome.CORRECT,
            answer=answer.problem.answer,
            extracted=answer.grade.extracted,
            finish=answer.completion.finish,
            response_tokens=len(answer.completion.ids),
            response=answer.text,
        )
        for answer in answers
    )
    return ScoreTable(
        name=name,
        scores=scores,
        problems_digest=problems_digest(problems),
        grader=GRADER_ID,
        decoding=decoding.describe(),
    )
