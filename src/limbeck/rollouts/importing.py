"""A user's JSONL or Parquet file becomes a rollout set: our columns, TRL's, or verl's, told apart by their names.

The text is tokenized with the student's own tokenizer and template. Log-probs of whoever wrote it are unknown (NaN).
Whatever is dropped or assumed is in the set's provenance.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from limbeck.digests import file_digest
from limbeck.errors import DataError
from limbeck.problems.files import Row, read_rows
from limbeck.problems.grading import GRADER_ID, Outcome, grade_all
from limbeck.problems.prompts import prompt_ids, response_ids, stop_ids, template_digest
from limbeck.problems.templates import rendered
from limbeck.types import Finish, Rollout, RolloutSet

Prompt = str | list[dict[str, str]]
PREFERENCE = "trl_preference"
GROUPS = ("by problem_id, else by prompt", "one for each row: its chosen and its rejected response stay a pair")


class Record(NamedTuple):
    """One response as the file has it. ``reward`` is None where it must be graded; both None: a demonstration."""

    where: str
    problem_id: str
    prompt: Prompt
    response: str
    reward: float | None
    answer: str | None
    finish: Finish | None  # None where the file does not say


def import_rollouts(
    path: Path | str, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, workers: int | None = None
) -> RolloutSet:
    """Read, tokenize and, where there is an answer but no reward, grade the responses of a file.

    Recognised columns, first match wins: ``chosen``, ``rejected`` (TRL; rewards 1 and 0); ``responses`` or
    ``response`` with ``reward_model.ground_truth`` (verl); ``prompt``, ``response`` (ours, with ``reward`` or
    ``answer``, and ``problem_id``, ``finish`` if present); ``prompt``, ``completion`` (TRL); ``messages`` (TRL).
    TRL's demonstrations without reward and answer count as right, which the provenance says. Without
    ``problem_id``, rows of one prompt form a group. Each preference row is a group of its own (its problem id ends
    in the row's number), so that its chosen and its rejected response stay a pair. Samples are numbered in the
    file's order.

    Args:
        path: a ``.jsonl`` or ``.parquet`` file.
        tokenizer: of the model that will be trained.
        max_length: rows with more tokens, prompt and response together, are dropped and listed.
        workers: processes for grading; one a core by default.

    Raises:
        DataError: what cannot be read, with file and line or row; no row within ``max_length``.
    """
    provenance: dict[str, object] = {}
    rollouts = tuple(imported(path, tokenizer, provenance, max_length=max_length, workers=workers))
    return RolloutSet(rollouts=rollouts, provenance=provenance)


def imported(
    path: Path | str,
    tokenizer: PreTrainedTokenizerBase,
    provenance: dict[str, object],
    *,
    max_length: int | None = None,
    workers: int | None = None,
) -> Iterator[Rollout]:
    """As :func:`import_rollouts`, one after another: the file's text is held, its tokens are not.

    ``provenance`` is filled in once the last rollout has come.
    """
    path = Path(path)
    records, layout = read_records(path)
    rewards, how = _rewards(records, workers)
    sizes, too_long = Counter[str](), list[list[Any]]()
    for rollout in _tokenize(records, rewards, tokenizer, max_length, too_long):
        sizes[rollout.problem_id] += 1
        yield rollout
    if not sizes:
        raise DataError(
            f"{path}: at least one row must fit into {max_length} tokens, received {len(too_long)} that are longer. "
            "Use a model with a longer context, or shorter responses."
        )
    provenance |= {
        "source": path.name,
        "source_digest": file_digest(path),
        "layout": layout,
        "tokenizer": type(tokenizer).__name__,
        "vocab_size": len(tokenizer),
        "template_digest": template_digest(tokenizer),
        "rewards": how,
        "groups": GROUPS[layout == PREFERENCE],
        "finish": _finishes(records),
        "num_rows": len(records),
        "group_sizes": {str(size): num for size, num in sorted(Counter(sizes.values()).items())},
        "dropped": {"longer_than_max_length": too_long, "max_length": max_length} if too_long else {},
    }


def read_records(path: Path) -> tuple[list[Record], str]:
    """The responses of a file as they stand there, and the name of its layout; nothing is graded or tokenized.

    Raises:
        DataError: what cannot be read, with file and line or row; no row at all.
    """
    records: list[Record] = []
    layout = ""
    for row in read_rows(path):
        layout = layout or _layout(row)
        for record in LAYOUTS[layout](row):
            if not record.response.strip():
                raise DataError(f"{record.where}: a response must not be empty. Drop the row.")
            _check_text(record)
            records.append(record)
    if not records:
        raise DataError(f"{path} must hold at least one rollout, received none. Check that the download finished.")
    return records, layout


def _check_text(record: Record) -> None:
    """Refuse text that no tokenizer takes and no file keeps, before anything is graded."""
    turns = (
        [record.prompt]
        if isinstance(record.prompt, str)
        else [text for turn in record.prompt for text in turn.values()]
    )
    for text in (record.problem_id, *turns, record.response):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{record.where}: text must be valid Unicode, received half of a surrogate pair at {error.start}. "
                "Write the file again as UTF-8."
            ) from error


def token_counts(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """How many tokens the prompt and the response of each record have, the one that closes it included."""
    return [(len(_prompt_ids(tokenizer, record)), len(_response_ids(tokenizer, record))) for record in records]


def _layout(row: Row) -> str:
    has = row.values.keys()
    if {"chosen", "rejected"} <= has:
        return PREFERENCE
    if "reward_model" in has and has & {"responses", "response"}:
        return "verl"
    for name, needs in (
        ("limbeck", {"prompt", "response"}),
        ("trl_completion", {"prompt", "completion"}),
        ("trl_messages", {"messages"}),
    ):
        if needs <= has:
            return name
    raise DataError(
        f"{row.where}: rollouts need the columns prompt and response, prompt and completion, messages, chosen and "
        f"rejected, or verl's prompt, reward_model and responses; received {', '.join(sorted(has))}. Rename the columns."
    )


def _limbeck(row: Row) -> Iterator[Record]:
    record = _record(row, _prompt(row, row.get("prompt")), _response(row, row.get("response")))
    if record.reward is None and record.answer is None:
        raise DataError(f'{row.where}: a rollout needs "reward", or "answer" to be graded by. Add one of the columns.')
    yield record


def _trl_completion(row: Row) -> Iterator[Record]:
    yield _record(row, _prompt(row, row.get("prompt")), _response(row, row.get("completion")))


def _trl_messages(row: Row) -> Iterator[Record]:
    prompt, response = _conversation(row, row.get("messages"))
    yield _record(row, prompt, response)


def _trl_preference(row: Row) -> Iterator[Record]:
    for name, reward in (("chosen", 1.0), ("rejected", 0.0)):
        value = row.get(name)
        if row.values.get("prompt") is not None:
            prompt, response = _prompt(row, row.values["prompt"]), _response(row, value)
        elif isinstance(value, list):
            prompt, response = _conversation(row, value)
        else:
            raise DataError(f'{row.where}: "{name}" as text needs the column prompt. Add it, or give messages.')
        record = _record(row, prompt, response)
        yield record._replace(reward=reward, problem_id=f"{record.problem_id}-row{row.number}")


def _verl(row: Row) -> Iterator[Record]:
    responses = row.values.get("responses") or row.values.get("response")
    prompt, answer = _prompt(row, row.get("prompt")), str(row.get("reward_model.ground_truth"))
    for response in responses if isinstance(responses, list) else [responses]:
        yield _record(row, prompt, _response(row, response))._replace(answer=answer)


LAYOUTS: dict[str, Callable[[Row], Iterator[Record]]] = {
    "limbeck": _limbeck,
    "trl_completion": _trl_completion,
    "trl_messages": _trl_messages,
    PREFERENCE: _trl_preference,
    "verl": _verl,
}


def _record(row: Row, prompt: Prompt, response: str) -> Record:
    values = row.values
    name, answer, finish = values.get("problem_id"), values.get("answer"), values.get("finish")
    if finish not in (None, "stop", "length"):
        raise DataError(f'{row.where}: "finish" must be "stop" or "length", received {finish!r}. Rename it.')
    digest = hashlib.sha256(repr(prompt).encode("utf-8", "surrogatepass")).hexdigest()
    return Record(
        where=row.where,
        problem_id=f"prompt-{digest[:16]}" if name is None else str(name),
        prompt=prompt,
        response=response,
        reward=_number(row, values["reward"]) if values.get("reward") is not None else None,
        answer=None if answer is None else str(answer),
        finish=Finish(finish) if finish else None,
    )


def _number(row: Row, value: Any) -> float:
    try:
        if isinstance(value, (int, float)) and math.isfinite(number := float(value)):
            return number
    except OverflowError:  # an integer of hundreds of digits
        pass
    raise DataError(f'{row.where}: "reward" must be a finite number, received {value!r:.40}. Grade the row again.')


def _prompt(row: Row, value: Any) -> Prompt:
    """The text of a lone user turn, else the turns themselves."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{row.where}: a prompt must not be empty. Drop the row.")
        return value
    turns = _turns(row, value)
    return turns[0]["content"] if [t["role"] for t in turns] == ["user"] else turns


def _response(row: Row, value: Any) -> str:
    if isinstance(value, str):
        return value
    turns = _turns(row, value)
    if [t["role"] for t in turns] != ["assistant"]:
        roles = ", ".join(t["role"] for t in turns)
        raise DataError(
            f"{row.where}: a response must be one assistant turn, received {roles}. Split the conversation."
        )
    return turns[0]["content"]


def _conversation(row: Row, value: Any) -> tuple[Prompt, str]:
    turns = _turns(row, value)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise DataError(f"{row.where}: messages must end with an assistant turn after a prompt. Cut what follows it.")
    return _prompt(row, turns[:-1]), turns[-1]["content"]


def _turns(row: Row, value: Any) -> list[dict[str, str]]:
    good = (
        isinstance(value, list)
        and value
        and all(
            isinstance(t, dict) and isinstance(t.get("role"), str) and isinstance(t.get("content"), str) for t in value
        )
    )
    if not good:
        raise DataError(
            f"{row.where}: text or a list of messages with role and content is needed, received {str(value)[:60]!r}. "
            "Write the turns as text."
        )
    return [{"role": t["role"], "content": t["content"]} for t in value]


def _rewards(records: Sequence[Record], workers: int | None) -> tuple[list[float], str]:
    """Given, graded or, for demonstrations, assumed; never a mixture within a file."""
    if all(r.reward is not None for r in records):
        return [float(r.reward or 0.0) for r in records], "given"
    if all(r.answer is not None for r in records):
        prompts = [r.prompt if isinstance(r.prompt, str) else "" for r in records]
        grades = grade_all([r.response for r in records], [r.answer or "" for r in records], prompts, workers=workers)
        return [float(g.outcome == Outcome.CORRECT) for g in grades], f"graded by {GRADER_ID}"
    lone = next(r for r in records if r.reward is None)
    if any(r.reward is not None or r.answer is not None for r in records):
        raise DataError(f"{lone.where}: every row needs a reward, or every row an answer. Complete the column.")
    return [1.0] * len(records), "assumed 1 (demonstrations)"


def _finishes(records: Sequence[Record]) -> str:
    unknown = sum(record.finish is None for record in records)
    return f'assumed "stop" for {unknown} of {len(records)}, where the file does not say' if unknown else "given"


def _tokenize(
    records: Sequence[Record],
    rewards: Sequence[float],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    too_long: list[list[Any]],
) -> Iterator[Rollout]:
    """The rollouts that fit; the keys of the others go into ``too_long``."""
    prompts: dict[str, tuple[Prompt, tuple[int, ...]]] = {}
    samples: Counter[str] = Counter()
    for record, reward in zip(records, rewards, strict=True):
        name = record.problem_id
        if name not in prompts:
            prompts[name] = record.prompt, _prompt_ids(tokenizer, record)
        text, prompt = prompts[name]
        if text != record.prompt:
            raise DataError(f"{record.where}: problem_id {name!r} stands for two prompts. Give each its own id.")
        response = _response_ids(tokenizer, record)
        sample = samples[name]
        samples[name] += 1
        if max_length is not None and len(prompt) + len(response) > max_length:
            too_long.append([name, sample])
            continue
        yield Rollout(
            problem_id=name,
            sample=sample,
            prompt_ids=prompt,
            response_ids=response,
            behavior_logprobs=(math.nan,) * len(response),
            reward=reward,
            finish=record.finish or Finish.STOP,
            response=record.response,
        )


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, record: Record) -> tuple[int, ...]:
    if isinstance(record.prompt, str):
        return prompt_ids(tokenizer, record.prompt)
    if not tokenizer.chat_template:
        raise DataError(
            f"{record.where}: a prompt of several turns needs a tokenizer with a chat template, received one without. "
            "Give the prompt as text."
        )
    return tuple(rendered(tokenizer, record.prompt, add_generation_prompt=True, tokenize=True))


def _response_ids(tokenizer: PreTrainedTokenizerBase, record: Record) -> tuple[int, ...]:
    """Closed by the stop token, unless the length limit cut the response."""
    ids = response_ids(tokenizer, record.response)
    if record.finish == Finish.LENGTH and len(ids) > 1 and ids[-1] == stop_ids(tokenizer)[0]:
        return ids[:-1]
    return ids
