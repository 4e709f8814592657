"""lm-evaluation-harness: ``samples_TASK_DATE.jsonl``, one line a document and filter, written with ``--log_samples``.

Read at version 0.4.13. An id is ``doc_id``; question and target are ``doc_hash`` and ``target_hash``; the prompt as
rendered, few-shot examples and chat template included, is ``prompt_hash``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbeck.errors import DataError
from limbeck.evals.exchange.files import json_lines
from limbeck.evals.exchange.rows import Answer, Regrade, choose, table_of, text_of
from limbeck.records import digest_of
from limbeck.types import Outcome, ScoreTable

INVALID = "[invalid]"  # what its regex filter returns where nothing matched
NEEDS = ("doc_id", "doc", "target", "metrics")


def read(path: Path, *, name: str, metric: str = "", regrade: Regrade = "") -> ScoreTable:
    """The table of one task's sample log.

    Args:
        path: of the samples file.
        name: whose table this is.
        metric: ``metric,filter`` in the harness's own notation; may be left out where there is one.
        regrade: judge the responses by limbeck's grader.

    Raises:
        ConfigError: several metrics or filters and none named.
        DataError: lines without document ids, or what :func:`limbeck.evals.exchange.rows.table_of` refuses.
    """
    lines = list(_lines(path))
    found = sorted({f"{measure},{line['filter']}" for line in lines for measure in line["metrics"]})
    if regrade and not metric:  # the responses are the same under every filter
        found = found[:1]
    chosen = choose("metric,filter", metric, found, path, "--metric")
    measure, _, kept = chosen.partition(",")
    lines = [line for line in lines if line["filter"] == kept]
    decodings = sorted({_decoding(line) for line in lines})
    return table_of(
        (_answer(line, measure) for line in lines),
        path=path,
        name=name,
        grader=f"lm-evaluation-harness {chosen}",
        decoding=" | ".join(decodings),
        regrade=regrade,
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for where, line in json_lines(path):
        missing = [key for key in NEEDS if line.get(key) is None]
        if missing or not _names(line["metrics"]) or isinstance(line["doc_id"], dict | list | float):
            lacks = f"without {', '.join(missing)}" if missing else "whose doc_id or metrics are of another type"
            raise DataError(
                f"{where}: a sample needs {', '.join(NEEDS)}, received one {lacks}. Answers are paired by document: "
                "evaluate again with --log_samples."
            )
        # the few fields that count: a log repeats its few-shot examples in every line
        yield {
            "where": where,
            "doc_id": line["doc_id"],
            "target": line["target"],
            "metrics": line["metrics"],
            "values": {str(m): line.get(m) for m in line["metrics"]},
            "filter": str(line.get("filter", "none")),
            "problem": line.get("doc_hash") or digest_of(line["doc"]),
            "prompt": line.get("prompt_hash") or _prompt(line),
            "decoding": _generation(line),
            "resps": line.get("resps"),
            "filtered": line.get("filtered_resps"),
        }


def _answer(line: dict[str, Any], measure: str) -> Answer:
    if measure not in line["values"]:
        raise DataError(f"{line['where']}: a sample must have the metric {measure!r}, received {line['metrics']}.")
    groups = line["resps"] if isinstance(line["resps"], list) else []
    responses = [text for group in groups if isinstance(group, list) for text in group if isinstance(text, str)]
    filtered = line["filtered"][0] if isinstance(line["filtered"], list) and line["filtered"] else ""
    invalid = filtered == INVALID
    return Answer(
        problem_id=str(line["doc_id"]),
        sample=0,
        value=line["values"][measure],
        target=text_of(line["target"]),
        problem=digest_of([line["problem"], text_of(line["target"])]),
        prompt=text_of(line["prompt"]),
        responses=responses,
        extracted=filtered if isinstance(filtered, str) and not invalid else "",
        outcome=Outcome.UNPARSED if invalid and line["values"][measure] == 0 else None,
    )


def _names(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(name, str) for name in given)


def _arguments(line: dict[str, Any]) -> list[dict[str, Any]]:
    given = line.get("arguments")
    return [one for one in given.values() if isinstance(one, dict)] if isinstance(given, dict) else []


def _prompt(line: dict[str, Any]) -> str:
    prompts = [one.get("arg_0") for one in _arguments(line)]
    return digest_of(prompts) if prompts else ""


def _generation(line: dict[str, Any]) -> dict[str, Any]:
    first = next(iter(_arguments(line)), {}).get("arg_1")
    return first if isinstance(first, dict) else {}


def _decoding(line: dict[str, Any]) -> str:
    if not line["decoding"]:
        return "log-likelihoods"
    return json.dumps(line["decoding"], sort_keys=True, default=str)
