"""Whether intervals hold what they promise: coverage, size and power over synthetic studies whose truth is known.

    python benchmarks/coverage.py

Every study is drawn anew: problems with their difficulty, arms with their strengths, training seeds with their luck,
samples with their chance. A problem's chance of a right answer is Phi(mean + problem + arm + seed + cell), all normal, so
that the true accuracy over new problems and new seeds is known in closed form. 2,000 studies make a standard error of 0.5
points at 95 %. What is called are limbeck's own functions; "peer" is the interval that is commonly printed instead.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from scipy.stats import t as student

from limbeck.progress import bar
from limbeck.stats import intervals, paired, planning, seeds
from limbeck.types import Estimate

COMMAND = "python benchmarks/coverage.py"
RESULT = Path(__file__).parent / "results" / "coverage.json"
STUDIES, SIZES, LEVEL = 2000, (30, 500, 1319), 0.95
DRAWS, PEER_DRAWS = 2000, 200  # resamples; limbeck compare takes 10,000
COVERS, ABOVE, SIZE = "0.93 to 0.97", "at least 0.95", "at most 0.05"
ONE_SHARE = "none: one share of few whole counts"  # its coverage jumps with the share; the drawn shares have the goal

Bounds = tuple[float, float]


class World(NamedTuple):
    """What studies are drawn from; standard deviations of ``Phi``'s argument, except ``seed_sd``, which is of accuracy.

    ``drawn`` worlds have no accuracy of their own: see :func:`settle`.
    """

    n: int
    accuracy: float = 0.6
    difference: float = 0.0
    samples: int = 1
    seeds: tuple[int, int] = (1, 1)
    seed_sd: float = 0.0
    problem_sd: float = 1.5
    arm_sd: float = 0.5
    drawn: bool = False

    def text(self) -> str:
        parts = [f"n = {self.n}", "accuracy drawn" if self.drawn else f"accuracy {self.accuracy:g}"]
        parts += [f"difference {self.difference:g}"] if self.difference and not self.drawn else []
        parts += [f"{self.samples} samples"] if self.samples > 1 else []
        parts += [f"seeds {self.seeds[0]} and {self.seeds[1]}"] if max(self.seeds) > 1 else []
        parts += [f"seed sd {100 * self.seed_sd:g} points"] if max(self.seeds) > 1 else []
        parts += ["arms alike on every problem"] if not self.arm_sd else []
        return ", ".join(parts)


def settle(world: World, rng: np.random.Generator) -> World:
    """A drawn world's accuracy in this study: uniform in (0, 1); the better arm's is up to 0.1 above, uniformly."""
    if not world.drawn:
        return world
    accuracy = rng.uniform()
    return world._replace(accuracy=accuracy, difference=rng.uniform() * min(0.1, 1 - accuracy))


def draw(world: World, rng: np.random.Generator) -> list[np.ndarray]:
    """Right or wrong of two arms, each (problems, seeds, samples); the first is better by ``difference``."""
    cell_sd = 0.5 if max(world.seeds) > 1 else 0.0
    problem = rng.normal(0, world.problem_sd, (world.n, 1))
    arms = []
    for accuracy, num in zip((world.accuracy + world.difference, world.accuracy), world.seeds, strict=True):
        rest = 1 + world.problem_sd**2 + world.arm_sd**2 + cell_sd**2
        steep = norm.pdf(norm.ppf(accuracy)) / math.sqrt(rest)  # accuracy gained for one unit more of the argument
        seed_sd = world.seed_sd / steep if num > 1 else 0.0  # one run stands for a model that is not trained
        mean = norm.ppf(accuracy) * math.sqrt(rest + seed_sd**2)
        argument = (
            mean + problem + rng.normal(0, world.arm_sd, (world.n, 1)) + rng.normal(0, seed_sd, (1, num))
            + rng.normal(0, cell_sd, (world.n, num))
        )  # fmt: skip
        arms.append(rng.random((world.n, num, world.samples)) < norm.cdf(argument)[..., None])
    return arms


def grid(outcomes: np.ndarray) -> np.ndarray:
    return outcomes.mean(2)


def tensors(arms: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(arm.reshape(len(arm), -1)) for arm in arms]


def bounds(estimate: Estimate) -> Bounds:
    return estimate.low, estimate.high


# One function an estimator: arms and a seed in, an interval out.


@cache
def _wilson(right: int, n: int) -> Bounds:
    return bounds(intervals.wilson(right, n))


@cache
def _clopper_pearson(right: int, n: int) -> Bounds:
    return bounds(intervals.clopper_pearson(right, n))


@cache
def _tango(up: int, down: int, n: int) -> Bounds:
    return bounds(paired.tango(up, down, n))


def wilson(arms: list[np.ndarray], seed: int) -> Bounds:
    return _wilson(int(arms[1].sum()), len(arms[1]))


def clopper_pearson(arms: list[np.ndarray], seed: int) -> Bounds:
    return _clopper_pearson(int(arms[1].sum()), len(arms[1]))


def wilson_effective(arms: list[np.ndarray], seed: int) -> Bounds:
    return bounds(intervals.mean_of_items(grid(arms[1]).mean(1)))


def crossed_wilson(arms: list[np.ndarray], seed: int) -> Bounds:
    return bounds(seeds.mean_over_seeds(grid(arms[1])))


def tango(arms: list[np.ndarray], seed: int) -> Bounds:
    a, b = (arm[:, 0, 0] for arm in arms)
    return _tango(int((a & ~b).sum()), int((b & ~a).sum()), len(a))


def item_bootstrap(arms: list[np.ndarray], seed: int) -> Bounds:
    a, b = tensors(arms)
    return bounds(paired.paired_difference(a, b, seed=seed, draws=DRAWS))


def crossed_t(arms: list[np.ndarray], seed: int) -> Bounds:
    found = seeds.crossed(grid(arms[0]), grid(arms[1]))
    return bounds(seeds.difference_over_seeds(found, len(arms[0])))


# What is commonly printed instead.


def samples_as_problems(arms: list[np.ndarray], seed: int) -> Bounds:
    return _wilson(int(arms[1].sum()), arms[1].size)


def unpaired(arms: list[np.ndarray], seed: int) -> Bounds:
    means = [arm.mean() for arm in arms]
    half = norm.ppf((1 + LEVEL) / 2) * math.sqrt(sum(m * (1 - m) / len(arms[0]) for m in means))
    return means[0] - means[1] - half, means[0] - means[1] + half


def percentile_bootstrap(arms: list[np.ndarray], seed: int) -> Bounds:
    items = grid(arms[0]).mean(1) - grid(arms[1]).mean(1)
    means, _ = intervals.bootstrap_moments(items, rng=np.random.default_rng(seed), draws=DRAWS)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def problems_only(arms: list[np.ndarray], seed: int) -> Bounds:
    items = grid(arms[0]).mean(1) - grid(arms[1]).mean(1)
    return _t(items)


def one_arm_problems_only(arms: list[np.ndarray], seed: int) -> Bounds:
    return _t(grid(arms[1]).mean(1))


def _t(items: np.ndarray) -> Bounds:
    half = student.ppf((1 + LEVEL) / 2, len(items) - 1) * items.std(ddof=1) / math.sqrt(len(items))
    return items.mean() - half, items.mean() + half


def both_resampled(arms: list[np.ndarray], seed: int) -> Bounds:
    """Problems resampled for both arms together, seeds within each arm; percentiles."""
    rng, n = np.random.default_rng(seed), len(arms[0])
    problems = rng.multinomial(n, np.full(n, 1 / n), size=PEER_DRAWS) / n
    means = []
    for arm in arms:
        num = arm.shape[1]
        drawn = rng.multinomial(num, np.full(num, 1 / num), size=PEER_DRAWS) / num
        means.append(((problems @ grid(arm)) * drawn).sum(1))
    low, high = np.quantile(means[0] - means[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


# Tests: arms in, p out.


def mcnemar(arms: list[np.ndarray], seed: int) -> float:
    a, b = (arm[:, 0, 0] for arm in arms)
    return paired.mcnemar_exact(int((a & ~b).sum()), int((b & ~a).sum()))


def sign_flip(arms: list[np.ndarray], seed: int) -> float:
    return paired.sign_flip(paired.difference_counts(*tensors(arms))[0])


def crossed_p(arms: list[np.ndarray], seed: int) -> float:
    return seeds.p_over_seeds(seeds.crossed(grid(arms[0]), grid(arms[1])))


def independent_z(arms: list[np.ndarray], seed: int) -> float:
    """Two proportions of independent answers: neither paired nor clustered."""
    means = [arm.mean() for arm in arms]
    error = math.sqrt(sum(m * (1 - m) / arm.size for m, arm in zip(means, arms, strict=True)))
    return float(2 * norm.sf(abs(means[0] - means[1]) / error)) if error else 1.0


Interval = Callable[[list[np.ndarray], int], Bounds]
Test = Callable[[list[np.ndarray], int], float]


class Row(NamedTuple):
    """One line: what is repeated over studies, the peer on the same studies, and what is promised."""

    name: str
    world: World
    ours: Interval | Test
    peer: Interval | Test | None
    peer_name: str
    goal: str
    kind: str = "coverage"  # or "size", "power"
    of_difference: bool = True


def rows() -> Iterator[Row]:
    for n in SIZES:
        yield from accuracies(n)
        yield from differences(n)
        yield from trained(n)
        yield from sizes(n)
    yield from powers()


def accuracies(n: int) -> Iterator[Row]:
    yield Row("wilson", World(n, drawn=True), wilson, None, "", COVERS, of_difference=False)
    for accuracy in (0.6, 0.9):
        one = World(n, accuracy)
        yield Row("wilson", one, wilson, None, "", COVERS if n > 30 else ONE_SHARE, of_difference=False)
        yield Row("clopper_pearson", one, clopper_pearson, None, "", ABOVE, of_difference=False)
    for accuracy, samples in ((0.6, 4), (0.9, 4), (0.6, 16)):
        peer = (samples_as_problems, "Wilson, samples taken for problems")
        yield Row(
            "wilson_effective",
            World(n, accuracy, samples=samples),
            wilson_effective,
            *peer,
            COVERS,
            of_difference=False,
        )
    for sd in (0.0, 0.01, 0.03):
        peer = (one_arm_problems_only, "t over problems, seeds ignored")
        world = World(n, seeds=(3, 3), seed_sd=sd)
        yield Row("crossed_wilson", world, crossed_wilson, *peer, COVERS, of_difference=False)


def differences(n: int) -> Iterator[Row]:
    yield Row("tango", World(n, drawn=True), tango, unpaired, "unpaired normal", COVERS)
    for accuracy, gap in ((0.6, 0.0), (0.6, 0.06), (0.9, 0.04)):
        goal = COVERS if n > 30 else ONE_SHARE
        yield Row("tango", World(n, accuracy, gap), tango, unpaired, "unpaired normal", goal)
    for accuracy, gap, samples in ((0.6, 0.0, 4), (0.6, 0.06, 4), (0.9, 0.04, 4), (0.6, 0.06, 16)):
        world = World(n, accuracy, gap, samples)
        yield Row(
            "item_bootstrap", world, item_bootstrap, percentile_bootstrap, "percentile bootstrap of problems", COVERS
        )


def trained(n: int) -> Iterator[Row]:
    for num in ((2, 2), (3, 3), (5, 5), (3, 1), (2, 1)):
        for sd in (0.0, 0.01, 0.03):
            world = World(n, difference=0.05, samples=2, seeds=num, seed_sd=sd)
            peer = (
                (both_resampled, "problems and seeds resampled") if num == (3, 3) else (problems_only, "seeds ignored")
            )
            yield Row("crossed_t", world, crossed_t, *peer, COVERS)


def sizes(n: int) -> Iterator[Row]:
    for arm_sd in (0.0, 0.5):
        yield Row("mcnemar_exact", World(n, arm_sd=arm_sd), mcnemar, independent_z, "unpaired z", SIZE, "size")
        world = World(n, samples=4, arm_sd=arm_sd)
        yield Row("sign_flip_exact", world, sign_flip, independent_z, "z of independent samples", SIZE, "size")
    for num in (2, 3, 5):
        world = World(n, samples=2, seeds=(num, num), seed_sd=0.01)
        yield Row("crossed_t", world, crossed_p, sign_flip, "sign flip, seeds ignored", SIZE, "size")
    world = World(n, samples=2, seeds=(3, 3), seed_sd=0.01, arm_sd=0.0)
    yield Row("crossed_t", world, crossed_p, sign_flip, "sign flip, seeds ignored", SIZE, "size")


def powers() -> Iterator[Row]:
    """Planned from what a large pilot of the same world measures."""
    tests: dict[str, Test] = {"mcnemar_exact": mcnemar, "sign_flip_exact": sign_flip, "crossed_t": crossed_p}
    for world in (
        World(500, difference=0.06), World(500, difference=0.06, samples=4), World(30, difference=0.15, samples=16),
        World(1319, difference=0.03, seeds=(3, 3), seed_sd=0.005), World(1319, difference=0.03, seeds=(5, 5), seed_sd=0.01),
        World(500, difference=0.08, samples=4, seeds=(2, 2), seed_sd=0.01),
    ):  # fmt: skip
        design = piloted(world)
        planned = planning.power(design, world.difference, world.n)
        yield Row(design.test, world, tests[design.test], None, "", f"{planned:.3f} as planned, +- 0.03", "power")


def piloted(world: World) -> planning.Design:
    a, b = draw(world._replace(n=200_000), np.random.default_rng(1))
    shares = [grid(arm) for arm in (a, b)]
    several = max(world.seeds) > 1
    told = [seeds.disagreement(share, world.samples) for share in shares]
    p, q = (share.mean(1) for share in shares)
    return planning.Design(
        accuracy=world.accuracy, discordance=float((p * (1 - q) + q * (1 - p)).mean()),
        samples=world.samples, seeds=world.seeds[0],
        sample_disagreement=float(np.mean([x[0] for x in told])) if world.samples > 1 else None,
        seed_disagreement=float(np.mean([x[1] for x in told])) if several else None,
        seed_sd=world.seed_sd if several else None,
    )  # fmt: skip


def repeat(row: Row, studies: int, advance: Callable[[float], None]) -> tuple[float, float | None]:
    """The share of studies in which ours, and the peer's, covered the truth or called a difference."""
    rng = np.random.default_rng([row.world.n, *row.name.encode()])
    ours, theirs = 0, 0
    for study in range(studies):
        world = settle(row.world, rng)
        truth = world.difference if row.of_difference else world.accuracy
        arms = draw(world, rng)
        ours += _hit(row, row.ours(arms, study), truth)
        theirs += _hit(row, row.peer(arms, study), truth) if row.peer else 0
        advance(1)
    return ours / studies, theirs / studies if row.peer else None


def _hit(row: Row, found: Bounds | float, truth: float) -> bool:
    if isinstance(found, tuple):
        return found[0] <= truth <= found[1]
    return found <= 1 - LEVEL


def run(studies: int, only: str = "") -> list[dict[str, object]]:
    out, planned = [], [row for row in rows() if only in row.name]
    with bar("studies", len(planned) * studies) as advance:
        for row in planned:
            ours, theirs = repeat(row, studies, advance)
            out.append(_line(row, ours, theirs))
    return out


def _line(row: Row, ours: float, theirs: float | None) -> dict[str, object]:
    """``ratio`` is how much further the peer is from what is promised; our own distance counts as 0.005 at least."""
    nominal = 1 - LEVEL if row.kind == "size" else LEVEL
    ratio = None if theirs is None else abs(theirs - nominal) / max(abs(ours - nominal), 0.005)
    return {
        "what": f"{row.kind}: {row.name}, {row.world.text()}",
        "ours": ours,
        "theirs": theirs,
        "peer": row.peer_name,
        "ratio": ratio,
        "goal": row.goal,
        "unit": "share of studies",
        "command": COMMAND,
        "machine": f"{platform.machine()}, 1 thread, numpy {np.__version__}",
        "date": datetime.date.today().isoformat(),
    }


def merged(found: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows found now, those not asked for as they were, in the order of :func:`rows`; every row has draws of its own."""
    kept = {line["what"]: line for line in json.loads(RESULT.read_text())} if RESULT.exists() else {}
    kept |= {line["what"]: line for line in found}
    names = [f"{row.kind}: {row.name}, {row.world.text()}" for row in rows()]
    return [kept[name] for name in names if name in kept]


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=STUDIES, help="fewer for a quick look, which is not written")
    parser.add_argument("--only", default="", help="rows whose estimator has this in its name; the others stay")
    arguments = parser.parse_args()
    found = run(arguments.studies, arguments.only)
    for line in found:
        theirs = "      " if line["theirs"] is None else f"{line['theirs']:.4f}"
        print(f"{line['ours']:.4f} {theirs} {line['goal']:<28} {line['what']}  {line['peer']}")
    if arguments.studies == STUDIES:
        RESULT.write_text(json.dumps(merged(found), indent=2) + "\n")


if __name__ == "__main__":
    main()
