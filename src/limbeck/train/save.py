"""What a run leaves: the fp32 result, as an adapter or as a whole model, and beside it what bf16 storage would show."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from limbeck.addresses import origin
from limbeck.config import LoraConfig
from limbeck.geometry.adapters import read_adapter
from limbeck.records import write_json
from limbeck.train.models import load_model, model_folder, stored_dtype, tokenizer_files

VISIBLE = "visible.safetensors"


class Visible(NamedTuple):
    """The update as bf16 storage shows it, ``bf16(tuned) - bf16(base)``, over the entries of the trained matrices."""

    share: float  # of entries whose bf16 value changed
    norm: float  # Frobenius


def save_adapter(
    model: PeftModel, weights: Mapping[str, Tensor], folder: Path, base: str, lora: LoraConfig, identity: dict[str, str]
) -> None:
    """The trained factors in PEFT's format, with the digests of base and initial factors beside them."""
    for peft_config in model.peft_config.values():
        peft_config.base_model_name_or_path = origin(base)
        # peft keeps a set, which is written in another order by every process
        peft_config.target_modules = sorted(lora.targets)  # type: ignore[attr-defined]
    shutil.rmtree(folder, ignore_errors=True)  # peft adds to a card that it finds, be it half written
    # an adapter on projections touches no embedding
    model.save_pretrained(str(folder), state_dict=dict(weights), save_embedding_layers=False)
    write_json(folder / "limbeck.json", identity)


def save_model(
    model: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path, base: str, identity: dict[str, str]
) -> None:
    """A complete Hugging Face folder in fp32, tokenizer and template of the base included."""
    model.save_pretrained(folder, state_dict=dict(weights))
    for file in tokenizer_files(model_folder(base)):
        shutil.copyfile(file, folder / file.name)
    write_json(folder / "limbeck.json", identity)


def save_visible(base: str, out: Path) -> Visible:
    """Write the trained matrices as bf16 would store them, and say how much of the update that shows.

    The base is read again, so that nothing depends on what the processes hold.
    """
    kept: dict[str, Tensor] = {}
    changed = entries = 0
    square = torch.zeros((), dtype=torch.float64)
    for name, before, after in _pairs(base, out):
        kept[name] = after.bfloat16().contiguous()
        step = kept[name].float() - before.bfloat16().float()
        changed, entries = changed + int(step.count_nonzero()), entries + step.numel()
        square += step.double().square().sum()
    save_file(kept, out / VISIBLE)
    return Visible(changed / entries, float(square.sqrt()))


def _pairs(base: str, out: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, base weight and tuned weight of every trained tensor, fp32, on the CPU; the base is widened one at a time."""
    cpu = torch.device("cpu")  # what was trained may still fill the GPU
    model = load_model(base, dtype=stored_dtype(base), device=cpu)
    if (out / "adapter").is_dir():
        for name, factors in read_adapter(out / "adapter").modules.items():
            module = model.get_submodule(name)
            weight = module.get_parameter("weight").detach().float()
            update = factors.left @ factors.right
            yield f"{name}.weight", weight, weight + (update.T if isinstance(module, Conv1D) else update)
        return
    tuned = dict(load_model(str(out / "model"), device=cpu).named_parameters())
    for name, weight in model.named_parameters():
        yield name, weight.detach().float(), tuned[name].detach()
