"""Divergences: zero at equality, positive elsewhere, the right direction, the stated limits, and honest tails."""

import ast
import inspect

import pytest
import torch
from tests.laws.batches import settings

from limbeck.errors import ConfigError, ModelError, ShapeError
from limbeck.objectives import OBJECTIVES, check_knobs, divergences, evaluate, find
from limbeck.objectives.vocabulary import check_same_map, common_width, teacher_mask

NAMES = [row.name for row in divergences.ROWS]
every = pytest.mark.parametrize("name", NAMES)
P, Q = (0.8, 0.15, 0.05), (0.3, 0.3, 0.4)


def logs(values):
    return torch.tensor([values], dtype=torch.float64).log()


def random_logits(seed, num=6, vocab=7):
    return 2 * torch.randn(num, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_and_gradient(name, student, teacher, **given):
    row = OBJECTIVES[name]
    student = student.clone().requires_grad_()
    mask = torch.ones(student.shape[:-1], dtype=torch.bool)
    values = evaluate(row, {"logits": student, "teacher_logits": teacher}, mask, settings(row, **given)).values
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


def value(name, student, teacher, **given):
    return value_and_gradient(name, student, teacher, **given)[0]


@every
def test_self_distillation_is_zero_in_value_and_gradient(name):
    logits = random_logits(0)
    values, gradient = value_and_gradient(name, logits, logits + 3.0)
    assert values.abs().max() < 1e-14
    assert gradient.abs().max() < 1e-14


@every
@pytest.mark.parametrize("seed", range(5))
def test_positive_and_blind_to_a_shift_of_all_logits(name, seed):
    student, teacher = random_logits(seed), random_logits(seed + 100)
    values, gradient = value_and_gradient(name, student, teacher)
    assert (values > 0).all()
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(value(name, student + 5, teacher - 2), values, rtol=1e-9, atol=1e-12)


@every
def test_leading_shape_does_not_matter(name):
    student, teacher = random_logits(1), random_logits(2)
    flat = value(name, student, teacher)
    assert torch.equal(value(name, student.reshape(2, 3, 7), teacher.reshape(2, 3, 7)).flatten(), flat)


def test_logit_gradients_of_the_named_kls():
    student, teacher = random_logits(3), random_logits(4)
    p, q = student.softmax(-1), teacher.softmax(-1)
    values, gradient = value_and_gradient("reverse_kl", student, teacher)
    torch.testing.assert_close(gradient, p * ((p / q).log() - values[:, None]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(value_and_gradient("forward_kl", student, teacher)[1], p - q, rtol=1e-9, atol=1e-12)


def test_published_figures():
    assert value("forward_kl", logs(P), logs(Q)).item() == pytest.approx(0.7455, abs=5e-5)
    assert value("reverse_kl", logs(P), logs(Q)).item() == pytest.approx(0.5767, abs=5e-5)
    betas = (0.01, 0.1, 0.5, 0.9, 0.99)
    plain = [value("jsd", logs(P), logs(Q), beta=b).item() for b in betas]
    assert plain == pytest.approx([0.0073, 0.0621, 0.1492, 0.0518, 0.0057], abs=5e-5)
    assert value("jsd", logs(P), logs(Q), beta=1 - 1e-6).item() == pytest.approx(5.8e-7, rel=0.01)
    rescaled = [value("jsd_rescaled", logs(P), logs(Q), beta=b).item() for b in betas]
    assert rescaled == pytest.approx([0.7386, 0.6902, 0.5967, 0.5751, 0.5764], abs=5e-5)


def test_the_share_is_the_teacher_s():
    teacher, student = logs((0.7, 0.2, 0.1)), logs((0.1, 0.1, 0.8))
    assert value("jsd", student, teacher, beta=0.2).item() == pytest.approx(0.1902, abs=5e-5)
    assert value("jsd", teacher, student, beta=0.2).item() == pytest.approx(0.1979, abs=5e-5)  # the control: swapped
    small = 1e-4
    assert value("jsd", student, teacher, beta=small).item() / small == pytest.approx(1.2926, abs=5e-5)
    assert value("jsd", student, teacher, beta=1 - small).item() / small == pytest.approx(1.3994, abs=5e-5)
    assert value("forward_kl", student, teacher).item() == pytest.approx(1.2928, abs=5e-5)
    assert value("reverse_kl", student, teacher).item() == pytest.approx(1.3996, abs=5e-5)


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.5, 0.8])
def test_jsd_limits(beta):
    student, teacher = random_logits(5), random_logits(6)
    swapped = value("jsd", teacher, student, beta=1 - beta)
    torch.testing.assert_close(value("jsd", student, teacher, beta=beta), swapped, rtol=1e-9, atol=1e-12)
    near = value("jsd_rescaled", student, teacher, beta=1e-7)
    torch.testing.assert_close(near, value("forward_kl", student, teacher), rtol=1e-4, atol=1e-5)
    near = value("jsd_rescaled", student, teacher, beta=1 - 1e-7)
    torch.testing.assert_close(near, value("reverse_kl", student, teacher), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [0, 1, 0.0, 1.0, -0.1])
@pytest.mark.parametrize("name", ["jsd", "jsd_rescaled", "jsd_topk_tail"])
def test_the_ends_of_beta_are_refused_with_the_name_to_use(name, beta):
    with pytest.raises(ConfigError, match="for 0 use forward_kl, for 1 use reverse_kl"):
        check_knobs(OBJECTIVES[name], {"beta": beta})


def test_skew_zero_is_the_named_kl():
    student, teacher = random_logits(7), random_logits(8)
    for skewed, plain in (("skew_forward", "forward_kl"), ("skew_reverse", "reverse_kl")):
        for ours, theirs in zip(
            value_and_gradient(skewed, student, teacher, skew=0.0),
            value_and_gradient(plain, student, teacher),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["forward_kl_topk_tail", "reverse_kl_topk_tail", "jsd_topk_tail"])
def test_tail_bucket(name):
    full = {"forward_kl_topk_tail": "forward_kl", "reverse_kl_topk_tail": "reverse_kl", "jsd_topk_tail": "jsd"}[name]
    student, teacher = random_logits(9, num=100), random_logits(10, num=100)
    exact = value(full, student, teacher)
    previous = torch.zeros(100, dtype=torch.float64)
    for k in range(1, 7):
        coarse = value(name, student, teacher, k=k)
        assert (coarse >= previous - 1e-12).all()
        assert (coarse <= exact + 1e-12).all()
        previous = coarse
    torch.testing.assert_close(previous, exact, rtol=1e-9, atol=1e-12)  # k = 6 = vocab - 1
    torch.testing.assert_close(value(name, student, teacher, k=50), exact, rtol=1e-9, atol=1e-12)


def test_three_objectives_are_called_top_k_and_only_one_is_a_divergence():
    q, p = torch.tensor([0.50, 0.30, 0.15, 0.05]), torch.tensor([0.55, 0.40, 0.04, 0.01])
    tail = [
        value("forward_kl_topk_tail", p.double().log()[None], q.double().log()[None], k=k).item() for k in (1, 2, 3)
    ]
    assert tail == pytest.approx([0.0050, 0.1433, 0.1448], abs=5e-5)
    a, b = q[:2], p[:2]
    assert (a * (a / b).log()).sum().item() == pytest.approx(-0.1340, abs=5e-5)  # truncated
    a, b = a / a.sum(), b / b.sum()
    assert (a * (a / b).log()).sum().item() == pytest.approx(0.0044, abs=5e-5)  # renormalized
    for name in ("forward_kl_topk", "reverse_kl_topk", "jsd_topk"):
        with pytest.raises(ConfigError, match=f"Truncated.*{name}_tail"):
            find(name)


def test_with_a_tail_the_student_keeps_its_mass_on_the_set():
    teacher = torch.tensor([[0.50, 0.30, 0.15, 0.04, 0.01]], dtype=torch.float64).log()
    top = [0, 1]

    def descend(loss):
        logits = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
        for _ in range(300):
            (g,) = torch.autograd.grad(loss(logits), logits)
            logits = (logits - 2.0 * g).detach().requires_grad_()
        return logits.softmax(-1)[0, top].sum().item()

    row = OBJECTIVES["reverse_kl_topk_tail"]
    assert descend(lambda z: row.function(z, teacher, k=2).values.sum()) == pytest.approx(0.80, abs=1e-3)
    q = teacher.exp()[0, top]

    def truncated(z):
        p = z.softmax(-1)[0, top]
        return (p * (p / q).log()).sum()

    assert descend(truncated) == pytest.approx(0.80 / torch.e, abs=1e-3)  # the control drains the set


@every
def test_padding_ids_change_nothing(name):
    student, teacher = random_logits(11), random_logits(12)
    values, gradient = value_and_gradient(name, student, teacher)
    empty = torch.full((6, 3), float("-inf"), dtype=torch.float64)
    wide = value_and_gradient(name, torch.cat([student, empty], -1), torch.cat([teacher, empty], -1))
    torch.testing.assert_close(wide[0], values, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(wide[1][:, :7], gradient, rtol=1e-9, atol=1e-12)
    assert not wide[1][:, 7:].any()


def test_unequal_vocabularies_are_refused():
    student, teacher = random_logits(13), random_logits(14)
    with pytest.raises(ShapeError, match="one width, received 7 and 6"):
        value("reverse_kl", student, teacher[:, :6])
    one_sided = teacher.clone()
    one_sided[:, 6] = float("-inf")
    with pytest.raises(ShapeError, match="-inf on one side only"):
        value("reverse_kl", student, one_sided)
    with pytest.raises(ModelError, match="received 1 and 2 for 'b'"):
        check_same_map({"a": 0, "b": 1, "c": 2}, {"a": 0, "b": 2, "c": 1})
    with pytest.raises(ModelError, match="received None and 1 for 'b'"):
        check_same_map({"a": 0}, {"a": 0, "b": 1})
    with pytest.raises(ShapeError, match="all 9 ids"):
        common_width(student, teacher, num_ids=9)


@every
def test_unequal_padding_of_one_token_map_is_cut_away(name):
    student, teacher = random_logits(15, vocab=100), random_logits(16, vocab=100)
    extra = torch.full((6, 4), 50.0, dtype=torch.float64)
    left, right, dropped = common_width(student, torch.cat([teacher, extra], -1), num_ids=100)
    assert dropped == 4
    assert torch.equal(value(name, left, right), value(name, student, teacher))


def test_end_tokens_of_one_side_leave_the_teacher_s_mask():
    mask = torch.tensor([[True, True, True, False]])
    targets = torch.tensor([[1, 2, 3, 2]])
    assert teacher_mask(mask, targets, student_stops={2, 3}, teacher_stops={3}).tolist() == [[True, False, True, False]]
    assert torch.equal(teacher_mask(mask, targets, student_stops={3}, teacher_stops={3}), mask)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("reverse_kl", 1.0), ("forward_kl", 1.0), ("opd_full", 1.0), ("jsd", 0.25), ("jsd_rescaled", 1.0),
        ("skew_forward", 0.81), ("skew_reverse", 0.81),
    ],
)  # fmt: skip
def test_at_high_temperature_every_divergence_is_a_squared_logit_distance(name, factor):
    student, teacher = random_logits(17), random_logits(18)
    limit = factor * ((student - teacher) - (student - teacher).mean(-1, keepdim=True)) / 7
    errors = []
    for tau in (1e3, 1e4):
        _, gradient = value_and_gradient(name, student, teacher, kd_temperature=tau, tau_squared=True)
        errors.append((gradient - limit).norm() / limit.norm())
    assert errors[0] < 5e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_temperature_divides_both_sides(tau):
    student, teacher = random_logits(19), random_logits(20)
    for squared, factor in ((False, 1.0), (True, tau * tau)):
        ours = value("reverse_kl", student, teacher, kd_temperature=tau, tau_squared=squared)
        torch.testing.assert_close(
            ours, factor * value("reverse_kl", student / tau, teacher / tau), rtol=1e-9, atol=1e-12
        )


@every
def test_mixed_precision_stays_a_divergence(name):
    """Sampled in single precision with a half-precision twin as the teacher: both are widened before softmax."""
    gen = torch.Generator().manual_seed(0)
    student = 5 * torch.randn(20, 500, generator=gen)
    row = OBJECTIVES[name]
    for teacher in (student.bfloat16(), student.half()):
        inputs = {"logits": student, "teacher_logits": teacher}
        out = evaluate(row, inputs, torch.ones(20, dtype=torch.bool), settings(row))
        assert out.values.min() >= -1e-6
        assert not out.metrics["negative"].any()


def test_a_negative_value_raises_an_alarm():
    pair = divergences.Pair(torch.zeros(1, 2), torch.zeros(1, 2), 1.0)
    out = divergences._values(torch.tensor([-1e-3, 0.0]), pair)
    assert out.metrics["negative"].tolist() == [1.0, 0.0]
    assert out.values.tolist() == pytest.approx([-1e-3, 0.0])


def test_nothing_clamps_a_divergence():
    names = {n.attr for n in ast.walk(ast.parse(inspect.getsource(divergences))) if isinstance(n, ast.Attribute)}
    assert not names & {"clamp", "clamp_", "clip", "relu", "maximum", "nan_to_num"}


def test_cross_entropy_minus_teacher_entropy_is_the_kl():
    row = OBJECTIVES["forward_kl"]
    inputs = {"logits": random_logits(21), "teacher_logits": random_logits(22)}
    out = evaluate(row, inputs, torch.ones(6, dtype=torch.bool), settings(row))
    torch.testing.assert_close(out.metrics["cross_entropy"] - out.metrics["teacher_entropy"], out.values)
