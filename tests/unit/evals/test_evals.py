"""A delta on a base equals PEFT's own adapter; the ends of a path are the arms; the base is left alone."""

from __future__ import annotations

import pytest
import torch

from limbeck.batches.score import score_rollouts
from limbeck.config import LoraConfig
from limbeck.errors import ModelError
from limbeck.evals.apply import applied
from limbeck.evals.evaluate import evaluate
from limbeck.evals.features import response_means
from limbeck.evals.paths import between, reading, split_solution, teacher_forced
from limbeck.geometry.adapters import read_adapter
from limbeck.records import write_json
from limbeck.rollouts.sample import Decoding
from limbeck.train.models import add_adapter, load_model, load_tokenizer, trained_tensors
from limbeck.types import Delta, LowRank
from limbeck.worlds.abacus.generator import generate

BASE = "abacus:base"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    tokenizer = load_tokenizer(BASE)
    solved = generate("test", 6, seed=2)
    rows = [reading(tokenizer, problem, text) for problem, text in solved]
    scores, deltas = [], []
    for seed in (1, 2):
        tuned = add_adapter(load_model(BASE), LoraConfig(rank=4, alpha=8.0), init_seed=seed)
        for tensor in trained_tensors(tuned).values():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)) * 0.05)
        folder = tmp_path_factory.mktemp("adapters") / f"arm{seed}"
        tuned.save_pretrained(folder)
        write_json(folder / "limbeck.json", {"init_digest": f"{seed}", "base_digest": "b"})
        scores.append(score_rollouts(tuned.eval(), rows))
        deltas.append(read_adapter(folder, name=f"arm{seed}"))
    return tokenizer, solved, rows, scores, deltas


def close(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=0, atol=2e-5)


def test_an_applied_delta_equals_the_adapter_and_leaves_no_trace(world):
    _, _, rows, scores, deltas = world
    model = load_model(BASE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = score_rollouts(model, rows)
    for delta, expected in zip(deltas, scores, strict=True):
        with applied(model, delta) as tuned:
            close(score_rollouts(tuned, rows), expected)
    assert score_rollouts(model, rows) == plain
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_error_while_applied_leaves_no_trace_either(world):
    _, _, rows, _, deltas = world
    model = load_model(BASE)
    plain = score_rollouts(model, rows)
    with pytest.raises(KeyError), applied(model, deltas[0]):
        raise KeyError
    assert score_rollouts(model, rows) == plain


def test_the_ends_of_a_path_are_the_arms_and_the_middle_is_their_mean_update(world):
    _, _, _, _, (one, other) = world
    assert between(one, other, 0.0) is one
    assert between(one, other, 1.0) is other
    assert between(None, other, 0.0) is None
    middle, halved = between(one, other, 0.5), between(None, other, 0.5)
    for name in one.modules:
        dense = [(d.modules[name].left.double() @ d.modules[name].right.double()) for d in (one, other, middle, halved)]
        torch.testing.assert_close(dense[2], (dense[0] + dense[1]) / 2, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(dense[3], dense[1] / 2, rtol=1e-5, atol=1e-7)


def test_teacher_forced_losses_are_the_mean_nll_of_what_they_name(world):
    tokenizer, solved, _, _, _ = world
    model = load_model(BASE)
    items = [split_solution(problem, text, "#### ") for problem, text in solved]
    losses = teacher_forced(model, tokenizer, items)
    problem, text = solved[0]
    whole = score_rollouts(model, [reading(tokenizer, problem, text)])[0]
    reasoning = len(tokenizer.encode(items[0].solution))
    assert losses["ce_solution"][0] == pytest.approx(-sum(whole[:reasoning]) / reasoning, abs=1e-5)
    answer = whole[reasoning:]
    assert losses["ce_cot"][0] == pytest.approx(-sum(answer) / len(answer), abs=1e-5)
    assert (losses["ce_bare"] > losses["ce_cot"]).all()  # a bare answer surprises a model that shows its work
    unmarked = [items[0], split_solution(solved[1][0], items[1].solution, "#### ")]
    kept = teacher_forced(model, tokenizer, unmarked)  # one text without a marker costs nobody the two losses
    assert kept.keys() == losses.keys()
    torch.testing.assert_close(kept["ce_cot"], losses["ce_cot"][:2], rtol=0, atol=1e-5)


def test_states_do_not_depend_on_padding(world):
    _, _, rows, _, _ = world
    model = load_model(BASE)
    together, alone = (response_means(model, rows, token_budget=budget) for budget in (1 << 20, 1))
    assert len(together) == model.config.num_hidden_layers + 1
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_delta_for_another_model_is_refused():
    model = load_model(BASE)
    wrong_place = Delta(
        name="x", base="", init_digest="", modules={"model.layers.9.q": LowRank(torch.ones(2, 1), torch.ones(1, 2))}
    )
    with pytest.raises(ModelError, match=r"'model.layers.9.q' must exist"), applied(model, wrong_place):
        pass
    place = "model.layers.0.self_attn.q_proj"
    wrong_size = Delta(name="x", base="", init_digest="", modules={place: LowRank(torch.ones(2, 1), torch.ones(1, 2))})
    with pytest.raises(ModelError, match=r"must be \(128, 128\), received \(2, 2\)"), applied(model, wrong_size):
        pass


def test_a_score_table_says_what_it_was_made_with(world):
    tokenizer, solved, _, _, _ = world
    table = evaluate(
        load_model(BASE), tokenizer, [p for p, _ in solved], Decoding(max_new_tokens=96), name="base", num_samples=1
    )
    assert table.problem_ids == tuple(sorted(p.id for p, _ in solved))
    assert table.decoding == "greedy,max_new_tokens=96"
    assert table.correct.shape == (6, 1)
    for score in table.scores:
        assert score.correct == (score.extracted == score.answer)
