"""A results folder as a study writes it: real statistics and real geometry over made-up runs.

Eight runs on 4 layers x 4 modules. SFT, RFT and RIFT share most of their update, DPO little of it and less length;
a second seed of SFT is the null. Answers are drawn per problem so that arms agree on most of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.geometry.suite import measure
from limbeck.geometry.table import write_measurements
from limbeck.records import write_json
from limbeck.stats.compare import compare
from limbeck.types import Delta, Estimate, Finish, LowRank, Measurement, Null, Score, ScoreTable

EVIL = (
    '</script><script>window.owned = 1</script><img src=x onerror="window.owned=1"> {{ 7*7 }} \'"\u2028 &amp; <b>%{x}'
)
ARMS = {  # name: (label, role, objective, share of the common update, length, chance to be right)
    "sft": ("SFT", "method", "sft", 0.98, 1.0, 0.52),
    "rft": ("RFT", "method", "sft", 0.96, 0.98, 0.55),
    "dft": ("DFT", "method", "dft", 0.75, 0.6, 0.54),
    "rift": ("RIFT", "method", "rift:source", 0.94, 1.05, 0.53),
    "offline_grpo": ("Offline GRPO", "method", "offline_grpo:advantage-nll", 0.8, 0.9, 0.60),
    "dpo": ("DPO", "method", "dpo", 0.15, 0.12, 0.47),
    "dpo_norm": ("DPO at SFT's norm", "control", "dpo", 0.2, 1.0, 0.49),
}
RUNS = [*((f"{arm}-s0", arm, 0) for arm in ARMS), ("sft-s1", "sft", 1)]
LAYERS, KINDS, WIDTH, RANK, PROBLEMS = 4, ("q_proj", "k_proj", "v_proj", "o_proj"), 64, 16, 240


@pytest.fixture(scope="session")
def write_results() -> Callable[[Path], Path]:
    return write


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("results"))


def write(folder: Path) -> Path:
    """Every file of a study into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    tables = score_tables(rng)
    comparison = compare([t for t in tables if t.name != "sft-s1"])
    rows = [*measure(deltas(rng), ks=(1, 10), draws=20), *states(rng)]
    write_measurements(folder / "measurements.parquet", rows)
    for name, value in {
        "study": study(), "arms": runs(rows), "comparison": comparison, "paths": paths(rng), "training": training(rng),
        "rollouts": rollouts(), "samples": samples(tables), "provenance": provenance(),
    }.items():  # fmt: skip
        write_json(folder / f"{name}.json", value)
    return folder


def study() -> dict[str, Any]:
    arms = [
        {"name": name, "label": label, "role": role, "objective": objective, "note": ""}
        for name, (label, role, objective, *_) in ARMS.items()
    ]
    return {
        "name": "abacus-six", "question": "Do six losses on identical rollouts make six different students?",
        "seeds": [0, 1], "student": "abacus base, Qwen3, 0.4 M weights", "teacher": "abacus teacher", "arms": arms,
        "reference_arm": "sft", "config": {"train": {"lora": {"rank": RANK, "alpha": 32}}, "note": EVIL},
    }  # fmt: skip


def runs(rows: list[Measurement]) -> list[dict[str, Any]]:
    norms = {r.arm: r.value for r in rows if r.metric == "frobenius_norm" and r.aggregation == "stacked" and not r.kind}
    return [
        {
            "run": run, "arm": arm, "seed": seed, "init_seed": 0, "objective": ARMS[arm][2], "normalizer": "token",
            "credit": "center" if "grpo" in arm else "", "selection": "correct" if arm == "rft" else "all",
            "learning_rate": 5e-5 if arm == "dpo" else 5e-4, "items": 300 if "dpo" in arm else 1600, "rows": 1600,
            "right_share": 1.0 if arm == "rft" else 0.71, "steps": 400, "epochs": 8.5 if "dpo" in arm else 1.6,
            "update_norm": norms[run], "rollouts_digest": "3f9a" * 16, "init_digest": "aa" * 32,
            "adapter_digest": f"{index:02d}" * 32, "seconds": 41.5 + index, "stop_norm": None,
            "pair_rule": "first right, first wrong" if "dpo" in arm else "", "final_nll": 0.31 + 0.02 * index,
            "role": ARMS[arm][1], "knobs": {"beta": 0.1} if "dpo" in arm else {},
        }
        for index, (run, arm, seed) in enumerate(RUNS)
    ]  # fmt: skip


def score_tables(rng: np.random.Generator) -> list[ScoreTable]:
    ease = rng.normal(size=PROBLEMS)
    chances = {"base": 0.44, "teacher": 0.93, **{run: ARMS[arm][5] for run, arm, _ in RUNS}}
    tables = []
    for name, chance in chances.items():
        own = 0.8 * ease + 0.6 * rng.normal(size=PROBLEMS)
        right = own > np.quantile(own, 1 - chance)
        scores = tuple(
            Score(problem_id=f"p{i:04d}", sample=0, correct=bool(right[i]), answer=str(10 + i), finish=Finish.STOP,
                  extracted=str(10 + i if right[i] else 11 + i), response_tokens=60)
            for i in range(PROBLEMS)
        )  # fmt: skip
        tables.append(
            ScoreTable(
                name=name, scores=scores, problems_digest="be" * 32, grader="integer-1", decoding="greedy, 96 tokens"
            )
        )
    return tables


def deltas(rng: np.random.Generator) -> list[Delta]:
    names = [f"model.layers.{layer}.self_attn.{kind}" for layer in range(LAYERS) for kind in KINDS]
    decay = 0.8 ** np.arange(RANK)
    start = {name: rng.normal(size=(RANK, WIDTH)) for name in names}
    common = {name: rng.normal(size=(WIDTH, RANK)) * decay for name in names}
    out = []
    for run, arm, seed in RUNS:
        share, length = (0.45 if seed else ARMS[arm][3]), ARMS[arm][4]
        modules = {}
        for name in names:
            own = rng.normal(size=(WIDTH, RANK)) * decay
            left = 0.01 * length * (share * common[name] + math.sqrt(1 - share**2) * own)
            right = start[name] + 0.02 * length * rng.normal(size=(RANK, WIDTH))
            modules[name] = LowRank(torch.tensor(left, dtype=torch.float32), torch.tensor(right, dtype=torch.float32))
        out.append(Delta(name=run, base="base", init_digest="aa", modules=modules))
    return out


def states(rng: np.random.Generator) -> list[Measurement]:
    names = [run for run, *_ in RUNS]
    pairs = [(a, "base") for a in names] + [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    rows = []
    for arm, other in pairs:
        depth = 0.35 * rng.random() * (0.2 if arm == "dpo-s0" and other == "base" else 1)
        for layer in range(LAYERS + 1):
            null = Null(id="row-shuffle", mean=0.0, q05=-0.02, q95=0.02)
            value = 1 - depth * (layer / LAYERS) ** 2
            fixed = {"aggregation": "layer", "unit": "none", "layer": layer, "arm": arm, "other": other, "null": null}
            rows.append(Measurement(metric="cka_debiased", value=value, **fixed))
            rows.append(Measurement(metric="cka", value=value + 0.01, **fixed))
    return rows


def paths(rng: np.random.Generator) -> list[dict[str, Any]]:
    alphas = [round(0.1 * i, 1) for i in range(11)]
    pairs = [("sft-s0", f"{arm}-s0", 0.0) for arm in ("rft", "dft", "offline_grpo", "dpo")]
    pairs += [("rift-s0", "dpo-s0", 0.3), ("base", "sft-s0", -0.4), ("sft-s0", "sft-s1", 0.02)]
    return [
        _path(a, b, loss, alphas, bump * scale, rng) for loss, scale in _SCALES.items() for a, b, bump in pairs
    ]  # fmt: skip


_SCALES = {"ce_bare": 1.0, "ce_cot": 0.4, "accuracy": -0.2}


def _path(a: str, b: str, loss: str, alphas: list[float], bump: float, rng: np.random.Generator) -> dict[str, Any]:
    accuracy = loss == "accuracy"
    first, last = (0.5, 0.55) if accuracy else (1.2 + rng.random(), 2.0 + rng.random())
    mean = [(1 - t) * first + t * last + 4 * bump * t * (1 - t) for t in alphas]
    width = 0.06 if accuracy else 0.15
    middle = -bump if accuracy else bump
    excess = Estimate(
        value=middle, low=middle - width / 2, high=middle + width / 2, level=0.95, method="bootstrap", n=240
    )
    top = max(middle, 0.0)
    barrier = Estimate(value=top, low=top - width / 2, high=top + width / 2, level=0.95, method="bootstrap", n=240)
    return {
        "a": a, "b": b, "loss": loss, "unit": "fraction" if accuracy else "nats/token", "alphas": alphas, "mean": mean,
        "low": [m - width for m in mean], "high": [m + width for m in mean], "excess_midpoint": _estimate(excess),
        "barrier": _estimate(barrier), "worse_than_ends": bump > 0.25, "null": b == "sft-s1",
    }  # fmt: skip


def _estimate(e: Estimate) -> dict[str, Any]:
    return {name: getattr(e, name) for name in ("value", "low", "high", "level", "method", "n", "seed", "reason")}


def training(rng: np.random.Generator) -> dict[str, list[dict[str, float]]]:
    return {run: [_step(step, ARMS[arm][4], rng) for step in range(401)] for run, arm, _ in RUNS}


def _step(step: int, length: float, rng: np.random.Generator) -> dict[str, float]:
    noise = 0.03 * rng.normal()
    return {
        "step": step, "loss": 0.4 * math.exp(-step / 90) + 0.3 + noise, "nll": 0.5 * math.exp(-step / 120) + 0.3 + noise,
        "entropy": 0.25 + 0.2 * math.exp(-step / 200), "learning_rate": 5e-4 * (1 - step / 400),
        "grad_norm": 1 + abs(noise), "update_norm": length * math.sqrt(step / 400),
    }  # fmt: skip


def rollouts() -> dict[str, Any]:
    example = {
        "problem_id": EVIL, "prompt": "A jar holds 12 beads. " + EVIL, "answer": "12",
        "responses": [{"text": "12 <b>beads</b> \\boxed{12}", "reward": 1.0, "finish": "stop"},
                      {"text": EVIL, "reward": 0.0, "finish": "length"}],
    }  # fmt: skip
    return {
        "digest": "3f9a" * 16, "source": "abacus teacher", "rows": 1600, "problems": 400, "right_share": 0.71,
        "mixed_share": 0.46, "all_right_share": 0.44, "all_wrong_share": 0.1, "truncated_share": 0.02,
        "mean_response_tokens": 58.2, "sampling": {"sampling_temperature": 1.0, "samples": 4, "max_new_tokens": 96},
        "examples": [example],
    }  # fmt: skip


def samples(tables: list[ScoreTable]) -> list[dict[str, Any]]:
    out = []
    for index, one in enumerate(tables[0].scores):
        responses = {}
        for table in tables:
            score = table.scores[index]
            text = f"There are {10 + index} beads, we add 0 and get {score.extracted}. \\boxed{{{score.extracted}}}"
            responses[table.name] = {
                "text": text,
                "extracted": score.extracted,
                "correct": score.correct,
                "finish": "stop",
            }
        out.append({"problem_id": one.problem_id, "prompt": f"Ann has {10 + index} beads and finds none. How many now?",
                    "answer": one.answer, "responses": responses})  # fmt: skip
    out[0]["prompt"] += EVIL
    out[0]["responses"]["base"]["text"] = EVIL
    out[1]["responses"]["base"]["text"] = "so " * 2000
    return out


def provenance() -> dict[str, Any]:
    return {
        "limbeck": "0.1.0", "versions": {"torch": "2.13.0", "python": "3.11.7"}, "seconds": 291.4,
        "host": {"system": "Linux", "machine": "x86_64", "cores": 2}, "command": "limbeck study run six --out runs/six",
        "started": "2026-01-02T03:04:05Z",
        "steps": [{"name": "rollouts", "seconds": 40.0}, {"name": "train sft-s0", "seconds": 41.5}],
    }  # fmt: skip


def edit(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Rewrite one JSON file of a results folder."""
    path = folder / name
    write_json(path, change(json.loads(path.read_text(encoding="utf-8"))))
