"""Places held against each other: which ones, and the numbers by hand."""

from __future__ import annotations

import pytest
import torch

from limbeck.stats.compare import Arm, compare
from limbeck.studies.config import StudyConfig
from limbeck.studies.contrasts import contrasts
from limbeck.types import Finish, Score, ScoreTable

# share right and KL of every place; "late" keeps steps 2 and 4, rises and falls, "stage-2" is taught by it
PLACES = {
    ("late", 2): (0.55, 0.15), ("late", 4): (0.70, 0.40), ("late", None): (0.45, 2.0), ("held", 4): (0.60, 0.10),
    ("held", None): (0.62, 0.20), ("stage-2", None): (0.68, 0.05), ("grpo", None): (0.66, 0.02),
}  # fmt: skip
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def found() -> tuple[dict, dict]:
    arms = [
        {"name": "late", "train": {"num_steps": 8, "keep": [4]}},
        {"name": "held", "train": {"num_steps": 8, "keep": [4]}},
        {"name": "grpo"},
        {"name": "stage-2", "train": {"objective": "erpd_clip"}, "signal": {"teachers": ["late"]}},
    ]
    config = StudyConfig.model_validate(
        {"name": "x", "question": "?", "student": "abacus:base", "arms": arms, "kl": {"pairs": [["held", "late"]]}}
    )
    tables = {"base": table("base", 0.5, 0)}
    points = [point("base", "base", None, None, 0.5, 0.0)]
    for (arm, step), (share, kl) in PLACES.items():
        for seed in SEEDS:
            name = f"{arm}-s{seed}" + (f"@{step}" if step else "")
            tables[name] = table(name, share, seed)
            points.append(point(name, arm, seed, step, float(tables[name].correct.double().mean()), kl * 2.0**seed))
    return contrasts(config, points, tables.__getitem__), tables


def table(name: str, share: float, seed: int) -> ScoreTable:
    drawn = torch.rand(200, 4, generator=torch.Generator().manual_seed(seed))
    scores = tuple(
        Score(problem_id=f"p{i:03d}", sample=s, correct=bool(drawn[i, s] < share - 0.01 * seed), answer="1",
              finish=Finish.STOP, extracted="1", response_tokens=3)
        for i in range(200) for s in range(4)
    )  # fmt: skip
    return ScoreTable(name=name, scores=scores, problems_digest="aa", grader="g", decoding="T=1")


def point(name: str, arm: str, seed: int | None, step: int | None, share: float, kl: float) -> dict:
    record = {
        "direction": "student_reference",
        "estimator": "exact",
        "unit": "nats/token",
        "value": kl,
        "low": kl,
        "high": kl,
    }
    record |= {"level": 0.95, "method": "m", "n": 50, "reason": ""}
    accuracy = {"value": share}
    return {
        "name": name,
        "arm": arm,
        "seed": seed,
        "step": step,
        "steps": step or 8,
        "accuracy": accuracy,
        "records": [record],
    }


def test_rise_and_fall_are_paired_over_problems_and_seeds(found):
    rows, tables = {(row["arm"], row["step"]): row for row in found[0]["rise"]}, found[1]
    assert set(rows) == {("late", 2), ("late", 4), ("late", None), ("held", 4), ("held", None)}
    arms = [Arm(n, tuple(tables[f"late-s{s}{at}"] for s in SEEDS)) for n, at in (("end", ""), ("peak", "@4"))]
    (pair,) = compare(arms)["pairs"]
    fall = rows["late", 4]["to_end"]
    assert (fall["difference"], fall["low"], fall["high"], fall["p"]) == tuple(
        pair[k] for k in ("difference", "low", "high", "p")
    )
    assert fall["high"] < 0 < rows["late", 4]["over_base"]["low"]
    assert fall["p_holm"] == pytest.approx(min(1.0, 3 * fall["p"]))  # of three falls the clearest one
    assert rows["late", None]["to_end"] is None


def test_kl_is_compared_where_the_other_is_at_least_as_accurate_and_nearest(found):
    rows = {row["a"].partition("@")[0]: row for row in found[0]["equal"]}
    assert (rows["late"]["a"], rows["late"]["reached"]) == ("late@4", True)
    assert rows["late"]["factor"]["value"] == pytest.approx(0.40 / 0.05)
    assert rows["late"]["difference"]["difference"] > 0
    assert (rows["held"]["a"], rows["held"]["reached"]) == ("held", False)  # its most accurate one stands in
    assert rows["held"]["difference"]["difference"] < 0
    assert rows["grpo"]["factor"]["value"] == pytest.approx(0.02 / 0.05)


def test_a_pair_is_held_at_its_best_and_at_no_more_kl(found):
    best, near = found[0]["beside"]
    assert (best["a"], best["b"], best["which"]) == ("held", "late@4", "best of both")
    assert best["factor"]["value"] == pytest.approx(0.20 / 0.40)
    assert best["difference"]["high"] < 0
    assert (near["a"], near["b"], near["which"]) == ("held", "late@2", "at no more KL")
    assert near["difference"]["low"] > 0
