"""Rollouts files and folders, and problem files."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
from tests.hostile.making import (
    DEEP,
    ROLLOUT,
    Make,
    archive,
    file,
    files,
    found,
    lines,
    linked,
    not_text,
    outside,
    pipe,
    repeated,
    sealed,
    table,
)
from tests.hostile.verbs import Case


def rollout(**changed: Any) -> Make:
    return lines("rollouts.jsonl", ROLLOUT | changed)


def problem(**changed: Any) -> Make:
    return lines("problems.jsonl", {"prompt": "1 + 1?", "answer": "2"} | changed)


def shard(**changed: Any) -> Make:
    """A rollouts folder of one row."""
    one = {
        "problem_id": "p", "sample": 0, "prompt_ids": [1], "response_ids": [2], "behavior_logprobs": [0.0], "reward": 1.0,
        "finish": "stop", "response": "2",
    } | changed  # fmt: skip
    columns = {name: pa.array([value]) for name, value in one.items()}
    return sealed("rollouts", "rollouts-00000.parquet", columns, digest="0" * 64, provenance={}, num_rollouts=1)


ROLLOUTS = [
    Case("lines that are no JSON", "import", file("rollouts.jsonl", "prompt: 1\n"), "a line must be JSON"),
    Case("a line that is cut", "import", file("rollouts.jsonl", json.dumps(ROLLOUT)[:-9]), "a line must be JSON"),
    Case("brackets 100,000 deep", "import", file("rollouts.jsonl", '{"prompt": ' + DEEP), "nesting too deep to read"),
    Case(
        "brackets 700 deep in a prompt",
        "import",
        file("rollouts.jsonl", '{"response": "2", "reward": 1, "prompt": ' + "[" * 700 + "]" * 700 + "}"),
        "text or a list of messages with role and content is needed",
    ),
    Case("a line that is a list", "import", file("rollouts.jsonl", "[1, 2]\n"), "a line must be a JSON object"),
    Case(
        "a key twice",
        "import",
        file("rollouts.jsonl", '{"prompt": "1", "response": "2", "reward": 0, "reward": 1}'),
        "stands twice",
    ),
    Case(
        "a reward of NaN",
        "import",
        file("rollouts.jsonl", json.dumps(ROLLOUT | {"reward": float("nan")})),
        '"reward" must be a finite number, received nan',
    ),
    Case(
        "a reward of 1e999",
        "import",
        file("rollouts.jsonl", '{"prompt": "1", "response": "2", "reward": 1e999}'),
        '"reward" must be a finite number, received inf',
    ),
    Case("a reward of 400 digits", "import", rollout(reward=10**400), '"reward" must be a finite number'),
    Case(
        "a reward of 5,000 digits",
        "import",
        file("rollouts.jsonl", '{"prompt": "1", "response": "2", "reward": ' + "9" * 5000 + "}"),
        "a line must be JSON",
    ),
    Case("a reward in words", "import", rollout(reward="1"), "\"reward\" must be a finite number, received '1'"),
    Case("a lone surrogate in a prompt", "import", rollout(prompt="1 \ud800 1?"), "half of a surrogate pair"),
    Case("a lone surrogate in a response", "import", rollout(response="\ud800 #### 2"), "half of a surrogate pair"),
    Case("a lone surrogate in an id", "import", rollout(problem_id="\ud800"), "half of a surrogate pair"),
    Case(
        "a lone surrogate in a role",
        "import",
        rollout(prompt=[{"role": "\ud800", "content": "1"}, {"role": "user", "content": "2"}]),
        "half of a surrogate pair",
    ),
    Case("NUL bytes in place of text", "import", file("rollouts.jsonl", b"\0" * 4096), "a line must be JSON"),
    Case("NUL in a prompt", "import", rollout(prompt="1 \0 + 1?")),
    Case("a byte order mark first", "import", file("rollouts.jsonl", b"\xef\xbb\xbf" + json.dumps(ROLLOUT).encode())),
    Case("UTF-16", "import", file("rollouts.jsonl", json.dumps(ROLLOUT).encode("utf-16"))),
    Case(
        "Latin-1",
        "import",
        file("rollouts.jsonl", b'{"prompt": "\xe9", "response": "2", "reward": 1}'),
        "a line must be JSON",
    ),
    Case(
        "line ends of three systems",
        "import",
        file("rollouts.jsonl", "\r\n".join(json.dumps(ROLLOUT | {"response": str(n)}) for n in range(3)) + "\n\r\n"),
    ),
    Case(
        "carriage returns alone",
        "import",
        file("rollouts.jsonl", "\r".join([json.dumps(ROLLOUT)] * 2)),
        "a line must be JSON",
    ),
    Case(
        "a million empty lines",
        "import",
        file("rollouts.jsonl", "\n" * 1_000_000),
        "must hold at least one rollout, received none",
    ),
    Case(
        "messages of another type",
        "import",
        lines("rollouts.jsonl", {"messages": {"role": "user"}}),
        "text or a list of messages with role and content is needed, received \"{'role': 'user'}\"",
    ),
    Case("an id that is a list", "import", rollout(problem_id=[1, [2]])),
    Case(
        "an ending that is a table",
        "import",
        rollout(finish={"a": 1}),
        '"finish" must be "stop" or "length", received {\'a\': 1}',
    ),
    Case("text in place of Parquet", "import", file("rollouts.parquet", "PAR1 no PAR1"), "must be a Parquet file"),
    Case(
        "a Parquet footer of 2 GB",
        "import",
        file("rollouts.parquet", b"PAR1" + b"\0" * 50 + b"\xff\xff\xff\x7fPAR1"),
        "must be a Parquet file",
    ),
    Case(
        "millions of values in kilobytes",
        "import",
        repeated("rollouts.parquet", ROLLOUT, 5_000_000),
        "MiB of records, received more",
    ),
    Case(
        "a value of 8 MB in each of 50,000 rows",
        "import",
        repeated("rollouts.parquet", ROLLOUT | {"prompt": "y" * 8_000_000}, 50_000),
        "MiB of records, received more",
    ),
    Case("text that is not UTF-8", "import", not_text("rollouts.parquet", "prompt"), "is cut or damaged after row 0:"),
    Case(
        "a date beyond the calendar",
        "import",
        table(
            "rollouts.parquet", {**{k: [v] for k, v in ROLLOUT.items()}, "at": pa.array([2**62], pa.timestamp("us"))}
        ),
        "is cut or damaged after row 0:",
    ),
    Case(
        "a structure with a name twice",
        "import",
        table(
            "rollouts.parquet", {"prompt": pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])}
        ),
        "is cut or damaged after row 0:",
    ),
    Case(
        "an archive under another name",
        "import",
        file("rollouts.jsonl", archive({"rollouts.jsonl": json.dumps(ROLLOUT)})),
        "a line must be JSON",
    ),
    Case(
        "a compressed file",
        "import",
        file("rollouts.jsonl.gz", b"\x1f\x8b\x08\0" + b"\0" * 20),
        "a data file must end in .jsonl, .parquet, .arrow, received rollouts.jsonl.gz",
    ),
    Case(
        "a link to an endless device",
        "import",
        linked(files(), "rollouts.jsonl", "/dev/zero"),
        "must hold .jsonl, .parquet, .arrow files, received none",
    ),
]

FOLDERS = [
    Case(
        "a log-prob that is missing",
        "train --rollouts",
        shard(behavior_logprobs=[None]),
        "must have a number for each token, received null in behavior_logprobs",
    ),
    Case(
        "a manifest 100,000 deep",
        "train --rollouts",
        sealed("rollouts", "", text=DEEP),
        "an input folder must be complete (have a manifest.json)",
    ),
    Case(
        "a manifest that is a list",
        "train --rollouts",
        sealed("rollouts", "", text="[1]"),
        "an input folder must be complete (have a manifest.json)",
    ),
    Case(
        "a manifest with a number of 5,000 digits",
        "train --rollouts",
        sealed("rollouts", "", text='{"kind": ' + "9" * 5000 + "}"),
        "an input folder must be complete (have a manifest.json)",
    ),
    Case("a manifest without a digest", "train --rollouts", sealed("rollouts", ""), "must state digest (str)"),
    Case(
        "a digest that is a number",
        "train --rollouts",
        sealed("rollouts", "", digest=1, provenance={}, num_rollouts=1),
        "must state digest (str), received int",
    ),
    Case(
        "provenance that is a list",
        "train --rollouts",
        sealed("rollouts", "", digest="0" * 64, provenance=[1], num_rollouts=1),
        "must state provenance (dict), received list",
    ),
    Case(
        "files that leave the folder",
        "train --rollouts",
        sealed(
            "rollouts",
            "",
            digest="0" * 64,
            provenance={},
            num_rollouts=1,
            files={"../../etc/passwd": "0", "/etc/passwd": "0"},
        ),
        "must match their manifest's digest",
    ),
    Case("content of another digest", "train --rollouts", shard(), "must match their manifest's digest"),
    Case("an unknown ending", "train --rollouts", shard(finish="never"), "must be a Parquet shard of rollouts"),
    Case(
        "a reward of NaN in a shard",
        "train --rollouts",
        shard(reward=float("nan")),
        "rollout 'p' sample 0: reward must be a finite number, received nan",
    ),
    Case("a reward that is missing", "train --rollouts", shard(reward=None), "must be a Parquet shard of rollouts"),
    Case("ids below zero", "train --rollouts", shard(prompt_ids=[-1]), "must match their manifest's digest"),
    Case("ids beyond 32 bits", "train --rollouts", shard(prompt_ids=[2**40]), "must be a Parquet shard of rollouts"),
    Case(
        "other columns",
        "train --rollouts",
        sealed("rollouts", "rollouts-00000.parquet", {"x": [1]}, digest="0" * 64, provenance={}, num_rollouts=1),
        "must be a Parquet shard of rollouts",
    ),
    Case(
        "a shard of millions of values in kilobytes",
        "train --rollouts",
        lambda folder: (
            repeated("rollouts-00000.parquet", {"problem_id": "p", "sample": 0}, 5_000_000)(
                sealed("rollouts", "", digest="0" * 64, provenance={}, num_rollouts=1)(folder)
            ).parent
        ),
        "MiB of records, received more",
    ),
]

PROBLEMS = [
    Case(
        "statistics at which pyarrow ends the process",
        "eval --problems",
        found("problems.parquet", "statistics.parquet"),
        "is cut or damaged after row 0: damaged metadata",
    ),
    Case(
        "brackets 100,000 deep",
        "eval --problems",
        file("problems.jsonl", '{"prompt": ' + DEEP),
        "nesting too deep to read",
    ),
    Case(
        "an Arrow batch of fewer than no rows",
        "eval --problems",
        found("problems.arrow", "negative.arrow"),
        "is cut or damaged after row 0: a batch of -",
    ),
    Case(
        "half a million short rows in kilobytes",
        "eval --problems",
        table("problems.parquet", {"prompt": ["1"] * 500_000, "answer": ["2"] * 500_000}),
        "MiB of records, received more",
    ),
    Case(
        "a field's name of 10,000 characters",
        "eval --problems",
        file("problems.jsonl", json.dumps({"x" * 10_000: "1", "answer": "2"})),
        'a row needs the field "prompt". Known: answer, xxx',
    ),
    Case(
        "a key twice",
        "eval --problems",
        file("problems.jsonl", '{"prompt": "1", "answer": "2", "answer": "3"}'),
        "stands twice",
    ),
    Case(
        "an answer of NaN",
        "eval --problems",
        problem(answer=float("nan")),
        "\"answer\" must be text or a number, received 'nan'",
    ),
    Case(
        "an answer of infinity",
        "eval --problems",
        problem(answer=float("inf")),
        "\"answer\" must be text or a number, received 'inf'",
    ),
    Case(
        "NUL in a prompt",
        "eval --problems",
        problem(prompt="1 \0 + 1?"),
        "a problem must not contain control characters",
    ),
    Case(
        "a lone surrogate", "eval --problems", problem(prompt="\ud800"), "a problem must not contain control characters"
    ),
    Case(
        "a lone surrogate in an id",
        "eval --problems",
        problem(id="\ud800"),
        "a problem must not contain control characters",
    ),
    Case(
        "a byte order mark first",
        "eval --problems",
        file("problems.jsonl", b'\xef\xbb\xbf{"prompt": "1 + 1?", "answer": "2"}'),
    ),
    Case(
        "one id twice",
        "eval --problems",
        lines("problems.jsonl", *[{"id": "a", "prompt": "1", "answer": "1"}] * 2),
        "ids must be unique, received 'a' again, first in",
    ),
    Case(
        "an Arrow file with offsets outside of it",
        "eval --problems",
        outside("problems.arrow"),
        "is cut or damaged after row 0:",
    ),
    Case(
        "an empty Arrow file", "eval --problems", file("problems.arrow", b""), "must be an Arrow file, received another"
    ),
    Case(
        "millions of values in kilobytes",
        "eval --problems",
        repeated("problems.parquet", {"prompt": "1", "answer": "2"}, 5_000_000),
        "MiB of records, received more",
    ),
    Case(
        "a pipe among the data",
        "eval --problems",
        pipe(files(), "train.jsonl"),
        "must hold .jsonl, .parquet, .arrow files, received none",
    ),
    Case(
        "a list of splits that is none",
        "eval --problems",
        files(dataset_dict__json="[1]"),
        "must list splits by name, received others",
    ),
    Case(
        "a state of other types",
        "eval --problems",
        files(train__jsonl='{"prompt": "1 + 1?", "answer": "2"}', state__json='{"_data_files": [1]}'),
        "must list its _data_files, received another content",
    ),
    Case(
        "a Git LFS pointer",
        "eval --problems",
        file("problems.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "must hold data, received a Git LFS pointer",
    ),
    Case(
        "one shard of 9,999",
        "eval --problems",
        lambda folder: file("train-00000-of-09999.jsonl", "{}")(folder).parent,
        "must hold every shard, received none named train-00001-of-09999.jsonl",
    ),
]
