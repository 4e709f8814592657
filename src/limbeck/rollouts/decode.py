"""The decoding of one batch: each prompt is read once however many rows share it, then one token a row and step.

What is kept small: keys and values are written into place instead of joined to a copy at every step, rows that ended
leave the batch, and a draw takes one pass over the vocabulary in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

COMPACT_BELOW = 0.75  # finished rows are dropped once this share of the batch is left; each drop copies the cache
ROOM = 64  # columns that a full cache buffer grows by
BLOCK = 128  # words of the vocabulary that a draw sums before it looks inside one block


class Decoded(NamedTuple):
    """What a batch came to; entries at and beyond a row's length mean nothing."""

    tokens: Int[Tensor, "batch steps"]
    logprobs: Float[Tensor, "batch steps"]
    lengths: Int[Tensor, " batch"]
    stopped: Bool[Tensor, " batch"]


@torch.inference_mode()
def decode(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[tuple[int, ...]],
    uniforms: Float[Tensor, "batch steps"],
    sampling_temperature: float,
    stop_ids: Int[Tensor, " stops"],
) -> Decoded:
    """Up to ``steps`` tokens for each prompt; row ``i`` draws its token ``t`` with ``uniforms[i, t]``, in [0, 1)."""
    num_rows, num_steps = uniforms.shape
    device = model.device
    stop_ids, uniforms = stop_ids.to(device), uniforms.to(device)
    rows = torch.arange(num_rows, device=device)  # which prompt each live row of the cache belongs to
    alive = torch.ones(num_rows, dtype=torch.bool, device=device)
    out = Decoded(
        tokens=torch.zeros(num_rows, num_steps, dtype=torch.long, device=device),
        logprobs=torch.zeros(num_rows, num_steps, device=device),
        lengths=torch.full((num_rows,), num_steps, device=device),
        stopped=torch.zeros(num_rows, dtype=torch.bool, device=device),
    )
    logits, cache, attention = _read(model, prompts, num_steps)
    width = attention.shape[1] - num_steps
    positions = attention[:, :width].sum(1, keepdim=True)
    for step in range(num_steps):
        token, logprob = draw(logits, sampling_temperature, uniforms[rows, step])
        out.tokens[rows[alive], step], out.logprobs[rows[alive], step] = token[alive], logprob[alive]
        ended = alive & torch.isin(token, stop_ids)
        out.lengths[rows[ended]], out.stopped[rows[ended]] = step + 1, True
        alive = alive & ~ended
        share = alive.float().mean().item()
        if share == 0 or step + 1 == num_steps:
            break
        if share < COMPACT_BELOW:
            kept = alive.nonzero()[:, 0]
            cache.reorder_cache(kept)  # type: ignore[arg-type]
            rows, token, attention, positions, alive = (x[kept] for x in (rows, token, attention, positions, alive))
        logits = model(
            input_ids=token[:, None],
            attention_mask=attention[:, : width + step + 1],
            position_ids=positions + step,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
    return out


def _read(
    model: PreTrainedModel | PeftModel, prompts: Sequence[tuple[int, ...]], num_steps: int
) -> tuple[Float[Tensor, "batch vocab"], DynamicCache, Int[Tensor, "batch columns"]]:
    """Next-token logits of each row, a cache of its prompt, and the attention mask with the columns still to come."""
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    ids, attention = (x.to(model.device) for x in left_pad(list(place)))
    cache = DynamicCache(config=model.config)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids, attention_mask=attention, position_ids=positions, past_key_values=cache, logits_to_keep=1
    ).logits[:, -1]
    rows = torch.tensor([place[prompt] for prompt in prompts], device=model.device)
    cache.layers = [Reserved(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    cache.reorder_cache(rows)  # type: ignore[arg-type]
    attention = torch.cat([attention, attention.new_ones(len(place), num_steps)], dim=1)
    return logits[rows], cache, attention[rows]


class Reserved(DynamicLayer):
    """The library's growing cache layer, in a buffer with room for the next columns: a step writes one, copies none."""

    def __init__(self, filled: DynamicLayer) -> None:
        super().__init__()
        if filled.is_initialized:
            self.lazy_initialization(filled.keys, filled.values)  # type: ignore[arg-type]
            self._hold(filled.keys, filled.values)  # type: ignore[arg-type]

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        self._buffers = tuple(x.new_empty((*x.shape[:-2], x.shape[-2] + ROOM, x.shape[-1])) for x in (keys, values))
        self._show(0, keys, values)

    def _show(self, begin: int, keys: Tensor, values: Tensor) -> None:
        """Write columns from ``begin`` on and make the part written so far what the layer holds."""
        end = begin + keys.shape[-2]
        for buffer, columns in zip(self._buffers, (keys, values), strict=True):
            buffer[..., begin:end, :] = columns
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values so far, the new columns among them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._hold(key_states, value_states)
        else:
            begin = self.get_seq_length()
            if begin + key_states.shape[-2] > self._buffers[0].shape[-2]:
                self._hold(self.keys, self.values)  # type: ignore[arg-type]
            self._show(begin, key_states, value_states)
        return self.keys, self.values  # type: ignore[return-value]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the named rows, in the order named; a row may be named more than once."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        if self.is_initialized:
            self._hold(self.keys, self.values)  # type: ignore[arg-type]


def draw(
    logits: Float[Tensor, "batch vocab"], sampling_temperature: float, uniform: Float[Tensor, " batch"]
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Greedy or inverse-CDF choice, and its log-prob under the distribution that was sampled from.

    The cumulative sum runs over blocks of words and then inside the one block that the draw falls into, in float64 over
    fp32 weights. Greedy log-probs are those at temperature 1.
    """
    scaled = logits.float()
    if sampling_temperature not in (0, 1):
        scaled = scaled / sampling_temperature
    num_rows, vocab = scaled.shape
    peak, token = scaled.max(-1, keepdim=True)
    weights = scaled.new_empty(num_rows, math.ceil(vocab / BLOCK), BLOCK)
    flat = weights.view(num_rows, -1)
    flat[:, vocab:] = 0
    torch.sub(scaled, peak, out=flat[:, :vocab]).exp_()
    blocks = weights.sum(-1).double().cumsum(-1)
    total = blocks[:, -1:]
    if sampling_temperature > 0:
        block, rest = _first_above(blocks, uniform[:, None].double() * total)
        inside = weights[torch.arange(num_rows, device=logits.device), block[:, 0]].double().cumsum(-1)
        token = (
            block * BLOCK + _first_above(inside, torch.minimum(rest, inside[:, -1:].nextafter(total.new_zeros(()))))[0]
        )
    logprob = scaled.gather(1, token) - peak - total.log()
    return token[:, 0], logprob[:, 0].float()


def _first_above(
    cumulative: Float[Tensor, "batch n"], target: Float[Tensor, "batch 1"]
) -> tuple[Int[Tensor, "batch 1"], Float[Tensor, "batch 1"]]:
    """The first entry above the target, never one that added nothing, and how far the target is beyond the one before."""
    target = torch.minimum(
        target, cumulative[:, -1:].nextafter(target.new_zeros(()))
    )  # rounding may have reached the end
    index = torch.searchsorted(cumulative, target, right=True).clamp(
        max=cumulative.shape[-1] - 1
    )  # NaN is past the end
    before = torch.where(index > 0, cumulative.gather(1, (index - 1).clamp(min=0)), 0.0)
    return index, target - before


def left_pad(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Ids padded on the left with 0 and the attention mask from lengths, never from an id.

    >>> left_pad([[5], [6, 7]])[1].tolist()
    [[0, 1], [1, 1]]
    """
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + list(r) for r in rows])
    attention = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return ids, attention
