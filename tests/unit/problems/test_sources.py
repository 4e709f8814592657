"""Problem files are read as they are meant, and damaged ones are refused with the line at fault."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.errors import ConfigError, DataError
from limbeck.problems import sources
from limbeck.problems.files import find_source
from limbeck.problems.sources import Fields, fields_named, read_problems


def jsonl(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


GOOD = {"prompt": "What is 2 + 2?", "answer": "4"}


def test_own_format_with_and_without_ids(tmp_path):
    path = jsonl(tmp_path / "mine.jsonl", GOOD, "", {**GOOD, "answer": 5})
    first, second = sources.FORMATS["jsonl"](path)
    assert (first[0].id, second[0].id) == ("mine-00001", "mine-00003")
    assert (second[0].answer, second[0].source, second[1]) == ("5", "mine", "")
    path = jsonl(tmp_path / "ids.jsonl", {**GOOD, "id": "a", "solution": "2 + 2 = 4"})
    assert [(p.id, s) for p, s in sources.jsonl(path)] == [("a", "2 + 2 = 4")]


def test_parquet_and_nested_fields(tmp_path):
    rows = [{"q": "two?", "meta": {"gold": "2", "key": "x"}}, {"q": "three?", "meta": {"gold": "3", "key": "y"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    solved = read_problems(tmp_path / "p.parquet", Fields("q", "meta.gold", "meta.key"))
    assert [(p.id, p.prompt, p.answer) for p, _ in solved] == [("x", "two?", "2"), ("y", "three?", "3")]


def test_gsm8k(tmp_path):
    row = {"question": "3 and 4?", "answer": "She has 3+4=<<3+4=7>>7 eggs.\n#### 1,007 "}
    ((problem, solution),) = sources.FORMATS["gsm8k"](jsonl(tmp_path / "g.jsonl", row))
    assert (problem.prompt, problem.answer) == ("3 and 4?", "1,007")
    assert solution == "She has 3+4=7 eggs.\n#### 1,007 "
    with pytest.raises(DataError, match=r"g.jsonl, line 1: a problem needs an id, a prompt and an answer"):
        sources.gsm8k(jsonl(tmp_path / "g.jsonl", {"question": "q", "answer": "no marker"}))


def test_math(tmp_path):
    row = {
        "problem": "a\tb",
        "answer": r"\frac{1}{2}",
        "solution": r"so $\boxed{\frac{1}{2}}$",
        "unique_id": "t/1.json",
    }
    ((problem, solution),) = sources.FORMATS["math"](jsonl(tmp_path / "m.jsonl", row))
    assert (problem.id, problem.prompt, problem.answer) == ("t/1.json", "a\tb", r"\frac{1}{2}")
    assert solution == row["solution"]


def test_aime(tmp_path):
    rows = [{"problem": f"p{i}", "answer": f"{i:03d}"} for i in range(15)]
    assert [p.answer for p, _ in sources.aime(jsonl(tmp_path / "a.jsonl", *rows))][:2] == ["000", "001"]
    for bad in ("1000", "-1", "2.5"):
        with pytest.raises(DataError, match=f"integer from 0 to 999, received '{bad}'"):
            sources.aime(jsonl(tmp_path / "a.jsonl", *rows[1:], {"problem": "p", "answer": bad}))
    with pytest.raises(DataError, match="whole AIME papers of 15 problems, received 14"):
        sources.aime(jsonl(tmp_path / "a.jsonl", *rows[1:]))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((GOOD, '{"prompt": "x"'), r"line 2: a line must be JSON, received '\{\"prompt\": \"x\"'"),
        ((GOOD, "[" * 100_000), r"line 2: a line must be JSON, received '\[+' \(nesting too deep"),
        ((GOOD, "[1]"), r"line 2: a line must be a JSON object, received '\[1\]"),
        ((GOOD, {"prompt": "x", "anser": "3"}), r'line 2: a row needs the field "answer"\. Did you mean "anser"\?'),
        ((GOOD, {"prompt": "x", "answer": None}), r'line 2: a row needs the field "answer"'),
        ((GOOD, {"prompt": "x", "answer": ["3"]}), r"""line 2: "answer" must be text or a number, received "\['3'\]\""""),
        ((GOOD, {"prompt": " ", "answer": "3"}), r"line 2: a problem needs an id, a prompt and an answer"),
        (({**GOOD, "id": "a"}, GOOD), r'line 2: a row needs the field "id"'),
        (({**GOOD, "id": "a"}, {**GOOD, "id": "a"}), r"line 2: ids must be unique, received 'a' again, first in .*line 1"),
        (({"prompt": "\frac{1}{2}?", "answer": "3"},), r"line 1: .* must not contain control characters, received '\\x0c'"),
        (({"prompt": "2 \times 3?", "answer": "6"},), r"received '\\times'\. A backslash was lost"),
        (({"prompt": "\ud800", "answer": "6"},), r"control characters"),
        ((), r"must hold at least one problem, received none"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path, rows, words):
    with pytest.raises(DataError, match=words):
        sources.jsonl(jsonl(tmp_path / "bad.jsonl", *rows))


def test_tabs_are_fine_where_they_are_tabs(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", {"prompt": "a\t3\n\tb", "answer": "3"})
    assert sources.jsonl(path)[0][0].prompt == "a\t3\n\tb"
    with pytest.raises(DataError, match="control characters"):
        read_problems(path, allow="\n")


def test_pointer_missing_and_foreign_files(tmp_path):
    pointer = tmp_path / "p.parquet"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match=r"received a Git LFS pointer\. Run: git lfs pull"):
        sources.jsonl(pointer)
    pointer.write_text("PAR1 not")
    with pytest.raises(DataError, match="must be a Parquet file"):
        sources.jsonl(pointer)
    with pytest.raises(DataError, match="must exist"):
        sources.jsonl(tmp_path / "absent.jsonl")
    (tmp_path / "x.csv").touch()
    with pytest.raises(DataError, match=r"must end in .jsonl, .parquet, .arrow, received x.csv"):
        sources.jsonl(tmp_path / "x.csv")


def test_invalid_utf8_is_a_bad_line(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match="line 1: a line must be JSON"):
        sources.jsonl(tmp_path / "x.jsonl")


ROWS = [{"question": f"{n} + 1?", "solution": f"so \\boxed{{{n + 1}}}", "uid": f"u{n}"} for n in range(5)]
MAPPING = Fields("question", "solution", "uid")


def shards(folder, split, rows, num=2, suffix="parquet"):
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num):
        table = pa.Table.from_pylist(rows[shard::num])
        path = folder / f"{split}-{shard:05d}-of-{num:05d}.{suffix}"
        if suffix == "parquet":
            pq.write_table(table, path)
            continue
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)


def test_a_folder_as_the_hub_has_it(tmp_path):
    shards(tmp_path / "main", "test", ROWS)
    shards(tmp_path / "main", "train", ROWS[:2], num=1)
    solved = read_problems(f"{tmp_path}/main:test", MAPPING)
    assert [(p.id, p.answer, p.source) for p, _ in solved] == [
        (f"u{n}", f"{n + 1}", "main-test") for n in (0, 2, 4, 1, 3)
    ]
    assert [p.id for p, _ in read_problems(f"{tmp_path}/main:train", Fields("question", "solution"))] == [
        "main-train-00001",
        "main-train-00002",
    ]
    for named, words in ((f"{tmp_path}/main", "several splits"), (f"{tmp_path}/main:tset", 'Did you mean "test"')):
        with pytest.raises(DataError, match=words):
            find_source(named)
    shards(tmp_path / "socratic", "test", ROWS)
    with pytest.raises(DataError, match="one set of problems, received main, socratic"):
        find_source(f"{tmp_path}:test")
    (tmp_path / "main" / "test-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="received none named test-00001-of-00002"):
        find_source(f"{tmp_path}/main:test")


def test_a_folder_saved_to_disk(tmp_path):
    shards(tmp_path / "one", "data", ROWS, suffix="arrow")
    files = [{"filename": f"data-0000{n}-of-00002.arrow"} for n in range(2)]
    (tmp_path / "one" / "state.json").write_text(json.dumps({"_data_files": files}))
    assert len(read_problems(tmp_path / "one", MAPPING)) == 5
    both = tmp_path / "both"
    shards(both / "test", "data", ROWS, suffix="arrow")
    shards(both / "train", "data", ROWS[:1], num=1, suffix="arrow")
    (both / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert [p.source for p, _ in read_problems(f"{both}:train", MAPPING)] == ["both-train"]
    with pytest.raises(DataError, match="several splits needs one of them"):
        read_problems(both, MAPPING)
    damaged = both / "train" / "data-00000-of-00001.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-300])
    with pytest.raises(DataError, match="cut or damaged after row 0"):
        read_problems(f"{both}:train", MAPPING)
    damaged.write_bytes(b"no")
    with pytest.raises(DataError, match="must be an Arrow file"):
        read_problems(f"{both}:train", MAPPING)


def test_numbered_shards_and_a_digest_of_all_files(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "default" / split).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "default" / split / "0000.parquet")
    first = find_source(f"{tmp_path}:test")
    assert [path.parent.name for path in first.files] == ["test"]
    assert first.digest == find_source(first.files[0]).digest
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "default" / "test" / "0001.parquet")
    assert find_source(f"{tmp_path}:test").digest != first.digest
    assert [row.number for row in sources.read_rows(f"{tmp_path}:test")] == list(range(1, 11))


def test_a_mapping_reaches_into_messages_and_refuses_names_that_are_not_ours(tmp_path):
    row = {"prompt": [{"role": "user", "content": "two?"}], "reward_model": {"ground_truth": "2"}, "a.b": "x"}
    mapping = fields_named({"prompt": "prompt.0.content", "answer": "reward_model.ground_truth", "id": "a.b"})
    ((problem, _),) = read_problems(jsonl(tmp_path / "v.jsonl", row), mapping)
    assert (problem.id, problem.prompt, problem.answer) == ("x", "two?", "2")
    with pytest.raises(ConfigError, match=r'no field "anser"\. Did you mean "answer"'):
        fields_named({"anser": "x"})
    with pytest.raises(DataError, match=r'needs the field "prompt\.1\.content"'):
        read_problems(jsonl(tmp_path / "v.jsonl", row), mapping._replace(prompt="prompt.1.content"))


def test_math_without_an_answer_field_takes_the_last_box(tmp_path):
    row = {"problem": "p", "solution": r"first $\boxed{1}$, no: $\boxed{\frac{1}{2}}$"}
    assert sources.math(jsonl(tmp_path / "m.jsonl", row))[0][0].answer == r"\frac{1}{2}"
    with pytest.raises(DataError, match="a problem needs an id, a prompt and an answer"):
        sources.math(jsonl(tmp_path / "m.jsonl", {"problem": "p", "solution": r"$\boxed{1"}))


def test_amc(tmp_path):
    rows = [{"question": "a", "answer": 27.0}, {"question": "b", "answer": r"\textbf{(C)}"}]
    assert [p.answer for p, _ in sources.FORMATS["amc"](jsonl(tmp_path / "a.jsonl", *rows))] == ["27", r"\textbf{(C)}"]
    with pytest.raises(DataError, match="a number or a letter A to E, received 'G'"):
        sources.amc(jsonl(tmp_path / "a.jsonl", {"problem": "a", "answer": "G"}))


def test_aime_as_others_spell_it(tmp_path):
    rows = [{"Problem": f"p{i}", "Answer": i} for i in range(30)]
    assert len(sources.aime(jsonl(tmp_path / "a.jsonl", *rows))) == 30
