"""The embedded world: splits that cannot leak, a tokenizer that gives text back, models that are what they claim."""

from __future__ import annotations

import re

import pytest

from limbeck.errors import ConfigError
from limbeck.problems.prompts import prompt_ids, response_ids, stop_ids
from limbeck.train.models import load_model, load_tokenizer
from limbeck.worlds import ROOT, resolve
from limbeck.worlds.abacus import build
from limbeck.worlds.abacus.generator import LIMIT, MAX_STEPS, MIN_STEPS, generate, split_of
from limbeck.worlds.abacus.tokenizer import build_tokenizer


def arithmetic(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+ [-+*/] \d+ = \d+", text))


def test_splits_are_disjoint_in_arithmetic_and_words_do_not_matter():
    sets = {
        split: {arithmetic(text) for _, text in generate(split, 400, seed=s)}
        for s, split in enumerate(("train", "test"))
    }
    assert not sets["train"] & sets["test"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_solutions_are_right_and_within_bounds(split):
    for problem, text in generate(split, 200, seed=3):
        equations = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", text)
        assert MIN_STEPS <= len(equations) <= MAX_STEPS
        value = int(re.match(r"Start (\d+)\.", text)[1])
        for left, symbol, right, result in equations:
            assert int(left) == value
            exact = {"+": value + int(right), "-": value - int(right), "*": value * int(right), "/": value / int(right)}
            value = exact[symbol]
            assert value == int(result)
            assert 0 <= value <= LIMIT
        assert int(problem.answer) == value


def test_the_generator_is_a_function_of_its_seed():
    assert generate("test", 20, seed=1) == generate("test", 20, seed=1)
    assert generate("test", 20, seed=1) != generate("test", 20, seed=2)
    assert len({p.id for s in (1, 2) for p, _ in generate("test", 20, seed=s)}) == 40


def test_the_split_is_a_hash_of_the_arithmetic_alone():
    assert {split_of(n, ()) for n in range(200)} == {"train", "validation", "test"}


def test_text_survives_the_tokenizer_and_nothing_is_unknown():
    tokenizer = build_tokenizer()
    for problem, text in generate("train", 300, seed=9):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in [*ids, *prompt_ids(tokenizer, problem.prompt)]


def test_a_response_ends_with_exactly_one_stop_token():
    tokenizer = load_tokenizer("abacus:base")
    ids = response_ids(tokenizer, "Start 7. #### 7")
    assert ids[-1] in stop_ids(tokenizer)
    assert sum(i in stop_ids(tokenizer) for i in ids) == 1


def test_base_and_teacher_are_small_and_far_apart():
    size = sum(file.stat().st_size for name in ("base", "teacher") for file in (ROOT / "abacus" / name).iterdir())
    assert size <= 6_000_000
    tokenizer = load_tokenizer("abacus:base")
    problems = [problem for problem, _ in generate("test", 120, seed=4)]
    accuracy = {name: build.accuracy(load_model(f"abacus:{name}"), tokenizer, problems) for name in ("base", "teacher")}
    assert 0.3 <= accuracy["base"] <= 0.7
    assert accuracy["teacher"] >= 0.9


def test_an_unknown_model_of_a_world_is_named():
    with pytest.raises(ConfigError, match=r'no model "teachr"\. Did you mean "teacher"\?'):
        resolve("abacus:teachr")
