"""Copies of the embedded student to take apart, and rollouts with everything that is looked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from limbeck.problems.prompts import prompt_ids, response_ids, template_digest
from limbeck.train.models import load_tokenizer
from limbeck.types import Finish, Rollout, RolloutSet
from limbeck.worlds import resolve

PROMPT = "A box holds 12 coins. First {} are lost. How many coins are there now?"


@pytest.fixture
def student(tmp_path) -> Path:
    """The embedded base in a folder of its own."""
    return Path(shutil.copytree(resolve("abacus:base"), tmp_path / "student"))


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer("abacus:base")


@pytest.fixture(scope="session")
def rollout_set(tokenizer) -> RolloutSet:
    """Four problems with two answers each: two mixed, one all right, one all wrong; one answer cut short."""
    rollouts = []
    for problem, rewards in enumerate([(1, 0), (0, 1), (1, 1), (0, 0)]):
        for sample, reward in enumerate(rewards):
            text = f"12 - {problem + 1} = {11 - problem}. #### {11 - problem + 1 - reward}"
            ids = response_ids(tokenizer, text)
            cut = (problem, sample) == (3, 1)
            ids = ids[:-1] if cut else ids
            rollouts.append(
                Rollout(
                    problem_id=f"p{problem}",
                    sample=sample,
                    prompt_ids=prompt_ids(tokenizer, PROMPT.format(problem + 1)),
                    response_ids=ids,
                    behavior_logprobs=(-1.0,) * len(ids),
                    reward=float(reward),
                    finish=Finish.LENGTH if cut else Finish.STOP,
                    response=text,
                )
            )
    return RolloutSet(rollouts=tuple(rollouts), provenance={"template_digest": template_digest(tokenizer)})
