"""What a run must refuse, keep or not be fooled by: other bases, other data, other scores, dropout, long rows."""

from __future__ import annotations

import json
import math
import random
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate.utils import DistributedType
from transformers import GPT2Config, GPT2LMHeadModel

from limbeck.batches.score import score_rollouts, write_scores
from limbeck.config import LoraConfig, TrainConfig
from limbeck.digests import is_complete
from limbeck.errors import ConfigError, FolderError, ModelError, ProvenanceError
from limbeck.evals.apply import check_base
from limbeck.folders import amend, read_manifest
from limbeck.objectives import find
from limbeck.records import read_json
from limbeck.rollouts.store import read_rollouts, write_rollouts
from limbeck.train import loop
from limbeck.train import run as run_module
from limbeck.train.data import prepare
from limbeck.train.models import add_adapter, load_model, model_digest
from limbeck.train.record import read_metrics, update_norm
from limbeck.train.run import RunConfig, train
from limbeck.types import RolloutSet

from .toy import VOCAB, tiny_model, tiny_rollouts


def config_of(base, rollouts, settings, *, scores=None, **changes) -> RunConfig:
    return RunConfig(base=base, rollouts=rollouts, scores=scores or {}, train=settings.model_copy(update=changes))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> str:
    """Learned positions, Conv1D projections, its own dropout, a context shorter than some rows."""
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=14,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    GPT2LMHeadModel(shape).save_pretrained(folder)
    return str(folder)


def test_a_run_that_cannot_start_leaves_a_finished_one_alone(base, rollouts, settings, tmp_path):
    out = train(config_of(base, rollouts, settings, num_steps=1), tmp_path / "run")
    with pytest.raises(ModelError):
        train(config_of("nowhere", rollouts, settings), out, overwrite=True)
    assert is_complete(out)
    assert (out / "adapter" / "adapter_model.safetensors").is_file()


def test_what_cannot_be_sharded_is_refused_before_anything_is_loaded(base, rollouts, settings, tmp_path, monkeypatch):
    launched = SimpleNamespace(is_main_process=True, distributed_type=DistributedType.FSDP, is_fsdp2=False)
    monkeypatch.setattr(run_module, "make_accelerator", lambda: launched)
    for changes, words in (
        ({"optimizer": "muon"}, "adamw or sgd"),
        ({"optimizer": "adafactor"}, "adamw or sgd"),
        ({"liger": True}, "lies on its GPU"),
        ({}, "--fsdp_version 2"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(config_of("nowhere", rollouts, settings, **changes), tmp_path / "run")
    launched.is_fsdp2 = True
    monkeypatch.delattr(dcp, "HuggingFaceStorageWriter")
    with pytest.raises(ConfigError, match=r"need torch 2\.9 or newer, received torch"):
        train(config_of("nowhere", rollouts, settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device has what is refused here")
def test_fused_layers_are_refused_without_a_device_before_a_folder_is_made(base, rollouts, settings, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.liger needs a CUDA device .* received a CPU"):
        train(config_of(base, rollouts, settings, liger=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_norm_of_an_update_is_that_of_its_products_whatever_their_shapes():
    draw = torch.Generator().manual_seed(0)
    shapes = {"a": (6, 2, 5), "b": (6, 2, 5), "c": (3, 4, 9)}
    factors, square = {}, 0.0
    for name, (rows, rank, columns) in shapes.items():
        left, right = (torch.randn(*shape, generator=draw) for shape in ((rows, rank), (rank, columns)))
        factors |= {f"{name}.lora_A.weight": right, f"{name}.lora_B.weight": left}
        square += float((left.double() @ right.double()).square().sum())
    assert update_norm(factors, 1.5) == pytest.approx(1.5 * math.sqrt(square), rel=1e-12)
    factors["b.lora_A.weight"][0, 0] = math.nan
    assert math.isnan(update_norm(factors, 1.5))


def test_a_typo_does_not_claim_the_folder(base, rollouts, settings, tmp_path):
    with pytest.raises(ModelError):
        train(config_of("nowhere", rollouts, settings), tmp_path / "run")
    train(config_of(base, rollouts, settings, num_steps=1), tmp_path / "run")


@pytest.mark.parametrize("token_budget", [1, 1 << 20])
def test_the_dropout_of_the_base_stays_off(gpt2, rollouts, settings, tmp_path, token_budget):
    lora = LoraConfig(rank=4, alpha=8.0, targets=("c_attn", "c_proj"))
    run = config_of(
        gpt2,
        rollouts,
        settings,
        objective="dpo",
        knobs={"beta": 5.0},
        num_steps=1,
        lora=lora,
        token_budget=token_budget,
    )
    out = train(run, tmp_path / "run")
    assert read_metrics(out / "metrics.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_rows_beyond_the_context_are_dropped_and_counted_for_every_objective(gpt2, rollouts, settings, tmp_path):
    lora = LoraConfig(rank=4, alpha=8.0, targets=("c_attn",))
    for name in ("sft", "offline_grpo:krafton"):
        run = config_of(gpt2, rollouts, settings, objective=name, num_steps=1, lora=lora)
        out = train(run, tmp_path / name.replace(":", "-"))
        lengths = [len(r.prompt_ids) + len(r.response_ids) for r in read_rollouts(rollouts).rollouts]
        assert read_manifest(out)["rows_too_long"] == sum(length > 14 for length in lengths) > 0
        assert len(read_json(out / "selection.json")["too_long"]) == read_manifest(out)["rows_too_long"]


def stop_at(step):
    real = loop.gradient

    def stops(*args, **settings):
        if settings["step"] == step:
            raise KeyboardInterrupt
        return real(*args, **settings)

    return stops


def test_a_moved_rollouts_folder_is_the_same_and_other_rollouts_are_not(
    base, rollouts, settings, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradient", stop_at(5))
        with pytest.raises(KeyboardInterrupt):
            train(config_of(base, rollouts, settings), tmp_path / "run")
    other = write_rollouts(tiny_rollouts(groups=5), tmp_path / "other")
    with pytest.raises(FolderError, match="these differ: rollouts"):
        train(config_of(base, str(other), settings), tmp_path / "run")
    moved = shutil.copytree(rollouts, tmp_path / "moved")
    out = train(config_of(base, str(moved), settings), tmp_path / "run")
    assert read_manifest(out)["steps"] == 10


def prepared(rollout_set, **settings):
    objective = find(settings.get("objective", "sft"))
    scores = {"reference_logprobs": [[-1.0] * len(r.response_ids) for r in rollout_set.rollouts]}
    return prepare(TrainConfig(**settings), objective, rollout_set, scores, context=None)


def test_a_seed_changes_the_order_and_not_the_data():
    rollout_set = tiny_rollouts(groups=8)
    for settings in ({"objective": "dpo"}, {"max_items": 7}):
        keys = [prepared(rollout_set, seed=seed, **settings).data.keys for seed in (0, 1)]
        assert keys[0] == keys[1]
        assert prepared(rollout_set, data_seed=1, **settings).data.keys != keys[0]


def test_which_rows_are_kept_does_not_depend_on_the_file():
    rollout_set = tiny_rollouts(groups=8)
    shuffled = list(rollout_set.rollouts)
    random.Random(1).shuffle(shuffled)
    other = RolloutSet(rollouts=tuple(shuffled), provenance={})
    assert sorted(prepared(rollout_set, max_items=9).data.keys) == sorted(prepared(other, max_items=9).data.keys)


def test_rows_of_several_pairs_are_counted_once():
    found = prepared(tiny_rollouts(groups=3, samples=4), objective="dpo", pairs="all")
    assert found.facts["items"] == 12  # 2 x 2 pairs in each of 3 groups
    assert found.facts["rows"] == 12
    assert found.facts["right_share"] == 0.5


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_head_and_embedding_take_no_adapter(base, settings, target):
    lora = settings.lora.model_copy(update={"targets": ("q_proj", target)})
    with pytest.raises(ModelError, match=f"received {target}, which it has not"):
        add_adapter(load_model(base), lora, init_seed=0)


def test_scores_of_another_model_are_no_reference(base, rollouts, settings, tmp_path):
    rollout_set = read_rollouts(rollouts)
    given = write_scores(
        tmp_path / "s", rollout_set, score_rollouts(tiny_model(9), rollout_set.rollouts), model_digest="other"
    )
    run = config_of(base, rollouts, settings, objective="dpo", scores={"reference_logprobs": str(given)})
    with pytest.raises(ProvenanceError, match="must be the untouched base's"):
        train(run, tmp_path / "run")


def test_a_mistyped_score_is_not_ignored(base, rollouts, settings, tmp_path):
    run = config_of(base, rollouts, settings, objective="dpo", scores={"reference_logprob": "nowhere"})
    with pytest.raises(ConfigError, match=r'reads no scores "reference_logprob"\. Did you mean "reference_logprobs"\?'):
        train(run, tmp_path / "run")


def test_ratios_need_behavior_logprobs_at_temperature_1(base, settings, tmp_path):
    hot = RolloutSet(rollouts=tiny_rollouts().rollouts, provenance={"sampling_temperature": 1.4})
    path = str(write_rollouts(hot, tmp_path / "hot"))
    with pytest.raises(ConfigError, match=r"received 0 rollouts without and temperature 1\.4"):
        train(config_of(base, path, settings, objective="grpo"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_base_is_refused(base, rollouts, settings, tmp_path):
    out = train(config_of(base, rollouts, settings, num_steps=1), tmp_path / "run")
    check_base(out, model_digest(base))
    with pytest.raises(ProvenanceError, match="must meet the base it was trained on"):
        check_base(out, "0" * 64)
    (out / "adapter" / "limbeck.json").write_text(json.dumps({}))
    with pytest.raises(ProvenanceError, match=r"limbeck.json must match its manifest's digest"):
        check_base(out, "0" * 64)
    amend(out, "adapter")
    check_base(out, "0" * 64)  # one that says nothing passes
