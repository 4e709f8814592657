"""Which rows an arm trains on where it is to be held against another on the same ones."""

from __future__ import annotations

import pytest

from limbeck.config import TrainConfig
from limbeck.errors import ConfigError
from limbeck.objectives import find
from limbeck.train.checks import check
from limbeck.train.data import prepare

from .toy import tiny_rollouts


def prepared(objective: str = "sft", **settings):
    found = tiny_rollouts(groups=20)
    config, row = TrainConfig(objective=objective, **settings), find(objective)
    scores = (
        {"reference_logprobs": [[-0.5] * len(r.response_ids) for r in found.rollouts]} if row.unit == "pair" else {}
    )
    return prepare(config, row, found, scores, context=None)


@pytest.mark.parametrize("rule", ["one_per_group", "zip", "all"])
def test_an_objective_of_rows_reads_the_rows_of_one_of_pairs(rule):
    rows, pairs = prepared(selection="paired", pairs=rule), prepared("dpo", pairs=rule)
    assert set(rows.data.used_rows) == set(pairs.data.used_rows)
    assert rows.facts["right_share"] == pytest.approx(pairs.facts["right_share"])


def test_the_share_of_right_rows_is_what_was_asked_for_on_the_same_problems():
    for share in (0.0, 0.25, 1.0):
        found = prepared(right_share=share)
        assert found.facts["items"] == 20
        assert found.facts["right_share"] == share
    assert prepared(right_share=0.25, selection="correct").facts["items"] == 5
    assert prepared(right_share=0.25, selection="correct").selection["rule"].startswith("correct of one_of_each")


def test_pairs_of_a_right_and_a_wrong_row_have_no_share_to_choose():
    with pytest.raises(ConfigError, match="received it with dpo, which reads pairs"):
        check(TrainConfig(objective="dpo", right_share=0.5))
