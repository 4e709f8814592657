"""One forward pass: rows in, log-probs of their response tokens out, aligned to the targets.

Only predicting positions of scored tokens reach the head; prompt and padding never meet the vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from limbeck.batches import align
from limbeck.errors import ModelError
from limbeck.heads import Head, score_tokens
from limbeck.types import TokenBatch

PROBE_TOLERANCE = 1e-3  # nats, fp32


class Scored(NamedTuple):
    """Student log-probs and entropies at (batch, time), 0 outside the mask."""

    logprobs: Float[Tensor, "batch time"]
    entropy: Float[Tensor, "batch time"]


class Student(nn.Module):
    """A causal language model that answers with token scores instead of logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch) -> Scored:
        """Log-prob and entropy of every scored token of a batch on the model's own device."""
        causal = unwrapped(self.model)
        hidden = hidden_states(self.model, batch.ids, batch.lengths)
        mask = batch.mask
        picked = align.predictors(hidden)[mask]
        flat = score_tokens(picked, head_of(causal), align.targets(batch.ids)[mask])
        empty = torch.zeros(mask.shape, dtype=flat.logprobs.dtype, device=mask.device)
        return Scored(
            logprobs=empty.masked_scatter(mask, flat.logprobs), entropy=empty.masked_scatter(mask, flat.entropy)
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The causal language model inside an adapter wrapper, adapters still in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def hidden_states(
    model: nn.Module, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"]
) -> Float[Tensor, "batch length hidden"]:
    """Final hidden states of right-padded rows."""
    return _decode(model, ids, lengths).last_hidden_state


def layer_states(
    model: nn.Module, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch length hidden"], ...]:
    """Hidden states of every layer, embeddings first."""
    return _decode(model, ids, lengths, output_hidden_states=True).hidden_states


def _decode(model: nn.Module, ids: Tensor, lengths: Tensor, **settings: bool) -> Any:
    attention = (torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]).long()
    decoder = unwrapped(model).get_decoder()  # type: ignore[operator]
    return decoder(input_ids=ids, attention_mask=attention, use_cache=False, **settings)


def head_of(causal: nn.Module) -> Head:
    """The output head with the scale and softcap that its architecture's config declares."""
    module = causal.get_output_embeddings()  # type: ignore[operator]
    if module is None or not hasattr(module, "weight"):
        raise ModelError(
            f"a causal language model with a linear output head is needed, received {type(causal).__name__}. "
            "Load it with AutoModelForCausalLM."
        )
    config = causal.config
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
    return Head(weight=module.weight, bias=getattr(module, "bias", None), scale=scale, softcap=softcap)


@torch.no_grad()
def check_head(model: nn.Module, ids: Int[Tensor, " length"]) -> None:
    """Compare the chunked head with the model's own logits on a few tokens, so that no architecture is misread.

    Raises:
        ModelError: they differ by more than rounding; the architecture does something between decoder and logits.
    """
    causal = unwrapped(model)
    ids = ids.to(next(model.parameters()).device)
    row = ids[None]
    own = causal(input_ids=row).logits[0, :-1].float().log_softmax(-1)
    hidden = hidden_states(model, row, torch.tensor([len(ids)], device=ids.device))
    ours = score_tokens(align.predictors(hidden)[0], head_of(causal), ids[1:]).logprobs
    gap = (own.gather(1, ids[1:, None])[:, 0] - ours).abs().max().item()
    if not gap <= PROBE_TOLERANCE:
        raise ModelError(
            f"log-probs from hidden states must equal the model's own within {PROBE_TOLERANCE} nats, received a gap of "
            f"{gap:.2g}. {type(causal).__name__} transforms its logits in a way that is not supported."
        )
