"""A checkpoint and problems in, a score table out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.problems.grading import GRADER_ID, Outcome, grade_all
from limbeck.problems.prompts import prompt_ids, stop_ids, text_of
from limbeck.rollouts.sample import Decoding, complete
from limbeck.types import Problem, Score, ScoreTable, problems_digest


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
    rows = [(problem, sample) for problem in problems for sample in range(num_samples)]
    completions = complete(
        model,
        [prompt_ids(tokenizer, problem.prompt) for problem, _ in rows],
        [f"{problem.id}/{sample}" for problem, sample in rows],
        decoding,
        stop_ids=stop_ids(tokenizer),
        advance=advance,
    )
    texts = [text_of(tokenizer, c.ids) for c in completions]
    grades = grade_all(texts, [problem.answer for problem, _ in rows])
    scores = tuple(
        Score(
            problem_id=problem.id,
            sample=sample,
            correct=grade.outcome == Outcome.CORRECT,
            answer=problem.answer,
            extracted=grade.extracted,
            finish=completion.finish,
            response_tokens=len(completion.ids),
            response=text,
        )
        for (problem, sample), completion, text, grade in zip(rows, completions, texts, grades, strict=True)
    )
    return ScoreTable(
        name=name,
        scores=scores,
        problems_digest=problems_digest(problems),
        grader=GRADER_ID,
        decoding=decoding.describe(),
    )
