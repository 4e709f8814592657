"""Sampling from a causal language model in this process, with the exact log-prob of each sampled token.

Our own decoding loop (``decode.py``) rather than ``generate``: log-probs come without keeping a (steps, vocabulary)
tensor, a prompt is read once for all of its samples, finished rows leave the batch, and each row draws from a generator
of its own, so that what is sampled for a problem depends neither on the batch it shared nor on the order of the work.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.errors import ConfigError, DataError, ModelError
from limbeck.rollouts.decode import Decoded, decode
from limbeck.rollouts.folding import folded
from limbeck.types import Finish

CACHE_TOLERANCE, NARROW_TOLERANCE = 0.01, 0.5  # nats: fp32, and bf16 or fp16; a model that forgets is off by several


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How to decode. ``sampling_temperature`` 0 is greedy; top-p and top-k do not exist here: they bias ratios."""

    sampling_temperature: float = 0.0
    max_new_tokens: int = 256
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.sampling_temperature < math.inf or self.max_new_tokens < 1 or self.batch_size < 1:
            raise ConfigError(
                "decoding needs a finite sampling_temperature >= 0, max_new_tokens >= 1 and batch_size >= 1, received "
                f"{self.sampling_temperature}, {self.max_new_tokens} and {self.batch_size}."
            )

    def describe(self) -> str:
        """Short text for records: two evaluations are comparable only if these agree."""
        how = "greedy" if self.sampling_temperature == 0 else f"T={self.sampling_temperature:g},seed={self.seed}"
        return f"{how},max_new_tokens={self.max_new_tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Sampled ids (the stop token included), their log-probs, and why it ended.

    ``logprobs`` are those of the distribution that was drawn from, logits divided by ``sampling_temperature`` (greedy: by
    1), over the whole vocabulary. An importance ratio is right with a student scored at that same temperature, and with
    no other; at temperature 1 that is the student itself.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish


def complete(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    decoding: Decoding,
    *,
    stop_ids: Sequence[int],
    advance: Callable[[int], None] = lambda num: None,
) -> list[Completion]:
    """One completion per prompt, in the order given.

    Args:
        model: any causal language model; put into eval mode by the caller.
        prompts: token ids, one list a row, never empty.
        keys: names the row's random stream, together with ``decoding.seed``; equal keys draw equal numbers.
        decoding: temperature, length limit, rows a batch, seed.
        stop_ids: ids that end a response.
        advance: called with the number of rows just finished.

    Raises:
        DataError: an empty prompt, or one that leaves no room in the model's context.
        ModelError: the model does not decode with a cache as it reads in one pass, or its logits are not finite.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    for key, prompt in zip(keys, prompts, strict=True):
        if not prompt or (context and len(prompt) + decoding.max_new_tokens > context):
            raise DataError(
                f"prompt {key!r} must have 1 to {context} - max_new_tokens = {decoding.max_new_tokens} tokens, received "
                f"{len(prompt)}. Lower max_new_tokens or drop the problem."
            )
    order = sorted(
        range(len(prompts)), key=lambda i: (len(prompts[i]), *prompts[i])
    )  # less padding; equal ones together
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long)
    out: dict[int, Completion] = {}
    for begin in range(0, len(order), decoding.batch_size):
        rows = order[begin : begin + decoding.batch_size]
        uniforms = torch.stack([_stream(decoding, keys[i]) for i in rows])
        with folded(model):
            decoded = decode(model, [tuple(prompts[i]) for i in rows], uniforms, decoding.sampling_temperature, stops)
        done = _completions(decoded)
        if not out:
            _check_cache(model, prompts[rows[0]], done[0], decoding)
        out.update(zip(rows, done, strict=True))
        advance(len(rows))
    return [out[i] for i in range(len(prompts))]


def _completions(decoded: Decoded) -> list[Completion]:
    columns = zip(*(column.tolist() for column in decoded), strict=True)
    done = [
        Completion(
            ids=tuple(tokens[:length]),
            logprobs=tuple(logprobs[:length]),
            finish=Finish.STOP if stopped else Finish.LENGTH,
        )
        for tokens, logprobs, length, stopped in columns
    ]
    broken = sum(not all(map(math.isfinite, completion.logprobs)) for completion in done)
    if broken:
        raise ModelError(
            f"logits must be finite while decoding, received NaN or infinity in {broken} of {len(done)} rows. Look at the "
            "weights: a run that diverged, or numbers too narrow for the model, leaves such."
        )
    return done


@torch.inference_mode()
def _check_cache(
    model: PreTrainedModel | PeftModel, prompt: Sequence[int], completion: Completion, decoding: Decoding
) -> None:
    """Read one completion again in one pass: a model that ignores the cache, or left padding, would not agree."""
    ids = torch.tensor([[*prompt, *completion.ids]], device=model.device)
    scaled = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / (decoding.sampling_temperature or 1.0)
    again = scaled.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
    gap = (again.cpu() - torch.tensor(completion.logprobs)).abs().max().item()
    narrow = model.dtype != torch.float32 or torch.is_autocast_enabled(model.device.type)
    allowed = NARROW_TOLERANCE if narrow else CACHE_TOLERANCE
    allowed /= min(1.0, decoding.sampling_temperature or 1.0)  # what divides logits multiplies their rounding
    if not gap <= allowed:
        raise ModelError(
            f"log-probs while decoding must be those of one pass over the text within {allowed:.2g} nats, received a gap "
            f"of {gap:.2g}. {type(model).__name__} cannot be decoded here with a key-value cache and left padding."
        )


def _stream(decoding: Decoding, key: str) -> Float[Tensor, " steps"]:
    name = f"{decoding.seed}/{key}".encode("utf-8", "surrogatepass")
    seed = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1
    return torch.rand(decoding.max_new_tokens, generator=torch.Generator().manual_seed(seed))
