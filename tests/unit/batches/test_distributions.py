"""Stored whole distributions: what was scored comes back, lazily, for these rollouts only; and it trains."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.train.toy import VOCAB, tiny_model, tiny_rollouts
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from limbeck.batches import distributions
from limbeck.batches.align import predictors
from limbeck.batches.collate import TrainingData, collate, count_items, micro_batches
from limbeck.batches.distributions import read_frozen, read_hidden, write_hidden, write_likeliest
from limbeck.batches.forward import Student, hidden_states
from limbeck.batches.score import score_rollouts
from limbeck.batches.whole import Top, Whole
from limbeck.cli import app
from limbeck.errors import ConfigError, FolderError, ProvenanceError, ShapeError
from limbeck.folders import manifest_bytes, read_manifest
from limbeck.heads import logits_of
from limbeck.objectives import OBJECTIVES, check_knobs, evaluate, inputs
from limbeck.objectives.reduce import StepCount, count
from limbeck.rollouts.store import write_rollouts
from limbeck.types import RolloutSet
from limbeck.worlds import resolve

NUM_IDS = VOCAB - 5  # the head is padded beyond the token map


def within(rollout_set):
    """The same rollouts in ids of the token map."""
    rows = [replace(r, response_ids=tuple(i % NUM_IDS for i in r.response_ids)) for r in rollout_set.rollouts]
    return RolloutSet(rollouts=tuple(rows), provenance={})


ROLLOUTS = within(tiny_rollouts())
TEACHER = tiny_model(seed=1)
BUDGET = 60  # several passes


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    out = tmp_path_factory.mktemp("scores") / "hidden"
    return write_hidden(out, ROLLOUTS, TEACHER, model_digest="t", num_ids=NUM_IDS, token_budget=BUDGET)


def data(columns):
    rollouts = ROLLOUTS.rollouts
    return TrainingData(
        rollouts=rollouts, items=[(i,) for i in range(len(rollouts))], weights=[1.0] * len(rollouts), columns=columns
    )


@torch.no_grad()
def states_of(index):
    rollout = ROLLOUTS.rollouts[index]
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
    states = predictors(hidden_states(TEACHER, ids, torch.tensor([ids.shape[1]])))[0]
    return states[len(rollout.prompt_ids) - 1 :]


def test_every_row_is_the_models_own_hidden_states(hidden):
    rows, head = read_hidden(hidden, ROLLOUTS)
    assert len(rows) == len(ROLLOUTS)
    for index in range(len(ROLLOUTS)):
        torch.testing.assert_close(rows[index], states_of(index), rtol=1e-5, atol=1e-5)
    assert torch.equal(head.weight, TEACHER.lm_head.weight[:NUM_IDS])
    assert torch.equal(rows[-1], rows[len(ROLLOUTS) - 1])
    assert [len(row) for row in rows[2:5]] == [len(r.response_ids) for r in ROLLOUTS.rollouts[2:5]]
    with pytest.raises(IndexError):
        rows[len(ROLLOUTS)]


def test_stored_states_with_the_stored_head_give_the_stored_scores(hidden):
    rows, head = read_hidden(hidden, ROLLOUTS)
    scores = score_rollouts(TEACHER, ROLLOUTS.rollouts)
    full = head._replace(weight=TEACHER.lm_head.weight.detach())  # scores are over all of the model's ids
    for index, rollout in enumerate(ROLLOUTS.rollouts):
        logp = logits_of(rows[index], full).log_softmax(-1)
        found = logp.gather(1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        torch.testing.assert_close(found, torch.tensor(scores[index]), rtol=1e-5, atol=1e-5)


def test_the_file_is_plain_safetensors_and_the_manifest_says_what_it_is(hidden):
    tensors = load_file(hidden / "rows.safetensors")
    lengths = [len(r.response_ids) for r in ROLLOUTS.rollouts]
    assert tensors["offsets"].diff().tolist() == lengths
    assert tensors["hidden"].shape == (sum(lengths), 32)
    manifest = read_manifest(hidden, kind="hidden")
    assert manifest["rollouts_digest"] == ROLLOUTS.digest
    assert (manifest["dtype"], manifest["num_ids"], manifest["model_digest"]) == ("fp32", NUM_IDS, "t")


def test_bf16_is_stored_rounded_at_half_the_size_and_said(hidden, tmp_path):
    out = write_hidden(tmp_path / "half", ROLLOUTS, TEACHER, model_digest="t", dtype="bf16", token_budget=BUDGET)
    rows, _ = read_hidden(out, ROLLOUTS)
    exact, _ = read_hidden(hidden, ROLLOUTS)
    assert read_manifest(out)["dtype"] == "bf16"
    for index in (0, 7):
        assert rows[index].dtype == torch.bfloat16
        assert torch.equal(rows[index], exact[index].bfloat16())
    sizes = [(folder / "rows.safetensors").stat().st_size for folder in (out, hidden)]
    assert sizes[0] < 0.6 * sizes[1]
    batch = collate(data({"teacher_hidden": rows}), [0, 1], ("teacher_logits",))
    assert batch.inputs["teacher_hidden"].dtype == torch.bfloat16


def test_collate_takes_rows_as_they_are_needed(hidden):
    rows, _ = read_hidden(hidden, ROLLOUTS)
    asked = []

    class Watched(type(rows)):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    rows.__class__ = Watched
    training = data({"teacher_hidden": rows})
    assert asked == []
    batch = collate(training, [3, 5], inputs(OBJECTIVES["jsd"]))
    assert asked == [3, 5]
    placed = batch.inputs["teacher_hidden"]
    assert set(batch.inputs) == {"teacher_hidden"}
    assert torch.equal(placed[0][batch.mask[0]], rows[3])
    assert torch.equal(placed[1][batch.mask[1]], rows[5])
    assert (placed[~batch.mask] == 0).all()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation allocated, in elements; views of what was there do not count."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)] for tree in ((args, kwargs), out))
        held = {x.untyped_storage().data_ptr() for x in given}
        sizes = [x.numel() for x in made if x.untyped_storage().data_ptr() not in held]
        self.elements = max([self.elements, *sizes])
        return out


def test_writing_holds_one_pass_at_a_time(tmp_path):
    wanted = sum(len(r.response_ids) for r in ROLLOUTS.rollouts) * 32
    with Largest() as seen:
        write_hidden(tmp_path / "out", ROLLOUTS, TEACHER, model_digest="t", token_budget=23)
    assert seen.elements <= 23 * 64 < wanted  # the widest layer of the model on one pass


@pytest.mark.parametrize("name", ["reverse_kl", "jsd"])
def test_a_stored_teacher_trains_as_the_teacher_itself(hidden, name):
    row, student = OBJECTIVES[name], tiny_model()
    rows, head = read_hidden(hidden, ROLLOUTS)
    batch = collate(data({"teacher_hidden": rows}), [0, 1, 2], inputs(row))
    scored = Student(student)(batch, Whole(row, check_knobs(row, {}), head, "teacher_logits"))
    attention = (torch.arange(batch.ids.shape[1])[None] < batch.lengths[:, None]).long()
    logits, teacher = (m(input_ids=batch.ids, attention_mask=attention).logits for m in (student, TEACHER))
    tensors = {"logits": logits[:, :-1, :NUM_IDS], "teacher_logits": teacher[:, :-1, :NUM_IDS]}
    expected = evaluate(row, tensors, batch.mask, check_knobs(row, {}))
    torch.testing.assert_close(scored.values, expected.values, rtol=1e-4, atol=1e-5)


def test_the_likeliest_ids_train_as_the_teacher_itself(tmp_path):
    row, student = OBJECTIVES["forward_kl_topk_tail"], tiny_model()
    out = write_likeliest(
        tmp_path / "top", ROLLOUTS, TEACHER, model_digest="t", k=6, num_ids=NUM_IDS, token_budget=BUDGET
    )
    frozen = read_frozen(out, ROLLOUTS, "teacher_logits")
    assert frozen.model == Top(k=6, num_ids=NUM_IDS)
    batch = collate(data(frozen.columns), [0, 1, 2], inputs(row))
    scored = Student(student)(batch, Whole(row, check_knobs(row, {"k": 4}), frozen.model, "teacher_logits"))
    attention = (torch.arange(batch.ids.shape[1])[None] < batch.lengths[:, None]).long()
    logits, teacher = (m(input_ids=batch.ids, attention_mask=attention).logits for m in (student, TEACHER))
    tensors = {"logits": logits[:, :-1, :NUM_IDS], "teacher_logits": teacher[:, :-1, :NUM_IDS]}
    expected = evaluate(row, tensors, batch.mask, check_knobs(row, {"k": 4}))
    torch.testing.assert_close(scored.values, expected.values, rtol=1e-4, atol=1e-5)


def test_either_kind_is_read_under_the_names_of_a_batch(hidden):
    frozen = read_frozen(hidden, ROLLOUTS, "reference_logits")
    assert list(frozen.columns) == ["reference_hidden"]


def test_other_rollouts_and_other_folders_are_refused(hidden, tmp_path):
    other = tiny_rollouts(seed=1)
    with pytest.raises(ProvenanceError, match="must belong to rollouts"):
        read_hidden(hidden, other)
    top = write_likeliest(tmp_path / "top", ROLLOUTS, TEACHER, model_digest="t", k=2)
    with pytest.raises(ProvenanceError, match="must belong to rollouts"):
        read_frozen(top, other, "teacher_logits")
    with pytest.raises(FolderError, match="must be a hidden folder, received one of kind 'topk'"):
        read_hidden(top, ROLLOUTS)


def test_a_file_with_other_offsets_than_its_manifest_is_refused(hidden, tmp_path):
    out = write_hidden(tmp_path / "out", ROLLOUTS, TEACHER, model_digest="t")
    fewer = RolloutSet(rollouts=ROLLOUTS.rollouts[:3], provenance={})
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_bytes(manifest_bytes(manifest | {"rollouts_digest": fewer.digest}))
    with pytest.raises(ProvenanceError, match="must have one row per response token = 3 rollouts"):
        read_hidden(out, fewer)


def test_unknown_kinds_of_storage_are_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="dtype must be one of fp32, bf16, received 'fp16'"):
        write_hidden(tmp_path / "a", ROLLOUTS, TEACHER, model_digest="t", dtype="fp16")
    with pytest.raises(ConfigError, match="k must be at least 1 id, received 0"):
        write_likeliest(tmp_path / "b", ROLLOUTS, TEACHER, model_digest="t", k=0)
    with pytest.raises(ShapeError, match="reads teacher_hidden; these data have no such columns"):
        collate(data({}), [0], inputs(OBJECTIVES["jsd"]))


def test_a_rollout_beyond_the_models_context_is_not_a_number(tmp_path, monkeypatch):
    lengths = [len(r.prompt_ids) + len(r.response_ids) for r in ROLLOUTS.rollouts]
    monkeypatch.setattr(TEACHER.config, "max_position_embeddings", max(lengths) - 1)
    long = {i for i, length in enumerate(lengths) if length == max(lengths)}
    rows, _ = read_hidden(write_hidden(tmp_path / "h", ROLLOUTS, TEACHER, model_digest="t"), ROLLOUTS)
    top = read_frozen(
        write_likeliest(tmp_path / "k", ROLLOUTS, TEACHER, model_digest="t", k=2), ROLLOUTS, "teacher_logits"
    ).columns["teacher_top_logprobs"]
    for index in range(len(ROLLOUTS)):
        assert rows[index].isnan().all() == (index in long)
        assert top[index].isnan().all() == (index in long)


def test_the_step_is_counted_from_lengths_as_from_its_batches():
    rollouts = ROLLOUTS.rollouts
    pairs = TrainingData(rollouts=rollouts, items=[(0, 1), (2, 3), (5, 4)], weights=[1.0] * 3)
    for training, items in ((data({}), [0, 5, 3, 2]), (pairs, [2, 0])):
        counted = StepCount(0, 0)
        for cut in micro_batches(training, items, token_budget=30):
            both = sum(len(training.items[item]) == 2 for item in cut)
            counted = counted.plus(count(collate(training, cut, ()).mask, pairs=both))
        assert count_items(training, items) == counted


@pytest.mark.parametrize(("keep", "kind"), [("logprobs", "logprobs"), ("hidden", "hidden"), ("topk", "topk")])
def test_the_verb_keeps_what_it_is_asked_to(tmp_path, keep, kind):
    few = RolloutSet(rollouts=ROLLOUTS.rollouts[:4], provenance={})
    rollouts = write_rollouts(few, tmp_path / "rollouts")
    command = ["score", "--model", "abacus:base", "--rollouts", str(rollouts), "--keep", keep, "--k", "3"]
    ended = CliRunner().invoke(app, [*command, "--out", str(tmp_path / keep)])
    assert ended.exit_code == 0, ended.output
    manifest = read_manifest(tmp_path / keep, kind=kind)
    assert manifest["rollouts_digest"] == few.digest
    if keep != "logprobs":
        tokens = json.loads((resolve("abacus:base") / "tokenizer.json").read_text())["model"]["vocab"]
        assert manifest["num_ids"] >= max(tokens.values()) + 1
        assert len(read_frozen(tmp_path / keep, few, "teacher_logits").columns) == (2 if keep == "topk" else 1)


def test_an_unknown_thing_to_keep_is_refused(tmp_path):
    rollouts = write_rollouts(ROLLOUTS, tmp_path / "rollouts")
    command = [
        "score",
        "--model",
        "abacus:base",
        "--rollouts",
        str(rollouts),
        "--keep",
        "hiden",
        "--out",
        str(tmp_path / "x"),
    ]
    ended = CliRunner().invoke(app, command)
    assert isinstance(ended.exception, ConfigError)
    assert 'Did you mean "hidden"?' in str(ended.exception)
    assert distributions.DTYPES.keys() == {"fp32", "bf16"}
