"""Every objective that reads logits, a few rows at a time inside the forward pass, equals ``evaluate`` on whole logits.

Value, metrics and gradient, for every such row of the table: a new row is picked up here without a new test.
"""

import pytest
import torch
from tests.laws.batches import VOCAB, make, off_default, settings
from tests.unit.heads.naive import HEADS, logits_of
from tests.unit.train.toy import tiny_model

from limbeck.batches.forward import Student
from limbeck.batches.whole import FROZEN_LOGITS, FUSED, Top, Whole, frozen_inputs, whole_scores
from limbeck.errors import ConfigError, DegenerateError, ShapeError
from limbeck.heads import Head, cut, likeliest
from limbeck.objectives import OBJECTIVES, evaluate, inputs
from limbeck.objectives import knobs as table_knobs
from limbeck.types import Objective, TokenBatch, Values

READING_LOGITS = {name: row for name, row in OBJECTIVES.items() if "logits" in inputs(row)}
every = pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in READING_LOGITS.items()])
precise = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
LENGTHS = (3, 1, 4)
HIDDEN, OTHER, PADDING = 6, 5, 3
CHUNK = 4 * VOCAB * 3  # three rows at a time


def distribution(row):
    return next(name for name in FROZEN_LOGITS if name in inputs(row))


class Case:
    """Both sides of one objective; ``tied`` heads are also the embedding that the hidden states come from."""

    def __init__(self, row, dtype, *, bias=False, scale=1.0, softcap=0.0, tied=False, seed=0):
        batch = make(row, LENGTHS, seed=seed, width=max(LENGTHS) + 1)
        draw = torch.Generator().manual_seed(seed + 1)

        def normal(*shape):
            return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

        self.row, self.mask, self.name = row, batch.mask, distribution(row)
        cells = tuple(self.mask.shape)
        self.weight = normal(VOCAB + PADDING, HIDDEN).requires_grad_()
        self.bias = normal(VOCAB + PADDING).requires_grad_() if bias else None
        self.head = Head(self.weight, self.bias, scale, softcap)
        self.targets = torch.randint(VOCAB, cells, generator=draw)
        start = normal(*cells, HIDDEN).requires_grad_()
        self.leaves = [x for x in (start, self.weight, self.bias) if x is not None]
        self.hidden = torch.tanh(start + self.weight[self.targets.roll(1)]) if tied else start
        self.frozen = Head(normal(VOCAB, OTHER), normal(VOCAB) if bias else None, scale, softcap)
        self.frozen_hidden = normal(*cells, OTHER)
        self.mix = normal(*cells)
        skip = ("logits", "logprobs", "entropy", self.name)
        self.given = {k: v.to(dtype) for k, v in batch.inputs.items() if k not in skip}
        (hidden_name,) = frozen_inputs(self.name, self.frozen)
        self.given[hidden_name] = self.frozen_hidden.masked_fill(~self.mask[..., None], torch.nan)

    def plain(self, knobs):
        logits = logits_of(self.hidden, cut(self.head, VOCAB))
        logp = logits.log_softmax(-1)
        student = {
            "logits": logits,
            "logprobs": logp.gather(-1, self.targets[..., None])[..., 0],
            "entropy": -(logp.exp() * logp).sum(-1),
        }
        self.student = student
        other = logits_of(self.frozen_hidden, self.frozen)
        return evaluate(self.row, {**self.given, **student, self.name: other}, self.mask, knobs)

    def chunked(self, knobs, frozen=None, **given):
        whole = Whole(self.row, knobs, frozen or self.frozen, self.name)
        rows, ids = self.hidden[self.mask], self.targets[self.mask]
        return whole_scores(whole, rows, self.head, ids, {**self.given, **given}, self.mask, chunk_bytes=CHUNK)

    def compare(self, found, expected, tolerance):
        def same(ours, theirs):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)

        same(found.values, expected.values[self.mask])
        assert found.metrics.keys() == expected.metrics.keys()
        for name, metric in expected.metrics.items():
            same(found.metrics[name], metric[self.mask])
            assert not found.metrics[name].requires_grad
        same(found.logprobs, self.student["logprobs"][self.mask].detach())
        same(found.entropy, self.student["entropy"][self.mask].detach())
        ours = torch.autograd.grad((found.values * self.mix[self.mask]).sum(), self.leaves, retain_graph=True)
        theirs = torch.autograd.grad((expected.values * self.mix).sum(), self.leaves)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=10 * tolerance)


@every
@precise
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("bias", "scale", "softcap"), HEADS)
def test_chunks_equal_evaluate_on_whole_logits(row, dtype, tolerance, tied, bias, scale, softcap):
    squared = {"tau_squared": True} if "tau_squared" in table_knobs(row) else {}
    for knobs in (settings(row), settings(row, **off_default(row), **squared)):
        case = Case(row, dtype, bias=bias, scale=scale, softcap=softcap, tied=tied)
        expected = case.plain(knobs)
        case.compare(case.chunked(knobs), expected, tolerance)


@every
def test_the_forward_pass_equals_evaluate_on_the_models_own_logits(row):
    model, name = tiny_model().double(), distribution(row)
    batch = make(row, LENGTHS, width=max(LENGTHS) + 1)
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(48, (len(LENGTHS), batch.mask.shape[1] + 1), generator=draw)
    frozen = Head(torch.randn(48, OTHER, generator=draw, dtype=torch.float64))
    hidden = torch.randn(*batch.mask.shape, OTHER, generator=draw, dtype=torch.float64)
    given = {k: v for k, v in batch.inputs.items() if k not in ("logits", "logprobs", "entropy", name)}
    rows = torch.arange(len(LENGTHS))
    lengths = batch.mask.sum(1) + 1
    own = {**given, name.replace("logits", "hidden"): hidden}
    tokens = TokenBatch(ids=ids, lengths=lengths, mask=batch.mask, row_index=rows, inputs=own)
    scored = Student(model)(tokens, Whole(row, settings(row), frozen, name))

    attention = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    logp = logits.log_softmax(-1)
    logprobs = logp.gather(-1, ids[:, 1:, None])[..., 0]
    student = {"logits": logits, "logprobs": logprobs, "entropy": -(logp.exp() * logp).sum(-1)}
    expected = evaluate(row, {**given, **student, name: logits_of(hidden, frozen)}, batch.mask, settings(row))

    assert isinstance(scored.values, torch.Tensor)
    torch.testing.assert_close(scored.values, expected.values, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scored.metrics, dict(expected.metrics), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scored.logprobs, torch.where(batch.mask, logprobs, 0.0).detach(), rtol=1e-10, atol=1e-10)
    wanted = list(model.parameters())
    ours, theirs = (torch.autograd.grad(v.sum(), wanted) for v in (scored.values, expected.values))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_those_that_have_a_faster_form_are_rows_of_the_table():
    assert set(FUSED) <= {row.function for row in READING_LOGITS.values()}


@every
@pytest.mark.parametrize("side", ["student", "frozen"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_finite_inside_the_mask_is_refused(row, side, poison):
    case = Case(row, torch.float32)
    knobs = settings(row)
    if side == "student":
        case.hidden = case.hidden.detach().index_fill(2, torch.tensor([1]), poison)
        given = {}
    else:
        (name,) = frozen_inputs(case.name, case.frozen)
        given = {name: case.given[name].index_fill(2, torch.tensor([1]), poison)}
    with pytest.raises(DegenerateError, match="must be finite wherever the mask is"):
        case.chunked(knobs, **given)


@every
def test_an_id_left_out_on_one_side_only_is_refused(row):
    case = Case(row, torch.float32, bias=True)
    unused = torch.arange(VOCAB) == 2
    one_sided = case.frozen._replace(bias=case.frozen.bias.masked_fill(unused, -torch.inf))
    with pytest.raises(ShapeError, match=r"leave out the same ids, received .*-inf on one side only"):
        case.chunked(settings(row), frozen=one_sided)


@every
def test_no_live_token_a_missing_input_and_a_narrow_student_are_refused(row):
    case = Case(row, torch.float32)
    wide = Head(torch.zeros(VOCAB + PADDING + 1, OTHER))
    with pytest.raises(ShapeError, match=f"between 1 and the head's {VOCAB + PADDING} ids"):
        case.chunked(settings(row), frozen=wide)
    (name,) = frozen_inputs(case.name, case.frozen)
    kept = case.given.pop(name)
    with pytest.raises(ConfigError, match=f"reads {name}; this batch has only"):
        case.chunked(settings(row))
    case.given[name] = kept[:, :-1]
    with pytest.raises(ShapeError, match=rf"{name} must begin with \(batch, time\)"):
        case.chunked(settings(row))
    case.mask = torch.zeros_like(case.mask)
    with pytest.raises(DegenerateError, match="needs at least one live token"):
        case.chunked(settings(row))


@pytest.mark.parametrize("name", ["sft", "dpo", "minillm", "erpd_ce"])
def test_objectives_without_logits_are_refused(name):
    with pytest.raises(ConfigError, match=f"must have unit token, read logits .* received `{name}`"):
        Whole(OBJECTIVES[name], settings(OBJECTIVES[name]), Head(torch.eye(2)), "teacher_logits")


def test_an_objective_that_spans_tokens_and_a_misnamed_model_are_refused():
    def spanning(logits, teacher_logits, mask):
        return Values(values=logits.sum(-1))

    facts = {
        "unit": "token",
        "normalizer": "token",
        "linear": False,
        "status": "OUR READING",
        "source": "",
        "formula": "",
    }
    with pytest.raises(ConfigError, match=r"nothing that spans tokens; received `spanning` .* which reads mask"):
        Whole(Objective(name="spanning", function=spanning, **facts), {}, Head(torch.eye(2)), "teacher_logits")
    with pytest.raises(ConfigError, match="received reference_logits; it reads logits, teacher_logits"):
        Whole(OBJECTIVES["jsd"], settings(OBJECTIVES["jsd"]), Head(torch.eye(2)), "reference_logits")


@precise
@pytest.mark.parametrize("k", [1, 3, VOCAB - 1, VOCAB])
def test_the_likeliest_ids_are_enough_for_the_objective_that_the_teacher_alone_chooses_for(dtype, tolerance, k):
    row = OBJECTIVES["forward_kl_topk_tail"]
    case = Case(row, dtype, bias=True)
    case.given.clear()
    top = likeliest(case.frozen_hidden.flatten(0, 1), case.frozen, k)
    cells = tuple(case.mask.shape)
    stored = {"teacher_top_ids": top.ids.int().view(*cells, -1), "teacher_top_logprobs": top.logprobs.view(*cells, -1)}
    for smaller in range(1, k + 1):
        knobs = settings(row, k=smaller)
        expected = case.plain(knobs)
        case.compare(case.chunked(knobs, frozen=Top(k, VOCAB), **stored), expected, tolerance)


def test_what_the_likeliest_ids_cannot_give_exactly_is_refused():
    top = Top(k=3, num_ids=VOCAB)
    for name in ("reverse_kl_topk_tail", "jsd_topk_tail", "forward_kl"):
        with pytest.raises(ConfigError, match=f"only forward_kl_topk_tail can be trained .* received {name}"):
            Whole(OBJECTIVES[name], settings(OBJECTIVES[name]), top, "teacher_logits")
    row = OBJECTIVES["forward_kl_topk_tail"]
    for wrong in ({"k": 4}, {"kd_temperature": 2.0}):
        with pytest.raises(ConfigError, match="must have kd_temperature = 1 and k of at most 3"):
            Whole(row, settings(row, **wrong), top, "teacher_logits")
