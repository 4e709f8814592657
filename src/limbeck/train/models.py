"""Loading a local causal language model, putting an adapter on it, and saying which model it was.

Safetensors only, nothing downloaded, no code from the model's folder.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from limbeck.addresses import origin
from limbeck.bounds import parse_json
from limbeck.config import LoraConfig
from limbeck.digests import known_digest, sound, sound_in
from limbeck.errors import LimbeckError, ModelError
from limbeck.problems.templates import check_template
from limbeck.records import digest_of
from limbeck.worlds import resolve

LAYERS, EXPERTS = re.compile(r"layers?$"), re.compile(r"experts$")  # keys of a config that say how many there are
PLAUSIBLE = 1000  # layers times experts, below which nothing is counted


def load_model(name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> PreTrainedModel:
    """A causal language model in eval mode from a folder or a world (``abacus:base``).

    Args:
        name: of the folder, or of a world's model.
        dtype: of its weights.
        device: where it goes; by default the GPU if there is one.

    Raises:
        ModelError: no such folder, pickled weights, or weights that do not fit the config.
        ProvenanceError: a file is not what a run wrote there.
    """
    path = sound_in(model_folder(name), weights=True)
    logging.disable_progress_bar()  # limbeck shows its own
    with foreign(f"{path} must load as a transformers causal language model"):
        model, found = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
            path, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    if lost := sorted(found["missing_keys"]):
        raise ModelError(
            f"{path} must hold every weight of its config.json, received none for {len(lost)}, {lost[0]!r} among them: they "
            "would begin as random numbers. Copy the weights again, or the config that belongs to them."
        )
    model.name_or_path = model.config.name_or_path = origin(str(path))  # as peft's card beside an adapter has it
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval()  # type: ignore[arg-type]


@contextmanager
def placed(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """A model on this device for as long as it is asked, then back where it was."""
    home = next(model.parameters()).device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


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
    with foreign(f"{path} must hold a tokenizer beside the model"):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        _use(tokenizer)
    check_template(tokenizer)
    return tokenizer


def _use(tokenizer: PreTrainedTokenizerBase) -> None:
    """Whatever its settings have of another type, or name without having it, fails here and not in the middle of a verb."""
    _ = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id
    tokenizer.decode(tokenizer.encode("1"), skip_special_tokens=True)


@contextmanager
def foreign(must: str) -> Iterator[None]:
    """Whatever transformers, or the code below it, raises at files that it cannot read, in a sentence.

    Raises:
        ModelError: what must hold, and what was met.
    """
    try:
        yield
    except (LimbeckError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of tokenizers is no Exception
        told = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
        if "trust_remote_code" in told:
            told = "code of its own (auto_map), which limbeck never runs. Convert it to an architecture of transformers"
        raise ModelError(f"{must}, received {told:.400}") from error


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
    _check_counts(sound_in(path, weights=False))
    return path


def _check_counts(path: Path) -> None:
    """Refuse layers and experts for which the files have no weights, before they are made: a number costs nothing to write."""
    try:
        config = parse_json((path / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path / 'config.json'} must be readable JSON, received {error}. Copy it again.") from error
    sections = (
        [part for part in (config, *config.values()) if isinstance(part, dict)] if isinstance(config, dict) else []
    )
    named = [(key, value) for part in sections for key, value in part.items() if isinstance(value, int)]
    layers, experts = (
        max([1, *(value for key, value in named if pattern.search(key))]) for pattern in (LAYERS, EXPERTS)
    )
    if layers * experts > PLAUSIBLE and layers * experts > sum(_rows(file) for file in path.glob("*.safetensors")):
        raise ModelError(
            f"{path / 'config.json'} must describe the weights beside it, received {layers:.6g} layers of {experts:.6g} "
            "experts, more than these have rows. Copy the config that belongs to them."
        )


def _rows(file: Path) -> int:
    with foreign(f"{file} must be a safetensors file"), safe_open(file, framework="pt") as handle:
        shapes = [handle.get_slice(key).get_shape() for key in handle.keys()]  # noqa: SIM118
    return sum(shape[0] for shape in shapes if shape and math.prod(shape))


@cache
def input_digest(name: str) -> str:
    """Identity of everything that decides what a model is asked and answers: weights, tokenizer, template, stop tokens."""
    return digest_of([model_digest(name), _named(tokenizer_files(model_folder(name)))])


@cache
def tokenizer_digest(name: str) -> str:
    """Identity of what decides how text becomes ids and where an answer ends, whatever the weights."""
    return digest_of(_named(tokenizer_files(model_folder(name))))


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
    return digest_of(_named([path / "config.json", *sorted(path.glob("*.safetensors"))]))


def _named(files: Iterable[Path]) -> list[list[str]]:
    return [[file.name, known_digest(sound(file))] for file in files]


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
    path = model_folder(name)
    with foreign(f"{path / 'config.json'} must be a configuration of transformers"):
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) else None
