"""The table itself: files that no verb may crash on, hang on, or fill the machine with."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from tests.hostile.making import (
    DEEP,
    FACTORS,
    LORA,
    NUMBERS,
    ROLLOUT,
    WEIGHT,
    A,
    B,
    Make,
    adapter,
    archive,
    checkpoint,
    entry,
    file,
    files,
    indexed,
    lines,
    linked,
    model,
    named,
    not_text,
    outside,
    pipe,
    repeated,
    sealed,
    table,
    tensors,
    tokenizer,
)  # fmt: skip


class Case(NamedTuple):
    """What is wrong in words, the verb, how the file is made, and what its sentence must hold; empty: it is taken."""

    wrong: str
    verb: str
    make: Make
    sentence: str = ""


@cache
def _tokenizer() -> Any:
    from limbeck.train.models import load_tokenizer

    return load_tokenizer("abacus:base")


def import_rollouts(path: Path) -> None:
    from limbeck.rollouts.importing import import_rollouts
    from limbeck.rollouts.store import write_rollouts

    write_rollouts(import_rollouts(path, _tokenizer(), workers=1), path.parent / "out")


def read_rollouts(path: Path) -> None:
    from limbeck.rollouts.store import read_rollouts

    read_rollouts(path)


def read_problems(path: Path) -> None:
    from limbeck.worlds.named import problems_named, read_problems

    read_problems(problems_named(str(path), "jsonl", None, 0))


def import_scores(path: Path) -> None:
    from limbeck.evals.exchange import read_log
    from limbeck.evals.tables import write_table

    write_table(read_log(path), path.parent / "out")


def read_scores(path: Path) -> None:
    from limbeck.evals.tables import read_table

    read_table(path)


def measure(path: Path) -> None:
    from limbeck.geometry.adapters import read_adapter
    from limbeck.geometry.dense.checkpoints import is_checkpoint, open_checkpoint
    from limbeck.geometry.dense.layout import match
    from limbeck.geometry.suite import measure
    from limbeck.geometry.table import write_measurements

    if is_checkpoint(path):
        opened = open_checkpoint(path)
        for piece in match(opened, [opened]):
            piece.cut(opened.read(piece.tensor))
        return
    write_measurements(path / "out.parquet", measure([read_adapter(path)], ks=[1], draws=20, seed=0, workers=1))


def load_model(path: Path) -> None:
    from limbeck.problems.prompts import prompt_ids, stop_ids
    from limbeck.train.models import load_model, load_tokenizer, model_context

    tokenizer = load_tokenizer(str(path))
    prompt_ids(tokenizer, "1 + 1?")
    model = load_model(str(path))
    stop_ids(tokenizer, model.generation_config)
    model_context(str(path))


def load_study(path: Path) -> None:
    from limbeck.studies.config import load_study

    load_study(str(path))


def report(path: Path) -> None:
    from limbeck.report import build

    build(path, path)


def watch(path: Path) -> None:
    from limbeck.watch.planned import Watch

    with Watch(path) as watching:
        watching.state()


VERBS: dict[str, Callable[[Path], None]] = {
    "import": import_rollouts,
    "train --rollouts": read_rollouts,
    "eval --problems": read_problems,
    "scores import": import_scores,
    "compare": read_scores,
    "measure": measure,
    "eval --base": load_model,
    "study run": load_study,
    "report": report,
    "watch": watch,
}


def rollout(**changed: Any) -> Make:
    return lines("rollouts.jsonl", ROLLOUT | changed)


def problem(**changed: Any) -> Make:
    return lines("problems.jsonl", {"prompt": "1 + 1?", "answer": "2"} | changed)


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


def shard(**changed: Any) -> Make:
    """A rollouts folder of one row."""
    one = {
        "problem_id": "p", "sample": 0, "prompt_ids": [1], "response_ids": [2], "behavior_logprobs": [0.0], "reward": 1.0,
        "finish": "stop", "response": "2",
    } | changed  # fmt: skip
    columns = {name: pa.array([value]) for name, value in one.items()}
    return sealed("rollouts", "rollouts-00000.parquet", columns, digest="0" * 64, provenance={}, num_rollouts=1)


def study(text: str) -> Make:
    """A study of the embedded world, with these lines at its end."""
    return file(
        "study.toml", f'name = "x"\nquestion = "y"\nstudent = "abacus:base"\nteacher = "abacus:teacher"\n{text}\n'
    )


ARMS = 'arms = [{ name = "sft" }, { name = "rft", train = { selection = "correct" } }]\n'


def template(text: str) -> Make:
    return model(chat_template__jinja=text)


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
        "brackets 100,000 deep",
        "eval --problems",
        file("problems.jsonl", '{"prompt": ' + DEEP),
        "nesting too deep to read",
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
WEIGHTS = [
    Case("a header longer than the file", "measure", adapter(size=10**12), "must be a complete safetensors file"),
    Case("a header that is no JSON", "measure", adapter(b"{no"), "must be a complete safetensors file"),
    Case("a header 100,000 deep", "measure", adapter(DEEP.encode()), "must be a complete safetensors file"),
    Case(
        "tensors that overlap",
        "measure",
        adapter({A: FACTORS[A], B: entry([4, 2], 16, 48)}, NUMBERS[:48]),
        "must be a complete safetensors file",
    ),
    Case(
        "a tensor outside of the file",
        "measure",
        adapter({A: FACTORS[A], B: entry([4, 2], 32, 2**40)}),
        "must be a complete safetensors file",
    ),
    Case(
        "a shape that is not its bytes",
        "measure",
        adapter({A: entry([2**40, 2**40], 0, 32), B: FACTORS[B]}),
        "must be a complete safetensors file",
    ),
    Case(
        "a shape below zero",
        "measure",
        adapter({A: entry([-2, 4], 0, 32), B: FACTORS[B]}),
        "must be a complete safetensors file",
    ),
    Case(
        "a factor of three axes",
        "measure",
        adapter({A: entry([1, 2, 4], 0, 32), B: FACTORS[B]}),
        "lora_A must be (rank, in) and lora_B (out, rank) with rank >= 1, received (1, 2, 4)",
    ),
    Case(
        "factors of two ranks",
        "measure",
        adapter({A: FACTORS[A], B: entry([2, 4], 32, 64)}),
        "lora_A must be (rank, in) and lora_B (out, rank) with rank >= 1, received (2, 4)",
    ),
    Case(
        "a rank of zero",
        "measure",
        adapter({A: entry([0, 4], 0, 0), B: entry([4, 0], 0, 0)}, b"", r=0),
        "lora_A must be (rank, in) and lora_B (out, rank) with rank >= 1, received (0, 4)",
    ),
    Case(
        "a type that is none",
        "measure",
        adapter({A: entry([2, 4], 0, 32, "F1"), B: FACTORS[B]}),
        "must be a complete safetensors file",
    ),
    Case(
        "NaN among the weights",
        "measure",
        adapter(data=b"\xff" * 64),
        "weights must be finite, received 8 NaN or infinite entries in",
    ),
    Case(
        "a factor twice in the header",
        "measure",
        adapter((json.dumps({A: FACTORS[A]})[:-1] + ", " + json.dumps(FACTORS)[1:]).encode()),
    ),
    Case(
        "a rank of 10^9",
        "measure",
        adapter(r=10**9),
        "the factors' rank must be the configured one = 1e+09, received 2.",
    ),
    Case("a rank of 400 digits", "measure", adapter(r=10**400), "r must be a finite number"),
    Case(
        "a scale of infinity",
        "measure",
        adapter(text=json.dumps(LORA)[:-1] + ', "alpha_pattern": {"q_proj": 1e999}}'),
        "lora_alpha must be a finite number, received inf",
    ),
    Case("a pattern that takes for ever to match", "measure", named("a" * 60 + "b", rank_pattern={"(a+)+$": 2})),
    Case(
        "a pattern that is no expression",
        "measure",
        adapter(rank_pattern={"(": 2}),
        "rank_pattern must hold regular expressions, received one with",
    ),
    Case("a layer of 30 digits", "measure", named(f"model.layers.{'9' * 30}.q_proj")),
    Case("a layer of 5,000 digits", "measure", named(f"model.layers.{'9' * 5000}.q_proj")),
    Case("settings 100,000 deep", "measure", adapter(text=DEEP), "nesting too deep to read"),
    Case("a setting twice", "measure", adapter(text='{"r": 2, "r": 4, "peft_type": "LORA"}'), "stands twice"),
    Case("settings in UTF-16", "measure", adapter(text="\ud800"), "must be readable JSON"),
    Case(
        "a pickle in place of weights",
        "measure",
        files(adapter_config__json=json.dumps(LORA), adapter_model__bin=b"\x80\x04cos\nsystem\n."),
        "is a pickle and is never opened",
    ),
    Case(
        "weights that are a pipe",
        "measure",
        pipe(adapter(), "adapter_model.safetensors"),
        "must hold adapter_model.safetensors, received none",
    ),
    Case(
        "a digest that is a list",
        "measure",
        lambda folder: files(limbeck__json='{"base_digest": [1]}')(adapter()(folder)),
        "limbeck.json: base_digest must be a string, received list",
    ),
    Case(
        "an index with an absolute path",
        "measure",
        indexed({"x": "/etc/passwd"}),
        "must hold a weight_map of tensor names to files beside it, received another content",
    ),
    Case(
        "an index that leaves the folder",
        "measure",
        indexed({"x": "../a.safetensors"}),
        "must hold a weight_map of tensor names to files beside it, received another content",
    ),
    Case(
        "an index that names ..",
        "measure",
        indexed({"x": ".."}),
        "names .., which must be beside it and is not there: 1 tensors are missing, 'x' among them",
    ),
    Case(
        "an index with NUL in a name",
        "measure",
        indexed({"x": "a\0.safetensors"}),
        "which must be beside it and is not there",
    ),
    Case(
        "an index that names a shard that is not there",
        "measure",
        indexed({"x": "b.safetensors"}),
        "names b.safetensors, which must be beside it and is not there: 1 tensors are missing, 'x' among them",
    ),
    Case(
        "an index that is a list",
        "measure",
        indexed([1]),
        "must hold a weight_map of tensor names to files beside it, received another content",
    ),
    Case("an index 100,000 deep", "measure", indexed({}, text=DEEP), "nesting too deep to read"),
    Case(
        "an index that names a file of another kind",
        "measure",
        indexed({"x": "config.json"}),
        "must be a complete safetensors file, received one that is truncated or damaged",
    ),
    Case(
        "a shard that is an endless device",
        "measure",
        linked(indexed({"x": "b.safetensors"}), "b.safetensors", "/dev/zero"),
        "names b.safetensors, which must be beside it and is not there: 1 tensors are missing, 'x' among them",
    ),
    Case(
        "tensors outside of the file",
        "measure",
        checkpoint({"model.norm.weight": entry([4], 0, 2**50)}),
        "must be a complete safetensors file, received one that is truncated or damaged",
    ),
    Case(
        "a header of 90 MB of spaces",
        "measure",
        checkpoint(b"{" + b" " * 90_000_000 + b"}"),
        "must be a complete safetensors file, received one that is truncated or damaged",
    ),
    Case(
        "heads of 10^9 in a fused matrix",
        "measure",
        checkpoint(
            {"model.qkv_proj.weight": entry([2, 2], 0, 16)},
            config='{"num_attention_heads": 1000000000, "hidden_size": 1}',
        ),
    ),
    Case(
        "a million experts without entries",
        "measure",
        checkpoint({"model.experts.up.weight": entry([1_000_000, 0, 4], 0, 0), **WEIGHT}),
    ),
    Case(
        "a pickle in place of a model",
        "measure",
        files(config__json="{}", pytorch_model__bin=b"\x80\x04cos\nsystem\n."),
        "is a pickle and is never opened",
    ),
]
MODELS = [
    Case(
        "pickled weights",
        "eval --base",
        model(drop=("model.safetensors",), pytorch_model__bin=b"\x80\x04cos\nsystem\n."),
        "must hold *.safetensors weights, received none",
    ),
    Case(
        "code beside the weights",
        "eval --base",
        model(
            config={"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}},
            mine__py="open('/tmp/limbeck-owned', 'w')\n",
        ),
        "code of its own (auto_map), which limbeck never runs",
    ),
    Case(
        "a tokenizer of code",
        "eval --base",
        model(
            tokenizer_config__json='{"auto_map": {"AutoTokenizer": ["mine.T", "mine.T"]}, "tokenizer_class": "T"}',
            mine__py="open('/tmp/limbeck-owned', 'w')\n",
        ),
        "a tokenizer must name an end-of-sequence token, received none",
    ),
    Case(
        "an unknown architecture",
        "eval --base",
        model(config={"model_type": "mine"}),
        "must load as a transformers causal language model",
    ),
    Case("a billion layers", "eval --base", model(config={"num_hidden_layers": 10**9}), "more than these have rows"),
    Case(
        "a width of 10^12",
        "eval --base",
        model(config={"hidden_size": 10**12}),
        "must load as a transformers causal language model",
    ),
    Case(
        "a head of 10^9",
        "eval --base",
        model(config={"head_dim": 10**9}),
        "must load as a transformers causal language model",
    ),
    Case(
        "a vocabulary of 10^10",
        "eval --base",
        model(config={"vocab_size": 10**10}),
        "must load as a transformers causal language model",
    ),
    Case(
        "a layer more than there are weights",
        "eval --base",
        model(config={"num_hidden_layers": 6, "layer_types": ["full_attention"] * 6}),
        "must hold every weight of its config.json",
    ),
    Case(
        "sizes that are text",
        "eval --base",
        model(config={"hidden_size": "many"}),
        "must hold a tokenizer beside the model",
    ),
    Case(
        "heads of zero",
        "eval --base",
        model(config={"num_attention_heads": 0}),
        "must load as a transformers causal language model",
    ),
    Case(
        "a quantisation that is not installed",
        "eval --base",
        model(config={"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
        "must load as a transformers causal language model",
    ),
    Case(
        "rope settings of another kind",
        "eval --base",
        model(config={"rope_parameters": {"rope_type": "mine"}, "rope_scaling": {"rope_type": "mine"}}),
        "must load as a transformers causal language model",
    ),
    Case(
        "a damaged model file",
        "eval --base",
        model(model__safetensors=tensors(WEIGHT)),
        "must load as a transformers causal language model",
    ),
    Case(
        "a model config 100,000 deep",
        "eval --base",
        lambda folder: files(config__json=DEEP)(model()(folder)),
        "nesting too deep to read",
    ),
    Case(
        "a tokenizer that is no JSON",
        "eval --base",
        model(tokenizer__json="{no"),
        "must hold a tokenizer beside the model",
    ),
    Case(
        "a tokenizer 100,000 deep", "eval --base", model(tokenizer__json=DEEP), "must hold a tokenizer beside the model"
    ),
    Case(
        "a tokenizer without a model",
        "eval --base",
        model(tokenizer__json="{}"),
        "must hold a tokenizer beside the model",
    ),
    Case("token ids of 4 billion", "eval --base", tokenizer(lambda t: t["added_tokens"][0].update(id=2**32 - 1))),
    Case(
        "a splitting pattern that takes for ever",
        "eval --base",
        tokenizer(
            lambda t: t.update(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "(\\d|\\d\\d)+="},
                    "behavior": "Isolated",
                    "invert": False,
                }
            )
        ),
    ),
    Case(
        "a template that reaches for the interpreter",
        "eval --base",
        template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "SecurityError",
    ),
    Case(
        "a template that calls what it should not",
        "eval --base",
        template("{{ cycler.__init__.__globals__.os.system('touch /tmp/limbeck-owned') }}"),
        "SecurityError",
    ),
    Case(
        "a template that loops without end",
        "eval --base",
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        "takes more than 2 seconds",
    ),
    Case(
        "a template with a loop of 10^9",
        "eval --base",
        template("{% for a in range(1000000000) %}{% endfor %}"),
        "a chat template must render turns of user",
    ),
    Case("a template of a long text", "eval --base", template("{{ 'a' * 100000000000 }}"), "takes more memory or text"),
    Case(
        "a template that doubles its text",
        "eval --base",
        template(
            "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"
        ),
        "takes more memory or text",
    ),
    Case(
        "a template of a tower of powers", "eval --base", template("{{ 9 ** (9 ** 9) }}"), "takes more than 2 seconds"
    ),
    Case(
        "a template that calls itself",
        "eval --base",
        template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        "a chat template must render turns of user",
    ),
    Case(
        "a template that reads files",
        "eval --base",
        template("{% include '/etc/passwd' %}"),
        "a chat template must render turns of user",
    ),
    Case("a template that is none", "eval --base", template("{% for %}"), "a chat template must render turns of user"),
    Case(
        "an end of sequence that is a table",
        "eval --base",
        model(generation_config__json='{"eos_token_id": {"a": 1}}'),
        "generation_config.json: eos_token_id must be an id or a list of them, received {'a': 1}.",
    ),
]
STUDIES = [
    Case("brackets 100,000 deep", "study run", file("study.toml", "a = " + DEEP), "must be TOML:"),
    Case(
        "keys 100,000 deep",
        "study run",
        file("study.toml", "a" + ".a" * 100_000 + " = 1"),
        "must be TOML: a dotted key of more than 32 parts",
    ),
    Case("NUL", "study run", file("study.toml", b"name = \0"), "must be TOML:"),
    Case("a byte order mark and nothing else", "study run", file("study.toml", b"\xef\xbb\xbf"), "must be TOML:"),
    Case("UTF-16", "study run", file("study.toml", 'name = "x"'.encode("utf-16")), "must be TOML:"),
    Case("a key twice", "study run", file("study.toml", 'name = "x"\nname = "y"\n'), "must be TOML:"),
    Case("a number of 5,000 digits", "study run", file("study.toml", "workers = " + "9" * 5000), "must be TOML:"),
    Case(
        "a learning rate of NaN",
        "study run",
        study(ARMS + "train = { learning_rate = nan }"),
        "study.train.learning_rate: input should be greater than 0, received nan.",
    ),
    Case(
        "steps of 400 digits",
        "study run",
        study(ARMS + f"train = {{ num_steps = {'9' * 400} }}"),
        "a number beyond 64 bits",
    ),
    Case(
        "an arm that leaves the folder",
        "study run",
        study('arms = [{ name = "sft" }, { name = "../../x" }]'),
        "arms.1.name: string should match pattern",
    ),
    Case(
        "a setting that asks for code",
        "study run",
        study("trust_remote_code = true\n" + ARMS),
        '[study] has no key "trust_remote_code"',
    ),
    Case("JSON 100,000 deep", "study run", file("study.json", DEEP), "must be JSON:"),
]
RESULTS = [
    Case("results 100,000 deep", "report", files(study__json=DEEP), "must be JSON, received text that is not"),
    Case("a study that is a list", "report", files(study__json="[1]"), "must hold a JSON object, received a list"),
    Case(
        "arms of other types",
        "report",
        files(study__json='{"name": 1, "arms": 3}', arms__json='[{"run": [1], "arm": {"a": 1}}]'),
        "must hold what limbeck writes there, received other content",
    ),
    Case(
        "a comparison of other types",
        "report",
        files(
            study__json="{}",
            comparison__json='{"arms": [{"name": [], "value": "x", "low": null, "high": {}}], "pairs": []}',
        ),
        "must hold what limbeck writes there, received other content",
    ),
    Case(
        "measurements of millions of rows",
        "report",
        lambda folder: repeated("measurements.parquet", {"metric": "p", "value": 1.0}, 5_000_000)(folder).parent,
        "must have the columns of measurements.parquet in order",
    ),
    Case("a step of a study that is a list", "watch", files(config__json='{"arms": [1], "name": [2]}')),
    Case(
        "settings of a run of other types",
        "watch",
        files(
            config__json='{"base": [1], "train": {"num_steps": "x", "objective": []}}',
            metrics__jsonl='{"step": 1e999, "loss": "x"}\n[1]\n',
        ),
    ),
    Case(
        "settings 100,000 deep",
        "watch",
        files(config__json=DEEP),
        "watch needs the folder of a study or of a run, with its config.json",
    ),
    Case(
        "metrics 100,000 deep",
        "watch",
        files(
            config__json='{"base": "b", "train": {"num_steps": 3, "objective": "sft"}}',
            metrics__jsonl=DEEP + '\n{"step": 1, "loss": 1}\n',
        ),
    ),
]
CASES: list[Case] = [*ROLLOUTS, *FOLDERS, *PROBLEMS, *SCORES, *TABLES, *WEIGHTS, *MODELS, *STUDIES, *RESULTS]
