"""Whether the shares of a factorial's variance are what they say: bias, coverage and calls, by both errors.

    python benchmarks/variance_shares.py

Every study has 4 x 3 x 3 cells at five seeds, as the packaged `factorial`, and is drawn anew: the effects, each seed's luck and
each run's own. Where cells err alike, all that share a loss and a seed share most of what they were dealt, as
runs do that learn from the same rows in the same order. The share in infinitely many seeds is known in closed form.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.progress import bar
from limbeck.stats.factorial import ERRORS, split

RESULT = Path(__file__).parent / "results" / "variance_shares.json"
FACTORS = {"loss": 4, "optimizer": 3, "schedule": 3}
SEEDS, LEVEL = 5, 0.95
SHARED, SEED = {"alone": (0.0, 1.0, 0.4), "alike": (0.95, 0.3, 0.4)}, 20261128  # with its loss, alone, with its seed
SIZES = {"none": (0.0, 0.0, 0.0), "some": (0.6, 0.3, 0.15), "much": (1.5, 0.6, 0.05)}  # of the three factors' effects
CELLS = [(*cell, seed) for cell in product(*map(range, FACTORS.values())) for seed in range(SEEDS)]
LEVELS = {name: [str(cell[place]) for cell in CELLS] for place, name in enumerate(FACTORS)}


def study(rng: np.random.Generator, dims: int, size: str, errs: str) -> tuple[np.ndarray, dict[str, float]]:
    """Inner products of all responses, and the true share of every factor."""
    effects = []
    for scale, levels in zip(SIZES[size], FACTORS.values(), strict=True):
        drawn = rng.normal(0, 1, (levels, dims))
        drawn -= drawn.mean(0)
        effects.append(scale * drawn / max(np.sqrt((drawn**2).mean()), 1e-12))  # of exactly that size
    alike, alone, luck = SHARED[errs]
    rows = rng.normal(0, alike, (FACTORS["loss"], SEEDS, dims))
    seeds = rng.normal(0, luck, (SEEDS, dims))
    y = np.array(
        [
            sum(effect[level] for effect, level in zip(effects, cell, strict=False))
            + rows[cell[0], cell[-1]]
            + seeds[cell[-1]]
            for cell in CELLS
        ]
    )
    y += rng.normal(0, alone, y.shape)
    total = sum(scale**2 for scale in SIZES[size]) + alike**2 + alone**2 + luck**2
    truth = {name: scale**2 / total for name, scale in zip(FACTORS, SIZES[size], strict=True)}
    return y @ y.T, truth


def settings() -> Iterator[dict[str, Any]]:
    for errs, dims, size in product(SHARED, (1, 30), SIZES):
        yield {"errs": errs, "dims": dims, "size": size}


def measure(setting: dict[str, Any], studies: int, draws: int) -> list[dict[str, Any]]:
    """A row a factor and error: bias of its share in points, how often its interval has the truth, how often it is called."""
    rng = np.random.default_rng(SEED)
    found: dict[tuple[str, str], list[tuple[float, bool, bool]]] = {}
    truth: dict[str, float] = {}
    for number in range(studies):
        inner, truth = study(rng, **setting)
        for error in ERRORS:
            for share in split(inner, LEVELS, [cell[-1] for cell in CELLS], error=error, draws=draws, seed=number):
                if share.term in FACTORS:
                    held = share.low <= truth[share.term] <= share.high
                    off = share.unbiased - truth[share.term]
                    found.setdefault((share.term, error), []).append((off, held, share.p <= 1 - LEVEL))
    return [
        {
            **setting, "term": term, "error": error, "truth": truth[term], "bias": float(np.mean([off for off, _, _ in rows])),
            "coverage": float(np.mean([held for _, held, _ in rows])), "called": float(np.mean([p for _, _, p in rows])),
        }
        for (term, error), rows in found.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200, help="of each kind")
    parser.add_argument("--draws", type=int, default=79, help="permutations, one less than a multiple of 20")
    args = parser.parse_args()
    kinds, rows = list(settings()), []
    with bar("shares", len(kinds)) as advance:
        for setting in kinds:
            rows += measure(setting, args.studies, args.draws)
            advance(1)
    host = {"machine": platform.machine(), "python": platform.python_version(), "date": str(datetime.date.today())}
    given = {"studies": args.studies, "draws": args.draws, "level": LEVEL}
    RESULT.write_text(json.dumps({"host": host, **given, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print("| cells err | dims | effects | term | error | true share, % | off by, points | covered, % | called, % |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        numbers = (f"{100 * row[key]:.1f}" for key in ("truth", "bias", "coverage", "called"))
        print("|", " | ".join((row["errs"], str(row["dims"]), row["size"], row["term"], row["error"], *numbers)), "|")


if __name__ == "__main__":
    main()
