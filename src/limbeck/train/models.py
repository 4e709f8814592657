"""Loading a local causal language model, putting an adapter on it, and saying which model it was.

Safetensors only, nothing downloaded, no code from the model's folder.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from limbeck.config import LoraConfig
from limbeck.errors import ModelError
from limbeck.folders import digest_of, file_digest
from limbeck.worlds import resolve


def load_model(name: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model in eval mode, on the GPU if there is one, from a folder or a world (``abacus:base``).

    Raises:
        ModelError: no such folder, pickled weights, or weights that do not fit the config.
    """
    path = model_folder(name)
    logging.disable_progress_bar()  # limbeck shows its own
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{path} must load as a transformers causal language model, received: {error}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval()  # type: ignore[arg-type]


def stored_dtype(name: str) -> torch.dtype:
    """The type in which a model's weights lie on disk; fp32 where they have several. Loaded so, they are mapped, not copied."""
    found = set()
    for path in model_folder(name).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118  not a mapping
    return {("BF16",): torch.bfloat16, ("F16",): torch.float16}.get(tuple(found), torch.float32)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. A missing pad token is no obstacle: rows are padded by length, not by id."""
    path = model_folder(name)
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} must hold a tokenizer beside the model, received: {error}") from error


def model_folder(name: str) -> Path:
    """Where a model lives on this machine."""
    path = resolve(name)
    if not (path / "config.json").is_file():
        raise ModelError(
            f'a model must be a local Hugging Face folder with config.json or a world\'s model ("abacus:base"), '
            f"received {name!r}. Nothing is downloaded: fetch it first, then give its path."
        )
    if not list(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} must hold *.safetensors weights, received none. Convert pickled weights first: load them where you "
            "trust them and call save_pretrained(path)."
        )
    return path


@cache
def input_digest(name: str) -> str:
    """Identity of everything that decides what a model is asked and answers: weights, tokenizer, template, stop tokens."""
    files = tokenizer_files(model_folder(name))
    return digest_of([model_digest(name), [[f.name, file_digest(f)] for f in files]])


def tokenizer_files(folder: Path) -> list[Path]:
    """Everything beside the weights that decides how text becomes ids and where an answer ends."""
    patterns = (
        "tokenizer*",
        "chat_template*",
        "special_tokens_map.json",
        "generation_config.json",
        "vocab*",
        "merges.txt",
    )
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


@cache
def model_digest(name: str) -> str:
    """Identity of a model: its config and the bytes of its weights."""
    path = model_folder(name)
    files = [path / "config.json", *sorted(path.glob("*.safetensors"))]
    return digest_of([[f.name, file_digest(f)] for f in files])


def add_adapter(model: PreTrainedModel, config: LoraConfig, *, init_seed: int) -> PeftModel:
    """A fresh LoRA adapter whose initial factors depend on the seed alone; only it is trainable.

    Raises:
        ModelError: no module of the model has one of the target names.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())  # the head is read past any adapter on it
    matrices = [name for name, m in model.named_modules() if all(m is not end for end in ends) and _is_matrix(m)]
    linear = {name.rsplit(".", 1)[-1] for name in matrices}
    missing = [target for target in config.targets if target not in linear]
    if missing:
        raise ModelError(
            f"lora.targets must name modules of {type(model).__name__}, received {', '.join(missing)}, which it has not. "
            f"It has: {', '.join(sorted(linear))}."
        )
    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft notes fan_in_fan_out for Conv1D and sets it itself
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is on its way out
        torch.manual_seed(init_seed)
        adapted = get_peft_model(model, peft_config)
    for module in adapted.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module._cast_input_dtype = _widened  # type: ignore[assignment]
    return adapted  # type: ignore[return-value]


def _widened(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A LoRA layer's input in its factors' fp32; not under autocast, which would narrow it again: two passes for nothing."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(dtype)


def _is_matrix(module: torch.nn.Module) -> bool:
    return any(name == "weight" and p.dim() == 2 for name, p in module.named_parameters(recurse=False))


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trainable tensors by name, sorted, tied ones once."""
    return dict(sorted((name, p.detach()) for name, p in model.named_parameters() if p.requires_grad))


def unfreeze(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with every weight trainable."""
    return model.requires_grad_(True)


def initial_factors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The A factors, which decide where a fresh adapter can go; their digest is what arms must share."""
    return {name: tensor for name, tensor in trained_tensors(model).items() if "lora_A" in name}


def model_context(name: str) -> int | None:
    """The longest row, in tokens, that the model's config allows; None where it does not say."""
    config = AutoConfig.from_pretrained(model_folder(name), local_files_only=True, trust_remote_code=False)
    return getattr(config, "max_position_embeddings", None)
