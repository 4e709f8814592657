"""Sampling from a causal language model in this process, with the exact log-prob of each sampled token.

Our own decoding loop rather than ``generate``: log-probs come without keeping a (steps, vocabulary) tensor,
finished rows leave the batch, and each row draws from a generator of its own, so that what is sampled for a
problem depends neither on the batch it shared nor on the order of the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from limbeck.errors import ConfigError, DataError, ModelError
from limbeck.types import Finish

CACHE_TOLERANCE = 0.01  # nats, fp32
COMPACT_BELOW = 0.75  # finished rows are dropped once this share of the batch is left; each drop copies the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How to decode. ``sampling_temperature`` 0 is greedy; top-p and top-k do not exist here: they bias ratios."""

    sampling_temperature: float = 0.0
    max_new_tokens: int = 256
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sampling_temperature < 0 or self.max_new_tokens < 1 or self.batch_size < 1:
            raise ConfigError(
                "decoding needs sampling_temperature >= 0, max_new_tokens >= 1 and batch_size >= 1, received "
                f"{self.sampling_temperature}, {self.max_new_tokens} and {self.batch_size}."
            )

    def describe(self) -> str:
        """Short text for records: two evaluations are comparable only if these agree."""
        how = "greedy" if self.sampling_temperature == 0 else f"T={self.sampling_temperature:g},seed={self.seed}"
        return f"{how},max_new_tokens={self.max_new_tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Sampled ids (the stop token included), their log-probs at the sampling temperature, and why it ended."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish


def complete(
    model: PreTrainedModel,
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
        ModelError: the model does not decode with a cache as it reads in one pass.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    for key, prompt in zip(keys, prompts, strict=True):
        if not prompt or (context and len(prompt) + decoding.max_new_tokens > context):
            raise DataError(
                f"prompt {key!r} must have 1 to {context} - max_new_tokens = {decoding.max_new_tokens} tokens, received "
                f"{len(prompt)}. Lower max_new_tokens or drop the problem."
            )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # equal lengths together: less padding
    out: dict[int, Completion] = {}
    for begin in range(0, len(order), decoding.batch_size):
        rows = order[begin : begin + decoding.batch_size]
        uniforms = torch.stack([_stream(decoding, keys[i]) for i in rows])
        done = _decode_batch(model, [prompts[i] for i in rows], uniforms, decoding, torch.tensor(sorted(stop_ids)))
        if not out:
            _check_cache(model, prompts[rows[0]], done[0], decoding)
        out.update(zip(rows, done, strict=True))
        advance(len(rows))
    return [out[i] for i in range(len(prompts))]


@torch.inference_mode()
def _decode_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Float[Tensor, "batch steps"],
    decoding: Decoding,
    stop_ids: Int[Tensor, " stops"],
) -> list[Completion]:
    device = model.device
    stop_ids, uniforms = stop_ids.to(device), uniforms.to(device)
    ids, attention = left_pad(prompts)
    ids, attention = ids.to(device), attention.to(device)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    rows = torch.arange(len(prompts), device=device)  # which prompt each live row of the cache belongs to
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    tokens = torch.zeros(len(prompts), decoding.max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(prompts), decoding.max_new_tokens, device=device)
    lengths = torch.full((len(prompts),), decoding.max_new_tokens, device=device)
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(decoding.max_new_tokens):
        output = model(
            input_ids=ids, attention_mask=attention, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        token, logprob = _draw(output.logits[:, -1].float(), decoding.sampling_temperature, uniforms[rows, step])
        tokens[rows[alive], step], logprobs[rows[alive], step] = token[alive], logprob[alive]
        ended = alive & torch.isin(token, stop_ids)
        lengths[rows[ended]], stopped[rows[ended]] = step + 1, True
        alive = alive & ~ended
        if not alive.any():
            break
        positions = positions[:, -1:] + 1
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
        ids = token[:, None]
        if alive.float().mean() < COMPACT_BELOW:
            kept = alive.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, ids, attention, positions = rows[kept], ids[kept], attention[kept], positions[kept]
            alive = alive[kept]
    return [
        Completion(
            ids=tuple(tokens[i, : lengths[i]].tolist()),
            logprobs=tuple(logprobs[i, : lengths[i]].tolist()),
            finish=Finish.STOP if stopped[i] else Finish.LENGTH,
        )
        for i in range(len(prompts))
    ]


@torch.inference_mode()
def _check_cache(model: PreTrainedModel, prompt: Sequence[int], completion: Completion, decoding: Decoding) -> None:
    """Read one completion again in one pass: a model that ignores the cache, or left padding, would not agree."""
    ids = torch.tensor([[*prompt, *completion.ids]], device=model.device)
    scaled = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / (decoding.sampling_temperature or 1.0)
    again = scaled.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
    gap = (again.cpu() - torch.tensor(completion.logprobs)).abs().max().item()
    if not gap <= CACHE_TOLERANCE:
        raise ModelError(
            f"log-probs while decoding must be those of one pass over the text within {CACHE_TOLERANCE} nats, received a gap "
            f"of {gap:.2g}. {type(model).__name__} cannot be decoded here with a key-value cache and left padding."
        )


def left_pad(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Ids padded on the left with 0 and the attention mask from lengths, never from an id.

    >>> left_pad([[5], [6, 7]])[1].tolist()
    [[0, 1], [1, 1]]
    """
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + list(r) for r in rows])
    attention = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return ids, attention


def _draw(
    logits: Float[Tensor, "batch vocab"], sampling_temperature: float, uniform: Float[Tensor, " batch"]
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Greedy or inverse-CDF choice, and its log-prob under the distribution that was sampled from."""
    scaled = logits / sampling_temperature if sampling_temperature > 0 else logits
    logprobs = scaled.log_softmax(-1)
    if sampling_temperature == 0:
        token = logits.argmax(-1)
    else:
        cumulative = logprobs.double().exp().cumsum(-1)
        token = torch.searchsorted(cumulative, uniform[:, None].double() * cumulative[:, -1:], right=True)[:, 0]
        token = token.clamp(max=logits.shape[-1] - 1)
    return token, logprobs.gather(1, token[:, None])[:, 0]


def _stream(decoding: Decoding, key: str) -> Float[Tensor, " steps"]:
    name = f"{decoding.seed}/{key}".encode("utf-8", "surrogatepass")
    seed = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1
    return torch.rand(decoding.max_new_tokens, generator=torch.Generator().manual_seed(seed))
