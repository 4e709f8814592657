"""Logs that the programs themselves wrote become score tables that compare; what cannot be paired is refused."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from limbeck.bounds import FLOOR
from limbeck.cli import app, main
from limbeck.errors import ConfigError, DataError
from limbeck.evals.exchange import files, read_log, write_file
from limbeck.evals.exchange.files import Archive
from limbeck.evals.exchange.rows import budget_of
from limbeck.evals.tables import read_table
from limbeck.problems.grading import GRADER_ID, grader_id
from limbeck.stats.compare import Arm, compare
from limbeck.types import Finish, Outcome, Score, ScoreTable

LOGS = Path(__file__).parents[2] / "data" / "logs"
PROBLEMS = [json.loads(line) for line in (LOGS / "made" / "problems.jsonl").read_text().splitlines()]
# what the programs printed: of five problems the base gets two right, the teacher all
STRICT = "exact_match,strict-match"
PAIRS = {
    "lm-eval": ("lm_eval/base", "lm_eval/teacher", STRICT),
    "lighteval": ("lighteval/base", "lighteval/teacher", ""),
    "inspect": ("inspect/base.eval", "inspect/teacher.eval", ""),
}


def read(log, **options):
    return read_log(LOGS / log, **{"name": log, **options})


@pytest.mark.parametrize("program", PAIRS)
def test_two_logs_of_one_program_compare(program):
    base, teacher, metric = PAIRS[program]
    tables = [read(base, metric=metric), read(teacher, metric=metric)]
    assert [int(table.correct.sum()) for table in tables] == [2, 5]
    assert [table.correct.shape for table in tables] == [(5, 1), (5, 1)]
    result = compare([Arm(table.name, (table,)) for table in tables])
    assert (result["pairs"][0]["a_only"], result["pairs"][0]["b_only"]) == (0, 3)
    assert tables[0].model_digest == tables[0].adapter_digest == ""  # a log does not tell, and is not guessed for


@pytest.mark.parametrize("program", PAIRS)
def test_answers_and_responses_are_those_of_the_log(program):
    base, _, metric = PAIRS[program]
    table = read(base, metric=metric)
    gold = {row["id"]: row["answer"] for row in PROBLEMS}
    assert sorted(score.answer for score in table.scores) == sorted(gold.values())
    for score in table.scores:
        shown = score.response.rpartition("#### ")[2]
        assert score.correct == (shown == score.answer)
        assert score.extracted in (shown, "")


@pytest.mark.parametrize("program", PAIRS)
def test_regrading_makes_tables_of_one_grader(program):
    base, _, metric = PAIRS[program]
    theirs, ours = read(base, metric=metric), read(base, regrade="strict")
    assert ours.grader == GRADER_ID
    assert theirs.correct.tolist() == ours.correct.tolist()
    assert {score.outcome for score in ours.scores} == {Outcome.CORRECT, Outcome.WRONG}
    assert theirs.problems_digest == ours.problems_digest


def test_epochs_are_samples_and_both_forms_of_an_inspect_log_are_one_table():
    table = read("inspect/teacher-2-epochs.eval")
    assert table.correct.shape == (5, 2)
    assert table.decoding == '{"max_tokens": 96, "temperature": 1.0}'
    assert table.grader == 'inspect match {"numeric": true}'
    archive, document = read("inspect/base.eval", name="x"), read("inspect/base.json", name="x")
    assert archive == document
    assert archive.scores[0].finish is Finish.STOP
    assert archive.scores[0].response_tokens > 10
    assert archive.template_digest


def test_what_a_log_leaves_out_is_unknown():
    table = read("lighteval/base")
    assert table.template_digest == ""
    assert {(s.finish, s.response_tokens, s.outcome) for s in table.scores} == {(None, None, None)}


def test_several_filters_need_a_choice():
    with pytest.raises(ConfigError, match=r"or --metric must choose; received exact_match,flexible-extract, exact_"):
        read("lm_eval/base")
    with pytest.raises(ConfigError, match=r'has no metric,filter "exact_match". Did you mean'):
        read("lm_eval/base", metric="exact_match")


@pytest.mark.parametrize("aggregate", ["lm_eval/results.json", "lighteval/results.json"])
def test_aggregates_are_refused(aggregate):
    with pytest.raises(DataError, match=r"received aggregates of li?[mg].*Averages cannot be paired"):
        read(aggregate)


def lines(change, tmp_path):
    """The lm-eval log with one line changed, strict answers only."""
    path = next((LOGS / "lm_eval" / "base").iterdir())
    rows = [row for row in map(json.loads, path.read_text().splitlines()) if row["filter"] == "strict-match"]
    rows = change(rows)
    out = tmp_path / "samples_x.jsonl"
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


BROKEN = [
    (
        lambda rows: [{k: v for k, v in rows[0].items() if k != "doc_id"}],
        "line 1: a sample needs doc_id.* --log_samples",
    ),
    (lambda rows: [*rows, rows[2]], r"must be unique, received '\d' sample 0 more than once"),
    (
        lambda rows: [{**rows[0], "exact_match": 0.5}],
        "right .1. or wrong .0. to be paired, received a graded value 0.5",
    ),
    (lambda rows: [{**rows[0], "exact_match": "good"}], "received a value 'good'"),
    (lambda rows: [{**rows[0], "exact_match": float("nan")}], "received a value nan"),
    (lambda rows: [{**rows[0], "doc_id": {"a": 1}}], "of another type"),
    (lambda rows: [rows[0], {**rows[0], "doc_hash": "other"}], "an id must name one problem, received"),
    (lambda rows: [{**rows[0], "resps": [["a", "b"]]}], "one value must stand for one answer, received one for 2"),
    (lambda rows: [[1]], "must be a JSON object, received list"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_what_cannot_be_paired_is_refused(change, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_log(lines(change, tmp_path), source="lm-eval")


def test_an_empty_log_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must have one metric,filter"):
        read_log(lines(lambda rows: [], tmp_path), source="lm-eval")


def test_several_responses_behind_one_value_are_read_by_regrading(tmp_path):
    two = lines(lambda rows: [{**row, "resps": [[f"#### {row['target']}", "#### 0"]]} for row in rows], tmp_path)
    assert read_log(two, regrade="strict").correct.tolist() == [[True, False]] * 5


def test_regrading_takes_the_last_number_only_where_that_is_asked_for(tmp_path):
    prose = lines(lambda rows: [{**row, "resps": [[f"So it is {row['target']}."]]} for row in rows], tmp_path)
    strict, lenient = (read_log(prose, regrade=judge) for judge in ("strict", "last_number"))
    assert {score.outcome for score in strict.scores} == {Outcome.UNPARSED}
    assert lenient.correct.all()
    assert (strict.grader, lenient.grader) == (GRADER_ID, grader_id(last_number=True))
    call = ["scores", "import", str(prose), "--out", str(tmp_path / "out"), "--last-number"]
    assert isinstance(CliRunner().invoke(app, call).exception, ConfigError)
    assert CliRunner().invoke(app, [*call, "--regrade"]).exit_code == 0
    assert read_table(tmp_path / "out").grader == lenient.grader


def test_an_invalid_extraction_is_no_answer(tmp_path):
    log = lines(lambda rows: [{**rows[0], "filtered_resps": ["[invalid]"], "exact_match": 0.0}], tmp_path)
    score = read_log(log).scores[0]
    assert (score.extracted, score.outcome) == ("", Outcome.UNPARSED)


def test_another_prompt_is_another_template_and_another_document_another_set(tmp_path):
    same, prompt, doc = (
        read_log(lines(lambda rows, change=change: [rows[0] | change, *rows[1:]], tmp_path))
        for change in ({}, {"prompt_hash": "p"}, {"doc_hash": "d"})
    )
    assert prompt.problems_digest == same.problems_digest != doc.problems_digest
    assert prompt.template_digest != same.template_digest == doc.template_digest


def inspect_log(change, tmp_path):
    log = json.loads((LOGS / "inspect" / "base.json").read_text())
    change(log)
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    return path


INSPECT = [
    (lambda log: log.update(status="cancelled"), "finished evaluation, received status 'cancelled'"),
    (lambda log: log.update(samples=None), "received a log with aggregates only"),
    (lambda log: log["samples"][1].update(scores={}), "must have a score by 'match', received no score"),
    (lambda log: log["samples"][1].update(error={"message": "x"}), "received an error"),
    (lambda log: log["samples"][0]["scores"]["match"].update(value="P"), "received a value 'P'"),
    (lambda log: log["samples"][0]["scores"]["match"].update(value=float("nan")), "received no score"),
    (lambda log: log["samples"][0].pop("id"), "needs an id and an input"),
]


@pytest.mark.parametrize(("change", "message"), INSPECT)
def test_an_inspect_log_that_is_not_whole_is_refused(change, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_log(inspect_log(change, tmp_path))


def test_inspects_values_and_attachments_are_read(tmp_path):
    def change(log):
        first, second = log["samples"][:2]
        first["scores"]["match"]["value"] = "N"
        second["scores"]["match"]["value"] = 1
        second["output"]["choices"][0]["message"]["content"] = "attachment://a"
        second["attachments"] = {"a": "#### 7"}
        second["output"]["choices"][0]["stop_reason"] = "max_tokens"

    first, second = read_log(inspect_log(change, tmp_path)).scores[:2]
    assert (first.correct, first.outcome) == (False, Outcome.UNPARSED)
    assert (second.correct, second.response, second.finish) == (True, "#### 7", Finish.LENGTH)


def test_lighteval_rows_are_checked(tmp_path):
    rows = pq.read_table(next((LOGS / "lighteval" / "base").iterdir())).to_pylist()
    rows[0]["metric"] = {"em": 0.25}
    path = tmp_path / "details_x.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "metric": {"em": float(row["metric"]["em"])}} for row in rows]), path)
    with pytest.raises(DataError, match=r"a graded value 0.25"):
        read_log(path)
    rows[0]["doc"]["id"] = ""
    pq.write_table(pa.Table.from_pylist(rows[:1]), path)
    with pytest.raises(DataError, match="row 0: a document needs its id"):
        read_log(path)


def table(**changes):
    scores = tuple(
        Score(problem_id=f"p{i}", sample=j, correct=right, answer="4", extracted="4" if right else "",
              finish=Finish.STOP if j else None, response_tokens=3 if j else None,
              outcome=Outcome.CORRECT if right else Outcome.UNPARSED, response='so "4",\n=1+1 é')
        for i, row in enumerate([(True, False), (False, False)]) for j, right in enumerate(row)
    )  # fmt: skip
    base = {"name": "t", "problems_digest": "d", "grader": "g", "decoding": "greedy", "model_digest": "m"}
    return ScoreTable(scores=scores, **base | changes)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_table_comes_back_from_a_plain_file_as_it_was(suffix, tmp_path):
    path = write_file(table(), tmp_path / f"t{suffix}")
    assert read_log(path, name="t") == table()
    with pytest.raises(ConfigError, match="must be a new file"):
        write_file(table(), path)


def test_two_columns_are_enough(tmp_path):
    (tmp_path / "mine.csv").write_text("problem_id,correct\nb,0\na,1\n")
    mine = read_log(tmp_path / "mine.csv")
    assert mine.problem_ids == ("a", "b")
    assert mine.correct.tolist() == [[True], [False]]
    (tmp_path / "bad.csv").write_text("problem_id,right\nb,0\n")
    with pytest.raises(DataError, match="a row needs correct, received problem_id, right"):
        read_log(tmp_path / "bad.csv")
    assert read_log(tmp_path / "bad.csv", metric="right").correct.tolist() == [[False]]
    (tmp_path / "mixed.csv").write_text("problem_id,correct,grader\na,0,x\nb,1,y\n")
    with pytest.raises(DataError, match="all rows must share one grader, received 2"):
        read_log(tmp_path / "mixed.csv")
    (tmp_path / "cell.csv").write_text("problem_id,correct,outcome\na,0,fine\n")
    with pytest.raises(DataError, match="a cell must be what its column says, received 'fine'"):
        read_log(tmp_path / "cell.csv")


def test_unequal_samples_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("problem_id,sample,correct\na,0,1\na,1,1\nb,0,0\n")
    with pytest.raises(DataError, match="same number of samples, received between 1 and 2"):
        read_log(tmp_path / "x.csv")


def test_unknown_files_and_folders_with_several_logs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="must be an existing file or folder"):
        read_log(tmp_path / "none")
    with pytest.raises(ConfigError, match="must hold one log of answers, received 2"):
        read_log(LOGS / "lm_eval")
    with pytest.raises(ConfigError, match=r'no source "lmeval". Did you mean "lm-eval"'):
        read_log(LOGS, source="lmeval")
    (tmp_path / "x.txt").touch()
    with pytest.raises(ConfigError, match=r"a log must be .jsonl"):
        read_log(tmp_path / "x.txt")


# files that were not written in good faith


def test_a_zip_bomb_stops_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_RECORD", 1 << 20)
    path = tmp_path / "bomb.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", " " * (64 << 20))
    with pytest.raises(DataError, match=r"header.json must be at most 1 MiB"):
        read_log(path)


def test_a_zstd_bomb_that_lies_about_its_size_stops_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_RECORD", 1 << 20)
    packed = pa.compress(b" " * (64 << 20), codec="zstd", asbytes=True)
    name = b"header.json"
    common = struct.pack("<HHHHHIII", 20, 0, 93, 0, 33, 0, len(packed), 10)
    local = b"PK\3\4" + common + struct.pack("<HH", len(name), 0) + name + packed
    central = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    (tmp_path / "bomb.eval").write_bytes(local + central + end)
    with pytest.raises(DataError, match=r"header.json must be at most 1 MiB"):
        read_log(tmp_path / "bomb.eval")


def test_many_small_members_are_bounded_together(tmp_path):
    archive = Archive(LOGS / "inspect" / "base.eval")
    archive.budget.limit = 10_000
    with pytest.raises(DataError, match="must hold at most 0 MiB of records"):
        [archive.record(name) for name in archive.members if name.startswith("samples/")]
    (tmp_path / "small").write_text("x")
    budget = budget_of(tmp_path / "small")
    budget.spend(FLOOR)
    with pytest.raises(DataError, match=r"must hold at most 64 MiB of records.* Split the log by task"):
        budget.spend(1)


def test_a_damaged_archive_is_refused(tmp_path):
    good = (LOGS / "inspect" / "base.eval").read_bytes()
    path = tmp_path / "x.eval"
    for bad in (b"", b"not a zip", good[: len(good) // 2], good[:1200] + b"\0" * 200 + good[1400:]):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"Copy the log again|copy it again"):
            read_log(path)
    shutil.copy(LOGS / "inspect" / "base.eval", path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("header.json", "{}")
    with pytest.raises(DataError, match="received a name twice"):
        read_log(path)


def test_deep_and_long_json_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "samples_x.jsonl"
    path.write_text("[" * 200_000)
    with pytest.raises(DataError, match="line 1 must be JSON, received nesting too deep to read"):
        read_log(path)
    path.write_text('{"doc_id": ' + "9" * 5000 + "}")
    with pytest.raises(DataError, match="must be JSON, received Exceeds the limit"):
        read_log(path)
    monkeypatch.setattr(files, "MAX_RECORD", 1000)
    path.write_text('{"doc_id": 1, "x": "' + "a" * 5000 + '"}')
    with pytest.raises(DataError, match="line 1 must be at most"):
        read_log(path)
    (tmp_path / "log.json").write_text(" " * 5000)
    with pytest.raises(DataError, match=r"log.json must be at most"):
        read_log(tmp_path / "log.json")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="must be a Parquet file"):
        read_log(tmp_path / "x.parquet")


def test_an_outcome_agrees_with_the_flag():
    with pytest.raises(DataError, match="correct must be true exactly when the outcome is 'correct', received True"):
        replace(table().scores[0], outcome=Outcome.WRONG)


def test_a_long_response_comes_back_from_csv(tmp_path):
    long = table()
    long = replace(long, scores=tuple(replace(score, response="x, " * 100_000) for score in long.scores))
    assert read_log(write_file(long, tmp_path / "t.csv"), name="t") == long


@pytest.mark.parametrize(("sample", "tokens"), [(-1, 3), (10**12, 3), (0, 10**30), (0, -3)])
def test_numbers_that_no_column_holds_are_refused(sample, tokens, tmp_path):
    row = {"problem_id": "a", "sample": sample, "correct": True, "response_tokens": tokens}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="must lie in 0 to 16777215, received"):
        read_log(tmp_path / "x.jsonl")


def test_names_of_metrics_are_text(tmp_path):
    with pytest.raises(DataError, match="metrics are of another type"):
        read_log(lines(lambda rows: [{**rows[0], "metrics": [{"a": 1}]}], tmp_path))


def test_the_members_of_an_archive_are_listed_once_however_many_there_are(monkeypatch):
    """Listing them costs their number, so that to open the archive for each of them would cost its square."""
    opened = []

    class Counted(zipfile.ZipFile):
        def __init__(self, *args, **kwargs):
            opened.append(args)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(files.zipfile, "ZipFile", Counted)
    assert len(read("inspect/base.eval").scores) == 5
    assert len(opened) == 1


def test_what_a_log_says_cannot_steer_the_terminal(tmp_path):
    rows = [{"problem_id": f"p{i}", "correct": True, "grader": "g\x1b[2J\u202e"} for i in range(3)]
    for name in ("a", "b\x07"):
        (tmp_path / f"{name[0]}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        call = [
            "scores",
            "import",
            str(tmp_path / f"{name[0]}.jsonl"),
            "--name",
            name,
            "--out",
            str(tmp_path / name[0]),
        ]
        said = CliRunner().invoke(app, call)
        assert said.exit_code == 0
        assert "\x1b" not in said.stderr
    said = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")])
    shown = CliRunner().invoke(app, ["scores", "show", str(tmp_path / "a")])
    assert not {"\x1b", "\x07", "\u202e"} & set(said.stderr + shown.stdout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["limbeck", "scores", "show", str(tmp_path / "\x1b[2J")])
        with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as err:
            main()
    assert "\x1b" not in err.getvalue()
    assert "limbeck: " in err.getvalue()
