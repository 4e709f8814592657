"""The table itself: files that no verb may crash on, hang on, or fill the machine with."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from tests.hostile.making import (
    A, B, DEEP, FACTORS, LORA, NUMBERS, ROLLOUT, WEIGHT, Make, adapter, archive, checkpoint, entry, file, files, indexed,
    lines, linked, model, named, not_text, outside, pipe, repeated, sealed, table, tensors, tokenizer,
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

    import_rollouts(path, _tokenizer(), workers=1)


def read_rollouts(path: Path) -> None:
    from limbeck.rollouts.store import read_rollouts

    read_rollouts(path)


def read_problems(path: Path) -> None:
    from limbeck.worlds.named import problems_named, read_problems

    read_problems(problems_named(str(path), "jsonl", None, 0))


def import_scores(path: Path) -> None:
    from limbeck.evals.exchange import read_log

    read_log(path)


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


def template(text: str) -> Make:
    return model(chat_template__jinja=text)


ROLLOUTS = [
    Case("lines that are no JSON", "import", file("rollouts.jsonl", "prompt: 1\n")),
    Case("a line that is cut", "import", file("rollouts.jsonl", json.dumps(ROLLOUT)[:-9])),
    Case("brackets 100,000 deep", "import", file("rollouts.jsonl", '{"prompt": ' + DEEP)),
    Case("brackets 700 deep in a prompt", "import", file("rollouts.jsonl", '{"response": "2", "reward": 1, "prompt": ' + "[" * 700 + "]" * 700 + "}")),
    Case("a line that is a list", "import", file("rollouts.jsonl", "[1, 2]\n")),
    Case("a key twice", "import", file("rollouts.jsonl", '{"prompt": "1", "response": "2", "reward": 0, "reward": 1}')),
    Case("a reward of NaN", "import", file("rollouts.jsonl", json.dumps(ROLLOUT | {"reward": float("nan")}))),
    Case("a reward of 1e999", "import", file("rollouts.jsonl", '{"prompt": "1", "response": "2", "reward": 1e999}')),
    Case("a reward of 400 digits", "import", rollout(reward=10**400)),
    Case("a reward of 5,000 digits", "import", file("rollouts.jsonl", '{"prompt": "1", "response": "2", "reward": ' + "9" * 5000 + "}")),
    Case("a reward in words", "import", rollout(reward="1")),
    Case("a lone surrogate in a prompt", "import", rollout(prompt="1 \ud800 1?")),
    Case("a lone surrogate in a response", "import", rollout(response="\ud800 #### 2")),
    Case("a lone surrogate in an id", "import", rollout(problem_id="\ud800")),
    Case("a lone surrogate in a role", "import", rollout(prompt=[{"role": "\ud800", "content": "1"}, {"role": "user", "content": "2"}])),
    Case("NUL bytes in place of text", "import", file("rollouts.jsonl", b"\0" * 4096)),
    Case("NUL in a prompt", "import", rollout(prompt="1 \0 + 1?")),
    Case("a byte order mark first", "import", file("rollouts.jsonl", b"\xef\xbb\xbf" + json.dumps(ROLLOUT).encode())),
    Case("UTF-16", "import", file("rollouts.jsonl", json.dumps(ROLLOUT).encode("utf-16"))),
    Case("Latin-1", "import", file("rollouts.jsonl", b'{"prompt": "\xe9", "response": "2", "reward": 1}')),
    Case("line ends of three systems", "import", file("rollouts.jsonl", "\r\n".join(json.dumps(ROLLOUT | {"response": str(n)}) for n in range(3)) + "\n\r\n")),
    Case("carriage returns alone", "import", file("rollouts.jsonl", "\r".join([json.dumps(ROLLOUT)] * 2))),
    Case("a million empty lines", "import", file("rollouts.jsonl", "\n" * 1_000_000)),
    Case("messages of another type", "import", lines("rollouts.jsonl", {"messages": {"role": "user"}})),
    Case("an id that is a list", "import", rollout(problem_id=[1, [2]])),
    Case("an ending that is a table", "import", rollout(finish={"a": 1})),
    Case("text in place of Parquet", "import", file("rollouts.parquet", "PAR1 no PAR1")),
    Case("a Parquet footer of 2 GB", "import", file("rollouts.parquet", b"PAR1" + b"\0" * 50 + b"\xff\xff\xff\x7fPAR1")),
    Case("a billion values in kilobytes", "import", repeated("rollouts.parquet", ROLLOUT, 100_000_000)),
    Case("a value of 30 MB in each of 10,000 rows", "import", repeated("rollouts.parquet", ROLLOUT | {"prompt": "y" * 30_000_000}, 10_000)),
    Case("text that is not UTF-8", "import", not_text("rollouts.parquet", "prompt")),
    Case("a date beyond the calendar", "import", table("rollouts.parquet", {**{k: [v] for k, v in ROLLOUT.items()}, "at": pa.array([2**62], pa.timestamp("us"))})),
    Case("a structure with a name twice", "import", table("rollouts.parquet", {"prompt": pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])})),
    Case("an archive under another name", "import", file("rollouts.jsonl", archive({"rollouts.jsonl": json.dumps(ROLLOUT)}))),
    Case("a compressed file", "import", file("rollouts.jsonl.gz", b"\x1f\x8b\x08\0" + b"\0" * 20)),
    Case("a link to an endless device", "import", linked(files(), "rollouts.jsonl", "/dev/zero")),
]
FOLDERS = [
    Case("a manifest 100,000 deep", "train --rollouts", sealed("rollouts", "", text=DEEP)),
    Case("a manifest that is a list", "train --rollouts", sealed("rollouts", "", text="[1]")),
    Case("a manifest with a number of 5,000 digits", "train --rollouts", sealed("rollouts", "", text='{"kind": ' + "9" * 5000 + "}")),
    Case("a manifest without a digest", "train --rollouts", sealed("rollouts", "")),
    Case("a digest that is a number", "train --rollouts", sealed("rollouts", "", digest=1, provenance={}, num_rollouts=1)),
    Case("provenance that is a list", "train --rollouts", sealed("rollouts", "", digest="0" * 64, provenance=[1], num_rollouts=1)),
    Case("files that leave the folder", "train --rollouts", sealed("rollouts", "", digest="0" * 64, provenance={}, num_rollouts=1, files={"../../etc/passwd": "0", "/etc/passwd": "0"})),
    Case("content of another digest", "train --rollouts", shard()),
    Case("an unknown ending", "train --rollouts", shard(finish="never")),
    Case("a reward of NaN in a shard", "train --rollouts", shard(reward=float("nan"))),
    Case("a reward that is missing", "train --rollouts", shard(reward=None)),
    Case("ids below zero", "train --rollouts", shard(prompt_ids=[-1])),
    Case("ids beyond 32 bits", "train --rollouts", shard(prompt_ids=[2**40])),
    Case("other columns", "train --rollouts", sealed("rollouts", "rollouts-00000.parquet", {"x": [1]}, digest="0" * 64, provenance={}, num_rollouts=1)),
    Case("a shard of a billion values", "train --rollouts", lambda folder: repeated("rollouts-00000.parquet", {"problem_id": "p", "sample": 0}, 100_000_000)(sealed("rollouts", "", digest="0" * 64, provenance={}, num_rollouts=1)(folder)).parent),
]
PROBLEMS = [
    Case("brackets 100,000 deep", "eval --problems", file("problems.jsonl", '{"prompt": ' + DEEP)),
    Case("a key twice", "eval --problems", file("problems.jsonl", '{"prompt": "1", "answer": "2", "answer": "3"}')),
    Case("an answer of NaN", "eval --problems", problem(answer=float("nan"))),
    Case("an answer of infinity", "eval --problems", problem(answer=float("inf"))),
    Case("NUL in a prompt", "eval --problems", problem(prompt="1 \0 + 1?")),
    Case("a lone surrogate", "eval --problems", problem(prompt="\ud800")),
    Case("a lone surrogate in an id", "eval --problems", problem(id="\ud800")),
    Case("a byte order mark first", "eval --problems", file("problems.jsonl", b'\xef\xbb\xbf{"prompt": "1 + 1?", "answer": "2"}')),
    Case("one id twice", "eval --problems", lines("problems.jsonl", *[{"id": "a", "prompt": "1", "answer": "1"}] * 2)),
    Case("an Arrow file with offsets outside of it", "eval --problems", outside("problems.arrow")),
    Case("an empty Arrow file", "eval --problems", file("problems.arrow", b"")),
    Case("a billion values in kilobytes", "eval --problems", repeated("problems.parquet", {"prompt": "1", "answer": "2"}, 100_000_000)),
    Case("a pipe among the data", "eval --problems", pipe(files(), "train.jsonl")),
    Case("a list of splits that is none", "eval --problems", files(dataset_dict__json="[1]")),
    Case("a state of other types", "eval --problems", files(train__jsonl='{"prompt": "1 + 1?", "answer": "2"}', state__json='{"_data_files": [1]}')),
    Case("a Git LFS pointer", "eval --problems", file("problems.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")),
    Case("a shard 99,999 of names", "eval --problems", lambda folder: file("train-00000-of-99999.jsonl", "{}")(folder).parent),
]
SCORES = [
    Case("brackets 100,000 deep", "scores import", file("samples_x.jsonl", DEEP)),
    Case("brackets 600 deep in a document", "scores import", file("samples_x.jsonl", json.dumps({"doc_id": 0, "target": "2", "metrics": ["acc"], "acc": 1, "filter": "none"})[:-1] + ', "doc": ' + "[" * 600 + "]" * 600 + "}")),
    Case("a key twice", "scores import", file("samples_x.jsonl", '{"doc_id": 0, "doc_id": 1, "doc": {}, "target": "", "metrics": ["acc"], "acc": 1}')),
    Case("a metric of NaN", "scores import", sample(acc=float("nan"))),
    Case("a metric that is a table", "scores import", sample(acc={"a": 1})),
    Case("metrics without end", "scores import", sample(metrics=[[1]])),
    Case("a document id that is a list", "scores import", sample(doc_id=[1])),
    Case("a sample number of infinity", "scores import", file("table.jsonl", '{"problem_id": "p", "correct": 1, "sample": 1e999}')),
    Case("a sample number of 400 digits", "scores import", row(sample=10**400)),
    Case("a count of tokens of infinity", "scores import", file("table.jsonl", '{"problem_id": "p", "correct": 1, "response_tokens": Infinity}')),
    Case("an ending that is a list", "scores import", row(finish=[1])),
    Case("a lone surrogate in an id", "scores import", row(problem_id="\ud800")),
    Case("CSV with NUL", "scores import", file("table.csv", "problem_id,correct\np\0,1\n")),
    Case("CSV in UTF-16", "scores import", file("table.csv", "problem_id,correct\np,1\n".encode("utf-16"))),
    Case("CSV with a byte order mark and more cells than names", "scores import", file("table.csv", b"\xef\xbb\xbfproblem_id,correct\r\np,1,2,3\r\n")),
    Case("CSV with a name twice", "scores import", file("table.csv", "problem_id,correct,correct\np,1,0\n")),
    Case("CSV with an open quote", "scores import", file("table.csv", 'problem_id,correct\n"p,1\n' + "x\n" * 10)),
    Case("a billion values in kilobytes", "scores import", repeated("table.parquet", {"problem_id": "p", "correct": True}, 100_000_000)),
    Case("a log of a string", "scores import", file("log.json", '"success"')),
    Case("an epoch of infinity", "scores import", file("log.json", '{"status": "success", "samples": [{"id": 1, "input": "", "epoch": 1e999, "scores": {"a": {"value": 1}}}]}')),
    Case("an epoch of 400 digits", "scores import", inspect(epoch=10**400)),
    Case("a target 300 deep", "scores import", inspect(target=json.loads("[" * 300 + "]" * 300))),
    Case("a score that is a list", "scores import", inspect(scores={"match": {"value": [1]}})),
    Case("an archive that is none", "scores import", file("log.eval", b"PK\3\4 no")),
    Case("an archive whose header is a bomb", "scores import", file("log.eval", archive({"header.json": b" " * (80 << 20)}))),
    Case("an archive of many bombs", "scores import", file("log.eval", archive({"header.json": '{"status": "success"}', **{f"samples/{n}.json": b'{"id": 1, "input": "", "x": "' + b"a" * (20 << 20) + b'"}' for n in range(10)}}))),
    Case("an archive whose names leave it", "scores import", file("log.eval", archive({"../../header.json": "{}", "/etc/passwd": "x"}))),
]
TABLES = [
    Case("a manifest without a digest", "compare", sealed("scores", "scores.parquet", {"problem_id": ["p"]})),
    Case("text in place of Parquet", "compare", sealed("scores", "scores.parquet", b"no", digest="0")),
    Case("a billion values in kilobytes", "compare", lambda folder: repeated("scores.parquet", {"problem_id": "p", "correct": True}, 100_000_000)(sealed("scores", "", digest="0")(folder)).parent),
]
WEIGHTS = [
    Case("a header longer than the file", "measure", adapter(size=10**12)),
    Case("a header that is no JSON", "measure", adapter(b"{no")),
    Case("a header 100,000 deep", "measure", adapter(DEEP.encode())),
    Case("tensors that overlap", "measure", adapter({A: FACTORS[A], B: entry([4, 2], 16, 48)}, NUMBERS[:48])),
    Case("a tensor outside of the file", "measure", adapter({A: FACTORS[A], B: entry([4, 2], 32, 2**40)})),
    Case("a shape that is not its bytes", "measure", adapter({A: entry([2**40, 2**40], 0, 32), B: FACTORS[B]})),
    Case("a shape below zero", "measure", adapter({A: entry([-2, 4], 0, 32), B: FACTORS[B]})),
    Case("a factor of three axes", "measure", adapter({A: entry([1, 2, 4], 0, 32), B: FACTORS[B]})),
    Case("factors of two ranks", "measure", adapter({A: FACTORS[A], B: entry([2, 4], 32, 64)})),
    Case("a rank of zero", "measure", adapter({A: entry([0, 4], 0, 0), B: entry([4, 0], 0, 0)}, b"", r=0)),
    Case("a type that is none", "measure", adapter({A: entry([2, 4], 0, 32, "F1"), B: FACTORS[B]})),
    Case("NaN among the weights", "measure", adapter(data=b"\xff" * 64)),
    Case("a factor twice in the header", "measure", adapter((json.dumps({A: FACTORS[A]})[:-1] + ", " + json.dumps(FACTORS)[1:]).encode())),
    Case("a rank of 10^9", "measure", adapter(r=10**9)),
    Case("a rank of 400 digits", "measure", adapter(r=10**400)),
    Case("a scale of infinity", "measure", adapter(text=json.dumps(LORA)[:-1] + ', "alpha_pattern": {"q_proj": 1e999}}')),
    Case("a pattern that takes for ever to match", "measure", named("a" * 60 + "b", rank_pattern={"(a+)+$": 2})),
    Case("a pattern that is no expression", "measure", adapter(rank_pattern={"(": 2})),
    Case("a layer of 30 digits", "measure", named(f"model.layers.{'9' * 30}.q_proj")),
    Case("a layer of 5,000 digits", "measure", named(f"model.layers.{'9' * 5000}.q_proj")),
    Case("settings 100,000 deep", "measure", adapter(text=DEEP)),
    Case("a setting twice", "measure", adapter(text='{"r": 2, "r": 4, "peft_type": "LORA"}')),
    Case("settings in UTF-16", "measure", adapter(text="\ud800")),
    Case("a pickle in place of weights", "measure", files(adapter_config__json=json.dumps(LORA), adapter_model__bin=b"\x80\x04cos\nsystem\n.")),
    Case("weights that are a pipe", "measure", pipe(adapter(), "adapter_model.safetensors")),
    Case("a digest that is a list", "measure", lambda folder: files(limbeck__json='{"base_digest": [1]}')(adapter()(folder))),
    Case("an index with an absolute path", "measure", indexed({"x": "/etc/passwd"})),
    Case("an index that leaves the folder", "measure", indexed({"x": "../a.safetensors"})),
    Case("an index that names ..", "measure", indexed({"x": ".."})),
    Case("an index with NUL in a name", "measure", indexed({"x": "a\0.safetensors"})),
    Case("an index that names a shard that is not there", "measure", indexed({"x": "b.safetensors"})),
    Case("an index that is a list", "measure", indexed([1])),
    Case("an index 100,000 deep", "measure", indexed({}, text=DEEP)),
    Case("an index that names a file of another kind", "measure", indexed({"x": "config.json"})),
    Case("a shard that is an endless device", "measure", linked(indexed({"x": "b.safetensors"}), "b.safetensors", "/dev/zero")),
    Case("tensors outside of the file", "measure", checkpoint({"model.norm.weight": entry([4], 0, 2**50)})),
    Case("a header of 90 MB of spaces", "measure", checkpoint(b"{" + b" " * 90_000_000 + b"}")),
    Case("heads of 10^9 in a fused matrix", "measure", checkpoint({"model.qkv_proj.weight": entry([2, 2], 0, 16)}, config='{"num_attention_heads": 1000000000, "hidden_size": 1}')),
    Case("a million experts without entries", "measure", checkpoint({"model.experts.up.weight": entry([1_000_000, 0, 4], 0, 0), **WEIGHT})),
    Case("a pickle in place of a model", "measure", files(config__json="{}", pytorch_model__bin=b"\x80\x04cos\nsystem\n.")),
]
MODELS = [
    Case("pickled weights", "eval --base", model(drop=("model.safetensors",), pytorch_model__bin=b"\x80\x04cos\nsystem\n.")),
    Case("code beside the weights", "eval --base", model(config={"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}, mine__py="open('/tmp/limbeck-owned', 'w')\n")),
    Case("a tokenizer of code", "eval --base", model(tokenizer_config__json='{"auto_map": {"AutoTokenizer": ["mine.T", "mine.T"]}, "tokenizer_class": "T"}', mine__py="open('/tmp/limbeck-owned', 'w')\n")),
    Case("an unknown architecture", "eval --base", model(config={"model_type": "mine"})),
    Case("a billion layers", "eval --base", model(config={"num_hidden_layers": 10**9})),
    Case("a width of 10^12", "eval --base", model(config={"hidden_size": 10**12})),
    Case("a head of 10^9", "eval --base", model(config={"head_dim": 10**9})),
    Case("a vocabulary of 10^10", "eval --base", model(config={"vocab_size": 10**10})),
    Case("a layer more than there are weights", "eval --base", model(config={"num_hidden_layers": 6})),
    Case("sizes that are text", "eval --base", model(config={"hidden_size": "many"})),
    Case("heads of zero", "eval --base", model(config={"num_attention_heads": 0})),
    Case("a quantisation that is not installed", "eval --base", model(config={"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}})),
    Case("rope settings of another kind", "eval --base", model(config={"rope_parameters": {"rope_type": "mine"}, "rope_scaling": {"rope_type": "mine"}})),
    Case("a damaged model file", "eval --base", model(model__safetensors=tensors(WEIGHT))),
    Case("a model config 100,000 deep", "eval --base", lambda folder: files(config__json=DEEP)(model()(folder))),
    Case("a tokenizer that is no JSON", "eval --base", model(tokenizer__json="{no")),
    Case("a tokenizer 100,000 deep", "eval --base", model(tokenizer__json=DEEP)),
    Case("a tokenizer without a model", "eval --base", model(tokenizer__json="{}")),
    Case("token ids of 4 billion", "eval --base", tokenizer(lambda t: t["added_tokens"][0].update(id=2**32 - 1))),
    Case("a splitting pattern that takes for ever", "eval --base", tokenizer(lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(\\d+|.)*=$"}, "behavior": "Isolated", "invert": False}))),
    Case("a template that reaches for the interpreter", "eval --base", template("{{ ''.__class__.__mro__[1].__subclasses__() }}")),
    Case("a template that calls what it should not", "eval --base", template("{{ cycler.__init__.__globals__.os.system('touch /tmp/limbeck-owned') }}")),
    Case("a template that loops without end", "eval --base", template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")),
    Case("a template with a loop of 10^9", "eval --base", template("{% for a in range(1000000000) %}{% endfor %}")),
    Case("a template of a long text", "eval --base", template("{{ 'a' * 100000000000 }}")),
    Case("a template that doubles its text", "eval --base", template("{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}")),
    Case("a template of a tower of powers", "eval --base", template("{{ 9 ** 9 ** 9 }}")),
    Case("a template that calls itself", "eval --base", template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")),
    Case("a template that reads files", "eval --base", template("{% include '/etc/passwd' %}")),
    Case("a template that is none", "eval --base", template("{% for %}")),
    Case("an end of sequence that is a table", "eval --base", model(generation_config__json='{"eos_token_id": {"a": 1}}')),
]
STUDIES = [
    Case("brackets 100,000 deep", "study run", file("study.toml", "a = " + DEEP)),
    Case("keys 100,000 deep", "study run", file("study.toml", "a" + ".a" * 100_000 + " = 1")),
    Case("NUL", "study run", file("study.toml", b"name = \0")),
    Case("a byte order mark and nothing else", "study run", file("study.toml", b"\xef\xbb\xbf")),
    Case("UTF-16", "study run", file("study.toml", 'name = "x"'.encode("utf-16"))),
    Case("a key twice", "study run", file("study.toml", 'name = "x"\nname = "y"\n')),
    Case("a number of 5,000 digits", "study run", file("study.toml", "workers = " + "9" * 5000)),
    Case("a learning rate of NaN", "study run", file("study.toml", 'name = "x"\nstudent = "abacus:base"\nteacher = "abacus:teacher"\narms = [{ name = "sft" }]\ntrain = { learning_rate = nan }')),
    Case("steps of 400 digits", "study run", file("study.toml", 'name = "x"\nstudent = "abacus:base"\nteacher = "abacus:teacher"\narms = [{ name = "sft" }]\ntrain = { num_steps = ' + "9" * 400 + " }")),
    Case("an arm that leaves the folder", "study run", file("study.toml", 'name = "x"\nstudent = "abacus:base"\nteacher = "abacus:teacher"\narms = [{ name = "../../x" }]')),
    Case("a setting that asks for code", "study run", file("study.toml", 'name = "x"\nstudent = "abacus:base"\ntrust_remote_code = true\narms = [{ name = "sft" }]')),
    Case("JSON 100,000 deep", "study run", file("study.json", DEEP)),
]
RESULTS = [
    Case("results 100,000 deep", "report", files(study__json=DEEP)),
    Case("a study that is a list", "report", files(study__json="[1]")),
    Case("arms of other types", "report", files(study__json='{"name": 1, "arms": 3}', arms__json='[{"run": [1], "arm": {"a": 1}}]')),
    Case("a comparison of other types", "report", files(study__json="{}", comparison__json='{"arms": [{"name": [], "value": "x", "low": null, "high": {}}], "pairs": []}')),
    Case("measurements of a billion rows", "report", lambda folder: repeated("measurements.parquet", {"metric": "p", "value": 1.0}, 100_000_000)(folder).parent),
    Case("a step of a study that is a list", "watch", files(config__json='{"arms": [1], "name": [2]}')),
    Case("settings of a run of other types", "watch", files(config__json='{"base": [1], "train": {"num_steps": "x", "objective": []}}', metrics__jsonl='{"step": 1e999, "loss": "x"}\n[1]\n')),
    Case("settings 100,000 deep", "watch", files(config__json=DEEP)),
    Case("metrics 100,000 deep", "watch", files(config__json='{"base": "b", "train": {"num_steps": 3, "objective": "sft"}}', metrics__jsonl=DEEP + '\n{"step": 1, "loss": 1}\n')),
]
CASES: list[Case] = [*ROLLOUTS, *FOLDERS, *PROBLEMS, *SCORES, *TABLES, *WEIGHTS, *MODELS, *STUDIES, *RESULTS]
