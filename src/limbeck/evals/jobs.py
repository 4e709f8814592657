"""One evaluation from end to end: who answers, what is on record while it runs, the table at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from limbeck.evals.checkpoints import locate, opened, read_tokenizer
from limbeck.evals.evaluate import UNKNOWN, Identity, answers_of, table_of
from limbeck.evals.resume import recorded
from limbeck.evals.tables import write_table
from limbeck.folders import claim
from limbeck.problems.prompts import stop_ids, template_digest
from limbeck.rollouts.journal import JOURNAL
from limbeck.rollouts.protocol import Sampler, in_process
from limbeck.rollouts.sample import Decoding
from limbeck.rollouts.server import Server, ServerSampler
from limbeck.types import Problem, problems_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What an evaluation asks of whoever answers.

    Attributes:
        problems: the set.
        decoding: how answers are made.
        num_samples: answers a problem.
        name: whose table it becomes.
        out: the folder of the table; until it is complete it holds the finished answers.
        overwrite: replace a complete table, and drop finished answers to another job.
        source: what pins the set, for the record.
        last_number: grade an answer without box or marker by its last number.
        show: called with what is being done ("answer", "grade"), how much is done, and of how much.
    """

    problems: Sequence[Problem]
    decoding: Decoding
    num_samples: int
    name: str
    out: Path
    overwrite: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)
    last_number: bool = False
    show: Callable[[str, float, float], None] = lambda title, done, total: None


def from_checkpoint(job: Job, checkpoint: str | Path, base: str = "") -> Path:
    """Evaluate a model in this process; an interrupted job is continued, and ends with the same table.

    Args:
        job: what to ask.
        checkpoint: see :func:`limbeck.evals.checkpoints.locate`.
        base: what an adapter goes on; by default what it says itself.

    Raises:
        ModelError, ProvenanceError: the checkpoint cannot be opened, or is of another base.
        FolderError: ``job.out`` is complete, another's, or holds answers to another job.
    """
    where = locate(checkpoint, base)
    with opened(where) as (model, tokenizer, identity):
        claim(job.out, overwrite=job.overwrite)
        stops = stop_ids(tokenizer, model.generation_config)
        settings = {
            "job": "eval",
            "problems": problems_digest(job.problems),
            "decoding": job.decoding.describe(),
            "num_samples": job.num_samples,
            "template": template_digest(tokenizer),
            "stop_ids": stops,
            **identity._asdict(),
        }
        sampler = recorded(
            in_process(model, job.decoding, stop_ids=stops),
            job.out / JOURNAL,
            settings,
            batch_size=job.decoding.batch_size,
            restart=job.overwrite,
        )
        source = {"checkpoint": str(checkpoint), "weights": where.weights}
        return _finish(job, sampler, tokenizer, identity, template_digest(tokenizer), lambda: source)


def from_server(job: Job, server: Server, tokenizer_folder: str, *, tell: Callable[[str], None]) -> Path:
    """Evaluate what a server serves; an interrupted job is continued, and nothing that was answered is asked again.

    The weights' digest cannot be known. Where the server is asked by messages it renders the template itself, and that is
    not known either.

    Args:
        job: what to ask.
        server: where.
        tokenizer_folder: with the tokenizer of the served model.
        tell: called with a sentence while the server does not answer.

    Raises:
        ServerError: not every problem was answered; what was answered is kept in ``job.out``.
        FolderError: ``job.out`` is complete, another's, or holds answers to another job.
    """
    tokenizer, generation = read_tokenizer(tokenizer_folder)
    sampler = ServerSampler(
        server,
        tokenizer,
        job.decoding,
        stop_ids=stop_ids(tokenizer, generation),
        journal=job.out / JOURNAL,
        restart=job.overwrite,
        tell=tell,
    )
    claim(job.out, overwrite=job.overwrite)
    return _finish(job, sampler, tokenizer, UNKNOWN, template_digest(tokenizer), sampler.provenance)


def _finish(
    job: Job,
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    identity: Identity,
    template: str,
    source: Callable[[], Mapping[str, Any]],
) -> Path:
    total = len(job.problems) * job.num_samples
    answers = answers_of(
        sampler,
        tokenizer,
        job.problems,
        num_samples=job.num_samples,
        last_number=job.last_number,
        advance=_counter(job, "answer", total),
        graded=_counter(job, "grade", total),
    )
    told = source()
    by_messages = told.get("server", {}).get("prompts_sent_as") == "messages"
    table = table_of(
        answers, job.problems, job.decoding, name=job.name,
        template_digest="" if by_messages else template, identity=identity, last_number=job.last_number,
    )  # fmt: skip
    return write_table(table, job.out, source={"problems": job.source, **told})


def _counter(job: Job, title: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(num: int) -> None:
        nonlocal done
        done += num
        job.show(title, done, total)

    job.show(title, 0, total)
    return advance
