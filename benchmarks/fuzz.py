"""Each parser of files that strangers make, given broken ones: is every refusal a sentence, quick and small?

    python benchmarks/fuzz.py --minutes 10           # each parser, in a process of its own
    python benchmarks/fuzz.py --only study --seed 7  # one, with other inputs

Whole files of each kind are changed: bytes are flipped, cut, doubled and moved, values and columns are put in place of others. A
finding is an exception that is none of limbeck's, more than ten seconds for one input, more memory than the limit, or a
process that died; its files are kept under ``--keep``, with the traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]  # tests.hostile: the same verbs, and whole files to begin with

from common import Results, machine  # noqa: E402 - needs no path

SECONDS = 10  # for one input
MEMORY_BYTES = 2 << 30  # beyond what the process has before its first input
KINDS = ("refused", "accepted", "findings")
Files = dict[str, bytes]


class HangError(BaseException):
    """Ten seconds went by; no handler of a parser may take it for its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="for each parser")
    parser.add_argument("--only", default="", help="one parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "limbeck-fuzz", help="for findings")
    parser.add_argument("--smoke", action="store_true", help="twenty inputs each; writes no result")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS, metavar=("PARSER", "FOLDER", "SECONDS"))
    asked = parser.parse_args()
    if asked.child:
        name, folder, seconds = asked.child
        work(name, Path(folder), float(seconds), asked.seed, most=20 if asked.smoke else None)
        return
    results = Results(
        "fuzz", command=" ".join(["python benchmarks/fuzz.py", *sys.argv[1:]]), machine=machine(1), keep=not asked.smoke
    )
    for name in [asked.only] if asked.only else PARSERS:
        counts = fuzz(name, 60 * asked.minutes, asked.seed, asked.keep, smoke=asked.smoke)
        results.add((f"{name}: inputs", float(sum(counts.values())), None, None, None, None, "inputs"))
        for kind in KINDS:
            goal = 0.0 if kind == "findings" else None
            results.add((f"{name}: {kind}", float(counts[kind]), None, None, None, goal, "inputs"))
    results.show()
    if any(row["ours"] for row in results.fresh if row["goal"] == 0.0):
        raise SystemExit(f"there are findings: see {asked.keep}")


def fuzz(name: str, seconds: float, seed: int, keep: Path, *, smoke: bool = False) -> Counter[str]:
    """Counts of one parser over the time; a process that died is a finding, and another takes its place."""
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, __file__, "--seed", str(seed + sum(counts.values())), *(["--smoke"] * smoke)]
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
            left = end - time.monotonic()
            done = subprocess.run([*command, "--child", name, scratch, str(left)], env=environment, check=False)
            counts.update(told := json.loads((Path(scratch) / "counts.json").read_text()))
            if done.returncode:
                counts["findings"] += 1
            if done.returncode and not told:
                raise SystemExit(f"{name} died before its first input")
            for number, found in enumerate(
                sorted(Path(scratch).glob("finding-*")) + [Path(scratch) / "input"] * bool(done.returncode)
            ):
                shutil.copytree(found, keep / f"{name}-{seed}-{sum(counts.values())}-{number}", dirs_exist_ok=True)
            if smoke:
                break
    return counts


def work(name: str, scratch: Path, seconds: float, seed: int, *, most: int | None) -> None:
    """The child's side: change, open, count, until the time is over."""
    from limbeck.errors import LimbeckError

    warnings.simplefilter("ignore")
    (scratch / "counts.json").write_text("{}")
    choose, counts = random.Random(seed), Counter[str]()
    wholes, opened, target = prepare(name, scratch)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY_BYTES, pages + MEMORY_BYTES))
    signal.signal(signal.SIGALRM, hang)
    end = time.monotonic() + seconds
    while time.monotonic() < end and sum(counts.values()) != most:
        folder = scratch / "input"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file, data in changed(choose.choice(wholes), choose).items():
            (folder / file).write_bytes(data)
        signal.alarm(SECONDS)
        try:
            opened(folder / target if target else folder)
            kind = "accepted"
        except LimbeckError as error:
            kind = "refused" if len(str(error)) < 5000 else "findings"
        except BaseException:
            kind = "findings"
            signal.alarm(0)
            text = traceback.format_exc()
            kept = scratch / f"finding-{len(list(scratch.glob('finding-*')))}"
            if text.splitlines()[-1][:60] not in KNOWN:
                KNOWN.add(text.splitlines()[-1][:60])
                shutil.copytree(folder, kept)
                (kept / "traceback.txt").write_text(text)
                print(f"{name}: {text[-1500:]}", file=sys.stderr, flush=True)
        signal.alarm(0)
        counts[kind] += 1
        (scratch / "counts.json").write_text(json.dumps(counts))


KNOWN: set[str] = set()  # findings that were kept: one of a kind is enough


def hang(*_: object) -> None:
    raise HangError(f"more than {SECONDS} seconds")


def prepare(name: str, scratch: Path) -> tuple[list[Files], Callable[[Path], None], str]:
    """Whole files to change, the verb that opens them, and which file it is given; the verb has run on each once."""
    from tests.hostile.cases import VERBS

    verb, target, makes = PARSERS[name]
    opened, wholes = VERBS[verb], []
    for number, make in enumerate(makes()):
        folder = scratch / f"whole-{number}"
        folder.mkdir()
        make(folder)
        wholes.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        opened(folder / target if target else folder)
    return wholes, opened, target


# ------------------------------------------------------------------------------------------------------------ changes


HOSTILE: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "\0", "\ud800", "x" * 300, "../..",
    "=1+1", [], {}, [[]], [None], {"": None}, "p", "stop", [0] * 50,
]  # fmt: skip
TOKENS = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"[", b"]",
    b"{", b"}", b",", b"NaN", b"1e999", b"-1", b"9" * 30, b"\xed\xa0\x80",
    b"[" * 2000, b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\xff" * 8, b"null", b"''", b"=", b".",
    b"PAR1", b"PK\x03\x04",
]  # fmt: skip


def changed(whole: Mapping[str, bytes], choose: random.Random) -> Files:
    """The files with one of them changed, by its structure where it has one that reads, else by its bytes."""
    files = dict(whole)
    name = choose.choice(sorted(name for name in files if len(files[name]) < 1 << 20))
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        structured = STRUCTURED.get(Path(name).suffix)
        data = files[name]
        if structured and choose.random() < 0.6:
            try:
                data = structured(data, choose)
            except Exception:  # changed before, and no longer of that structure
                data = by_bytes(data, choose)
        else:
            data = by_bytes(data, choose)
        files[name] = data
    return files


def by_bytes(data: bytes, choose: random.Random) -> bytes:
    """One change that knows nothing of what the bytes mean."""
    at, length = choose.randrange(len(data) + 1), choose.choice((1, 2, 4, 8, 64, 512))
    cut = data[at : at + length]
    match choose.randrange(7):
        case 0:
            return data[:at] + bytes(byte ^ (1 << choose.randrange(8)) for byte in cut) + data[at + length :]
        case 1:
            return data[:at] + data[at + length :]
        case 2:
            return data[:at] + cut * choose.choice((2, 16)) + data[at + length :]
        case 3:
            return data[:at]
        case 4:
            token = choose.choice(TOKENS)
            return data[:at] + token + data[at + choose.choice((0, len(token))) :]
        case 5:
            other = choose.randrange(len(data) + 1)
            return data[:at] + data[other : other + length] + data[at + length :]
        case _:
            return data[:at] + choose.randbytes(length) + data[at + length :]


def by_json(data: bytes, choose: random.Random) -> bytes:
    """A value of a JSON text, or a key, is another."""
    return json.dumps(put(json.loads(data), choose)).encode("utf-8", "surrogatepass")


def by_line(data: bytes, choose: random.Random) -> bytes:
    """One record of JSON lines is changed, left out, or doubled."""
    rows = data.splitlines()
    at = choose.randrange(len(rows))
    match choose.randrange(6):
        case 0:
            del rows[at]
        case 1:
            rows.insert(at, rows[choose.randrange(len(rows))])
        case _:
            rows[at] = by_json(rows[at], choose)
    return b"\n".join(rows) + b"\n"


def put(value: Any, choose: random.Random) -> Any:
    """The value with something else in one place of it."""
    if isinstance(value, dict) and value and choose.random() < 0.9:
        key = choose.choice(sorted(value))
        match choose.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {("x" + k if k == key else k): v for k, v in value.items()}
            case _:
                return {**value, key: put(value[key], choose)}
    if isinstance(value, list) and value and choose.random() < 0.8:
        at = choose.randrange(len(value))
        return [*value[:at], put(value[at], choose), *value[at + choose.randrange(2) :]]
    return choose.choice(HOSTILE)


def by_column(data: bytes, choose: random.Random) -> bytes:
    """A Parquet file with a column of another type, name or content."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    at = choose.randrange(table.num_columns)
    name, rows = table.column_names[at], table.column(at).to_pylist()
    match choose.randrange(5):
        case 0:
            table = table.remove_column(at)
        case 1:
            table = table.rename_columns(
                [choose.choice(table.column_names) if n == name else n for n in table.column_names]
            )
        case 2:
            value = choose.choice(HOSTILE)
            table = table.set_column(at, name, pa.array([value] * len(rows)))
        case 3:
            table = table.set_column(
                at, name, pa.array([put(row, choose) if choose.random() < 0.5 else row for row in rows])
            )
        case _:
            table = pa.concat_tables([table] * choose.choice((2, 50)))
    out = io.BytesIO()
    pq.write_table(table, out, compression=choose.choice(("zstd", "none")))
    return out.getvalue()


def by_header(data: bytes, choose: random.Random) -> bytes:
    """A safetensors file whose header says something else."""
    size = int.from_bytes(data[:8], "little")
    header = by_json(data[8 : 8 + size], choose)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def by_member(data: bytes, choose: random.Random) -> bytes:
    """An archive with one member changed, left out or renamed."""
    import io
    import zipfile

    from tests.hostile.making import archive

    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    name = choose.choice(sorted(members))
    content = members.pop(name)
    if choose.random() < 0.8:
        members[name if choose.random() < 0.9 else choose.choice(("../x", "samples/\0.json", ""))] = by_json(
            content, choose
        )
    return archive(members)


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": by_json, ".jsonl": by_line, ".parquet": by_column, ".safetensors": by_header, ".eval": by_member,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ parsers


def rollout_lines() -> list[Any]:
    from tests.hostile.making import ROLLOUT, lines

    turns = [{"role": "user", "content": "1 + 1?"}]
    said = [{"role": "assistant", "content": "2. #### 2"}]
    name = "rollouts.jsonl"
    return [
        lines(name, ROLLOUT, ROLLOUT | {"response": "3"}),
        lines(name, {"prompt": turns, "completion": said, "answer": "2"}),
        lines(name, {"messages": turns + said}),
        lines(name, {"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}),
        lines(name, {"prompt": turns, "reward_model": {"ground_truth": "2"}, "responses": ["2", "3"]}),
    ]


def rollout_table() -> list[Any]:
    from tests.hostile.making import ROLLOUT, table

    turns = [[{"role": "user", "content": "1 + 1?"}]]
    name = "rollouts.parquet"
    return [
        table(name, {key: [value] * 5 for key, value in ROLLOUT.items()}),
        table(name, {"prompt": turns, "reward_model": [{"ground_truth": "2"}], "responses": [["2", "3"]]}),
    ]


def rollout_folder() -> list[Any]:
    from limbeck.rollouts.store import write_rollouts
    from limbeck.types import Finish, Rollout, RolloutSet

    one = Rollout(
        problem_id="p", sample=0, prompt_ids=(1,), response_ids=(2,), behavior_logprobs=(-0.5,), reward=1.0, finish=Finish.STOP,
        response="2",
    )  # fmt: skip

    def make(folder: Path) -> None:
        folder.rmdir()
        write_rollouts(RolloutSet(rollouts=(one,), provenance={"source": "x"}), folder)

    return [make]


def problem_lines() -> list[Any]:
    from tests.hostile.making import lines

    return [lines("problems.jsonl", {"prompt": "1 + 1?", "answer": "2"}, {"prompt": "2 + 2?", "answer": 4, "id": "b"})]


def problem_table() -> list[Any]:
    from tests.hostile.making import table

    return [table("problems.parquet", {"prompt": ["1 + 1?", "2 + 2?"], "answer": ["2", "4"]})]


def problem_arrow() -> list[Any]:
    import pyarrow as pa

    def make(folder: Path) -> None:
        rows = pa.table({"prompt": ["1 + 1?", "2 + 2?"], "answer": ["2", "4"]})
        with pa.ipc.new_stream(folder / "problems.arrow", rows.schema) as stream:
            stream.write_table(rows)

    return [make]


LOGS = Path(__file__).parents[1] / "tests" / "data" / "logs"


def log(pattern: str, name: str) -> Callable[[], list[Any]]:
    """A log that another program wrote, under a name that the verb is given."""
    return lambda: [lambda folder: shutil.copy(next(iter(sorted(LOGS.glob(pattern)))), folder / name)]


def one_filter() -> list[Any]:
    """A log of the harness has a line for each filter; a table is made of one."""
    rows = [json.loads(line) for line in next(LOGS.glob("lm_eval/base/*.jsonl")).read_text().splitlines()]
    text = "".join(json.dumps(row) + "\n" for row in rows if row["filter"] == "strict-match")
    return [lambda folder: (folder / "samples_x.jsonl").write_text(text)]


def score_csv() -> list[Any]:
    from tests.hostile.making import file

    return [file("table.csv", "problem_id,sample,correct,answer,response\np,0,1,2,it is 2\nq,0,0,4,5\n")]


def score_folder() -> list[Any]:
    from limbeck.evals.tables import write_table
    from limbeck.types import Score, ScoreTable

    one = Score(
        problem_id="p",
        sample=0,
        correct=True,
        answer="2",
        extracted="2",
        finish=None,
        response_tokens=3,
        outcome=None,
        response="2",
    )

    def make(folder: Path) -> None:
        folder.rmdir()
        write_table(ScoreTable(name="x", scores=(one,), problems_digest="0", grader="g", decoding="greedy"), folder)

    return [make]


def adapter() -> list[Any]:
    from tests.hostile.making import adapter

    return [adapter(), adapter(rank_pattern={"q_proj": 2}, alpha_pattern={".*q_proj": 4}, use_rslora=True)]


def checkpoint() -> list[Any]:
    from tests.hostile.making import checkpoint, entry, indexed

    fused = {"model.layers.0.qkv_proj.weight": entry([4, 2], 0, 32), "model.embed_tokens.weight": entry([2, 2], 32, 48)}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 1}
    settings = json.dumps(heads | {"hidden_size": 2, "tie_word_embeddings": True})
    return [
        checkpoint(),
        checkpoint(fused, bytes(48), config=settings),
        indexed({"model.norm.weight": "a.safetensors"}),
    ]


def model() -> list[Any]:
    from tests.hostile.making import model

    return [model(chat_template__jinja="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")]


def study() -> list[Any]:
    from limbeck.studies.config import packaged

    return [
        lambda folder, path=path: shutil.copy(path, folder / "study.toml") for _, path in sorted(packaged().items())
    ]


PARSERS: dict[str, tuple[str, str, Callable[[], list[Any]]]] = {
    "rollouts in JSON lines": ("import", "rollouts.jsonl", rollout_lines),
    "rollouts in Parquet": ("import", "rollouts.parquet", rollout_table),
    "a rollouts folder": ("train --rollouts", "", rollout_folder),
    "problems in JSON lines": ("eval --problems", "problems.jsonl", problem_lines),
    "problems in Parquet": ("eval --problems", "problems.parquet", problem_table),
    "problems in Arrow": ("eval --problems", "problems.arrow", problem_arrow),
    "a log of lm-evaluation-harness": ("scores import", "samples_x.jsonl", one_filter),
    "a log of lighteval": ("scores import", "details_x.parquet", log("lighteval/base/*.parquet", "details_x.parquet")),
    "a log of inspect": ("scores import", "log.json", log("inspect/base.json", "log.json")),
    "an archive of inspect": ("scores import", "log.eval", log("inspect/base.eval", "log.eval")),
    "a score table in CSV": ("scores import", "table.csv", score_csv),
    "a score table's folder": ("compare", "", score_folder),
    "an adapter": ("measure", "", adapter),
    "a checkpoint": ("measure", "", checkpoint),
    "a model and its tokenizer": ("eval --base", "", model),
    "a study": ("study run", "study.toml", study),
}

if __name__ == "__main__":
    main()
