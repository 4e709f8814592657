"""Any local PEFT LoRA folder in, a :class:`limbeck.types.Delta` out; what is not plain LoRA is refused by name.

Reads ``adapter_config.json``, ``adapter_model.safetensors`` and, where present, ``limbeck.json`` with the digests of
the base weights and of the initial factors. Nothing is unpickled, downloaded or executed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limbeck.bounds import parse_json
from limbeck.digests import sound
from limbeck.errors import ModelError
from limbeck.geometry.delta import base_identity
from limbeck.types import Delta, LowRank

CONFIG, WEIGHTS, PROVENANCE = "adapter_config.json", "adapter_model.safetensors", "limbeck.json"
_FACTOR = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?:embedding_)?(?P<which>[AB])(?:\.weight)?$")
_INITS = (True, "true", "gaussian", "orthogonal")  # those that leave the base alone and start from B @ A = 0
_REFUSED = {
    "use_dora": "DoRA rescales the rows of the whole weight, so its update is dense and needs the base",
    "use_qalora": "QA-LoRA pools its input, so its factors are not those of the weight",
    "use_bdlora": "block-diagonal LoRA stores only the blocks of its factors",
    "lora_bias": "a bias is part of the update",
    "modules_to_save": "whole modules were trained beside the factors",
    "trainable_token_indices": "embedding rows were trained beside the factors",
    "target_parameters": "stacked expert parameters are not single matrices",
    "layer_replication": "replicated layers share one base weight",
    "alora_invocation_tokens": "activated LoRA changes the weights for a part of the tokens only",
    "arrow_config": "a router mixes several adapters",
    "kasa_config": "KaSA rewrites the base",
    "monteclora_config": "MonteCLoRA samples its factors",
}


def read_adapter(folder: Path | str, *, name: str = "") -> Delta:
    """The update of one PEFT LoRA adapter as factors in fp32, scale folded into the left one.

    scale = alpha / rank, or alpha / sqrt(rank) with ``use_rslora``; ``rank_pattern`` and ``alpha_pattern`` are
    honoured with PEFT's own matching, the rank is that of the tensor and must be the configured one. PEFT keeps
    A as (rank, in) and B as (out, rank) also where the base weight is stored transposed (``fan_in_fan_out``), so
    ``left @ right`` is (out, in) for every module.

    Args:
        folder: an adapter folder, or a run folder that has one under ``adapter/``.
        name: the arm's name; the folder's name when empty.

    Raises:
        ModelError: the folder is no adapter, a variant whose update is not its two factors, or damaged.
    """
    root = Path(folder)
    if not (root / CONFIG).is_file() and (root / "adapter" / CONFIG).is_file():
        root = root / "adapter"
    config = _read_config(root)
    _refuse_variants(root, config)
    provenance = _read_json(root / PROVENANCE) if (root / PROVENANCE).is_file() else {}
    named = name or (root.resolve().parent.name if root.name == "adapter" else root.resolve().name)
    base = base_identity(str(config.get("base_model_name_or_path") or ""), _text(provenance, "base_digest"))
    return Delta(name=named, base=base, init_digest=_text(provenance, "init_digest"), modules=_modules(root, config))


def _read_config(root: Path) -> dict[str, object]:
    if not (root / CONFIG).is_file():
        raise ModelError(
            f"an adapter folder must hold {CONFIG}, received {root} without one. Point at what PEFT's save_pretrained "
            "wrote, or at a run folder with adapter/ in it."
        )
    config = _read_json(root / CONFIG)
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{root}: peft_type must be LORA, received {config.get('peft_type')!r}. Only LoRA updates are products of "
            "two factors; merge the adapter into its base and measure the checkpoint instead."
        )
    return config


def _read_json(path: Path) -> dict[str, object]:
    sound(path)
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} must be readable JSON, received {error}. Save the adapter again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object, received {type(content).__name__}. Save the adapter again.")
    return content


def _text(provenance: Mapping[str, object], key: str) -> str:
    value = provenance.get(key) or ""
    if not isinstance(value, str):
        raise ModelError(f"{PROVENANCE}: {key} must be a string, received {type(value).__name__}. Remove the key.")
    return value


def _refuse_variants(root: Path, config: Mapping[str, object]) -> None:
    way_out = "Merge it into its base in fp32 and measure the checkpoint instead."
    for key, why in _REFUSED.items():
        if config.get(key):
            raise ModelError(
                f"{root}: unsupported_adapter: {key} must be off, received {config[key]!r}: {why}. {way_out}"
            )
    if config.get("bias", "none") != "none":
        raise ModelError(
            f"{root}: unsupported_adapter: bias must be 'none', received {config['bias']!r}: biases are part of the "
            f"update and no matrix. {way_out}"
        )
    init = config.get("init_lora_weights", True)
    if init not in _INITS:
        raise ModelError(
            f"{root}: unsupported_adapter: init_lora_weights must be one of true, gaussian, orthogonal, received "
            f"{init!r}: only those leave the base as it was and start from an update of exactly zero. Convert with "
            "save_pretrained(path_initial_model_for_weight_conversion=...), or merge it and measure the checkpoint."
        )


def _modules(root: Path, config: Mapping[str, object]) -> dict[str, LowRank]:
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _read_tensors(root).items():
        found = _FACTOR.match(key)
        if found is None:
            raise ModelError(
                f"{root}: unsupported_adapter: every tensor must be a lora_A or lora_B factor, received {key!r}. "
                "Merge the adapter into its base in fp32 and measure the checkpoint instead."
            )
        pairs.setdefault(found["module"], {})[found["which"]] = tensor
    if not pairs:
        raise ModelError(f"{root}: an adapter must hold at least one pair of factors, received an empty file.")
    return {module: _fold(root, module, pairs[module], config) for module in sorted(pairs)}


def _read_tensors(root: Path) -> dict[str, Tensor]:
    path = root / WEIGHTS
    if not path.is_file():
        pickled = root / "adapter_model.bin"
        received = "adapter_model.bin, which is a pickle and is never opened" if pickled.exists() else "none"
        raise ModelError(
            f"{root} must hold {WEIGHTS}, received {received}. Load it with PEFT on a machine you trust and write it "
            "again with save_pretrained(..., safe_serialization=True)."
        )
    sound(path)
    try:
        with safe_open(path, framework="pt") as handle:
            return {key: _checked(path, key, handle.get_tensor(key)) for key in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} must be a complete safetensors file, received {error}. Copy it again.") from error


def _checked(path: Path, key: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ModelError(
            f"{path}: factors must be floating point of 16 bits or more, received {tensor.dtype} for {key!r}. "
            "Dequantise the adapter and save it again."
        )
    factor = tensor.to(torch.float32, copy=True)  # a copy: the file's mapping must not outlive this call
    if not torch.isfinite(factor).all():
        bad = int((~torch.isfinite(factor)).sum())
        raise ModelError(
            f"{path}: weights must be finite, received {bad} NaN or infinite entries in {key!r}. The run diverged: "
            "measure an earlier checkpoint."
        )
    return factor


def _fold(root: Path, module: str, pair: Mapping[str, Tensor], config: Mapping[str, object]) -> LowRank:
    where = f"{root}: module {module!r}"
    if set(pair) != {"A", "B"}:
        raise ModelError(
            f"{where} must have both lora_A and lora_B, received lora_{min(pair)} only. Copy the file again."
        )
    right, left = pair["A"], pair["B"]
    if right.ndim != 2 or left.ndim != 2 or right.shape[0] != left.shape[1] or right.numel() * left.numel() == 0:
        raise ModelError(
            f"{where}: lora_A must be (rank, in) and lora_B (out, rank) with rank >= 1, received "
            f"{tuple(right.shape)} and {tuple(left.shape)}. Convolutions and damaged files cannot be measured."
        )
    scale = _scale(where, module, right.shape[0], config)
    scaled = (left.double() * scale).float()
    if not torch.isfinite(scaled).all():
        raise ModelError(
            f"{where}: the scaled update must be finite, received lora_B times {scale:g}, beyond 32 bits. The run diverged, "
            f"or {CONFIG} is not its own: measure an earlier checkpoint."
        )
    return LowRank(scaled, right)


def _scale(where: str, module: str, rank: int, config: Mapping[str, object]) -> float:
    configured = _number(where, "r", _by_pattern(where, module, config, "rank_pattern", config.get("r", 8)))
    if configured != rank:
        raise ModelError(
            f"{where}: the factors' rank must be the configured one = {configured:g}, received {rank}. "
            f"{CONFIG} and {WEIGHTS} come from different runs."
        )
    alpha = _number(
        where, "lora_alpha", _by_pattern(where, module, config, "alpha_pattern", config.get("lora_alpha", 8))
    )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(where: str, module: str, config: Mapping[str, object], key: str, default: object) -> object:
    """PEFT's rule: the first pattern that matches the end of the module's name, at a dot."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise ModelError(
            f"{where}: {key} must be an object, received {type(patterns).__name__}. Save the adapter again."
        )
    name = pa.scalar(module)
    try:
        return next((v for p, v in patterns.items() if _ends(name, str(p))), default)
    except (pa.ArrowInvalid, UnicodeEncodeError) as error:
        raise ModelError(f"{where}: {key} must hold regular expressions, received one with {error}.") from error


def _ends(module: pa.Scalar, pattern: str) -> bool:
    """In RE2, whose time is linear in the name: a stranger's expression may be made to take for ever."""
    options = pc.MatchSubstringOptions(rf"^(?:.*\.)?(?:{pattern})$")
    return pc.call_function("match_substring_regex", [module], options).as_py()


def _number(where: str, key: str, value: object) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(number := float(value)):
            return number
    except OverflowError:  # an integer of hundreds of digits
        pass
    raise ModelError(f"{where}: {key} must be a finite number, received {value!r:.40}. Save the adapter again.")
