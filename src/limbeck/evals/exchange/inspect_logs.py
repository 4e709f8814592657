"""Inspect: ``.eval`` archives and ``.json`` logs, one sample an id and epoch.

Read at version 0.3.285. An id is the sample's own, an epoch becomes a sample number; the prompt is the messages before
the model's first. Long strings may stand once under ``attachments``. What the server's chat template made of the
messages is not in the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from limbeck.errors import DataError
from limbeck.evals.exchange.files import Archive, json_document
from limbeck.evals.exchange.rows import Answer, Regrade, choose, right_or_wrong, table_of, text_of
from limbeck.records import digest_of
from limbeck.types import Finish, Outcome, ScoreTable

VALUES = {"C": 1, "I": 0, "N": 0}  # correct, incorrect, no answer; P is partial credit, and refused
FINISH = {"stop": Finish.STOP, "max_tokens": Finish.LENGTH, "model_length": Finish.LENGTH}
DECODING = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "stop_seqs", "num_choices", "reasoning_effort",
    "reasoning_tokens", "frequency_penalty", "presence_penalty",
)  # fmt: skip
ATTACHMENT = "attachment://"


def read(path: Path, *, name: str, metric: str = "", regrade: Regrade = "") -> ScoreTable:
    """The table of one log.

    Args:
        path: of the log, an archive or JSON.
        name: whose table this is.
        metric: the scorer's name; may be left out where there is one.
        regrade: judge the responses by limbeck's grader.

    Raises:
        ConfigError: several scorers and none named.
        DataError: an unfinished log, one without samples, samples without scores, or what
            :func:`limbeck.evals.exchange.rows.table_of` refuses.
    """
    header, samples = _open(path)
    status = header.get("status")
    if status != "success":
        raise DataError(
            f"{path} must be the log of a finished evaluation, received status {text_of(status)!r:.40}. "
            "Finish it (`inspect eval-retry`): missing answers are not failures."
        )
    kept = list(samples)
    found = sorted({scorer for sample in kept for scorer in sample["scores"]})
    if regrade and not metric:
        found = found[:1] or [""]
    scorer = choose("scorer", metric, found, path, "--metric")
    config = {**_part(header, "eval", "model_generate_config"), **_part(header, "plan", "config")}
    return table_of(
        (_answer(sample, scorer, regrade) for sample in kept),
        path=path,
        name=name,
        grader=f"inspect {scorer} {_options(header, scorer)}".strip(),
        decoding=json.dumps({key: config[key] for key in DECODING if config.get(key) is not None}, sort_keys=True),
        regrade=regrade,
    )


def _open(path: Path) -> tuple[dict[str, Any], Iterable[dict[str, Any]]]:
    """The header, and the samples one by one, each cut to what counts."""
    if path.suffix == ".eval":
        archive = Archive(path)
        names = sorted(name for name in archive.members if name.startswith("samples/") and name.endswith(".json"))
        if len(archive.members) < archive.num_entries:
            raise DataError(f"{path} must name each member once, received a name twice. Copy the log again.")
        header = archive.record("header.json")
        return header, _samples(((f"{path}: {n}", archive.record(n)) for n in names), path)
    log = json_document(path)
    listed = log.get("samples") or []
    listed = listed if isinstance(listed, list) else []
    return log, _samples(((f"{path}: sample {i}", sample) for i, sample in enumerate(listed)), path)


def _samples(samples: Iterable[tuple[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    num = 0
    for where, sample in samples:
        if not isinstance(sample, dict) or not isinstance(sample.get("id"), str | int) or "input" not in sample:
            raise DataError(f"{where} needs an id and an input, received neither. Is this a log of inspect?")
        num += 1
        yield _cut(where, sample)
    if not num:
        raise DataError(
            f"{path} must hold its samples, received a log with aggregates only. Evaluate with --log-samples, or copy the "
            "whole log."
        )


def _cut(where: str, sample: dict[str, Any]) -> dict[str, Any]:
    attachments = sample.get("attachments")
    attachments = attachments if isinstance(attachments, dict) else {}
    messages = sample.get("messages") if isinstance(sample.get("messages"), list) else []
    asked = []
    for message in messages or []:
        if not isinstance(message, dict) or message.get("role") == "assistant":
            break
        asked.append([message.get("role"), _text(message.get("content"), attachments)])
    output = sample.get("output") if isinstance(sample.get("output"), dict) else {}
    choices = output.get("choices") if isinstance(output, dict) else None
    choices = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    usage = output.get("usage") if isinstance(output, dict) else None
    scores = sample.get("scores")
    return {
        "where": where,
        "id": str(sample["id"]),
        "epoch": sample.get("epoch", 1),
        "problem": digest_of([_input(sample["input"], attachments), sample.get("target"), sample.get("choices")]),
        "target": sample.get("target"),
        "prompt": digest_of(asked) if asked else "",
        "responses": [_text(_part(c, "message").get("content"), attachments) for c in choices],
        "stop": choices[0].get("stop_reason") if choices else None,
        "tokens": usage.get("output_tokens") if isinstance(usage, dict) else None,
        "scores": {str(k): v for k, v in scores.items() if isinstance(v, dict)} if isinstance(scores, dict) else {},
        "failed": bool(sample.get("error")),
    }


def _answer(sample: dict[str, Any], scorer: str, regrade: Regrade) -> Answer:
    score = sample["scores"].get(scorer, {})
    value = score.get("value")
    if not regrade and (sample["failed"] or value is None or value != value):  # NaN: left unscored
        why = "an error" if sample["failed"] else "no score"
        raise DataError(
            f"{sample['where']} must have a score by {scorer!r}, received {why}. Run the sample again "
            "(`inspect eval-retry`): missing answers are not failures."
        )
    if not isinstance(sample["epoch"], int) or sample["epoch"] < 1:
        raise DataError(f"{sample['where']}: an epoch must be 1 or more, received {sample['epoch']!r:.40}.")
    known = VALUES.get(value, value) if isinstance(value, str) else value
    target = sample["target"]
    return Answer(
        problem_id=sample["id"],
        sample=sample["epoch"] - 1,
        value=known,
        target=" | ".join(map(text_of, target)) if isinstance(target, list) else text_of(target),
        problem=sample["problem"],
        prompt=sample["prompt"],
        responses=sample["responses"][:1],
        extracted=text_of(score.get("answer")) if right_or_wrong(known) is not None else "",
        finish=FINISH.get(sample["stop"]) if isinstance(sample["stop"], str) else None,
        response_tokens=sample["tokens"] if isinstance(sample["tokens"], int) else None,
        outcome=Outcome.UNPARSED if value == "N" else None,
    )


def _options(header: dict[str, Any], scorer: str) -> str:
    """A scorer's own options decide what is right, so they belong to its name."""
    listed = _part(header, "eval").get("scorers")
    for one in listed if isinstance(listed, list) else []:
        if isinstance(one, dict) and one.get("name") == scorer and one.get("options"):
            return json.dumps(one["options"], sort_keys=True, default=str)
    return ""


def _part(record: dict[str, Any], *path: str) -> dict[str, Any]:
    for key in path:
        inner = record.get(key)
        record = inner if isinstance(inner, dict) else {}
    return record


def _input(given: Any, attachments: dict[str, Any]) -> Any:
    if isinstance(given, list):
        return [[m.get("role"), _text(m.get("content"), attachments)] for m in given if isinstance(m, dict)]
    return _text(given, attachments)


def _text(content: Any, attachments: dict[str, Any]) -> str:
    """The text of a message: a string, or a list of parts of which the written ones count, reasoning left out."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "\n".join(_text(part, attachments) for part in parts)
    text = text_of(content)
    if text.startswith(ATTACHMENT):
        return text_of(attachments.get(text.removeprefix(ATTACHMENT), text))
    return text
