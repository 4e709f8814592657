"""Before a run: how many problems, samples and seeds a difference needs, for the very test that ``compare`` will use.

A difference of two arms varies over problems, over training seeds and over samples. What each can average out is told by
how often answers disagree in being right: between arms (``discordance``), between seeds of an arm and between samples of
a run (:func:`limbeck.stats.seeds.disagreement` measures both on a pilot).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit
from scipy.stats import binom, nct
from scipy.stats import t as student

from limbeck.errors import ConfigError
from limbeck.stats.power import smallest_callable
from limbeck.types import Measured

MOST_PROBLEMS = 10_000_000
DRAWS = 10_000
TAIL = 9.0  # standard deviations of a binomial beyond which its mass is below 1e-18


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What is known or assumed of a comparison, apart from the number of problems and the difference.

    ``accuracy`` is of the worse arm, a fraction. ``discordance`` is the share of problems that exactly one arm solves,
    one sample of one run each; None takes that of arms whose answers are unrelated, the most there can be without
    design and more than arms on the same problems ever show. ``sample_disagreement`` is the share of problems on which
    two samples of one run differ; 0 is greedy decoding. ``seed_disagreement`` is that of one sample each of two seeds of
    an arm; None takes ``sample_disagreement``, which credits seeds with no averaging over problems (cautious).
    ``discordance_apart`` and ``seed_disagreement_apart`` are the same of samples that are drawn with other random numbers,
    where the former two share them, as evaluations here do; None takes the former, which is right for greedy decoding.
    ``seed_sd`` is the standard deviation of accuracy over training seeds. ``comparisons`` divides alpha as Holm's first
    step does.
    """

    accuracy: float
    discordance: float | None = None
    samples: int = 1
    seeds: int = 1
    sample_disagreement: float | None = None
    seed_disagreement: float | None = None
    discordance_apart: float | None = None
    seed_disagreement_apart: float | None = None
    seed_sd: float | None = None
    alpha: float = 0.05
    comparisons: int = 1

    @property
    def level(self) -> float:
        """Of one test."""
        return self.alpha / self.comparisons

    @property
    def test(self) -> str:
        if self.seeds > 1:
            return "crossed_t"
        return "sign_flip_exact" if self.samples > 1 else "mcnemar_exact"

    def discordance_at(self, difference: float) -> float:
        if self.discordance is not None:
            return self.discordance
        better = self.accuracy + difference
        return better * (1 - self.accuracy) + self.accuracy * (1 - better)


def from_pilot(comparison: Mapping[str, Any], a: str, b: str) -> dict[str, Any]:
    """What a finished comparison of two arms says of a design: keywords of :class:`Design`.

    Accuracy is that of the worse arm, disagreements are means over both arms and ``seed_sd`` is their root mean square, where
    either is known; what one seed or one sample cannot tell is None. Samples and seeds are those of the arm with more.

    Args:
        comparison: what :func:`limbeck.stats.compare.compare` returned; over seeds, where a study has that beside it.
        a: an arm.
        b: another.

    Raises:
        ConfigError: the pair was not compared.
    """
    found = comparison.get("over_seeds") or comparison
    pair = next((pair for pair in found["pairs"] if {pair["a"], pair["b"]} == {a, b}), None)
    if pair is None:
        names = ", ".join(sorted({pair[side] for pair in found["pairs"] for side in "ab"}))
        raise ConfigError(f"a pilot must have compared the pair, received {a} and {b}. It compared pairs of {names}.")
    arms = [arm for arm in found["arms"] if arm["name"] in (a, b)]
    told, of_arms = pair.get("draws") or {}, [arm["disagreement"] for arm in arms]
    of_seeds = [arm["seeds"] if arm.get("apart") is None else arm["same"] for arm in of_arms]
    spreads = [arm["seed_sd"] for arm in arms if arm["seed_sd"] is not None]
    return {
        "accuracy": min(arm["value"] for arm in arms),
        "discordance": pair["discordance"] if told.get("apart") is None else told["same"],
        "discordance_apart": told.get("apart"),
        "samples": max(arm["samples"] for arm in arms),
        "seeds": max(arm["seeds"] for arm in arms),
        "sample_disagreement": _mean_known(arm["samples"] for arm in of_arms),
        "seed_disagreement": _mean_known(of_seeds),
        "seed_disagreement_apart": _mean_known(arm.get("apart") for arm in of_arms),
        "seed_sd": math.sqrt(sum(sd**2 for sd in spreads) / len(spreads)) if spreads else None,
    }


def _mean_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


class Parts(NamedTuple):
    """Variances of one difference: over problems (of one problem), and over seeds (of one arm's mean over seeds)."""

    problem: float
    seeds: float
    cells: float  # what one problem adds to an arm's variance over seeds


def parts(design: Design, difference: float) -> Parts:
    """Variance components that a design implies at a difference.

    problem = discordance - difference**2 - between (1 - 1 / seeds) - within (1 - 1 / samples) / seeds,
    with between and within the shares on which seeds and samples disagree: each is averaged out by its own number. Of several
    samples discordance and between are means over all pairs of them: 1 in ``samples`` shares its random numbers, the others
    do not.

    Raises:
        ConfigError: numbers that cannot hold together, with the bound that is broken.
    """
    _check(design, difference)
    discordance = _of_pairs(design.discordance_at(difference), design.discordance_apart, design.samples)
    within = design.sample_disagreement or 0.0
    between = within if design.seed_disagreement is None else design.seed_disagreement
    between = _of_pairs(between, design.seed_disagreement_apart, design.samples)
    lost = between * (1 - 1 / design.seeds) + within * (1 - 1 / design.samples) / design.seeds
    problem = discordance - difference**2 - lost
    if problem <= 0:
        raise ConfigError(
            f"answers of one arm must disagree less than answers of two arms, received {between:g} between seeds and "
            f"{within:g} between samples with {discordance:g} between arms. Take all three from one pilot; where they are, it "
            f"was too small to tell them apart, or its arms differ no more than their seeds: give a discordance above "
            f"{difference**2 + lost:.4g}, or plan with fewer seeds."
        )
    cells = (between - within + within / design.samples) / 2 / design.seeds
    return Parts(problem, (design.seed_sd or 0.0) ** 2 / design.seeds, cells)


def _of_pairs(same: float, apart: float | None, samples: int) -> float:
    return same if apart is None else same / samples + apart * (1 - 1 / samples)


def power(design: Design, difference: float, n: int) -> float:
    """Chance that ``compare`` calls a true difference, the right way round, in [0, 1].

    One sample and seed: exact, over every number of discordant problems that can occur. Several samples: noncentral t in
    place of the sign-flip test. Several seeds: 10,000 draws, seed 0, of the mean squares that the crossed t test divides
    by, so that its varying degrees of freedom count.

    Args:
        design: all but the two below.
        difference: true accuracy of the better arm minus the other's, a fraction > 0.
        n: problems, at least 2.

    Source: McNemar's: Connor 1987, Biometrics 43, 207-211 (here by enumeration). Differs from source: none.

    >>> round(power(Design(accuracy=0.6, discordance=0.2), 0.1, 200), 3)
    0.875
    """
    if n < 2:
        raise ConfigError(f"power needs n >= 2 problems, received {n}.")
    components = parts(design, difference)
    if design.test == "mcnemar_exact":
        return _mcnemar_power(design.discordance_at(difference), difference, n, design.level)
    if design.test == "sign_flip_exact":
        shift = difference / math.sqrt(components.problem / n)
        quantile = student.ppf(1 - design.level / 2, n - 1)
        return float(nct.sf(quantile, n - 1, shift))
    return _crossed_power(components, design, difference, n)


def problems_needed(design: Design, difference: float, *, target: float = 0.8) -> Measured:
    """The fewest problems at which a true difference is called with the chance ``target``.

    Returns:
        Unit count; NaN with the reason where no number of problems is enough, because training runs vary too much.
    """
    low, high = 2, 64
    while power(design, difference, high) < target:
        low, high = high, 2 * high
        if high > MOST_PROBLEMS:
            reason = f"more than {MOST_PROBLEMS:,} problems: "
            varies = (
                "training runs vary too much, use more seeds" if design.seeds > 1 else "the difference is too small"
            )
            return Measured(math.nan, reason + varies)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(design, difference, middle) >= target else (middle, high)
    return Measured(float(high))


def difference_found(design: Design, n: int, *, target: float = 0.8) -> Measured:
    """The smallest true difference that ``n`` problems call with the chance ``target``; a fraction, to 1e-5.

    Returns:
        NaN with the reason where not even the largest difference that the design allows would be called so often.
    """
    highest = largest_difference(design)

    def enough(difference: float) -> bool:
        return power(design, difference, n) >= target

    if highest <= 0 or not enough(highest):
        return Measured(
            math.nan, f"not even {100 * max(highest, 0):.1f} points, the most that can be, are called so often"
        )
    return Measured(_bisect(enough, 0.0, highest))


def plan(
    design: Design,
    *,
    difference: float | None,
    n: int | None,
    target: float = 0.8,
    advance: Callable[[int], None] = lambda num: None,
) -> dict[str, Any]:
    """What ``limbeck power`` prints: the design asked for and its neighbors in samples and seeds, each as a row.

    A row holds ``samples, seeds, test`` and, as asked, ``problems`` and ``answers`` an arm that the difference needs,
    ``power`` at ``n``, or what ``n`` problems can do: the ``difference`` found with the chance ``target`` and the
    ``smallest_callable`` one, which a true difference of that size passes half of the time. What is undefined is NaN
    with its ``reason``. ``advance`` is called with 1 after each of the :func:`neighbors`.
    """
    if difference is None and n is None:
        raise ConfigError("power needs --difference, --items or both, received neither. 0.02 is 2 points.")
    rows = []
    for one in neighbors(design):
        rows.append(_row(one, difference, n, target))
        advance(1)
    return {"design": design, "difference": difference, "n": n, "target": target, "rows": rows}


def neighbors(design: Design) -> list[Design]:
    """The design with other numbers of samples and seeds, where enough is known to judge them; itself among them."""
    samples = {1, 2, 4, 8, design.samples} if design.sample_disagreement else {design.samples}
    seeds = {1, 2, 3, 5, design.seeds} if design.seed_sd is not None else {design.seeds}
    return [
        replace(design, samples=k, seeds=s, seed_sd=design.seed_sd if s > 1 else None)
        for s in sorted(seeds)
        for k in sorted(samples)
    ]


def _row(design: Design, difference: float | None, n: int | None, target: float) -> dict[str, Any]:
    row: dict[str, Any] = {"samples": design.samples, "seeds": design.seeds, "test": design.test, "reason": ""}
    if difference is not None:
        needed = problems_needed(design, difference, target=target)
        row |= {"problems": needed.value, "reason": needed.reason}
        row |= {"answers": needed.value * design.samples * design.seeds}
    if difference is not None and n is not None:
        row |= {"power": power(design, difference, n)}
    elif n is not None:
        found = difference_found(design, n, target=target)
        row |= {"difference": found.value, "reason": found.reason, "smallest_callable": callable_at(design, n)}
    return row


def callable_at(design: Design, n: int) -> float:
    """The smallest observed difference with p <= alpha where the variance is as assumed, a fraction; NaN if none."""
    components = parts(design, 1e-6)
    if design.test == "mcnemar_exact":
        return smallest_callable(n, design.discordance_at(0.0), alpha=design.level).value
    of_seeds = 2 * (components.seeds + components.cells / n) if design.seeds > 1 else 0.0
    of_problems = max(components.problem - (2 * components.cells if design.seeds > 1 else 0.0), 0.0) / n
    variance = of_problems + of_seeds
    df = variance / (of_problems / (n - 1) + of_seeds / max(2 * (design.seeds - 1), 1))
    found = float(student.ppf(1 - design.level / 2, df)) * math.sqrt(variance)
    return found if found <= 1 else math.nan


def largest_difference(design: Design) -> float:
    """The largest difference that accuracy, discordance and disagreements leave room for."""

    def fits(difference: float) -> bool:
        try:
            return parts(design, difference).problem > 0
        except ConfigError:
            return False

    if not fits(1e-6):
        parts(design, 1e-6)  # says which of the numbers cannot be
    return _bisect(lambda difference: not fits(difference), 1e-6, 1 - design.accuracy + 1e-5) - 1e-5


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _mcnemar_power(discordance: float, difference: float, n: int, level: float) -> float:
    width = TAIL * math.sqrt(n * discordance * (1 - discordance)) + 2
    counts = np.arange(max(0, int(n * discordance - width)), min(n, int(n * discordance + width)) + 1)
    fewest = binom.ppf(level / 2, counts, 0.5)
    fewest = np.where(2 * binom.cdf(fewest, counts, 0.5) <= level, fewest, fewest - 1)
    share = min((discordance + difference) / (2 * discordance), 1.0)
    called = binom.sf(counts - fewest - 1, counts, share)
    return float((binom.pmf(counts, n, discordance) * np.where(fewest >= 0, called, 0.0)).sum())


def _crossed_power(components: Parts, design: Design, difference: float, n: int) -> float:
    rng, num = np.random.default_rng(0), design.seeds
    cells = components.cells / n
    residuals = cells * rng.chisquare((n - 1) * (num - 1), (2, DRAWS)) / ((n - 1) * (num - 1))
    seen = (components.seeds + cells) * rng.chisquare(num - 1, (2, DRAWS)) / (num - 1)
    of_problems = components.problem / n * rng.chisquare(n - 1, DRAWS) / (n - 1)
    of_problems, of_seeds = np.maximum(of_problems - residuals.sum(0), 0.0), seen.sum(0)
    variance = of_problems + of_seeds
    squares = (seen**2).sum(0) / (num - 1)  # seeds that never differ have none, and add nothing
    df = variance / (of_problems / (n - 1) + np.divide(squares, of_seeds, out=np.zeros(DRAWS), where=of_seeds > 0))
    error = math.sqrt(components.problem / n + 2 * components.seeds)
    found = difference + error * rng.standard_normal(DRAWS)
    return float(np.mean(found >= stdtrit(df, 1 - design.level / 2) * np.sqrt(variance)))


def _check(design: Design, difference: float) -> None:
    if not (0 <= design.accuracy <= 1 and 0 < difference <= 1 - design.accuracy + 1e-12):
        raise ConfigError(
            f"accuracy and difference must be fractions with 0 < difference <= 1 - accuracy, received {design.accuracy:g} "
            f"and {difference:g}. Two points are 0.02; accuracy is of the worse arm."
        )
    if min(design.samples, design.seeds, design.comparisons) < 1 or not 0 < design.alpha < 1:
        raise ConfigError(
            f"a design needs samples, seeds and comparisons >= 1 and alpha in (0, 1), received {design.samples}, "
            f"{design.seeds}, {design.comparisons} and {design.alpha:g}."
        )
    if design.samples > 1 and design.sample_disagreement is None:
        raise ConfigError(
            "several samples need sample_disagreement, the share of problems on which two samples of one run differ in "
            "being right: `limbeck compare` on a pilot prints it; 0 is greedy decoding, where samples bring nothing."
        )
    if design.seeds > 1 and design.seed_sd is None:
        raise ConfigError(
            "several seeds need seed_sd, the standard deviation of accuracy over training seeds as a fraction (0.01 is "
            "one point): `limbeck compare` on a pilot of several seeds prints it."
        )
    if design.seeds == 1 and design.seed_sd:
        raise ConfigError(
            f"seed_sd = {design.seed_sd:g} needs seeds >= 2, received 1: a test of one seed an arm speaks of these two "
            "training runs only, however much others would vary."
        )
    _check_discordance(design, difference)


def _check_discordance(design: Design, difference: float) -> None:
    discordance = design.discordance_at(difference)
    both = 2 * design.accuracy + difference
    if not difference <= discordance <= min(both, 2 - both) + 1e-12:
        raise ConfigError(
            f"discordance must lie between the difference, {difference:g}, and what the accuracies allow, "
            f"{min(both, 2 - both):g}, received {discordance:g}."
        )
