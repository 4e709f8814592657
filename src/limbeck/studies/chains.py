"""The steps by which arms stand on arms: a result merged into a model, a signal read out of scores, a KL accounted for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from limbeck.batches.score import read_scores
from limbeck.batches.signal import SignalConfig, Teacher, make_signal, write_signal
from limbeck.config import parse
from limbeck.errors import DegenerateError
from limbeck.evals.checkpoints import Location, locate, opened
from limbeck.evals.kl import TokenDivergence, account, token_divergences
from limbeck.evals.tables import read_table
from limbeck.folders import publish
from limbeck.geometry.adapters import read_adapter
from limbeck.objectives.estimators import k3
from limbeck.records import write_json
from limbeck.rollouts.sample import Decoding
from limbeck.rollouts.store import read_rollouts
from limbeck.stats.intervals import ratio_of_items
from limbeck.studies.inputs import read_problems
from limbeck.studies.sampling import sample_rollouts
from limbeck.train.models import load_model, load_tokenizer, model_digest
from limbeck.train.save import save_model
from limbeck.types import Rollout, is_right

Params = dict[str, Any]
Inputs = dict[str, Path]
Tell = Callable[[float], None]


def under(params: Params, inputs: Inputs) -> str:
    """What a run was trained on: a model that a step made, or the one that the study names."""
    return str(inputs["base"]) if "base" in inputs else params["base"]


def result(params: Params, inputs: Inputs) -> Location:
    """Where a run's result lies, or that of a step which it kept, or the base itself where no run is read."""
    if "run" not in inputs:
        return locate(under(params, inputs))
    return locate(kept(inputs["run"], params.get("at")), under(params, inputs))


def kept(run: Path, step: int | None) -> Path:
    """Where a run left its result, or what it had after a step that it keeps."""
    return run if step is None else run / "kept" / f"step-{step:06d}"


def merge(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """A result as one model folder in fp32, for what starts from it, samples from it or is taught by it."""
    where = result(params, inputs)
    model = load_model(where.weights).cpu()
    with torch.no_grad():
        for name, factors in (read_adapter(where.adapter).modules if where.adapter else {}).items():
            module = model.get_submodule(name)
            update = factors.left @ factors.right
            module.get_parameter("weight").add_(update.T if isinstance(module, Conv1D) else update)
    with publish(out, kind="model") as folder:
        save_model(model, model.state_dict(), folder, under(params, inputs), {"merged_from": params["base_digest"]})


def read_signal(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """The token signal out of stored scores, and the checks of an unlearned contrast."""
    if "twin_table" in inputs:
        _require_worse(inputs["twin_table"], inputs["start_table"])
    rollout_set = read_rollouts(inputs["rollouts"])
    reference = read_scores(inputs["reference"], rollout_set)
    names = [role.removeprefix("contrast:") for role in inputs if role.startswith("contrast:")]
    teachers = []
    for given in params["teachers"]:
        order = sorted(names, key=lambda name, first=given["contrast"]: name != first)  # the matching step leads
        contrasts = {name: read_scores(inputs[f"contrast:{name}"], rollout_set) for name in order}
        scores = read_scores(inputs[f"teacher:{given['name']}"], rollout_set)
        teachers.append(Teacher(given["name"], scores, contrasts or {"base": reference}))
    config = parse(SignalConfig, {k: v for k, v in params.items() if k in SignalConfig.model_fields}, where="signal")
    write_signal(out, rollout_set, make_signal(rollout_set, teachers, reference, config))


def _require_worse(twin: Path, start: Path) -> None:
    unlearned, before = (float(read_table(path).correct.double().mean()) for path in (twin, start))
    if not unlearned < before:
        raise DegenerateError(
            f"an unlearned contrast must answer fewer problems than what it started from, received {unlearned:.1%} and "
            f"{before:.1%} right. Train it for longer or faster, or set signal.require_worse = false to go on as it is."
        )


def account_kl(params: Params, inputs: Inputs, out: Path, tell: Tell) -> None:
    """How far a result is from the untouched student, both directions, on held-out problems; entropy; drift on its data."""
    base, tokenizer = load_model(params["base"]), load_tokenizer(params["base"])
    problems = [problem for problem, _ in read_problems(params["problems"])]
    names = ("max_new_tokens", "batch_size", "seed")
    decoding = Decoding(sampling_temperature=1.0, **{name: params[name] for name in names})
    facts = {
        "sampling_temperature": 1.0,
        "max_new_tokens": params["max_new_tokens"],
        "dtype": "fp32",
        "reference_digest": model_digest(params["base"]),
    }
    with opened(result(params, inputs)) as checkpoint:
        facts |= {
            "model_digest": checkpoint.identity.model_digest,
            "adapter_digest": checkpoint.identity.adapter_digest,
        }
        written = sample_rollouts(
            checkpoint.model, tokenizer, problems, decoding, samples=params["samples"], source={}
        ).rollouts
        tell(0.6)
        own = token_divergences(checkpoint.model, base, written)
        tell(0.75)
        others = read_rollouts(inputs["base_rollouts"]).rollouts
        back = token_divergences(base, checkpoint.model, others)
        trained = read_rollouts(inputs["rollouts"]).rollouts[: params["drift_rollouts"]] if "rollouts" in inputs else ()
        moved = token_divergences(checkpoint.model, base, trained) if trained else []
    records = account(own, written, direction="student_reference", facts=facts)
    records += account(back, others, direction="reference_student", facts=facts)
    found = {"records": records, "entropy": _entropy(own, written), "drift": _drift(moved, trained)}
    with publish(out, kind="kl") as folder:
        write_json(folder / "kl.json", found)


def _entropy(divergences: Sequence[TokenDivergence], rollouts: Sequence[Rollout]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for divergence, rollout in zip(divergences, rollouts, strict=True):
        total = sums.setdefault(rollout.problem_id, [0.0, 0.0])
        total[0] += float(divergence.entropy.sum())
        total[1] += len(divergence.entropy)
    found = ratio_of_items([s for s, _ in sums.values()], [n for _, n in sums.values()], seed=0)
    return {"value": found.value, "low": found.low, "high": found.high}


def _drift(divergences: Sequence[TokenDivergence], rollouts: Sequence[Rollout]) -> dict[str, float | int | None]:
    """On the rollouts that were trained on, D the result's minus the student's log-prob: the mean of exp(D) - D - 1 per
    token, and how far whole trajectories moved, right ones and wrong ones apart, nats per sequence.
    """
    if not rollouts:
        return {}
    ratios = torch.cat([d.log_ratio for d in divergences])
    sums: dict[bool, list[Tensor]] = {True: [], False: []}
    for divergence, rollout in zip(divergences, rollouts, strict=True):
        sums[is_right(rollout.reward)].append(divergence.log_ratio.sum())
    means = {right: float(torch.stack(rows).mean()) if rows else math.nan for right, rows in sums.items()}
    per_token = float(k3(torch.zeros_like(ratios), ratios).mean())
    return {"rollouts": len(rollouts), "token_k3": per_token, "right": means[True], "wrong": means[False]}
