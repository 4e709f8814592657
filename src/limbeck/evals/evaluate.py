"""A checkpoint and problems in, a score table out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.errors import ConfigError
from limbeck.problems.grading import Grade, grade_all, grader_id
from limbeck.problems.prompts import prompt_ids, stop_ids, template_digest, text_of
from limbeck.rollouts.protocol import Prompt, Sampler, in_process
from limbeck.rollouts.sample import Completion, Decoding
from limbeck.types import Outcome, Problem, Score, ScoreTable, problems_digest


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
    """As :func:`answers_of`, from a model in this process."""
    sampler = in_process(model, decoding, stop_ids=stop_ids(tokenizer, model.generation_config))
    return answers_of(sampler, tokenizer, problems, num_samples=num_samples, advance=advance)


def answers_of(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    num_samples: int,
    last_number: bool = False,
    advance: Callable[[int], None] = lambda num: None,
    graded: Callable[[int], None] = lambda num: None,
) -> list[Answer]:
    """``num_samples`` graded answers to every problem, problem by problem, from any sampler.

    The random stream of an answer is named by problem and sample, so it does not depend on what else is asked.

    Args:
        sampler: who answers.
        tokenizer: renders prompts and reads answers.
        problems: what is asked.
        num_samples: answers a problem.
        last_number: as in :func:`limbeck.problems.grading.grade_all`.
        advance: called with the number of answers just finished.
        graded: called with the number of answers just graded.
    """
    prompts = {problem.id: prompt_ids(tokenizer, problem.prompt) for problem in problems}
    rows = [(problem, sample) for problem in problems for sample in range(num_samples)]
    asked = [Prompt(key=f"{p.id}/{sample}", ids=prompts[p.id], text=p.prompt) for p, sample in rows]
    completions = sampler(asked, advance=advance)
    texts = [text_of(tokenizer, completion.ids) for completion in completions]
    read = {name: text_of(tokenizer, ids) for name, ids in prompts.items()}
    golds, asked_as = [problem.answer for problem, _ in rows], [read[problem.id] for problem, _ in rows]
    grades = grade_all(texts, golds, asked_as, last_number=last_number, advance=graded)
    return [
        Answer(problem, sample, prompts[problem.id], completion, text, grade)
        for (problem, sample), completion, text, grade in zip(rows, completions, texts, grades, strict=True)
    ]


class Identity(NamedTuple):
    """What answered, by digest: weights (of the base, under an adapter) and adapter, ``"none"`` without; empty: unknown."""

    model_digest: str = ""
    adapter_digest: str = ""


UNKNOWN = Identity()


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    decoding: Decoding,
    *,
    name: str,
    num_samples: int = 1,
    identity: Identity = UNKNOWN,
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
        identity: what the model is, for the record.
        advance: called with the number of answers just finished.

    Raises:
        ConfigError: several greedy answers a problem.
    """
    refuse_copies(decoding, num_samples)
    answers = answer_all(model, tokenizer, problems, decoding, num_samples=num_samples, advance=advance)
    template = template_digest(tokenizer)
    return table_of(answers, problems, decoding, name=name, template_digest=template, identity=identity)


def refuse_copies(decoding: Decoding, num_samples: int) -> None:
    """Refuse to count one greedy answer several times.

    Raises:
        ConfigError: more than one sample a problem at temperature 0.
    """
    if num_samples > 1 and decoding.sampling_temperature == 0:
        raise ConfigError(
            f"several answers a problem need a sampling temperature above 0, received {num_samples} greedy ones, which would "
            "be copies. Pass --sampling-temperature 1, or --samples 1."
        )


def table_of(
    answers: Sequence[Answer],
    problems: Sequence[Problem],
    decoding: Decoding,
    *,
    name: str,
    template_digest: str,
    identity: Identity = UNKNOWN,
    last_number: bool = False,
) -> ScoreTable:
    """The score table of graded answers, with everything that makes it comparable."""
    scores = tuple(
        Score(
            problem_id=answer.problem.id,
            sample=answer.sample,
            correct=answer.grade.outcome == Outcome.CORRECT,
            answer=answer.problem.answer,
            extracted=answer.grade.extracted,
            finish=answer.completion.finish,
            response_tokens=len(answer.completion.ids),
            outcome=answer.grade.outcome,
            response=answer.text,
        )
        for answer in answers
    )
    return ScoreTable(
        name=name,
        scores=scores,
        problems_digest=problems_digest(problems),
        grader=grader_id(last_number=last_number),
        decoding=decoding.describe(),
        template_digest=template_digest,
        model_digest=identity.model_digest,
        adapter_digest=identity.adapter_digest,
    )
