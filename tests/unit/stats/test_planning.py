"""Planned power is what simulated studies find; what cannot be is refused with the reason."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from limbeck.errors import ConfigError
from limbeck.stats import paired, seeds
from limbeck.stats.planning import (
    Design,
    callable_at,
    difference_found,
    from_pilot,
    neighbors,
    parts,
    plan,
    power,
    problems_needed,
)

PLAIN = Design(accuracy=0.6, discordance=0.2)
SAMPLED = Design(accuracy=0.6, discordance=0.3, samples=4, sample_disagreement=0.2)
TRAINED = replace(SAMPLED, seeds=3, seed_disagreement=0.25, seed_sd=0.01)


@pytest.mark.parametrize(("difference", "n"), [(0.1, 200), (0.2, 30), (0.03, 1319)])
def test_power_of_mcnemar_is_what_studies_find(difference, n):
    rng, design = np.random.default_rng(0), replace(PLAIN, discordance=0.24)
    better, worse = (0.24 + difference) / 2, (0.24 - difference) / 2
    counts = rng.multinomial(n, [better, worse, 1 - 0.24], size=1500)
    tables, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    calls = [paired.mcnemar_exact(b, c) <= 0.05 and b > c for b, c in tables.tolist()]
    called = np.average(calls, weights=times)
    assert power(design, difference, n) == pytest.approx(called, abs=0.03)


def studies(n, samples, num, seed_sd, rng, shift=0.1):
    """Two arms of a probit model; the first better by about 3 points."""
    problem = rng.normal(0, 1, (n, 1))
    for gain in (shift, 0.0):
        own, run = rng.normal(0, 0.4, (n, 1)), rng.normal(0, seed_sd, (1, num))
        yield rng.binomial(samples, norm.cdf(0.3 + gain + problem + own + run)) / samples


def piloted(samples, num, **changes):
    """What a pilot of 200,000 problems tells, and the true difference."""
    a, b = studies(200_000, samples, 2, 0.0, np.random.default_rng(1))
    p, q = a.mean(1), b.mean(1)
    told = [seeds.disagreement(x, samples) for x in (a, b)]
    found = Design(
        accuracy=float(q.mean()), discordance=float((p * (1 - q) + q * (1 - p)).mean()), samples=samples, seeds=num,
        sample_disagreement=float(np.mean([x[0] for x in told])), seed_disagreement=float(np.mean([x[1] for x in told])),
        **changes,
    )  # fmt: skip
    return found, float(p.mean() - q.mean())


def test_power_of_several_samples_is_what_studies_find():
    design, difference = piloted(4, 1)
    rng, called, trials = np.random.default_rng(2), 0, 250
    for _ in range(trials):
        a, b = (4 * x[:, 0] for x in studies(400, 4, 1, 0.0, rng))
        called += paired.sign_flip((a - b).astype(int)) <= 0.05 and a.sum() > b.sum()
    assert power(design, difference, 400) == pytest.approx(called / trials, abs=0.06)


@pytest.mark.parametrize("num", [2, 4])
def test_power_of_several_seeds_is_what_studies_find(num):
    steep = norm.pdf(0.3 / math.sqrt(2.16)) / math.sqrt(2.16)
    design, difference = piloted(2, num, seed_sd=0.04 * steep)
    rng, called, trials = np.random.default_rng(3), 0, 800
    for _ in range(trials):
        found = seeds.crossed(*studies(500, 2, num, 0.04, rng))
        called += seeds.p_over_seeds(found) <= 0.05 and found.value > 0
    assert power(design, difference, 500) == pytest.approx(called / trials, abs=0.06)


def alike(n, samples, num, rng):
    """Two arms whose n-th samples share their random numbers, as evaluations here do: problems, samples, seeds."""
    problem, chance = rng.normal(0, 1, (n, 1, 1)), rng.random((n, samples, 1))
    for gain in (0.1, 0.0):
        own, run = rng.normal(0, 0.2, (n, 1, 1)), rng.normal(0, 0.2, (n, 1, num))
        yield (chance < norm.cdf(0.3 + gain + problem + own + run)).astype(float)


@pytest.mark.parametrize(("samples", "num"), [(1, 1), (2, 1), (4, 3), (1, 5)])
def test_samples_that_share_their_random_numbers_are_planned_for(samples, num):
    """From a pilot of two samples and two seeds to any other number of both."""
    a, b = alike(200_000, 2, 2, np.random.default_rng(0))
    of_arms, told = [seeds.draws(x) for x in (a, b)], seeds.draws(a, b)
    within = [seeds.disagreement(x.mean(1), 2)[0] for x in (a, b)]
    design = Design(
        accuracy=float(b.mean()), discordance=told.same, discordance_apart=told.apart, samples=samples, seeds=num,
        sample_disagreement=float(np.mean(within)), seed_disagreement=float(np.mean([x.same for x in of_arms])),
        seed_disagreement_apart=float(np.mean([x.apart for x in of_arms])), seed_sd=0.0 if num > 1 else None,
    )  # fmt: skip
    x, y = alike(200_000, samples, num, np.random.default_rng(1))
    seen = (x.mean((1, 2)) - y.mean((1, 2))).var()
    found = parts(design, float(a.mean() - b.mean()))
    assert found.problem == pytest.approx(seen, rel=0.03)
    if num > 1:
        cells = x.mean(1) - x.mean((1, 2), keepdims=True)[:, 0]
        assert found.cells == pytest.approx(cells.var() * num / (num - 1) / num, rel=0.03)
    taken_for_unrelated = replace(design, discordance=told.apart, discordance_apart=None)
    assert parts(taken_for_unrelated, 0.02).problem > 1.3 * seen


def test_draws_are_counted_pair_by_pair():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2, (50, 3, 4)).astype(float) for _ in range(2))

    def share(x, y, same, others):
        pairs = [
            x[:, k, i] != y[:, m, j]
            for k in range(3) for m in range(3) for i in range(4) for j in range(4) if (k == m) == same and (i != j or not others)
        ]  # fmt: skip
        return float(np.mean(pairs))

    assert seeds.draws(a, b) == pytest.approx((share(a, b, True, False), share(a, b, False, False)))
    assert seeds.draws(a) == pytest.approx((share(a, a, True, True), share(a, a, False, True)))
    assert math.isnan(seeds.draws(a[:, :1], b[:, :1]).apart)
    assert math.isnan(seeds.draws(a[:, :, :1]).same)


@pytest.mark.parametrize("design", [PLAIN, SAMPLED, TRAINED])
def test_needs_and_finds_are_inverse(design):
    needed = problems_needed(design, 0.06).value
    assert power(design, 0.06, int(needed)) >= 0.8
    assert difference_found(design, int(needed)).value == pytest.approx(0.06, rel=0.03)
    # the smallest difference that is called at all is found about half of the time
    n = int(needed)
    assert power(design, callable_at(design, n), n) == pytest.approx(0.55, abs=0.12)


def test_more_of_anything_helps_and_more_comparisons_cost():
    base = power(TRAINED, 0.04, 500)
    for better in ({"samples": 16}, {"seeds": 6}, {"seed_sd": 0.0}, {"discordance": 0.28}):
        assert power(replace(TRAINED, **better), 0.04, 500) > base
    assert power(replace(TRAINED, comparisons=15), 0.04, 500) < base
    assert power(PLAIN, 0.04, 600) < power(PLAIN, 0.04, 1200)


def test_more_problems_cannot_mend_training_that_varies():
    needed = problems_needed(replace(TRAINED, seed_sd=0.05), 0.02)
    assert math.isnan(needed.value)
    assert "use more seeds" in needed.reason
    found = difference_found(PLAIN, 30)
    assert math.isnan(found.value)
    assert "not even 20.0 points" in found.reason


def test_parts_by_hand():
    # 0.3 - 0.05**2 - 0.25 * 2/3 - 0.2 * 3/4 / 3;  of one arm: 0.01**2 / 3;  (0.25 - 0.2 + 0.2 / 4) / 2 / 3
    assert parts(TRAINED, 0.05) == pytest.approx((0.3 - 0.0025 - 0.5 / 3 - 0.05, 0.0001 / 3, 0.1 / 6))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accuracy": 60.0}, "must be fractions"),
        ({"samples": 0}, "samples, seeds and comparisons >= 1"),
        ({"discordance": 0.01}, "discordance must lie between the difference, 0.02"),
        ({"accuracy": 0.05, "discordance": 0.5}, "what the accuracies allow, 0.12"),
        ({"samples": 4}, "several samples need sample_disagreement"),
        ({"seeds": 3}, "several seeds need seed_sd"),
        ({"seed_sd": 0.01}, "needs seeds >= 2"),
        ({"samples": 4, "sample_disagreement": 0.5}, "one arm must disagree less"),
    ],
)
def test_designs_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        power(replace(PLAIN, **changes), 0.02, 500)


def test_a_plan_has_the_neighbors_that_can_be_judged():
    assert neighbors(PLAIN) == [PLAIN]
    assert [(d.samples, d.seeds) for d in neighbors(SAMPLED)] == [(k, 1) for k in (1, 2, 4, 8)]
    rows = plan(TRAINED, difference=0.05, n=None)["rows"]
    assert {(r["samples"], r["seeds"]) for r in rows} == {(k, s) for k in (1, 2, 4, 8) for s in (1, 2, 3, 5)}
    assert {r["test"] for r in rows} == {"mcnemar_exact", "sign_flip_exact", "crossed_t"}
    both = plan(PLAIN, difference=0.05, n=500)["rows"][0]
    assert both["power"] == power(PLAIN, 0.05, 500)
    with pytest.raises(ConfigError, match="received neither"):
        plan(PLAIN, difference=None, n=None)
    with pytest.raises(ConfigError, match="n >= 2"):
        power(PLAIN, 0.05, 1)


def test_a_pilot_says_what_a_design_is_of():
    def arm(name, value, of_samples, of_seeds, sd):
        told = {"name": name, "value": value, "samples": 2, "seeds": 5, "seed_sd": sd}
        return {**told, "disagreement": {"samples": of_samples, "seeds": of_seeds}}

    over_seeds = {
        "arms": [arm("base", 0.3, 0.1, None, None) | {"seeds": 1}, arm("a", 0.5, 0.2, 0.3, 0.03), arm("b", 0.4, 0.1, 0.1, 0.04)],
        "pairs": [{"a": "base", "b": "a", "discordance": 0.3}, {"a": "a", "b": "b", "discordance": 0.4}],
    }  # fmt: skip
    found = from_pilot({"pairs": [], "arms": [], "over_seeds": over_seeds}, "b", "a")
    assert found == {
        "accuracy": 0.4, "discordance": 0.4, "samples": 2, "seeds": 5, "sample_disagreement": pytest.approx(0.15),
        "seed_disagreement": pytest.approx(0.2), "discordance_apart": None, "seed_disagreement_apart": None,
        "seed_sd": pytest.approx(math.sqrt((0.03**2 + 0.04**2) / 2)),
    }  # fmt: skip
    assert 0 < power(Design(**found), 0.1, 500) < 1
    assert from_pilot(over_seeds, "base", "a")["seed_sd"] == 0.03
    for arm, same in zip(over_seeds["arms"][1:], (0.15, 0.25), strict=True):
        arm["disagreement"] |= {"same": same, "apart": same + 0.2}
    over_seeds["pairs"][1]["draws"] = {"same": 0.35, "apart": 0.5}
    found = from_pilot(over_seeds, "b", "a")
    given = {
        key: found[key] for key in ("discordance", "discordance_apart", "seed_disagreement", "seed_disagreement_apart")
    }
    assert list(given.values()) == pytest.approx([0.35, 0.5, 0.2, 0.4])
    with pytest.raises(ConfigError, match="received base and b"):
        from_pilot(over_seeds, "base", "b")


def test_seeds_that_never_differ_leave_the_problems():
    design = Design(accuracy=0.4, discordance=0.3, seeds=2, seed_sd=0.0, seed_disagreement=0.0)
    assert power(design, 0.1, 400) == pytest.approx(power(replace(design, seeds=1, seed_sd=None), 0.1, 400), abs=0.03)
