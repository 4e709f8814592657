"""A factorial becomes arms, a merge a step of its own; what cannot be is refused before anything runs."""

from __future__ import annotations

import json

import pytest

from limbeck.errors import ConfigError
from limbeck.studies.config import load_study
from limbeck.studies.plan import make_plan

HEAD = """
name = "x"
question = "?"
student = "abacus:base"
teacher = "abacus:teacher"
seeds = [0, 1]
"""
FACTORIAL = """
[factorial]
schedule = ["cosine", "constant"]
[factorial.loss]
sft = {}
dpo = { objective = "dpo", batch_size = 16 }
"""


def study(tmp_path, body, name="study.toml"):
    (tmp_path / name).write_text(HEAD + body)
    return load_study(str(tmp_path / name))


def test_every_combination_is_an_arm_with_the_settings_of_its_levels(tmp_path):
    config = study(tmp_path, FACTORIAL + '[[arms]]\nname = "cosine-dpo"\nlabel = "mine"\n[[arms]]\nname = "other"\n')
    assert [arm.name for arm in config.arms] == ["cosine-sft", "constant-sft", "constant-dpo", "cosine-dpo", "other"]
    given = config.training(config.arm("constant-dpo"), 0)
    assert (given.schedule, given.objective, given.batch_size) == ("constant", "dpo", 16)
    assert config.training(config.arm("cosine-dpo"), 0).objective == "sft"  # the file's own arm stands as it is
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    assert load_study(str(tmp_path / "config.json")) == config


def test_its_variance_is_split_over_every_cell_and_seed_and_not_with_one_seed(tmp_path):
    config = study(tmp_path, FACTORIAL)
    (step,) = (step for step in make_plan(config) if step.kind == "factorial")
    assert step.params["levels"]["loss"] == ["sft", "sft", "dpo", "dpo"] * 2
    assert step.params["seeds"] == [0, 1] * 4
    assert step.inputs["table:constant-dpo-s1"] == "eval/constant-dpo-s1"
    one = config.model_copy(update={"seeds": (0,)})
    assert not [step for step in make_plan(one) if step.kind == "factorial"]


def test_a_rate_is_found_by_two_trials_at_the_first_seed(tmp_path):
    steps = {step.name: step for step in make_plan(study(tmp_path, 'reach_norm = 1.5\narms = [{ name = "sft" }]\n'))}
    assert steps["train/sft-trial-2"].inputs["rate"] == "rate/sft-1"
    assert [steps[f"train/sft-s{seed}"].inputs["rate"] for seed in (0, 1)] == ["rate/sft", "rate/sft"]
    assert sum(step.kind == "train" for step in steps.values()) == 4


def test_a_merge_reads_its_parts_at_its_seed_and_is_asked_like_any_arm(tmp_path):
    body = """
train = { keep = [4], num_steps = 8 }
arms = [
  { name = "sum", merge = { arms = ["sft@4", "dpo"] } },
  { name = "twice", merge = { arms = ["sft"], weights = [2.0] } },
  { name = "sft" },
  { name = "dpo", train = { objective = "dpo" } },
]
"""
    steps = {step.name: step for step in make_plan(study(tmp_path, body))}
    made = steps["train/sum-s1"]
    assert made.inputs == {"sft-s1": "train/sft-s1", "dpo-s1": "train/dpo-s1"}
    assert [(part["run"], part["at"], part["weight"]) for part in made.params["parts"]] == [
        ("sft-s1", 4, 1),
        ("dpo-s1", None, 1),
    ]
    assert steps["train/twice-s0"].params["parts"][0]["weight"] == 2.0
    assert steps["eval/sum-s1"].inputs == {"run": "train/sum-s1"}
    assert "eval/sum-s1@4" not in steps
    assert set(steps["measure"].inputs) == {"sft-s0", "sft-s1", "dpo-s0", "dpo-s1"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('[factorial]\nschedule = ["cosine", "weekly"]\n', "schedule"),
        ("[factorial]\nschedule = 3\n", "factorial"),
        ('[factorial]\nloss.sft = { objectiv = "sft" }\n', 'no key "objectiv"'),
        ("", "a study needs arms"),
        ('arms = [{ name = "a" }]\nprimary = [["a", "b"]]\n', 'primary must name an arm, received "b"'),
        ('arms = [{ name = "m", merge = { arms = ["b"] } }]\n', 'merge.arms must name an arm, received "b"'),
        ('arms = [{ name = "a" }, { name = "m", merge = { arms = ["a"] }, start = "a" }]\n', "is not trained, received start"),
        ('arms = [{ name = "a" }, { name = "m", merge = { arms = ["a"], weights = [1.0, 2.0] } }]\n', "2 numbers for 1 arms"),
        (
            'arms = [{ name = "a", train = { method = "full" } }, { name = "m", merge = { arms = ["a"] } }]\n',
            "trains every weight",
        ),
        ('arms = [{ name = "a" }, { name = "b", start = "a" }, { name = "m", merge = { arms = ["a", "b"] } }]\n', "starts from"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_a_sentence(tmp_path, body, said):
    with pytest.raises(ConfigError, match=said):
        study(tmp_path, body)


def test_cells_of_other_seeds_cannot_be_split(tmp_path):
    config = study(tmp_path, FACTORIAL + '[[arms]]\nname = "cosine-sft"\nseeds = [0]\n')
    with pytest.raises(ConfigError, match="must run at the same seeds"):
        make_plan(config)
