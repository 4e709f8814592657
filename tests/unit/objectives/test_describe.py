"""What is printed about objectives is complete and the page in docs is the one that the code generates."""

from pathlib import Path

import pytest

from limbeck.errors import ConfigError
from limbeck.objectives import OBJECTIVES, inputs, knobs
from limbeck.objectives.describe import REGENERATE, describe, markdown, table

PAGE = Path(__file__).parents[3] / "docs" / "methods.md"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_description_names_every_input_and_setting(name):
    text = describe(name)
    assert all(key in text for key in (*inputs(OBJECTIVES[name]), *knobs(OBJECTIVES[name])))
    assert OBJECTIVES[name].status in text
    assert ">>>" not in text


def test_the_table_has_a_row_per_objective():
    rows = {row["objective"]: row for row in table()}
    assert list(rows) == list(OBJECTIVES)
    assert rows["dpo"]["knobs"] == "beta=0.1 [1/nat], label_smoothing=0.0 [fraction]"
    assert rows["rift:paper-printed"]["knobs"] == "lam"
    assert "step" not in rows["opd_then_rl"]["knobs"].split(", ")


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="Known"):
        describe("nope")


def test_the_page_in_docs_is_current():
    assert PAGE.read_text(encoding="utf-8") == markdown(), f"docs/methods.md is stale; run: {REGENERATE}"
