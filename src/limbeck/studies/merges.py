"""Updates of several runs added up: an arm that nobody trains, made of others' adapters by PEFT."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel

from limbeck.digests import known_digest
from limbeck.folders import publish
from limbeck.geometry.adapters import WEIGHTS, read_adapter
from limbeck.geometry.direction import inner_products
from limbeck.records import write_json
from limbeck.studies.chains import kept
from limbeck.train.models import load_model, model_digest

MERGED = "merged"


def combine(params: dict[str, Any], inputs: dict[str, Path], out: Path, tell: Callable[[float], None]) -> None:
    """The sum of several runs' updates, each times its weight, in the form of a run."""
    parts, base_digest = params["parts"], model_digest(params["base"])
    adapters = [kept(inputs[part["run"]], part["at"]) / "adapter" for part in parts]
    facts: dict[str, Any] = {
        "objective": "merge",
        "method": "lora",
        "steps": 0,
        "base_digest": base_digest,
        "parts": [
            {**part, "adapter_digest": known_digest(path / WEIGHTS)} for part, path in zip(parts, adapters, strict=True)
        ],
    }
    with publish(out, kind="run", facts=facts) as folder:
        add_up(params["base"], adapters, [part["weight"] for part in parts], folder / "adapter")
        write_json(folder / "adapter" / "limbeck.json", {"base_digest": base_digest})
        facts["adapter_digest"] = known_digest(folder / "adapter" / WEIGHTS)
        facts["update_norm"] = math.sqrt(inner_products([read_adapter(folder)])[0, 0])


def add_up(base: str, adapters: Sequence[Path], weights: Sequence[float], out: Path) -> None:
    """Write the adapter whose update is the sum of the adapters' updates times their weights.

    Factors are laid side by side (PEFT's ``cat``), so that the sum is that of the updates and the rank that of all together;
    a mean of factors would be another update.

    Args:
        base: what the adapters are on.
        adapters: folders of PEFT adapters.
        weights: one an adapter.
        out: the new adapter's folder.

    Raises:
        ModelError: a folder that is no adapter.
    """
    for path in adapters:
        read_adapter(path)  # refuses a pickle in the place of weights, which peft would open
    names = [f"part_{place}" for place in range(len(adapters))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is on its way out
        model = PeftModel.from_pretrained(
            load_model(base, device=torch.device("cpu")), adapters[0], adapter_name=names[0]
        )
        for name, path in zip(names[1:], adapters[1:], strict=True):
            model.load_adapter(str(path), adapter_name=name)
        model.add_weighted_adapter(names, list(weights), MERGED, combination_type="cat")  # type: ignore[operator]
    with TemporaryDirectory() as scratch:  # peft writes a folder of the adapter's name, and a card beside it
        model.save_pretrained(scratch, selected_adapters=[MERGED], save_embedding_layers=False)
        shutil.move(Path(scratch) / MERGED, out)
