"""One way to open whatever holds a trained model: a model folder, a run of either kind, an adapter on its base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck.digests import known_digest, sound, sound_in
from limbeck.errors import ModelError
from limbeck.evals.apply import applied, check_base
from limbeck.evals.evaluate import Identity
from limbeck.geometry.adapters import CONFIG, WEIGHTS, read_adapter
from limbeck.problems.templates import check_template
from limbeck.records import digest_of, read_json
from limbeck.train.models import foreign, load_model, load_tokenizer, model_digest
from limbeck.worlds import resolve


class Checkpoint(NamedTuple):
    """A model to ask: in eval mode, with the tokenizer that goes with it and what it is by digest."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: Identity


class Location(NamedTuple):
    """Where the parts of a checkpoint lie: the weights, the adapter on them, and whose tokenizer applies."""

    weights: str
    adapter: Path | None
    tokenizer: str

    @property
    def identity(self) -> Identity:
        """By digest; reads files, loads nothing."""
        adapter = known_digest(sound(self.adapter / WEIGHTS)) if self.adapter else "none"
        return Identity(model_digest(self.weights), adapter)


def locate(checkpoint: str | Path, base: str = "") -> Location:
    """Find the parts of a checkpoint.

    Args:
        checkpoint: a model folder, a world's model (``abacus:base``), a run folder with ``adapter/`` or ``model/``, or a
            PEFT adapter.
        base: what an adapter goes on; by default what the run, or the adapter, says itself.

    Raises:
        ModelError: there is none of these, or an adapter whose base is not said.
        ProvenanceError: a run or adapter of another base than ``base``.
    """
    folder = resolve(str(checkpoint))
    if (folder / "config.json").is_file() and not _is_run(folder):
        return Location(str(checkpoint), None, str(checkpoint))
    if (folder / "model" / "config.json").is_file():
        weights = str(folder / "model")
        if base:
            check_base(folder, model_digest(base))
        own = any((folder / "model").glob("tokenizer*"))
        return Location(weights, None, weights if own else base or _stated_base(folder))
    adapter = folder / "adapter" if (folder / "adapter" / CONFIG).is_file() else folder
    if not (adapter / CONFIG).is_file():
        raise ModelError(
            f"a checkpoint must be a model folder, a run folder, a PEFT adapter or a world's model such as abacus:base, "
            f"received {checkpoint}. Nothing is downloaded: fetch it first, then give its path."
        )
    under = base or _stated_base(folder) or str(read_json(adapter / CONFIG).get("base_model_name_or_path") or "")
    if not under:
        raise ModelError(f"{checkpoint} is an adapter that does not say what it was trained on. Pass its base.")
    check_base(adapter, model_digest(under))
    return Location(under, adapter, under)


@contextmanager
def opened(where: Location) -> Iterator[Checkpoint]:
    """The model of a checkpoint, an adapter's update added while the context is open.

    Raises:
        ModelError: weights, tokenizer or adapter that cannot be read, or that do not fit each other.
    """
    delta = read_adapter(where.adapter) if where.adapter else None
    identity = where.identity
    with applied(load_model(where.weights), delta) as model:
        yield Checkpoint(model, load_tokenizer(where.tokenizer), identity)


def scorer_digest(identity: Identity) -> str:
    """Which policy gave scores: the model's own digest, or one of model and adapter together."""
    return identity.model_digest if identity.adapter_digest == "none" else digest_of(list(identity))


def read_tokenizer(name: str) -> tuple[PreTrainedTokenizerBase, GenerationConfig | None]:
    """A tokenizer, and the stop tokens beside it, from a folder that need not hold the model's weights.

    Raises:
        ModelError: no tokenizer there.
    """
    path = resolve(name)
    if not path.is_dir():
        raise ModelError(
            f"--tokenizer must be a folder with a tokenizer, received {name!r}, which is none. Nothing is downloaded: fetch "
            "the tokenizer's files first, then give their folder."
        )
    with foreign(f"--tokenizer must be a folder with a tokenizer; {name}"):
        tokenizer = AutoTokenizer.from_pretrained(
            sound_in(path, weights=False), local_files_only=True, trust_remote_code=False
        )
        generation = GenerationConfig.from_pretrained(path) if (path / "generation_config.json").is_file() else None
    check_template(tokenizer)
    return tokenizer, generation


def _is_run(folder: Path) -> bool:
    """A run's ``config.json`` names its base; a model's does not."""
    config = read_json(folder / "config.json")
    return isinstance(config, dict) and "base" in config and "train" in config


def _stated_base(folder: Path) -> str:
    path = folder / "config.json"
    return str(read_json(path).get("base", "")) if path.is_file() and _is_run(folder) else ""
