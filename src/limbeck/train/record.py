"""What a run writes while it goes: ``metrics.jsonl``, append-only, one line a step, cut back on resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from limbeck.folders import plain
from limbeck.types import Unit, Values


class Means:
    """Means of the metrics of one optimizer step over all its units, whatever the micro-batches."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Values, unit: Unit, mask: Tensor, extra: Mapping[str, Tensor]) -> None:
        """Add an objective's metrics (in its unit) and further per-token ones."""
        for name, tensor in {**values.metrics, **extra}.items():
            per_token = tensor.shape == mask.shape and (unit == "token" or name in extra)
            picked = tensor[mask] if per_token else tensor
            self._sums[name] = self._sums.get(name, 0.0) + picked.double().sum().item()
            self._counts[name] = self._counts.get(name, 0) + picked.numel()

    def result(self) -> dict[str, float]:
        return {name: total / self._counts[name] for name, total in self._sums.items() if self._counts[name]}


def append(path: Path, line: Mapping[str, object]) -> None:
    """One JSON line, flushed."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain(line), allow_nan=False) + "\n")


def read_metrics(path: Path) -> list[dict]:
    """All complete lines; a torn last one (a crash while writing) is left out."""
    if not path.is_file():
        return []
    out = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            out.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return out


def cut_back(path: Path, step: int) -> None:
    """Keep the lines up to and including ``step``, so that resumed steps are not told twice."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def update_norm(factors: Mapping[str, Tensor], scale: float) -> float:
    """Frobenius norm of all adapter updates together, from (r x r) products in fp64.

    ``factors`` are named tensors in which every ``...lora_A...`` has its ``...lora_B...``.
    """
    total = torch.zeros((), dtype=torch.float64)
    for name, right in factors.items():
        if "lora_A" not in name:
            continue
        left = factors[name.replace("lora_A", "lora_B")].double()
        right = right.double()
        total = total.to(left.device) + ((left.T @ left) * (right @ right.T)).sum()
    return scale * max(total.item(), 0.0) ** 0.5
