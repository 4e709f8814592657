"""Laws that every row of OBJECTIVES obeys. A new row is picked up here without a new test; it only needs a reference."""

import ast
import inspect
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tests.laws.batches import Batch, gradients, loss_of, make, normalizers, off_default, pieces, settings, tracked
from tests.reference.objectives import REFERENCES

from limbeck.errors import ConfigError, DegenerateError, ShapeError
from limbeck.objectives import INPUTS, OBJECTIVES, evaluate, inputs
from limbeck.objectives import knobs as table_knobs
from limbeck.objectives.contract import STUDENT_INPUTS
from limbeck.objectives.signature import tensor_parameters

ROWS = [pytest.param(row, id=name) for name, row in OBJECTIVES.items()]
LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34)
every = pytest.mark.parametrize("row", ROWS)
few = examples(derandomize=True, max_examples=5, deadline=None, database=None)
shapes = st.lists(st.integers(1, 6), min_size=2, max_size=5).map(lambda xs: xs if len(xs) % 2 == 0 else [*xs, 2])
SELF_CANCELING = ("rlsd",)  # u * exp(q - s) holds no s: its value stands still although its gradient does not vanish
POISON = (float("nan"), float("inf"), float("-inf"), 1e30)


def close(ours, theirs, rtol=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)


def arrays(batch):
    x = {name: tensor.numpy() for name, tensor in batch.inputs.items()}
    x["frozen"] = x.get("logprobs", np.zeros(1)).copy()
    x.setdefault("teacher_mask", batch.mask.numpy())
    return x


def kept(array, live):
    return torch.where(live, torch.from_numpy(np.asarray(array, dtype=float)), 0.0)


def live_units(row, batch):
    if row.unit == "token":
        return batch.mask
    return batch.mask.any(-1) if row.unit == "sequence" else torch.ones(len(batch.inputs["pairs"]), dtype=torch.bool)


@every
@few
@given(lengths=shapes, seed=st.integers(0, 1000))
def test_value_metrics_and_gradient_equal_the_reference(row, lengths, seed):
    assert row.name in REFERENCES, f"write a float64 reference for {row.name} in tests/reference/objectives.py"
    batch, knobs = make(row, lengths, seed=seed, width=max(lengths) + 1), settings(row)
    tracked_batch, leaves = tracked(batch)
    out = evaluate(row, *tracked_batch, knobs)
    x, mask, live = arrays(batch), batch.mask.numpy(), live_units(row, batch)
    expected = REFERENCES[row.name](x, mask, knobs)
    expected.setdefault("teacher_floored", np.zeros(live.shape))
    for name, got in {"values": out.values.detach(), **out.metrics}.items():
        close(got, kept(expected[name], live), 1e-9)

    weights = torch.rand(live.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    names = [name for name in batch.inputs if name in STUDENT_INPUTS]

    def scalar():
        return float((kept(REFERENCES[row.name](x, mask, knobs)["values"], live) * weights).sum())

    for name, found in zip(names, gradients((out.values * weights).sum(), leaves), strict=True):
        numeric = np.zeros_like(x[name])
        for cell in np.ndindex(x[name].shape):
            middle = x[name][cell]
            x[name][cell] = middle + 1e-5
            above = scalar()
            x[name][cell] = middle - 1e-5
            numeric[cell] = (above - scalar()) / 2e-5
            x[name][cell] = middle
        torch.testing.assert_close(found, torch.from_numpy(numeric), rtol=1e-6, atol=1e-8)


@every
def test_cutting_a_step_changes_nothing(row):
    batch, knobs = make(row, LENGTHS), settings(row)
    cuts = [[range(8)], [range(4), range(4, 8)], [range(2), range(2, 8)], [range(i, i + 2) for i in range(0, 8, 2)]]
    if row.unit != "pair":
        cuts += [[[i] for i in range(8)], [[0], range(1, 8)], [[7, 0, 3], [1, 2, 4, 5, 6]]]
    for normalizer in normalizers(row):
        whole = None
        for cut in cuts:
            leaf_batch, leaves = tracked(batch)
            parts = pieces(row, leaf_batch, [list(part) for part in cut])
            loss = loss_of(row, parts, normalizer, knobs)
            found = [loss.detach(), *gradients(loss, leaves)]
            whole = whole or found
            for ours, theirs in zip(found, whole, strict=True):
                close(ours, theirs)


def test_dividing_per_micro_batch_is_what_the_law_catches():
    row = OBJECTIVES["sft"]
    batch = Batch(
        {"logprobs": -torch.tensor([[1.0] + [0.0] * 8, [2.0] * 9])}, torch.arange(9)[None] < torch.tensor([[1], [9]])
    )
    parts = pieces(row, batch, [[0], [1]])
    assert loss_of(row, parts, "token", {}).item() == pytest.approx(1.9)
    means = [loss_of(row, [part], "token", {}).item() for part in parts]
    assert sum(means) / 2 == pytest.approx(1.5)  # the control: a mean of means
    assert loss_of(row, parts, "sequence", {}).item() == pytest.approx(1.5)
    assert loss_of(row, parts, "constant", {}, length=10).item() == pytest.approx(0.95)


@every
def test_order_and_padding_change_nothing(row):
    batch, knobs = make(row, (3, 1, 4, 2), seed=3), settings(row)
    order = [2, 3, 0, 1] if row.unit == "pair" else [2, 0, 3, 1]
    for normalizer in normalizers(row):
        expected = loss_of(row, [batch], normalizer, knobs)
        close(loss_of(row, pieces(row, batch, [order]), normalizer, knobs), expected)
        for left, right in ((0, 3), (3, 0), (2, 2)):
            wide = {
                k: padded(v, left, right) if INPUTS[k].axes.startswith("batch time") else v
                for k, v in batch.inputs.items()
            }
            close(loss_of(row, [Batch(wide, padded(batch.mask, left, right))], normalizer, knobs), expected)


def padded(tensor, left, right):
    shape = list(tensor.shape)
    parts = [torch.zeros([shape[0], n, *shape[2:]], dtype=tensor.dtype) for n in (left, right)]
    return torch.cat([parts[0], tensor, parts[1]], dim=1)


@every
def test_a_repeated_batch_has_the_same_loss_and_equal_lengths_the_same_divisors(row):
    batch, knobs = make(row, (4, 4, 4, 4), seed=4), settings(row)
    for normalizer in normalizers(row):
        once = loss_of(row, [batch], normalizer, knobs)
        close(loss_of(row, [batch, batch], normalizer, knobs), once)
    if row.unit == "token":
        token, sequence = (loss_of(row, [batch], n, knobs) for n in ("token", "sequence"))
        close(sequence, token)
        close(loss_of(row, [batch], "constant", knobs, length=4), token)


@every
@pytest.mark.parametrize("poison", POISON)
def test_dead_cells_are_inert(row, poison):
    lengths = (3, 1, 4, 2, 0, 0) if row.unit != "pair" else (3, 1, 4, 2)
    clean, knobs = make(row, lengths, seed=5, width=6), settings(row)
    dirty = {}
    for name, tensor in clean.inputs.items():
        axes = INPUTS[name].axes
        live = clean.mask if axes.startswith("batch time") else clean.mask.any(-1)
        live = live[..., None] if axes.endswith("vocab") else live
        dirty[name] = tensor if axes.startswith("pairs") else torch.where(live, tensor, poison)
    results = []
    for inputs_ in (clean.inputs, dirty):
        batch, leaves = tracked(Batch(inputs_, clean.mask))
        out = evaluate(row, *batch, knobs)
        results.append([out.values.detach(), *out.metrics.values(), *gradients(out.values.sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.isfinite(ours).all()


@every
def test_live_cells_are_alive(row):
    batch, knobs = make(row, (1, 2, 3, 4), seed=6), settings(row)
    for name in batch.inputs:
        if name == "pairs":
            continue
        broken = batch.inputs[name].clone()
        broken[(0,) * broken.ndim] = float("nan")
        with pytest.raises(DegenerateError, match=f"{name} must be finite wherever the mask is"):
            evaluate(row, {**batch.inputs, name: broken}, batch.mask, knobs)
    leaf_batch, leaves = tracked(batch)
    values = evaluate(row, *leaf_batch, knobs).values
    names = [name for name in batch.inputs if name in STUDENT_INPUTS]
    for name, gradient in zip(names, gradients(values.sum(), leaves), strict=True):
        pulling = gradient.nonzero().tolist()
        assert pulling, f"no live cell of {name} pulls"
        for cell in pulling if row.name not in SELF_CANCELING else []:
            moved = batch.inputs[name].clone()
            moved[tuple(cell)] += 1e-3
            assert not torch.equal(evaluate(row, {**batch.inputs, name: moved}, batch.mask, knobs).values, values), cell


@every
def test_a_function_changes_nothing_and_repeats_itself(row):
    batch, knobs = make(row, (3, 1, 4, 2), seed=7), settings(row)
    before = {name: tensor.clone() for name, tensor in batch.inputs.items()}
    first, second = evaluate(row, *batch, knobs), evaluate(row, *batch, knobs)
    assert torch.equal(first.values, second.values)
    assert all(torch.equal(before[name], batch.inputs[name]) for name in before)
    assert not any(metric.requires_grad for metric in first.metrics.values())


@every
def test_gradient_reaches_the_student_alone(row):
    batch, knobs = make(row, (3, 1, 4, 2), seed=8), settings(row)
    leaves = {n: t.clone().requires_grad_() if t.is_floating_point() else t for n, t in batch.inputs.items()}
    evaluate(row, leaves, batch.mask, knobs).values.sum().backward()
    for name, leaf in leaves.items():
        if name not in STUDENT_INPUTS and leaf.is_floating_point():
            assert leaf.grad is None or not leaf.grad.any(), name
    assert any(leaves[name].grad is not None and leaves[name].grad.any() for name in STUDENT_INPUTS if name in leaves)


@every
def test_nothing_is_broadcast_and_nothing_is_missing(row):
    batch, knobs = (
        make(row, (3, 3, 3), seed=9) if row.unit != "pair" else make(row, (3, 3, 3, 3), seed=9),
        settings(row),
    )
    for name, tensor in batch.inputs.items():
        if name == "pairs":
            continue
        for wrong in (tensor[..., 0], tensor[None], tensor[:1], tensor[..., None], tensor.flatten()):
            if wrong.shape == tensor.shape:
                continue
            with pytest.raises(ShapeError, match=f"{name} must|one width"):
                evaluate(row, {**batch.inputs, name: wrong}, batch.mask, knobs)
        with pytest.raises(ConfigError, match=f"`{row.name}` reads {name}; this batch has none"):
            evaluate(row, {k: v for k, v in batch.inputs.items() if k != name}, batch.mask, knobs)


@every
def test_linear_rows_are_those_whose_gradient_ignores_the_log_probs(row):
    if "logprobs" not in inputs(row):
        assert not row.linear
        return
    batch, knobs = make(row, (3, 1, 4, 2), seed=10), settings(row)
    found = []
    for shift in (0.0, -0.1):
        moved = {**batch.inputs, "logprobs": batch.inputs["logprobs"] * (1 - shift) + shift}
        leaf_batch, leaves = tracked(Batch(moved, batch.mask))
        found.append(gradients(evaluate(row, *leaf_batch, knobs).values.sum(), leaves)[0])
    assert torch.equal(*found) == row.linear


@every
def test_half_precision_is_widened_before_anything(row):
    batch, knobs = make(row, (3, 1, 4, 2), seed=11), settings(row)
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in batch.inputs.items()}
    out = evaluate(row, half, batch.mask, knobs)
    assert out.values.dtype == torch.float32
    wide = {n: t.double() if t.is_floating_point() else t for n, t in half.items()}
    torch.testing.assert_close(out.values.double(), evaluate(row, wide, batch.mask, knobs).values, rtol=1e-4, atol=1e-5)


@every
def test_the_body_holds_no_mean_and_no_unnamed_number(row):
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(row.function))))
    body = tree.body[0]
    assert isinstance(body, ast.FunctionDef)
    numbers = [
        n.value for s in body.body for n in ast.walk(s) if isinstance(n, ast.Constant) and type(n.value) in (int, float)
    ]
    assert set(numbers) <= {0, 0.5, 1, 2}
    calls = [n.attr for n in ast.walk(body) if isinstance(n, ast.Attribute)]
    assert not {"mean", "numel", "item", "cuda", "cpu"} & set(calls)
    assert not any(isinstance(n, ast.AugAssign) for n in ast.walk(body))


@every
def test_a_half_masked_teacher_is_silent_where_it_is_masked(row):
    if "teacher_mask" not in tensor_parameters(row):
        return
    batch, knobs = make(row, (3, 1, 4, 2), seed=12), settings(row)
    teacher_mask = batch.mask & (torch.arange(4)[None] % 2 == 0)
    x = {**arrays(batch), "teacher_mask": teacher_mask.numpy()}
    out = evaluate(row, {**batch.inputs, "teacher_mask": teacher_mask}, batch.mask, knobs)
    close(out.values, kept(REFERENCES[row.name](x, batch.mask.numpy(), knobs)["values"], batch.mask), 1e-9)
    other = {**batch.inputs, "teacher_logprobs": torch.where(teacher_mask, batch.inputs["teacher_logprobs"], -9.0)}
    again = evaluate(row, {**other, "teacher_mask": teacher_mask}, batch.mask, knobs)
    assert torch.equal(out.values, again.values)


@pytest.mark.parametrize("name", [n for n, row in OBJECTIVES.items() if "teacher_logprobs" in inputs(row)])
def test_a_token_that_the_teacher_left_out_is_floored_and_counted(name):
    row = OBJECTIVES[name]
    batch, knobs = make(row, (3, 1, 4, 2), seed=13), settings(row)
    teacher = batch.inputs["teacher_logprobs"].clone()
    teacher[0, 1] = float("-inf")
    out = evaluate(row, {**batch.inputs, "teacher_logprobs": teacher}, batch.mask, knobs)
    teacher[0, 1] = -20.0
    same = evaluate(row, {**batch.inputs, "teacher_logprobs": teacher}, batch.mask, knobs)
    assert torch.equal(out.values, same.values)
    assert out.metrics["teacher_floored"].sum() == 1
    assert same.metrics["teacher_floored"].sum() == 0


VARIANTS = [
    pytest.param(name, {knob.name: choice}, id=f"{name}-{knob.name}-{choice}")
    for name, row in OBJECTIVES.items()
    for knob in table_knobs(row).values()
    for choice in knob.choices or ((True, False) if knob.kind is bool else ())
    if choice != knob.default
]


@pytest.mark.parametrize(("name", "given"), VARIANTS)
def test_every_switch_equals_its_reference(name, given):
    row = OBJECTIVES[name]
    batch, knobs = make(row, (3, 1, 4, 2), seed=14, width=5), settings(row, **given)
    if "behavior_logprobs" in batch.inputs:
        batch.inputs["behavior_logprobs"][0] -= 2.0  # far enough to be capped, or dropped
    out, x, live = evaluate(row, *batch, knobs), arrays(batch), live_units(row, batch)
    close(out.values, kept(REFERENCES[name](x, batch.mask.numpy(), knobs)["values"], live), 1e-9)
    default = evaluate(row, *batch, settings(row)).values
    if given != {"tau_squared": True}:  # at temperature 1 its factor is 1
        assert not torch.equal(out.values, default)


@every
def test_every_number_off_its_default_equals_its_reference(row):
    batch, knobs = make(row, (3, 1, 4, 2), seed=16, width=5), settings(row, **off_default(row))
    out, live = evaluate(row, *batch, knobs), live_units(row, batch)
    expected = REFERENCES[row.name](arrays(batch), batch.mask.numpy(), knobs)
    expected.setdefault("teacher_floored", np.zeros(live.shape))
    for name, got in {"values": out.values, **out.metrics}.items():
        close(got, kept(expected[name], live), 1e-9)


@pytest.mark.parametrize("name", [n for n, row in OBJECTIVES.items() if "kd_temperature" in table_knobs(row)])
@pytest.mark.parametrize("squared", [True, False])
def test_every_temperature_equals_its_reference(name, squared):
    row = OBJECTIVES[name]
    batch, knobs = make(row, (3, 2), seed=15), settings(row, kd_temperature=1.7, tau_squared=squared)
    expected = REFERENCES[name](arrays(batch), batch.mask.numpy(), knobs)["values"]
    close(evaluate(row, *batch, knobs).values, kept(expected, batch.mask), 1e-9)
