"""Score tables come back as they were written, in the fixed columns."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from limbeck.errors import FolderError, ProvenanceError
from limbeck.evals.tables import read_table, write_table
from limbeck.folders import amend
from limbeck.types import Finish, Score, ScoreTable


def table(flags=((True, False), (False, False))):
    scores = tuple(
        Score(
            problem_id=f"p{i}",
            sample=j,
            correct=flag,
            answer="4",
            extracted="4" if flag else "",
            finish=Finish.STOP if flag else Finish.LENGTH,
            response_tokens=3,
            response="so 4\ud800",
        )
        for i, row in enumerate(flags)
        for j, flag in enumerate(row)
    )
    return ScoreTable(name="arm", scores=scores[::-1], problems_digest="d", grader="g", decoding="greedy")


def test_round_trip_and_fixed_columns(tmp_path):
    written = table()
    write_table(written, tmp_path / "s")
    back = read_table(tmp_path / "s")
    assert back.correct.tolist() == written.correct.tolist() == [[True, False], [False, False]]
    assert (back.name, back.problems_digest, back.grader, back.decoding) == ("arm", "d", "g", "greedy")
    assert back.scores[1].finish is Finish.LENGTH
    assert back.scores[0].response == "so 4?"
    names = pq.read_schema(tmp_path / "s/scores.parquet").names
    assert names[:7] == ["problem_id", "sample", "correct", "answer", "extracted", "finish", "response_tokens"]


def test_changed_rows_and_other_folders_are_refused(tmp_path):
    write_table(table(), tmp_path / "s")
    write_table(table(flags=((True, True), (True, True))), tmp_path / "better")
    (tmp_path / "better/scores.parquet").replace(tmp_path / "s/scores.parquet")
    with pytest.raises(ProvenanceError, match=r"scores.parquet must match its manifest's digest"):
        read_table(tmp_path / "s")
    amend(tmp_path / "s", "scores.parquet")  # who changes the file's digest too is found by the rows' own
    with pytest.raises(ProvenanceError, match="must match their manifest's digest"):
        read_table(tmp_path / "s")
    with pytest.raises(FolderError, match="--overwrite"):
        write_table(table(), tmp_path / "s")
