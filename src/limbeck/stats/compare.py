"""Score tables of several arms against each other: paired, corrected for their number, with what could be called."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from limbeck.errors import ConfigError, DataError, DegenerateError, ProvenanceError
from limbeck.stats import seeds
from limbeck.stats.intervals import clopper_pearson, mean_of_items
from limbeck.stats.multiplicity import benjamini_hochberg, holm
from limbeck.stats.paired import cells, difference_counts, mcnemar_exact, paired_difference, sign_flip
from limbeck.stats.power import smallest_callable, smallest_callable_given
from limbeck.types import Estimate, Measured, ScoreTable

SHARES = (0.1, 0.2, 0.3)
ONE_SEED = "one seed: no claim about training variance"
TWO_SEEDS = (
    "two seeds beside a single run: where training varies much more than problems do, 95 % intervals cover about 92 % and "
    "tests of 5 % call about 8 % by chance; a third seed mends that"
)

Interval = Literal["wilson", "clopper_pearson"]


def interval_named(name: str) -> Interval:
    """The interval of an accuracy that an option names."""
    if name not in get_args(Interval):
        raise ConfigError(f"interval must be one of {', '.join(get_args(Interval))}, received {name!r}.")
    return "wilson" if name == "wilson" else "clopper_pearson"


class Arm(NamedTuple):
    """One method and the score tables of its training runs, one a seed; the base or a single run is one table."""

    name: str
    tables: tuple[ScoreTable, ...]

    @property
    def outcomes(self) -> Bool[Tensor, "problems samples"]:
        """All runs' samples side by side, seed after seed."""
        return torch.cat([table.correct for table in self.tables], 1)

    @property
    def grid(self) -> seeds.Grid:
        """Share of right samples by problem and seed."""
        return torch.stack([table.correct.double().mean(1) for table in self.tables], 1).numpy()

    @property
    def answers(self) -> seeds.Answers:
        """Whether each answer was right, by problem, sample and seed."""
        return torch.stack([table.correct.double() for table in self.tables], 2).numpy()

    @property
    def samples(self) -> int:
        return self.tables[0].correct.shape[1]


def compare(
    arms: Sequence[ScoreTable | Arm],
    *,
    alpha: float = 0.05,
    seed: int = 0,
    interval: Interval = "wilson",
    mixed_templates: bool = False,
    among: Collection[str] | None = None,
) -> dict[str, Any]:
    """Every arm's accuracy and every pair's difference, as JSON-ready values; NaN never appears, null does.

    Intervals are at level 1 - alpha and one comparison at a time; ``p_holm`` holds for all pairs together.
    ``difference`` is a minus b, a fraction. ``smallest_callable`` is what the test could have called: of each pair at
    its own discordance, and, with one sample a problem and one seed, of the whole set at usual shares of discordant
    problems; ``smallest_callable_holm`` is the same of each pair at Holm's first step, alpha over the number of pairs,
    which the smallest p of all has to pass; null where there is none.

    ====================  ==================  ==================================================
    design of a pair      test                interval of the difference
    ====================  ==================  ==================================================
    one sample, one seed  ``mcnemar_exact``   ``tango``
    several samples       ``sign_flip_exact`` ``item_bootstrap`` (problems resampled)
    several seeds         ``crossed_t``       ``crossed_t`` (:func:`limbeck.stats.seeds.crossed`)
    ====================  ==================  ==================================================

    With several samples or seeds the four cells are expected counts. ``disagreement`` (of samples, of seeds),
    ``seed_sd`` and ``discordance`` are what :mod:`limbeck.stats.planning` asks for; null where one run cannot tell.

    Args:
        arms: one score table an arm, or :class:`Arm` with one a seed; the same problems, grader, decoding, template.
        alpha: level of the tests.
        seed: of the bootstrap over problems (used with several samples a problem only).
        interval: of an accuracy from one sample and seed; with more it is Wilson's at the effective sample size.
        mixed_templates: accept arms that were asked through different prompt templates; the notes say so.
        among: names of the arms whose pairs are tested; all of them by default.

    Raises:
        ConfigError: alpha outside (0, 1), no table, or two of one name.
        ProvenanceError: problems, graders, decodings or templates differ, or an arm names one run twice.
        DegenerateError: tables without scores.
    """
    given = [Arm(arm.name, (arm,)) if isinstance(arm, ScoreTable) else arm for arm in arms]
    check(given, alpha, mixed_templates=mixed_templates)
    first = given[0].tables[0]
    n = len(first.problem_ids)
    both = list(combinations([arm for arm in given if among is None or arm.name in among], 2))
    levels = (alpha, alpha / max(len(both), 1))
    pairs = [_pair(a, b, levels, seed) for a, b in both]
    p_values = [pair["p"] for pair in pairs]
    for pair, p_holm, p_bh in zip(pairs, holm(p_values), benjamini_hochberg(p_values), strict=True):
        pair.update(p_holm=p_holm, p_bh=p_bh)
    single = all(pair["test"] == "mcnemar_exact" for pair in pairs)
    return {
        "problems_digest": first.problems_digest,
        "grader": first.grader,
        "decoding": first.decoding,
        "template_digest": ", ".join(_templates(given)),
        "alpha": alpha,
        "n": n,
        "smallest_callable": [
            {"discordant_share": s, **_callable(smallest_callable(n, s, alpha=alpha))} for s in SHARES if single
        ],
        "notes": _notes(given) + _template_notes(given),
        "arms": [_arm(arm, alpha, interval) for arm in given],
        "pairs": pairs,
    }


def _notes(arms: Sequence[Arm]) -> list[str]:
    single = [arm.name for arm in arms if len(arm.tables) == 1]
    if len(single) == len(arms):
        return [ONE_SEED]
    notes = [f"{', '.join(single)}: {ONE_SEED} (an untrained model has none)"] if single else []
    return notes + ([TWO_SEEDS] if single and any(len(arm.tables) == 2 for arm in arms) else [])


def _templates(arms: Sequence[Arm]) -> list[str]:
    return sorted({table.template_digest for arm in arms for table in arm.tables if table.template_digest})


def _template_notes(arms: Sequence[Arm]) -> list[str]:
    unknown = [arm.name for arm in arms if not all(table.template_digest for table in arm.tables)]
    notes = ["prompt templates differ between arms: a difference may be theirs"] if len(_templates(arms)) > 1 else []
    return notes + ([f"{', '.join(unknown)}: the prompt template is not known"] if unknown else [])


def _arm(arm: Arm, alpha: float, interval: Interval) -> dict[str, Any]:
    outcomes, num_seeds = arm.outcomes, len(arm.tables)
    right, n = int(outcomes.sum()), outcomes.shape[0]
    if num_seeds > 1:
        estimate = seeds.mean_over_seeds(arm.grid, level=1 - alpha)
    elif outcomes.shape[1] == 1 and interval == "clopper_pearson":
        estimate = clopper_pearson(right, n, level=1 - alpha)
    else:
        estimate = mean_of_items(outcomes.double().mean(1).numpy(), level=1 - alpha)
    of_samples, of_seeds = seeds.disagreement(arm.grid, arm.samples)
    told = {"samples": of_samples, "seeds": of_seeds, **seeds.draws(arm.answers)._asdict()}
    return {
        "name": arm.name,
        "correct": right,
        "n": n,
        "samples": arm.samples,
        "seeds": num_seeds,
        **_interval(estimate, "value"),
        "disagreement": {key: _plain(value) for key, value in told.items()},
        "seed_sd": _plain(seeds.seed_sd(arm.grid)),
    }


def _pair(a: Arm, b: Arm, levels: tuple[float, float], seed: int) -> dict[str, Any]:
    x, y = a.outcomes, b.outcomes
    found = cells(x, y)
    single = x.shape[1] == y.shape[1] == 1
    counted = {k: round(v) if single else v for k, v in found._asdict().items()}
    several = max(len(a.tables), len(b.tables)) > 1
    answer = (_over_seeds(a, b, levels) if several else None) or _over_problems(x, y, levels, seed)
    return {
        "a": a.name,
        "b": b.name,
        "n": x.shape[0],
        "seeds": [len(a.tables), len(b.tables)],
        **counted,
        "discordance": (found.a_only + found.b_only) / x.shape[0],
        "draws": _draws(a, b),
        **answer,
    }


def _draws(a: Arm, b: Arm) -> dict[str, float | None] | None:
    """Discordance of answers with the same random numbers, and with others; None of different numbers of samples."""
    if a.samples != b.samples:
        return None
    return {key: _plain(value) for key, value in seeds.draws(a.answers, b.answers)._asdict().items()}


def _over_problems(
    x: Bool[Tensor, "problems a_samples"], y: Bool[Tensor, "rows b_samples"], levels: tuple[float, float], seed: int
) -> dict[str, Any]:
    """Exact tests; what they say holds for these trained models and problems like these."""
    counts, scale = difference_counts(x, y)
    found = cells(x, y)
    p = mcnemar_exact(round(found.a_only), round(found.b_only)) if scale == 1 else sign_flip(counts)
    smallest, smallest_holm = (smallest_callable_given(counts, len(counts) * scale, alpha=level) for level in levels)
    return {
        **_interval(paired_difference(x, y, seed=seed, level=1 - levels[0]), "difference"),
        "test": "mcnemar_exact" if scale == 1 else "sign_flip_exact",
        "p": p,
        "smallest_callable": _callable(smallest)["difference"],
        "smallest_callable_holm": _callable(smallest_holm)["difference"],
    }


def _over_seeds(a: Arm, b: Arm, levels: tuple[float, float]) -> dict[str, Any] | None:
    """What holds for new training runs as well; None where the grids do not vary, so that nothing can be estimated."""
    n = a.grid.shape[0]
    found = seeds.crossed(a.grid, b.grid) if n > 1 else None
    if found is None or found.variance == 0:
        return None
    smallest, smallest_holm = (seeds.smallest_over_seeds(found, alpha=level) for level in levels)
    return {
        **_interval(seeds.difference_over_seeds(found, n, level=1 - levels[0]), "difference"),
        "test": "crossed_t",
        "p": seeds.p_over_seeds(found),
        "smallest_callable": _plain(smallest if smallest <= 1 else math.nan),
        "smallest_callable_holm": _plain(smallest_holm if smallest_holm <= 1 else math.nan),
    }


def _interval(estimate: Estimate, name: str) -> dict[str, Any]:
    numbers = {name: estimate.value, "low": estimate.low, "high": estimate.high}
    clean = {key: None if math.isnan(x) else x for key, x in numbers.items()}
    return {**clean, "method": estimate.method, "reason": estimate.reason}


def _callable(measured: Measured) -> dict[str, Any]:
    return {"difference": None if math.isnan(measured.value) else measured.value, "reason": measured.reason}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def check(arms: Sequence[Arm], alpha: float = 0.05, *, mixed_templates: bool = False) -> None:
    """Refuse what cannot be compared; see :func:`compare`."""
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must lie in (0, 1), received {alpha}. 0.05 is customary.")
    names = [arm.name for arm in arms]
    if not arms or len(set(names)) < len(names):
        raise ConfigError(f"compare needs score tables of distinct names, received {names}. Rename one of them.")
    for arm in arms:
        _check_arm(arm)
    first = arms[0].tables[0]
    for arm in arms:
        for table in arm.tables:
            _same_problems(arms[0].name, first, arm.name, table)
            for name in ("grader", "decoding", *(() if mixed_templates else ("template_digest",))):
                _same(arms[0].name, first, arm.name, table, name)


def _check_arm(arm: Arm) -> None:
    if not arm.tables:
        raise ConfigError(f'arm "{arm.name}" needs a score table for each of its seeds, received none.')
    for table in arm.tables:
        if not table.scores:
            raise DegenerateError(f'arm "{arm.name}" needs at least one score, received none. Evaluate it first.')
        if len({(s.problem_id, s.sample) for s in table.scores}) < len(table.scores):
            raise DataError(f'arm "{arm.name}" must have each sample once, received duplicates. Evaluate it again.')
    samples = {table.correct.shape[1] for table in arm.tables}
    if len(samples) > 1:
        raise DataError(
            f'the seeds of arm "{arm.name}" must have the same number of samples a problem, received {sorted(samples)}. '
            "Evaluate the missing samples."
        )
    weights = [t.model_digest if t.adapter_digest == "none" else t.adapter_digest for t in arm.tables]
    known = [digest for digest in weights if digest]
    if len(set(known)) < len(known):
        raise ProvenanceError(
            f'the seeds of arm "{arm.name}" must be different training runs, received one twice. Samples of '
            "one run belong into one table: evaluate it with more samples a problem."
        )


def _same_problems(name: str, first: ScoreTable, other: str, table: ScoreTable) -> None:
    if table.problems_digest == first.problems_digest and table.problem_ids == first.problem_ids:
        return
    lone = sorted(set(first.problem_ids) ^ set(table.problem_ids))
    detail = f"{len(lone)} ids in one only, such as {lone[0]!r}" if lone else "other prompts or answers"
    raise ProvenanceError(
        f'arms "{name}" and "{other}" must be scored on the same problems, received digests '
        f"{first.problems_digest[:8]} and {table.problems_digest[:8]} ({detail}). Evaluate both on one problem set."
    )


def _same(name: str, first: ScoreTable, other: str, table: ScoreTable, what: str) -> None:
    """An empty template digest is unknown, not different."""
    ours, theirs = getattr(first, what), getattr(table, what)
    if ours != theirs and (what != "template_digest" or (ours and theirs)):
        raise ProvenanceError(
            f'arms "{name}" and "{other}" must share one {what}, received {ours!r} and {theirs!r}. '
            "Evaluate one of them again with the other's settings."
        )
