"""Plans: identities known before anything runs, and what cannot work refused before a model is loaded."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

from limbeck.errors import ConfigError, ModelError
from limbeck.studies.config import StudyConfig, load_study
from limbeck.studies.plan import make_plan
from limbeck.train.models import input_digest
from limbeck.worlds import resolve
from limbeck.worlds.abacus.tokenizer import build_tokenizer

BASIC = {"name": "x", "question": "?", "student": "abacus:base", "teacher": "abacus:teacher"}


def study(**values) -> StudyConfig:
    return StudyConfig.model_validate({**BASIC, **values})


def digests(config: StudyConfig) -> dict[str, str]:
    return {step.name: step.digest for step in make_plan(config)}


def test_every_step_comes_after_what_it_reads():
    seen: set[str] = set()
    for step in make_plan(load_study("offline-losses")):
        assert set(step.inputs.values()) <= seen
        seen.add(step.name)


def test_a_change_reaches_what_depends_on_it_and_nothing_else():
    arms = [{"name": "sft"}, {"name": "dpo", "train": {"objective": "dpo"}}]
    before = digests(study(arms=arms))
    arms[1]["train"]["learning_rate"] = 1e-4
    after = digests(study(arms=arms))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"train/dpo-s0", "eval/dpo-s0", "compare", "measure", "cka"}


def test_reference_scores_are_made_once_and_only_if_an_arm_reads_them():
    without = digests(study(arms=[{"name": "sft"}]))
    assert not any(name.startswith("score/") for name in without)
    arms = [{"name": "dpo", "train": {"objective": "dpo"}}, {"name": "ipo", "train": {"objective": "ipo"}}]
    assert sum(name.startswith("score/") for name in digests(study(arms=arms))) == 1


def test_pairs_are_walked_at_the_first_seed_or_at_every_shared_one():
    arms = [{"name": "a", "seeds": [0, 1, 2]}, {"name": "b", "seeds": [1, 2, 3]}]
    pairs = [["a", "b"], ["base", "b"], ["a@0", "a@2"], ["base", "a@1"]]
    found = {seeds: digests(study(arms=arms, paths={"pairs": pairs, "seeds": seeds})) for seeds in ("first", "all")}
    walked = {
        seeds: [name.removeprefix("path/") for name in steps if name.startswith("path/")]
        for seeds, steps in found.items()
    }
    assert walked["first"] == ["a-s0--b-s1", "base--b-s1", "a-s0--a-s2", "base--a-s1"]
    assert walked["all"] == [
        "a-s1--b-s1", "a-s2--b-s2", "base--b-s1", "base--b-s2", "base--b-s3", "a-s0--a-s2", "base--a-s1",
    ]  # fmt: skip
    assert found["all"]["path/base--b-s1"] == found["first"]["path/base--b-s1"]  # the same walk, whoever asks for it


def test_near_adapters_are_seeds_of_one_arm_methods_of_one_seed_and_the_reference():
    arms = [{"name": "a"}, {"name": "b"}, {"name": "c", "role": "control"}]
    steps = {s.name: s for s in make_plan(study(arms=arms, seeds=[0, 1], geometry={"pairs": "near"}))}
    near = {frozenset(pair) for pair in steps["measure"].params["pairs"]}
    same = [("a-s0", "a-s1"), ("b-s0", "b-s1"), ("c-s0", "c-s1")]
    assert near == {frozenset(pair) for pair in [*same, *((f"a-s{s}", f"{x}-s{s}") for s in (0, 1) for x in "bc")]}
    assert steps["cka"].params["pairs"] == steps["measure"].params["pairs"]
    everything = {s.name: s for s in make_plan(study(arms=arms, seeds=[0, 1]))}
    assert "pairs" not in everything["measure"].params


def test_kept_steps_have_their_hidden_states_compared_with_the_base():
    arms = [{"name": "a", "train": {"keep": [3, 7], "num_steps": 9}}, {"name": "b"}]
    kept = {s.name: s for s in make_plan(study(arms=arms))}["cka/kept"]
    assert kept.params["points"] == [["a-s0", 3], ["a-s0", 7]]
    assert kept.inputs == {"a-s0": "train/a-s0"}
    assert "cka/kept" not in digests(study(arms=[{"name": "a"}]))


def test_matched_arms_read_the_run_they_match_whatever_their_order():
    arms = [{"name": "small", "match_norm": "big", "match_items": "few"}, {"name": "big"}, {"name": "few"}]
    steps = {step.name: step for step in make_plan(study(arms=arms))}
    assert steps["train/small-s0"].inputs["norm_of"] == "train/big-s0"
    assert steps["train/small-s0"].inputs["items_of"] == "train/few-s0"


def test_arms_that_match_in_a_circle_or_at_another_seed_are_refused():
    circle = [{"name": "a", "match_norm": "b"}, {"name": "b", "match_norm": "a"}]
    with pytest.raises(ConfigError, match=r"in a circle, received a-s0, b-s0"):
        make_plan(study(arms=circle))
    with pytest.raises(ConfigError, match="the same seeds"):
        make_plan(study(arms=[{"name": "a", "match_norm": "b", "seeds": [1]}, {"name": "b"}]))


def test_a_teacher_with_another_vocabulary_is_refused_before_a_model_is_loaded(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(tmp_path)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 16,
    }
    config = Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=1, eos_token_id=1, bos_token_id=None, **shape)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    arms = [{"name": "opd", "train": {"objective": "opd"}}]
    with pytest.raises(ModelError, match="received None and 168 for 'zebra'"):
        make_plan(study(teacher=str(tmp_path), arms=arms))


def test_an_objective_that_reads_the_teacher_needs_one():
    config = StudyConfig.model_validate(
        {
            **BASIC,
            "teacher": None,
            "rollouts": {"path": __file__},
            "arms": [{"name": "o", "train": {"objective": "opd"}}],
        }
    )
    with pytest.raises(ConfigError, match="reads teacher_logprobs: the study needs a teacher"):
        make_plan(config)


def test_an_objective_that_reads_distributions_has_the_teacher_scored_whole():
    steps = {step.name: step for step in make_plan(study(arms=[{"name": "r", "train": {"objective": "reverse_kl"}}]))}
    assert steps["score/teacher_logits"].params["keep"] == "hidden"
    assert steps["train/r-s0"].inputs["teacher_logits"] == "score/teacher_logits"


def test_whole_models_are_trained_and_evaluated_and_left_out_of_what_reads_factors():
    arms = [{"name": "lora"}, {"name": "full", "train": {"method": "full"}}]
    steps = {step.name: step for step in make_plan(study(arms=arms))}
    assert "eval/full-s0" in steps
    assert set(steps["measure"].inputs) == {"lora-s0"} == set(steps["cka"].inputs)
    with pytest.raises(ConfigError, match="received full-s0, which trains every weight"):
        make_plan(study(arms=arms, paths={"pairs": [["lora", "full"]]}))


def test_an_edited_template_is_another_model_to_every_step_that_asks_it(tmp_path):
    for name in ("base", "teacher"):
        shutil.copytree(resolve(f"abacus:{name}"), tmp_path / name)
    config = study(student=str(tmp_path / "base"), teacher=str(tmp_path / "teacher"), arms=[{"name": "sft"}])
    before = digests(config)
    template = tmp_path / "teacher" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    input_digest.cache_clear()
    after = digests(config)
    assert before["rollouts"] != after["rollouts"]
    assert before["eval/base"] == after["eval/base"]


def test_rollouts_of_a_teacher_with_other_ids_are_refused_even_if_no_arm_reads_its_scores(tmp_path):
    shutil.copytree(resolve("abacus:teacher"), tmp_path / "teacher")
    path = tmp_path / "teacher" / "tokenizer.json"
    core = json.loads(path.read_text())
    vocab = core["model"]["vocab"]
    vocab["shells"], vocab["coins"] = vocab["coins"], vocab["shells"]
    path.write_text(json.dumps(core))
    with pytest.raises(ModelError, match="must map every token to the same id"):
        make_plan(study(teacher=str(tmp_path / "teacher"), arms=[{"name": "sft"}]))


def test_a_path_to_a_seed_that_no_run_has_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r'arm "sft" runs at seeds 0, received "sft@1"'):
        load_study("offline-losses", ("seeds=[0]",))


def test_seeds_are_compared_as_a_level_where_there_are_several():
    one, two = (
        {step.name: step for step in make_plan(study(arms=[{"name": "sft"}], seeds=seeds))} for seeds in ([0], [0, 1])
    )
    assert "arms" not in one["compare"].params
    assert two["compare"].params["arms"] == {"base": ["base"], "teacher": ["teacher"], "sft": ["sft-s0", "sft-s1"]}
    assert two["compare"].params["among"] == ["base", "teacher", "sft-s0"]


def tuned(**values) -> StudyConfig:
    arms = [{"name": "kdrl", "train": {"objective": "kdrl"}, "live": {}, "tune": {"beta": [0.02, 0.2]}}]
    return study(arms=arms, seeds=[3, 4], live={"problems": "abacus:train"}, **values)


def test_a_knob_is_tuned_at_the_first_seed_on_the_tuning_problems_and_taken_at_every_seed():
    aside = {"world": "abacus", "split": "validation", "num": 9}
    steps = {step.name: step for step in make_plan(tuned(tuning=aside))}
    assert {name for name in steps if name.startswith("train/")} == {
        "train/kdrl-beta=0.02", "train/kdrl-beta=0.2", "train/kdrl-s3", "train/kdrl-s4",
    }  # fmt: skip
    tried = steps["train/kdrl-beta=0.2"].params["train"]
    assert (tried["seed"], tried["knobs"]) == (3, {"beta": 0.2})
    assert steps["train/kdrl-s4"].inputs["tuned"] == steps["train/kdrl-s3"].inputs["tuned"] == "tune/kdrl"
    asked = [steps[f"tuning/kdrl-beta={beta}"].params["problems"] for beta in (0.02, 0.2)]
    assert all(p["split"] == "validation" and p["num"] == 9 for p in asked)


def test_tuning_on_the_evaluation_s_problems_is_refused(tmp_path):
    (tmp_path / "s.json").write_text(
        tuned(
            tuning={"world": "abacus", "split": "test", "num": 9}, eval={"problems": {"world": "abacus"}}
        ).model_dump_json()
    )
    with pytest.raises(
        ConfigError, match="tuned on other problems than those of the evaluation, received test of abacus"
    ):
        load_study(str(tmp_path / "s.json"))


STAGE_1 = [
    {"name": "extreme", "train": {"objective": "erpd_sapo", "keep": [8, 100]}},
    {"name": "twin", "train": {"objective": "erpd_sapo", "rewards": "mirror", "keep": [8]}},
]


def chained(*arms, **values) -> dict:
    """Steps by name of a study whose rollouts the student writes."""
    config = study(teacher=None, rollouts={"by": "student"}, arms=[*STAGE_1, *arms], **values)
    return {step.name: step for step in make_plan(config)}


def stage_2(name: str, *teachers: str, **more) -> dict:
    return {"name": name, "train": {"objective": "erpd_kl_clip"}, "signal": {"teachers": teachers, **more}}


def test_arms_that_read_the_same_policy_share_its_scores():
    steps = chained(stage_2("a", "extreme@8"), stage_2("b", "extreme@8", "extreme", combine="agree"))
    scored = [name for name in steps if name.startswith("score/")]
    assert sorted(scored) == ["score/extreme-s0", "score/extreme-s0@8", "score/reference_logprobs"]
    assert steps["signal/a-s0"].inputs["teacher:extreme-s0@8"] == steps["signal/b-s0"].inputs["teacher:extreme-s0@8"]
    assert steps["train/b-s0"].inputs["signal"] == "signal/b-s0"
    assert steps["score/extreme-s0@8"].params["at"] == 8
    assert {"eval/extreme-s0@8", "eval/extreme-s0@100"} <= set(steps)


def test_a_contrast_is_read_at_every_step_that_it_keeps_and_matched_to_its_teacher():
    steps = chained(stage_2("a", "extreme@8", "extreme@100", contrast="twin"))
    made = steps["signal/a-s0"]
    assert [role for role in made.inputs if role.startswith("contrast:")] == ["contrast:twin-s0", "contrast:twin-s0@8"]
    assert made.params["teachers"] == [
        {"name": "extreme-s0@8", "contrast": "twin-s0@8"}, {"name": "extreme-s0@100", "contrast": "twin-s0"},
    ]  # fmt: skip
    assert (made.inputs["twin_table"], made.inputs["start_table"]) == ("eval/twin-s0", "eval/base")


def test_an_arm_that_starts_from_another_stands_on_its_merged_result_and_is_sampled_anew():
    second = {**stage_2("second", "next"), "start": "first", "rollouts": {"by": "first", "problems": {"seed": 9}}}
    following = {"name": "next", "start": "first", "rollouts": second["rollouts"], "train": {"objective": "erpd_sapo"}}
    steps = chained(stage_2("first", "extreme"), second, following)
    assert steps["train/next-s0"].inputs["base"] == "merge/first-s0" == steps["eval/next-s0"].inputs["base"]
    assert steps["rollouts/first-s0"].inputs == {"model": "merge/first-s0"}
    assert steps["rollouts/first-s0"].params["problems"]["seed"] == 9
    assert (
        steps["train/second-s0"].inputs["rollouts"] == steps["train/next-s0"].inputs["rollouts"] == "rollouts/first-s0"
    )
    reference = steps[steps["train/second-s0"].inputs["reference_logprobs"]]
    assert reference.inputs == {"rollouts": "rollouts/first-s0", "base": "merge/first-s0"}
    assert "second-s0" not in steps["measure"].inputs  # its update is no update of the student
    original = chained(stage_2("first", "extreme"), {**second, "anchor": "original"}, following)
    assert original[original["train/second-s0"].inputs["reference_logprobs"]].inputs == {
        "rollouts": "rollouts/first-s0"
    }
    assert original["train/second-s0"].params["anchor"] == "abacus:base"


def test_an_arm_inside_the_subspace_of_another_reads_its_run_and_what_that_started_from():
    full = {"train": {"method": "full", "keep": [4], "num_steps": 8}}
    arms = [
        {"name": "inside", "start": "opd@4", "subspace": {"of": "rl@4", "k": 4}, **full},
        {"name": "opd", **full},
        {"name": "rl", "start": "opd", **full},
        {"name": "chance", "subspace": {"of": "random"}, **full},
    ]
    steps = {step.name: step for step in make_plan(study(arms=arms, seeds=[0, 1]))}
    inside = steps["train/inside-s1"]
    assert inside.inputs["subspace"] == "train/rl-s1"
    assert inside.inputs["subspace_base"] == steps["train/rl-s1"].inputs["base"] == "merge/opd-s1"
    assert inside.inputs["base"] == "merge/opd-s1@4"
    assert inside.params["subspace_at"] == 4
    assert inside.params["train"]["subspace"]["k"] == 4
    assert "subspace" not in steps["train/chance-s0"].inputs
    assert "subspace" not in steps["train/opd-s0"].params["train"]  # what is off changes no identity
    with pytest.raises(ConfigError, match="an adapter"):
        make_plan(study(arms=[{"name": "a", "subspace": {}}]))


def test_the_kl_of_every_result_and_every_kept_step_is_measured():
    steps = chained(kl={"problems": {"world": "abacus", "split": "validation", "num": 8}})
    measured = {name for name in steps if name.startswith("kl/")}
    assert measured == {
        f"kl/{n}" for n in ("base", "extreme-s0", "extreme-s0@8", "extreme-s0@100", "twin-s0", "twin-s0@8")
    }


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        (stage_2("a", "extreme@9"), r"a step that the arm keeps, received extreme@9, which keeps 8, 100"),
        (
            stage_2("a", "extrem"),
            r'arms.a.signal.teachers must name an arm, received "extrem"\. Did you mean "extreme"',
        ),
        (stage_2("a", "extreme@x"), r'with a whole number, received "extreme@x"'),
        (stage_2("a", "extreme@100", contrast="extreme", combine="no"), "signal.combine"),
        ({"name": "a", "train": {"objective": "erpd_clip"}}, r'arm "a" reads a signal, received none'),
        ({"name": "a", "teacher": "extreme"}, "read by live arms alone"),
        ({"name": "a", "start": "a"}, "in a circle, received a-s0"),
        ({"name": "a", "start": "extreme", "seeds": [4]}, "the same seeds"),
        ({"name": "a", "train": {"keep": [101]}}, "steps from 1 to num_steps = 100, received 101"),
    ],
)
def test_arms_that_stand_on_what_is_not_there_are_refused(tmp_path, arm, words):
    values = {**BASIC, "rollouts": {"by": "student"}, "arms": [*STAGE_1, arm]}
    (tmp_path / "s.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=words):
        make_plan(load_study(str(tmp_path / "s.json")))


def test_a_contrast_without_the_teacher_s_step_is_refused(tmp_path):
    arms = [
        STAGE_1[0],
        {**STAGE_1[1], "train": {"objective": "erpd_sapo", "num_steps": 50}},
        stage_2("a", "extreme@8", contrast="twin"),
    ]
    (tmp_path / "s.json").write_text(json.dumps({**BASIC, "rollouts": {"by": "student"}, "arms": arms}))
    with pytest.raises(ConfigError, match=r'received extreme@8 and "twin" without that step'):
        load_study(str(tmp_path / "s.json"))


def test_the_packaged_erpd_study_shares_what_its_arms_share():
    steps = make_plan(load_study("erpd"))
    names = {step.name for step in steps}
    assert sum(step.kind == "train" for step in steps) == 18 * 3
    assert {name for name in names if name.startswith("score/sapo-s0")} == {"score/sapo-s0", "score/sapo-s0@32"}
    assert (
        len([step for step in steps if step.kind == "rollouts"]) == 1 + 2 * 3 + 1
    )  # shared, two rounds a seed, for KL
    first, *others = [step for step in steps if step.kind == "measure"]
    assert len(first.inputs) == 14  # the first seed of every arm that starts at the student
    assert [step.name for step in others] == ["measure/signals-1", "measure/signals-2"]
    assert {"from-strong-s1", "sapo-s1", "ce-s1", "shuffled-s1"} < set(others[0].inputs)
    assert not {"grpo-s1", "round-2-s1", "sapo-r2-s1"} & set(others[0].inputs)
