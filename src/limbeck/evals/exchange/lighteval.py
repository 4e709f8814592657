"""lighteval: ``details_TASK_DATE.parquet``, one row a document, written with ``--save-details``.

Read at version 0.13.0. An id is ``doc.id``; the prompt's rendering and the sampling temperature are not in the file, and
``output_tokens`` are padded to the batch, so that neither template nor response lengths are known.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbeck.errors import DataError
from limbeck.evals.exchange.files import parquet_rows
from limbeck.evals.exchange.rows import Answer, Regrade, choose, table_of, text_of
from limbeck.records import digest_of
from limbeck.types import ScoreTable

COLUMNS = ("doc", "metric", "model_response")


def read(path: Path, *, name: str, metric: str = "", regrade: Regrade = "") -> ScoreTable:
    """The table of one task's details.

    Args:
        path: of the details file.
        name: whose table this is.
        metric: its name; may be left out where there is one.
        regrade: judge the responses by limbeck's grader; several an item become several samples.

    Raises:
        ConfigError: several metrics and none named.
        DataError: documents without id, or what :func:`limbeck.evals.exchange.rows.table_of` refuses.
    """
    rows = list(_rows(path))
    found = sorted({measure for row in rows for measure in row["metric"]})
    if regrade and not metric:
        found = found[:1]
    chosen = choose("metric", metric, found, path, "--metric")
    decodings = sorted({row["decoding"] for row in rows})
    return table_of(
        (_answer(row, chosen) for row in rows),
        path=path,
        name=name,
        grader=f"lighteval {chosen}",
        decoding=" | ".join(decodings),
        regrade=regrade,
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for where, row in parquet_rows(path, COLUMNS):
        parts = [part for part in (row.get(column) for column in COLUMNS) if isinstance(part, dict)]
        if len(parts) < len(COLUMNS):
            raise DataError(f"{where}: doc, metric and model_response must be structures. Is this a details file?")
        doc, metric, response = parts
        if not doc.get("id"):
            raise DataError(
                f"{where}: a document needs its id, received none. Answers are paired by document: evaluate again with a "
                "release of lighteval that logs doc.id."
            )
        yield {
            "doc": {key: doc.get(key) for key in ("id", "query", "choices", "gold_index")},
            "metric": {key: value for key, value in metric.items() if value is not None},
            "decoding": f"generation_size={doc.get('generation_size')}",
            "text": response.get("text") or [],
        }


def _answer(row: dict[str, Any], metric: str) -> Answer:
    doc = row["doc"]
    return Answer(
        problem_id=text_of(doc["id"]),
        sample=0,
        value=row["metric"].get(metric),
        target=_target(doc),
        problem=digest_of([doc["query"], doc["choices"], doc["gold_index"]]),
        responses=[text for text in row["text"] if isinstance(text, str)],
    )


def _target(doc: dict[str, Any]) -> str:
    choices = doc["choices"] if isinstance(doc["choices"], list) else []
    gold = doc["gold_index"] if isinstance(doc["gold_index"], list) else [doc["gold_index"]]
    return " | ".join(text_of(choices[i]) for i in gold if isinstance(i, int) and 0 <= i < len(choices))
