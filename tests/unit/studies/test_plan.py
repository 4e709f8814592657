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


def test_an_objective_that_reads_distributions_is_refused_with_its_sampled_form():
    with pytest.raises(ConfigError, match="opd is its sampled-token form"):
        make_plan(study(arms=[{"name": "r", "train": {"objective": "reverse_kl"}}]))


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
