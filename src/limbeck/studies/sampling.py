"""Rollouts, once, for every arm: a teacher answers, a grader judges, a set with its provenance comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck import folders
from limbeck.errors import FolderError
from limbeck.evals.checkpoints import read_tokenizer
from limbeck.evals.evaluate import answers_of
from limbeck.problems.grading import GRADER_ID, Outcome
from limbeck.problems.prompts import stop_ids, template_digest
from limbeck.rollouts.journal import JOURNAL, num_finished
from limbeck.rollouts.protocol import Sampler, in_process
from limbeck.rollouts.sample import Decoding
from limbeck.rollouts.server import Server, ServerSampler
from limbeck.rollouts.store import write_rollouts
from limbeck.types import Problem, Rollout, RolloutSet, problems_digest


def sample_rollouts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    decoding: Decoding,
    *,
    samples: int,
    source: Mapping[str, object],
    advance: Callable[[int], None] = lambda num: None,
) -> RolloutSet:
    """As :func:`rollouts_of`, from a model in this process."""
    sampler = in_process(model, decoding, stop_ids=stop_ids(tokenizer, model.generation_config))
    return rollouts_of(sampler, tokenizer, problems, decoding, samples=samples, source=source, advance=advance)


def rollouts_of(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    decoding: Decoding,
    *,
    samples: int,
    source: Mapping[str, object],
    advance: Callable[[int], None] = lambda num: None,
) -> RolloutSet:
    """``samples`` graded answers to every problem; reward 1 for a correct answer, else 0.

    ``behavior_logprobs`` are those of the distribution that was sampled from, at its temperature.
    """
    answers = answers_of(sampler, tokenizer, problems, num_samples=samples, advance=advance)
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
        "num_problems": len(problems),
        "template_digest": template_digest(tokenizer),
        "grader": GRADER_ID,
        "sampling_temperature": decoding.sampling_temperature,
        "max_new_tokens": decoding.max_new_tokens,
        "seed": decoding.seed,
        "samples": samples,
    }
    return RolloutSet(rollouts=rollouts, provenance=provenance)


def sample_from_server(
    server: Server,
    tokenizer_folder: str,
    problems: Sequence[Problem],
    decoding: Decoding,
    out: Path,
    *,
    samples: int,
    source: Mapping[str, object],
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda num: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Path:
    """Graded rollouts from a server into ``out``; an interrupted call is continued by the same call.

    Raises:
        ServerError: not every prompt was answered; what was answered is kept in ``out``.
        FolderError: ``out`` is complete, another's, or holds answers to other questions.
    """
    tokenizer, generation = read_tokenizer(tokenizer_folder)
    sampler = ServerSampler(
        server,
        tokenizer,
        decoding,
        stop_ids=stop_ids(tokenizer, generation),
        journal=out / JOURNAL,
        restart=overwrite,
        tell=tell,
    )
    folders.claim(out, overwrite=overwrite)
    rollout_set = rollouts_of(sampler, tokenizer, problems, decoding, samples=samples, source=source, advance=advance)
    rollout_set = replace(rollout_set, provenance={**sampler.provenance(), **rollout_set.provenance})
    return write_rollouts(rollout_set, out)


def refuse_unfinished(out: Path) -> None:
    """Refuse to replace answers of a server that an interrupted call left in ``out``.

    Raises:
        FolderError: there are some.
    """
    if num_finished(out / JOURNAL):
        raise FolderError(
            f"{out} holds answers of a server from an interrupted run. Repeat its command to continue it, give another "
            "--out, or --overwrite to drop them."
        )
