"""Vocabulary, template, pad and end tokens of a model, and of a teacher beside it."""

from __future__ import annotations

import json
import shutil

import pytest

from limbeck.doctor.tokens import examine_tokenizer
from limbeck.problems.prompts import stop_ids, turn_end
from limbeck.train.models import load_tokenizer
from limbeck.worlds import resolve

from .parts import by_name, edit

GENERATION = "generation_config.json"
THINKING = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|assistant|><think>\n"


def looked_at(model, teacher=None) -> dict:
    return by_name(examine_tokenizer(str(model), teacher and str(teacher))[0])


def test_the_embedded_student_and_its_teacher_are_as_they_should_be():
    found = looked_at("abacus:base", "abacus:teacher")
    assert {finding.level for finding in found.values()} == {"ok"}
    assert found["vocabulary"].facts == {"ids": 168, "embedding_rows": 168}
    assert found["teacher's vocabulary"].facts["same"] == 168


@pytest.mark.parametrize(
    ("listed", "level", "says"),
    [([1], "ok", "stops at it"), ([5], "problem", "(5) only"), ([1, 999], "problem", "[999]"), (None, "note", "no generation")],
)  # fmt: skip
def test_a_student_must_end_where_generation_stops(student, listed, level, says):
    edit(student / GENERATION, eos_token_id=listed)
    end = looked_at(student)["end"]
    assert end.level == level
    assert says in end.says
    assert bool(end.remedy) == (level != "ok")
    if level == "problem":  # and the remedy is one
        edit(student / GENERATION, eos_token_id=json.loads(f"[{end.remedy.split('[')[1].split(']')[0]}]"))
        assert looked_at(student)["end"].level == "ok"


def test_without_a_generation_config_the_end_is_a_note(student):
    (student / GENERATION).unlink()
    assert looked_at(student)["end"].level == "note"


def test_a_template_may_be_missing_open_a_thinking_block_or_be_broken(student):
    template = student / "chat_template.jinja"
    template.write_text(THINKING)
    assert looked_at(student)["chat template"].facts == {"template": True, "opens_thinking": True}
    template.write_text("{{ raise_exception('no system turn') }}")
    broken = looked_at(student)["chat template"]
    assert (broken.level, broken.says) == ("problem", "no system turn")
    template.unlink()
    assert looked_at(student)["chat template"].level == "note"


def test_a_pad_that_is_the_end_is_told(student):
    edit(student / "tokenizer_config.json", pad_token="<|end|>")
    pad = looked_at(student)["pad"]
    assert pad.level == "note"
    assert pad.facts["pad_is_eos"]


def test_ids_without_a_row_are_a_problem(student):
    tokenizer = load_tokenizer(str(student))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(student)
    found = looked_at(student)["vocabulary"]
    assert (found.level, found.facts) == ("problem", {"ids": 169, "embedding_rows": 168})


def test_no_tokenizer_is_a_problem(student):
    for file in student.glob("tokenizer*"):
        file.unlink()
    findings, tokenizer = examine_tokenizer(str(student), None)
    assert tokenizer is None
    assert [finding.level for finding in findings] == ["problem"]


def test_a_teacher_of_other_words_or_another_end_is_a_problem(student, tmp_path):
    teacher = shutil.copytree(resolve("abacus:teacher"), tmp_path / "teacher")
    path = teacher / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    first, second = [word for word in words if word in ("box", "cart")][:2]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(content))
    found = looked_at(student, teacher)
    assert found["teacher's vocabulary"].level == "problem"
    assert found["teacher's vocabulary"].facts["same"] == 166
    assert found["teacher's end"].level == "ok"

    template = (teacher / "chat_template.jinja").read_text()
    (teacher / "chat_template.jinja").write_text(
        template.replace("<|end|>", "<|user|>").replace("eos_token", "'<|user|>'")
    )
    other = load_tokenizer(str(teacher))
    assert turn_end(other) != turn_end(load_tokenizer(str(student)))
    ends = looked_at(student, teacher)["teacher's end"]
    assert (ends.level, ends.facts["teacher"][0]) == ("problem", stop_ids(other)[0])

    (teacher / "chat_template.jinja").write_text("{{ raise_exception('no turn') }}")
    assert looked_at(student, teacher)["teacher"].level == "problem"
