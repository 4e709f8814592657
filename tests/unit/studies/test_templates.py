"""A study's template reaches what is asked and the identity of its steps; without one nothing changes."""

from __future__ import annotations

import json

from limbeck.studies.identity import problems_of
from limbeck.studies.sections import ProblemsConfig
from limbeck.worlds.named import read_problems


def test_a_template_is_part_of_what_identifies_problems_and_only_where_there_is_one(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"prompt": "2 + 2?", "answer": "4"}) + "\n")
    plain, boxed = (ProblemsConfig(path=str(file), template=t) for t in ("", "Q: {problem}\nBox the answer."))
    assert "template" not in problems_of(plain)
    assert problems_of(boxed) == problems_of(plain) | {"template": boxed.template}
    prompts = [read_problems(problems_of(config))[0][0].prompt for config in (plain, boxed)]
    assert prompts == ["2 + 2?", "Q: 2 + 2?\nBox the answer."]
