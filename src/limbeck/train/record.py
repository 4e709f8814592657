"""What a run writes while it goes: ``metrics.jsonl``, append-only, one line a step, cut back on resume."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from limbeck.digests import sound
from limbeck.records import plain
from limbeck.types import Unit, Values

SUM, COUNT, SQUARE = "sum of ", "count of ", "_square"


class Means:
    """Means of the metrics of one optimizer step over all its units, whatever the micro-batches and processes."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Values, unit: Unit, mask: Tensor, extra: Mapping[str, Tensor], *, weight: int = 1) -> None:
        """Add an objective's metrics (in its unit) and further per-token ones; weight 0 adds their names alone."""
        for name, tensor in {**values.metrics, **extra}.items():
            per_token = tensor.shape == mask.shape and (unit == "token" or name in extra)
            picked = tensor[mask] if per_token else tensor
            self._sums[name] = self._sums.get(name, 0.0) + picked.double().sum().item() * weight
            self._counts[name] = self._counts.get(name, 0) + picked.numel() * weight

    def flat(self) -> dict[str, float]:
        """Sums and counts by name, for adding those of other processes."""
        return {f"{SUM}{n}": s for n, s in self._sums.items()} | {f"{COUNT}{n}": c for n, c in self._counts.items()}

    @staticmethod
    def of(flat: Mapping[str, float]) -> dict[str, float]:
        """The means that added sums and counts make; of squares, named so, the root of their mean.

        >>> Means.of({"sum of nll": 3.0, "count of nll": 2, "sum of term_square": 8.0, "count of term_square": 2})
        {'nll': 1.5, 'term_rms': 2.0}
        """
        names = [name.removeprefix(SUM) for name in flat if name.startswith(SUM)]
        means = {name: flat[f"{SUM}{name}"] / flat[f"{COUNT}{name}"] for name in names if flat[f"{COUNT}{name}"]}
        return {
            f"{n.removesuffix(SQUARE)}_rms" if n.endswith(SQUARE) else n: math.sqrt(m) if n.endswith(SQUARE) else m
            for n, m in means.items()
        }


class Log:
    """``metrics.jsonl``: written by the main process, one flushed line a step."""

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self._path, self._mine = path, accelerator.is_main_process

    def append(self, line: Mapping[str, object]) -> None:
        if self._mine:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain(line), allow_nan=False) + "\n")

    def cut_back(self, step: int) -> None:
        """Keep the lines up to and including ``step``, so that resumed steps are not told twice."""
        if self._mine:
            kept = [line for line in read_metrics(self._path) if line["step"] <= step]
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            temporary.replace(self._path)


def read_metrics(path: Path) -> list[dict]:
    """All complete lines; a torn last one (a crash while writing) is left out."""
    if not path.is_file():
        return []
    out = []
    for text in sound(path).read_text(encoding="utf-8").splitlines():
        try:
            out.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return out


def update_norm(factors: Mapping[str, Tensor], scale: float) -> float:
    """Frobenius norm of all adapter updates together, from (r x r) products in fp64.

    ``factors`` are named tensors in which every ``...lora_A...`` has its ``...lora_B...``.
    """
    shapes: dict[tuple[torch.Size, torch.Size], list[tuple[Tensor, Tensor]]] = {}
    for name, right in factors.items():
        if "lora_A" in name:
            left = factors[name.replace("lora_A", "lora_B")]
            shapes.setdefault((left.shape, right.shape), []).append((left, right))
    total = 0.0
    for pairs in shapes.values():  # those of one shape together: an accelerator is asked once
        left, right = (torch.stack(side).double() for side in zip(*pairs, strict=True))
        total += ((left.mT @ left) * (right @ right.mT)).sum().item()
    return scale * max(total, 0.0) ** 0.5
