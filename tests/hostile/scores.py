"""Logs of answers by other programs, and score tables."""

from __future__ import annotations

import json
from typing import Any

from tests.hostile.making import DEEP, Make, archive, file, lines, newer, repeated, sealed
from tests.hostile.verbs import Case


def sample(**changed: Any) -> Make:
    """A log of lm-evaluation-harness."""
    one = {"doc_id": 0, "doc": {}, "target": "2", "metrics": ["acc"], "acc": 1.0, "resps": [["2"]], "filter": "none"}
    return lines("samples_x.jsonl", one | changed)


def row(**changed: Any) -> Make:
    """A plain score table."""
    return lines("table.jsonl", {"problem_id": "p", "correct": 1} | changed)


def inspect(**changed: Any) -> Make:
    """A log of inspect."""
    one = {"id": "a", "epoch": 1, "input": "1 + 1?", "target": "2", "scores": {"match": {"value": "C"}}}
    return file("log.json", json.dumps({"status": "success", "samples": [one | changed]}))


SCORES = [
    Case("brackets 100,000 deep", "scores import", file("samples_x.jsonl", DEEP), "nesting too deep to read"),
    Case(
        "brackets 600 deep in a document",
        "scores import",
        file(
            "samples_x.jsonl",
            json.dumps({"doc_id": 0, "target": "2", "metrics": ["acc"], "acc": 1, "filter": "none"})[:-1]
            + ', "doc": '
            + "[" * 600
            + "]" * 600
            + "}",
        ),
        "nesting too deep to read",
    ),
    Case(
        "a key twice",
        "scores import",
        file("samples_x.jsonl", '{"doc_id": 0, "doc_id": 1, "doc": {}, "target": "", "metrics": ["acc"], "acc": 1}'),
        "stands twice",
    ),
    Case(
        "a metric of NaN",
        "scores import",
        sample(acc=float("nan")),
        "an answer must be right (1) or wrong (0) to be paired, received a value nan",
    ),
    Case(
        "a metric that is a table",
        "scores import",
        sample(acc={"a": 1}),
        "an answer must be right (1) or wrong (0) to be paired, received a value {'a': 1}",
    ),
    Case(
        "metrics without end",
        "scores import",
        sample(metrics=[[1]]),
        "a sample needs doc_id, doc, target, metrics, received one whose doc_id or metrics are of another type.",
    ),
    Case(
        "a document id that is a list",
        "scores import",
        sample(doc_id=[1]),
        "a sample needs doc_id, doc, target, metrics, received one whose doc_id or metrics are of another type.",
    ),
    Case(
        "a sample number of infinity",
        "scores import",
        file("table.jsonl", '{"problem_id": "p", "correct": 1, "sample": 1e999}'),
        "a cell must be what its column says",
    ),
    Case(
        "a sample number of 400 digits",
        "scores import",
        row(sample=10**400),
        "sample and response_tokens must lie in 0 to",
    ),
    Case(
        "a count of tokens of infinity",
        "scores import",
        file("table.jsonl", '{"problem_id": "p", "correct": 1, "response_tokens": Infinity}'),
        "a cell must be what its column says",
    ),
    Case(
        "an ending that is a list",
        "scores import",
        row(finish=[1]),
        "a cell must be what its column says, received [1]",
    ),
    Case("a lone surrogate in an id", "scores import", row(problem_id="\ud800"), "a problem id must be valid Unicode"),
    Case("CSV with NUL", "scores import", file("table.csv", "problem_id,correct\np\0,1\n")),
    Case(
        "CSV in UTF-16",
        "scores import",
        file("table.csv", "problem_id,correct\np,1\n".encode("utf-16")),
        "must be CSV in UTF-8",
    ),
    Case(
        "CSV with a byte order mark and more cells than names",
        "scores import",
        file("table.csv", b"\xef\xbb\xbfproblem_id,correct\r\np,1,2,3\r\n"),
    ),
    Case(
        "CSV with a name twice",
        "scores import",
        file("table.csv", "problem_id,correct,correct\np,1,0\n"),
        "must name each column once, received problem_id, correct, correct",
    ),
    Case(
        "CSV with a name of 10,000 characters",
        "scores import",
        file("table.csv", "x" * 10_000 + ",correct\np,1\n"),
        "a row needs problem_id, received xxx",
    ),
    Case(
        "CSV with an open quote",
        "scores import",
        file("table.csv", 'problem_id,correct\n"p,1\n' + "x\n" * 10),
        "a row needs correct, received problem_id",
    ),
    Case(
        "millions of values in kilobytes",
        "scores import",
        repeated("table.parquet", {"problem_id": "p", "correct": True}, 5_000_000),
        "MiB of records, received more",
    ),
    Case("a log of a string", "scores import", file("log.json", '"success"'), "must be a JSON object, received str"),
    Case(
        "an epoch of infinity",
        "scores import",
        file(
            "log.json",
            '{"status": "success", "samples": [{"id": 1, "input": "", "epoch": 1e999, "scores": {"a": {"value": 1}}}]}',
        ),
        "an epoch must be 1 or more, received inf.",
    ),
    Case(
        "an epoch of 400 digits", "scores import", inspect(epoch=10**400), "sample and response_tokens must lie in 0 to"
    ),
    Case("a target 100 deep", "scores import", inspect(target=json.loads("[" * 100 + "]" * 100))),
    Case(
        "a score that is a list",
        "scores import",
        inspect(scores={"match": {"value": [1]}}),
        "an answer must be right (1) or wrong (0) to be paired, received a value [1]",
    ),
    Case("an archive that is none", "scores import", file("log.eval", b"PK\3\4 no"), "must be a zip archive"),
    Case(
        "an archive of a format to come",
        "scores import",
        file("log.eval", newer(archive({"header.json": "{}"}))),
        "must be a zip archive",
    ),
    Case(
        "an archive whose header is a bomb",
        "scores import",
        file("log.eval", archive({"header.json": b" " * (80 << 20)})),
        "header.json must be at most 64 MiB, received more",
    ),
    Case(
        "an archive of many bombs",
        "scores import",
        file(
            "log.eval",
            archive(
                {
                    "header.json": '{"status": "success"}',
                    **{
                        f"samples/{n}.json": b'{"id": 1, "input": "", "x": "' + b"a" * (20 << 20) + b'"}'
                        for n in range(10)
                    },
                }
            ),
        ),
        "MiB of records, received more",
    ),
    Case(
        "an archive whose names leave it",
        "scores import",
        file("log.eval", archive({"../../header.json": "{}", "/etc/passwd": "x"})),
        "header.json must be in the archive, and is not",
    ),
]

TABLES = [
    Case(
        "a manifest without a digest",
        "compare",
        sealed("scores", "scores.parquet", {"problem_id": ["p"]}),
        "must state digest (str)",
    ),
    Case(
        "text in place of Parquet",
        "compare",
        sealed("scores", "scores.parquet", b"no", digest="0"),
        "must be a Parquet score table",
    ),
    Case(
        "millions of values in kilobytes",
        "compare",
        lambda folder: (
            repeated("scores.parquet", {"problem_id": "p", "correct": True}, 5_000_000)(
                sealed("scores", "", digest="0")(folder)
            ).parent
        ),
        "MiB of records, received more",
    ),
]
